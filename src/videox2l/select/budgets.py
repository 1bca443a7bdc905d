"""Budgets by number: chunks, tokens, bytes, shares of the score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from videox2l.errors import SettingsError
from videox2l.memory import Memory, Plan
from videox2l.select.base import Constraints, PlanBuilder, scores_of


@dataclass(frozen=True)
class TopK(Constraints):
    """Re-loads the `k` chunks with the highest scores at L; all others stay at H.

    Pinned chunks, the ends and neighbours come besides them (see `Constraints`). Chunks that hold as many tokens at
    H as at L (the ends of a video under Video-XL) take none of the `k` places.
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
        choice = PlanBuilder(self, memory, scores)
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
class ByteBudget(Constraints):
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
        choice = PlanBuilder(self, memory, scores)

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
class MassBudget(Constraints):
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
        choice = PlanBuilder(self, memory, scores)
        shares = [max(value, 0.0) for value in choice.values]
        wanted = self.share * sum(shares)
        held = sum(shares[i] for i, reason in enumerate(choice.reasons) if reason and shares)
        for i, _ in zip(choice.candidates(), range(self.most), strict=False):
            if held >= wanted or not shares[i]:
                break
            held += sum(shares[j] for j in choice.group(i))
            choice.take(i)
        return choice.plan()


@dataclass(frozen=True)
class TokenBudget(Constraints):
    """Splits a number of tokens among the chunks by their scores.

    Every chunk has at least its H; what is left of `tokens` (the prefix not counted) goes to the chunks in proportion
    to their scores, up to L. Ranked levels can be read at any size in between; others are rounded down to one that is
    stored. Excluded chunks stay at H, pinned ones and the ends get L first. There are no neighbours here.
    """

    tokens: int
    needs_scores: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens < 1:
            raise SettingsError(f"a budget of {self.tokens} tokens is not possible: use 1 or more")
        if self.neighbours:
            raise SettingsError("neighbours do not go with a budget of tokens: scores alone say who gets how many")

    def plan(self, scores: Tensor | None, memory: Memory) -> Plan:
        """Return the plan. A budget below all chunks at H leaves them at H."""
        choice = PlanBuilder(self, memory, scores)
        if not memory.has(memory.finest):
            raise SettingsError("a token budget needs stored L-KVs: ingest with l_tier='stored', or re-load by number")
        low = [chunk.size(memory.coarsest) for chunk in memory.chunks]
        high = [low[i] if i in choice.excluded else chunk.size(memory.finest) for i, chunk in enumerate(memory.chunks)]
        shares = [1.0] * len(memory) if scores is None else [max(value, 0.0) for value in choice.values]
        base = [high[i] if reason else low[i] for i, reason in enumerate(choice.reasons)]
        sizes = _fill(base, high, shares, self.tokens)
        found = [_ratio(memory, i, size) for i, size in enumerate(sizes)]
        reasons = [
            known or ("share of the score" if ratio < memory.coarsest else "")
            for known, ratio in zip(choice.reasons, found, strict=True)
        ]
        return Plan(tuple(found), scores_of(scores, memory), tuple(reasons))


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
