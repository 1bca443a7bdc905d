"""Budgets by number: chunks, bytes, shares of the score."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from videox2l.errors import SettingsError
from videox2l.memory import Memory, Plan
from videox2l.select.choice import Choice, Wishes, scores_of


@dataclass(frozen=True)
class TopK(Wishes):
    """Re-loads the `k` chunks with the highest scores at L; all others stay at H.

    Pinned chunks, the ends and neighbours come besides them (see `Wishes`). Chunks that hold as many tokens at H as at
    L (the ends of a video under Video-XL) take none of the `k` places.
    """

    k: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 0:
            raise SettingsError(f"reload={self.k} is not possible: use 0 or more chunks")

    @property
    def needs_scores(self) -> bool:
        """Whether scores matter at all."""
        return self.k > 0

    def plan(self, scores: Tensor | None, memory: Memory) -> Plan:
        """Return the plan; ties go to the earlier chunk."""
        choice = Choice(self, memory, scores)
        for i, _ in zip(choice.candidates(), range(self.k), strict=False):
            choice.take(i)
        return choice.plan()


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
        return Plan((ratio,) * n, scores_of(scores, memory), (reason,) * n)


@dataclass(frozen=True)
class ByteBudget(Wishes):
    """Re-loads the best chunks while their KVs take no more than `bytes` on the device (`Answer.cost.reloaded_bytes`).

    Pinned chunks and the ends are re-loaded in any case, and count. A chunk is taken with its neighbours or not at all;
    the first one that does not fit ends it.
    """

    bytes: int
    needs_scores: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bytes < 1:
            raise SettingsError(f"a budget of {self.bytes} bytes is not possible: use 1 or more")

    def plan(self, scores: Tensor | None, memory: Memory) -> Plan:
        """Return the plan."""
        choice = Choice(self, memory, scores)

        def size(i: int) -> int:
            return memory.chunks[i].size(memory.finest) * memory.shape.token_bytes

        left = self.bytes - sum(size(i) for i, reason in enumerate(choice.reasons) if reason)
        for i in choice.candidates():
            left -= sum(size(j) for j in choice.group(i))
            if left < 0:
                break
            choice.take(i)
        return choice.plan()


@dataclass(frozen=True)
class MassBudget(Wishes):
    """Re-loads the best chunks until they hold `share` of the sum of all scores, but at most `most` chunks.

    So many chunks are re-loaded as the scores say: few when they are sure, more when they are not. Meant for selectors
    whose scores are shares (`keys`, `attention`, `embedding`); negative scores count as 0.
    """

    share: float
    most: int = 16
    needs_scores: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise SettingsError(f"a share of {self.share:g} is not possible: use a number above 0, up to 1")
        if self.most < 1:
            raise SettingsError(f"max:{self.most} is not possible: use 1 or more chunks")

    def plan(self, scores: Tensor | None, memory: Memory) -> Plan:
        """Return the plan. Nothing is re-loaded where no score is above 0."""
        choice = Choice(self, memory, scores)
        shares = [max(value, 0.0) for value in choice.values]
        wanted = self.share * sum(shares)
        held = sum(shares[i] for i, reason in enumerate(choice.reasons) if reason and shares)
        for i, _ in zip(choice.candidates(), range(self.most), strict=False):
            if held >= wanted or not shares[i]:
                break
            held += sum(shares[j] for j in choice.group(i))
            choice.take(i)
        return choice.plan()
