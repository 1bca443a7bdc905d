"""A number of tokens, split among the chunks by their scores: levels in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from videox2l.errors import SettingsError
from videox2l.memory import Memory, Plan
from videox2l.select.choice import Choice, Wishes, scores_of


@dataclass(frozen=True)
class TokenBudget(Wishes):
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
        choice = Choice(self, memory, scores)
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
