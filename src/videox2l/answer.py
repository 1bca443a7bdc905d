"""What a question gets back: text, the moments it rests on, and what it cost."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from videox2l.memory import Memory, Plan


@dataclass(frozen=True)
class Evidence:
    """One chunk's part in an answer.

    `start`, `end` seconds; `score` of the selector, None if nothing was scored; `level` "L", "H" or such as "8x";
    `reloaded` whether it was read finer than H; `reason` why, empty if it was not.
    """

    start: float
    end: float
    score: float | None
    level: str
    ratio: float
    reloaded: bool
    reason: str


@dataclass(frozen=True)
class Cost:
    """What an answer cost.

    `tokens` and `bytes`: what the question attends to before its own tokens, summed over the memory; `full_tokens` and
    `full_bytes`: the same with full KV; `reloaded_bytes`: KVs of the re-loaded chunks; `prompt_tokens` of question and
    template; `new_tokens` generated; `seconds` by stage (select, reload, prefill, decode).
    """

    tokens: int
    bytes: int
    full_tokens: int
    full_bytes: int
    reloaded_bytes: int
    prompt_tokens: int
    new_tokens: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class Answer:
    """An answer with its evidence (all chunks, in order of time) and cost.

    `finish` is "stop" when the model ended the answer, "length" when max_new_tokens did.
    """

    question: str
    text: str
    ids: tuple[int, ...]
    finish: str
    evidence: tuple[Evidence, ...]
    cost: Cost

    @property
    def reloaded(self) -> list[Evidence]:
        """The re-loaded moments, in order of time."""
        return [moment for moment in self.evidence if moment.reloaded]

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as plain JSON values."""
        return dataclasses.asdict(self)


def evidence_of(memory: Memory, plan: Plan) -> tuple[Evidence, ...]:
    """Return what each chunk of `memory` contributes under `plan`."""
    return tuple(
        Evidence(
            start=chunk.start,
            end=chunk.end,
            score=score,
            level=memory.level_name(ratio),
            ratio=ratio,
            reloaded=bool(reason) and ratio < memory.coarsest,
            reason=reason,
        )
        for chunk, ratio, score, reason in zip(memory.chunks, plan.ratios, plan.scores, plan.reasons, strict=True)
    )
