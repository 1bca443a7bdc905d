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


@dataclass(frozen=True)
class TokenBudget:
    """Splits a number of tokens among the chunks by their scores.

    Every chunk has at least its H; what is left of `tokens` (the prefix not counted) goes to the chunks in proportion
    to their scores, up to L. Ranked levels can be read at any size in between; others are rounded down to one that is
    stored. Chunks that overlap an `excluded` time range stay at H, those that overlap a `pinned` one get L first.
    """

    tokens: int
    pinned: Sequence[Range] = ()
    excluded: Sequence[Range] = ()
    needs_scores: bool = True

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise SettingsError(f"a budget of {self.tokens} tokens is not possible: use 1 or more")

    def plan(self, scores: Tensor | None, memory: Memory) -> Plan:
        """Return the plan. A budget below all chunks at H leaves them at H."""
        pinned = _overlapping(self.pinned, memory)
        excluded = _overlapping(self.excluded, memory) - pinned
        if not memory.has(memory.finest):
            raise SettingsError("a token budget needs stored L-KVs: ingest with l_tier='stored', or re-load by number")
        low = [chunk.size(memory.coarsest) for chunk in memory.chunks]
        high = [low[i] if i in excluded else chunk.size(memory.finest) for i, chunk in enumerate(memory.chunks)]
        shares = [1.0] * len(memory) if scores is None else [max(float(score), 0.0) for score in scores]
        base = [high[i] if i in pinned else low[i] for i in range(len(memory))]
        sizes = _fill(base, high, shares, self.tokens)
        found = [_ratio(memory, i, size) for i, size in enumerate(sizes)]
        reasons = ["share of the score" if ratio < memory.coarsest else "" for ratio in found]
        for i in pinned:
            reasons[i] = "pinned"
        return Plan(tuple(found), _scores(scores, memory), tuple(reasons))


def _fill(base: Sequence[int], high: Sequence[int], shares: Sequence[float], tokens: int) -> list[int]:
    """Raise `base` towards `high` in proportion to `shares`, until the sum is `tokens` or all are full."""
    sizes = [float(size) for size in base]
    left = tokens - sum(sizes)
    open_ = [i for i in range(len(sizes)) if sizes[i] < high[i] and shares[i] > 0]
    while left > 1e-9 and open_:
        total = sum(shares[i] for i in open_)
        given = {i: min(high[i] - sizes[i], left * shares[i] / total) for i in open_}
        for i, extra in given.items():
            sizes[i] += extra
        left -= sum(given.values())
        open_ = [i for i in open_ if sizes[i] < high[i] - 1e-9]
    return [int(size + 1e-6) for size in sizes]


def _ratio(memory: Memory, i: int, size: int) -> float:
    """Return the ratio at which chunk i has `size` tokens, or the nearest one below that can be read."""
    chunk = memory.chunks[i]
    stored = {chunk.size(ratio): ratio for ratio in sorted(memory.ratios) if ratio in chunk.levels}
    if size in stored:
        return stored[size]
    if chunk.levels.ranked and size > chunk.size(memory.coarsest):
        return chunk.tokens / (size + 1e-6)
    return stored[max(n for n in stored if n <= max(size, min(stored)))]


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
