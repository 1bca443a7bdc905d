"""Escalation: answer from little, and re-load more only while the model is unsure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from videox2l.engine.decode import TokenGenerator
from videox2l.errors import SettingsError
from videox2l.memory import Memory, Plan, uniform_plan

MEASURES = ("first", "mean")


@dataclass(frozen=True)
class Escalation:
    """When to re-load more, and how much at a time.

    The first answer is drafted with `start` chunks re-loaded, best first; with 0 it comes from H and nothing is scored
    before it is known that H is not enough. While the draft is not settled, `by` more chunks of the budget's plan are
    re-loaded. It is settled when the entropy (nats) of the answer's distribution is `below` a threshold: that of its
    first token (`measure="first"`), or the mean over the draft (`"mean"`), of at most `draft` tokens. It is also
    settled when `unchanged` is set and the draft is the one before with lower entropy. Defaults were chosen on the demo
    model's development split (docs/asking.md).
    """

    below: float = 0.1
    start: int = 1
    by: int = 1
    measure: str = "mean"
    draft: int = 8
    unchanged: bool = False

    def __post_init__(self) -> None:
        wrong = [name for name in ("start", "by", "draft") if type(getattr(self, name)) is not int]
        if isinstance(self.below, bool) or not isinstance(self.below, (int, float)) or self.below != self.below:
            wrong.append("below")
        if wrong:
            raise SettingsError(f"escalation {wrong[0]}={getattr(self, wrong[0])!r:.60} is not possible: use a number")
        if self.below < 0:
            raise SettingsError(f"escalation below={self.below:g} is not possible: use an entropy of 0 nats or more")
        if self.start < 0:
            raise SettingsError(f"escalation start={self.start} is not possible: use 0 or more chunks")
        for name in ("by", "draft"):
            if getattr(self, name) < 1:
                raise SettingsError(f"escalation {name}={getattr(self, name)} is not possible: use 1 or more")
        if not isinstance(self.measure, str) or self.measure not in MEASURES:
            raise SettingsError(f"escalation measure='{self.measure}' is not known: use {' or '.join(MEASURES)}")

    def entropy(self, writer: TokenGenerator) -> float:
        """Return the entropy of a draft; one that is empty is as sure as can be."""
        seen = writer.entropies[: 1 if self.measure == "first" else self.draft]
        return sum(seen) / len(seen) if seen else 0.0

    def settled(self, writer: TokenGenerator, before: TokenGenerator | None) -> str:
        """Return why a draft is settled, "sure" or "unchanged", or nothing; `before` is the draft before it."""
        if self.entropy(writer) <= self.below:
            return "sure"
        same = before is not None and before.ids == writer.ids
        if self.unchanged and same and before is not None and self.entropy(writer) < self.entropy(before):
            return "unchanged"
        return ""

    def rungs(self, memory: Memory, pinned: Sequence[int], select: Callable[[], Plan]) -> Iterator[Plan]:
        """Yield plans that re-load more and more, up to the plan of `select`, which is called when it is needed.

        `pinned` chunks are re-loaded from the first one on.
        """
        if self.start == 0:
            yield _first(memory, pinned)
        whole = select()
        free = [i for i, ratio in enumerate(whole.ratios) if ratio < memory.coarsest and i not in pinned]
        free.sort(key=lambda i: _falling(whole.scores[i]))
        if self.start and not free:
            yield whole
        n = self.start or self.by
        while free:
            yield _part(memory, whole, [*pinned, *free[:n]])
            if n >= len(free):
                return
            n += self.by


def _falling(score: float | None) -> float:
    return float("-inf") if score is None else -score


def escalation_for(escalate: bool | Escalation) -> Escalation | None:
    """Return the settings for an `escalate` argument; None for none. Raises SettingsError."""
    if isinstance(escalate, bool):
        return Escalation() if escalate else None
    if not isinstance(escalate, Escalation):
        raise SettingsError(f"escalate={escalate!r} is not possible: use True, False or an Escalation")
    return escalate


def _first(memory: Memory, pinned: Sequence[int]) -> Plan:
    plan = uniform_plan(memory, memory.coarsest)
    ratios, reasons = list(plan.ratios), list(plan.reasons)
    for i in pinned:
        ratios[i], reasons[i] = memory.finest, "pinned"
    return replace(plan, ratios=tuple(ratios), reasons=tuple(reasons))


def _part(memory: Memory, whole: Plan, chunks: Sequence[int]) -> Plan:
    """Return a plan with only some chunks finer than H."""
    wanted = set(chunks)
    return replace(
        whole,
        ratios=tuple(ratio if i in wanted else memory.coarsest for i, ratio in enumerate(whole.ratios)),
        reasons=tuple(reason if i in wanted else "" for i, reason in enumerate(whole.reasons)),
    )
