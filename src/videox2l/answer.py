"""What a question gets back: text, the moments it rests on, and what it cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from videox2l.memory import Memory, Plan
from videox2l.select.explain import Looked
from videox2l.why import Why, explain


@dataclass(frozen=True)
class Evidence:
    """One chunk's part in an answer.

    `start`, `end` seconds; `score` of the selector, None if nothing was scored; `level` "L", "H" or such as "8x";
    `reloaded` whether it was read finer than H; `reason` why, empty if it was not; `chunk` its number in the memory;
    `tokens` it was read with.
    """

    start: float
    end: float
    score: float | None
    level: str
    ratio: float
    reloaded: bool
    reason: str
    chunk: int
    tokens: int


@dataclass(frozen=True)
class Cost:
    """What an answer, or one step of it, cost.

    `tokens` and `bytes`: what the question attends to before its own tokens, summed over the memory; `full_tokens` and
    `full_bytes`: the same with full KV; `reloaded_bytes`: KVs finer than H that were brought to the device;
    `prompt_tokens`: text that was prefilled, of question and template; `new_tokens` generated; `seconds` by stage
    (select, reload, prefill, decode); `dialogue_tokens`: KVs of earlier turns that were kept.
    """

    tokens: int
    bytes: int
    full_tokens: int
    full_bytes: int
    reloaded_bytes: int
    prompt_tokens: int
    new_tokens: int
    seconds: dict[str, float]
    dialogue_tokens: int = 0

    @classmethod
    def of(cls, steps: Sequence[Cost]) -> Cost:
        """Return the cost of several steps: what is attended to is the last one's, all that was done adds up."""
        last = steps[-1]
        return replace(
            last,
            reloaded_bytes=sum(step.reloaded_bytes for step in steps),
            prompt_tokens=sum(step.prompt_tokens for step in steps),
            new_tokens=sum(step.new_tokens for step in steps),
            seconds={stage: sum(step.seconds.get(stage, 0.0) for step in steps) for stage in last.seconds},
        )


@dataclass(frozen=True)
class Step:
    """What was done on one mix of levels on the way to an answer; an answer may take several.

    `why` it was begun: "asked", "unsure" (the step before was), or "re-selected" (scored again on the way); `at` how
    many tokens the answer already had; `reloaded` the numbers of the chunks finer than H; `entropy` (nats) of the
    answer's distribution, None where it was not looked at; `text` of the answer when the step ended; `settled` why no
    more was re-loaded: "sure", "unchanged", "spent", or empty.
    """

    why: str
    at: int
    reloaded: tuple[int, ...]
    entropy: float | None
    text: str
    settled: str
    cost: Cost


@dataclass(frozen=True)
class Answer:
    """An answer with its evidence (all chunks, in order of time), its cost, and the steps it took.

    `finish` is "stop" when the model ended the answer, "length" when max_new_tokens did. `looked`: by the number of a
    chunk, what the selector can say of its score, for the moments that `ask(..., why=...)` named.
    """

    question: str
    text: str
    ids: tuple[int, ...]
    finish: str
    evidence: tuple[Evidence, ...]
    cost: Cost
    steps: tuple[Step, ...] = ()
    looked: dict[int, Looked] = field(default_factory=dict)

    @property
    def reloaded(self) -> list[Evidence]:
        """The re-loaded moments, in order of time."""
        return [moment for moment in self.evidence if moment.reloaded]

    def why(self, seconds: float) -> Why:
        """Explain a moment: its score and rank, and what it would have taken to be re-loaded.

        Raises SettingsError for a moment that the answer did not see.
        """
        return explain(self, seconds)

    def plot(self, path: str | Path, memory: Memory | None = None, video: str | Path | None = None) -> None:
        """Draw the time line of the answer into a picture file (needs the extra `plot`); see `videox2l.plot.draw`."""
        from videox2l.plot import draw

        draw(self, path, memory, video)

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as plain JSON values."""
        return dataclasses.asdict(self)


def evidence_of(memory: Memory, plan: Plan, numbers: Sequence[int] | None = None) -> tuple[Evidence, ...]:
    """Return what each chunk of `memory` contributes under `plan`; `numbers`, if these are some chunks of a memory."""
    return tuple(
        Evidence(
            start=chunk.start,
            end=chunk.end,
            score=score,
            level=memory.level_name(ratio),
            ratio=ratio,
            reloaded=bool(reason) and ratio < memory.coarsest,
            reason=reason,
            chunk=number,
            tokens=chunk.size(ratio),
        )
        for chunk, ratio, score, reason, number in zip(
            memory.chunks,
            plan.ratios,
            plan.scores,
            plan.reasons,
            range(len(memory)) if numbers is None else numbers,
            strict=True,
        )
    )
