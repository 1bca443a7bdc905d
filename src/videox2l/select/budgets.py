"""Budgets: how many chunks are re-loaded, and which ones in any case or in no case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from videox2l.errors import SettingsError
from videox2l.memory import Memory, Plan, kept_tokens

Range = tuple[float, float]


@dataclass(frozen=True)
class TopK:
    """Re-loads the `k` chunks with the highest scores at L; all others stay at H.

    Chunks that overlap a `pinned` time range (seconds) are re-loaded besides them; chunks that overlap an
    `excluded` one never are, unless pinned. Chunks that hold as many tokens at H as at L (the ends of a video under
    Video-XL) take none of the `k` places.
    """

    k: int
    pinned: Sequence[Range] = ()
    excluded: Sequence[Range] = ()

    def __post_init__(self) -> None:
        if self.k < 0:
            raise SettingsError(f"reload={self.k} is not possible: use 0 or more chunks")

    @property
    def needs_scores(self) -> bool:
        """Whether scores matter at all."""
        return self.k > 0

    def plan(self, scores: Tensor | None, memory: Memory) -> Plan:
        """Return the plan; ties go to the earlier chunk."""
        pinned = _overlapping(self.pinned, memory)
        excluded = _overlapping(self.excluded, memory) - pinned
        reasons = ["pinned" if i in pinned else "" for i in range(len(memory))]
        if scores is not None and self.k:
            order = scores.argsort(descending=True, stable=True).tolist()
            taken = pinned | excluded | _whole_at_h(memory)
            free = [i for i in order if i not in taken]
            for rank, i in enumerate(free[: self.k], 1):
                reasons[i] = f"score rank {rank}"
        ratios = [memory.finest if reason else memory.coarsest for reason in reasons]
        return Plan(tuple(ratios), _scores(scores, memory), tuple(reasons))


@dataclass(frozen=True)
class EverythingAt:
    """Gives every chunk one level: `"L"` (everything re-loaded) or `"H"` (nothing)."""

    level: str
    needs_scores: bool = False

    def __post_init__(self) -> None:
        if self.level not in ("L", "H"):
            raise SettingsError(f"level '{self.level}' is not known: use L or H")

    def plan(self, scores: Tensor | None, memory: Memory) -> Plan:
        """Return the plan."""
        n = len(memory)
        ratio, reason = (memory.finest, "all") if self.level == "L" else (memory.coarsest, "")
        return Plan((ratio,) * n, _scores(scores, memory), (reason,) * n)


def _overlapping(ranges: Sequence[Range], memory: Memory) -> set[int]:
    return {i for start, end in ranges for i in memory.chunks_within(start, end)}


def _whole_at_h(memory: Memory) -> set[int]:
    """Return the chunks to which L adds nothing, as they are already kept at its ratio."""
    if memory.finest == memory.coarsest:
        return set()
    held = [chunk.levels.get(memory.coarsest, ()) for chunk in memory.chunks]
    return {
        i
        for i, (chunk, coarse) in enumerate(zip(memory.chunks, held, strict=True))
        if len(coarse) >= kept_tokens(chunk.tokens, memory.finest)
    }


def _scores(scores: Tensor | None, memory: Memory) -> tuple[float | None, ...]:
    return (None,) * len(memory) if scores is None else tuple(float(s) for s in scores)
