"""Selector and Budget: the protocols, and what all budgets share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from torch import Tensor

from videox2l.engine.backbone import Backbone
from videox2l.errors import SettingsError
from videox2l.flops import kept_tokens
from videox2l.memory import Memory, Plan
from videox2l.options import TimeRange
from videox2l.types import TextTokens


class Selector(Protocol):
    """The paper's relevance oracle: says how much each chunk matters for a question."""

    def score(self, question: TextTokens, memory: Memory, backbone: Backbone) -> Tensor:
        """Return scores (n_chunks,) float32, higher = more relevant. Changes nothing."""


class FeatureSelector(Selector, Protocol):
    """Selector that reads features and subtitles alone, so that it can search memories whose levels are not opened."""

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that are compared; see `videox2l.memory.features`."""


class Budget(Protocol):
    """Turns scores into a plan."""

    def plan(self, scores: Tensor | None, memory: Memory) -> Plan:
        """Return the level of each chunk. `scores` (n_chunks,) is None for budgets with `needs_scores = False`."""

    @property
    def needs_scores(self) -> bool:
        """Whether `plan` looks at scores at all; if not, no selector is run."""


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """What is asked for besides the scores; every budget that looks at scores takes it.

    Chunks that overlap a `pinned` time range (seconds) are re-loaded in any case; chunks that overlap an `excluded` one
    never are, unless pinned. `ends`: the first and the last chunk are re-loaded too, unless excluded. `neighbours`: so
    many chunks before and after each one that was chosen by its score are re-loaded with it. Of several videos each has
    its own times, ends and neighbours.
    """

    pinned: Sequence[TimeRange] = ()
    excluded: Sequence[TimeRange] = ()
    ends: bool = False
    neighbours: int = 0

    def __post_init__(self) -> None:
        if self.neighbours < 0:
            raise SettingsError(f"neighbours={self.neighbours} is not possible: use 0 or more chunks")


def compared_features(selector: Selector) -> tuple[str, ...]:
    """Return the features that a selector compares. Raises SettingsError for one that reads levels too."""
    names = getattr(selector, "features", None)
    if names is None:
        raise SettingsError(
            f"{type(selector).__name__} reads the KVs of a memory, so it cannot search a library: use exact:nothing, "
            "keys, embedding, embed-dot, text, or several of them as fuse:exact:nothing+text"
        )
    return tuple(names)


FOLLOWING = 0.25
"""What a chunk counts at least, as a share of the score of the chunk before it; chosen on development splits
(docs/dense.md)."""


def best_first(scores: Tensor, memory: Memory) -> list[int]:
    """Return the chunks in the order in which they are worth re-loading; ties go to the earlier one.

    A chunk is worth its score, or `FOLLOWING` of the score of the chunk before it in the same video if that is more:
    what comes after a thing is asked for by naming the thing, and what is named may go on in the next chunk.
    """
    worth = scores.clone()
    for run in memory.runs:
        before, own = scores[run.start : run.stop - 1], worth[run.start + 1 : run.stop]
        own.copy_(own.maximum(FOLLOWING * before.clamp_min(0)).where(before > 0, own))
    order: list[int] = worth.argsort(descending=True, stable=True).tolist()
    return order


_ENDS = ((0, "first chunk"), (-1, "last chunk"))


class PlanBuilder:
    """A plan in the making: chunks that are certain, candidates in order of their scores, and what was taken."""

    def __init__(self, wishes: Constraints, memory: Memory, scores: Tensor | None) -> None:
        self.wishes = wishes
        self.memory = memory
        self.scores = scores
        self.reasons = [""] * len(memory)
        self._taken = 0
        for i in overlapping(wishes.pinned, memory):
            self.reasons[i] = "pinned"
        self.excluded = overlapping(wishes.excluded, memory) - overlapping(wishes.pinned, memory)
        if wishes.ends:
            for i, name in ((run[end], name) for run in memory.runs for end, name in _ENDS):
                if i not in self.excluded and not self.reasons[i]:
                    self.reasons[i] = name

    @cached_property
    def values(self) -> list[float]:
        """The scores as plain numbers; empty if there are none."""
        return [] if self.scores is None else self.scores.tolist()

    def candidates(self) -> Iterator[int]:
        """Yield the chunks that may be taken, best first; ties go to the earlier chunk.

        Chunks that hold as many tokens at H as at L (the ends of a video under Video-XL) are none.
        """
        if self.scores is None:
            return
        for i in best_first(self.scores, self.memory):
            if not self.reasons[i] and i not in self.excluded and not whole_at_h(self.memory, i):
                yield i

    def group(self, i: int) -> list[int]:
        """Return what would be re-loaded by taking a chunk: it and its neighbours, as far as they are not yet."""
        run = self._run(i)
        near = range(max(run.start, i - self.wishes.neighbours), min(run.stop, i + self.wishes.neighbours + 1))
        return [j for j in near if j == i or not (self.reasons[j] or j in self.excluded)]

    def take(self, i: int) -> None:
        """Re-load a chunk and its neighbours."""
        self._taken += 1
        for j in self.group(i):
            self.reasons[j] = self._own_reason(i) if j == i else f"next to rank {self._taken}"

    def _run(self, i: int) -> range:
        """Return the chunks of the video that a chunk belongs to."""
        return next(run for run in self.memory.runs if i in run)

    def _own_reason(self, i: int) -> str:
        before = self.reasons[i - 1] if i > self._run(i).start else ""
        if before.startswith("score rank") and self.values[i] < FOLLOWING * self.values[i - 1]:
            return before.replace("score", "after")
        return f"score rank {self._taken}"

    def plan(self) -> Plan:
        """Return the plan: what has a reason at L, all else at H."""
        memory = self.memory
        ratios = tuple(memory.finest if reason else memory.coarsest for reason in self.reasons)
        return Plan(ratios, scores_of(self.scores, memory), tuple(self.reasons))


def overlapping(ranges: Sequence[TimeRange], memory: Memory) -> set[int]:
    """Return the chunks that overlap any of the time ranges."""
    return {i for start, end in ranges for i in memory.chunks_within(start, end)}


def whole_at_h(memory: Memory, i: int) -> bool:
    """Return whether L adds nothing to a chunk, as it is already kept at L's ratio."""
    chunk = memory.chunks[i]
    if memory.finest == memory.coarsest or memory.coarsest not in chunk.levels:
        return False
    return chunk.levels.size(memory.coarsest) >= kept_tokens(chunk.tokens, memory.finest)


def scores_of(scores: Tensor | None, memory: Memory) -> tuple[float | None, ...]:
    """Return the scores as a plan holds them."""
    return (None,) * len(memory) if scores is None else tuple(scores.tolist())
