"""Answer: text, the moments it rests on and why, and what it cost."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from videox2l.errors import SettingsError
from videox2l.units import as_time, format_range, format_time

if TYPE_CHECKING:  # a client of a server knows answers without torch
    from videox2l.memory import Memory, Plan
    from videox2l.select.probes import Attribution

NOT_SHOWN = "the video does not show this"
_THOUGHT = re.compile(r"<(/?)(think|thinking|thought)>|\[(/?)THINK\]|\u25c1(/?)think\u25b7")


def part_thought(text: str) -> tuple[str, str]:
    """Return the thought and the answer of what a thinking model wrote.

    Where its prompt began the thought already, the text has the closing tag alone. A thought that was cut short has no
    answer.
    """
    tags = [(tag, any(tag.group(group) for group in (1, 3, 4))) for tag in _THOUGHT.finditer(text)]
    closing = [tag for tag, closes in tags if closes]
    if closing:
        thought, answer = text[: closing[-1].start()], text[closing[-1].end() :]
    elif tags and not text[: tags[0][0].start()].strip():
        thought, answer = text[tags[0][0].end() :], ""
    else:
        return "", text.strip()
    return _THOUGHT.sub("", thought).strip(), answer.strip()


@dataclass(frozen=True)
class Evidence:
    """One chunk's part in an answer.

    `start`, `end` seconds; `score` of the selector, None if nothing was scored; `level` "L", "H" or such as "8x";
    `reloaded` whether it was read finer than H; `reason` why, empty if it was not; `chunk` its number in the memory;
    `tokens` it was read with. `memory`: the name of its video, where several were asked about; of a library the name
    of its memory, and `video` that of its video.
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
    memory: str = ""
    video: str = ""

    @property
    def where(self) -> str:
        """Its times, behind the name of its video where there are several."""
        return f"{self.memory} {format_range(self.start, self.end)}".strip()


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
class Confidence:
    """How sure the model was of the tokens that it wrote, a thought included.

    `entropy` (nats) of its distributions and `log_likelihood` of the tokens, both the mean over tokens, in float32,
    before temperature and penalties.
    """

    entropy: float
    log_likelihood: float


@dataclass(frozen=True)
class Choice:
    """One of the given answers.

    `log_likelihood`: the sum over its `tokens`, and `mean` per token. `calibrated`: what the video adds to the sum,
    None where that was not asked for.
    """

    text: str
    log_likelihood: float
    mean: float
    tokens: int
    calibrated: float | None = None


@dataclass(frozen=True)
class Step:
    """What was done on one mix of levels on the way to an answer; an answer may take several.

    `why` it was begun: "asked", "unsure" (the step before was), or "re-selected" (scored again on the way); `at` how
    many tokens the answer already had; `reloaded` the numbers of the chunks finer than H (of several videos counted
    through all); `entropy` (nats) of the
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
class TokenLogprob:
    """A token with its text behind those before it, and its log likelihood (nats) there.

    It is of the model's own distribution in float32: temperature, penalties and a schema have no part in it.
    """

    id: int
    text: str
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Answer:
    """An answer with its evidence (all chunks, in order of time), its cost, and the steps it took.

    `text` is the answer alone; what a thinking model wrote before it is its `thought`. `finish` is "stop" when the
    model ended the answer, "length" when max_new_tokens did. `looked`: by the number of a
    chunk, what the selector can say of its score, for the moments that `ask(..., why=...)` named. `confidence` is None
    for an answer without tokens; `choices` are those that were given, in that order, and `text` is the best of them.
    `draft`: what the model wrote, where `text` is `NOT_SHOWN` as it was too unsure for `abstain`; otherwise None.
    `logprobs`: those of `ids` with the likeliest tokens in the place of each, where the options ask for them.
    """

    question: str
    text: str
    ids: tuple[int, ...]
    finish: str
    evidence: tuple[Evidence, ...]
    cost: Cost
    steps: tuple[Step, ...] = ()
    attributions: dict[int, Attribution] = field(default_factory=dict)
    thought: str = ""
    confidence: Confidence | None = None
    choices: tuple[Choice, ...] = ()
    draft: str | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None

    @property
    def reloaded(self) -> list[Evidence]:
        """The re-loaded moments, in order of time."""
        return [moment for moment in self.evidence if moment.reloaded]

    def why(self, seconds: float | str, memory: str = "") -> Why:
        """Explain a moment: its score and rank, and what it would have taken to be re-loaded.

        `memory`: the name of its video, where several were asked about. Raises SettingsError for a moment that the
        answer did not see.
        """
        moment = as_time(seconds, "seconds")
        if moment is None:
            raise SettingsError("seconds must be a time of 0 seconds or more, or text such as 12:30; got None")
        return explain(self, moment, memory)

    def cost_line(self) -> str:
        """Return in one line what was re-loaded, which share of the video was attended to, and how long it took."""
        cost = self.cost
        share = f"{cost.tokens / cost.full_tokens:.1%}" if cost.full_tokens else "0%"
        moments = ", ".join(moment.where for moment in self.reloaded) or "nothing"
        seconds = sum(cost.seconds.values())
        return f"re-loaded {moments}; attended to {share} of the video's tokens, {seconds:.2f} s"

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Answer:
        """Read an answer that was plain JSON values. Raises SettingsError for what is none."""
        try:
            known = {field.name: values[field.name] for field in dataclasses.fields(cls)}
            known["evidence"] = tuple(Evidence(**moment) for moment in known["evidence"])
            known["cost"] = Cost(**known["cost"])
            known["steps"] = tuple(
                Step(**{**step, "cost": Cost(**step["cost"]), "reloaded": tuple(step["reloaded"])})
                for step in known["steps"]
            )
            known["ids"] = tuple(known["ids"])
            known["choices"] = tuple(Choice(**choice) for choice in known["choices"])
            known["confidence"] = None if known["confidence"] is None else Confidence(**known["confidence"])
            return cls(**known)
        except (KeyError, TypeError) as error:
            raise SettingsError(f"this is no answer as to_dict() writes them: {error}") from None


def evidence_of(memory: Memory, plan: Plan, owners: Sequence[tuple[str, int]]) -> tuple[Evidence, ...]:
    """Return what each chunk of `memory` contributes under `plan`; `owners`: its video's name, and its number there."""
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
            memory=name,
        )
        for chunk, ratio, score, reason, (name, number) in zip(
            memory.chunks, plan.ratios, plan.scores, plan.reasons, owners, strict=True
        )
    )


@dataclass(frozen=True)
class Why:
    """What one moment of a video was for an answer.

    `seconds` asked about; `chunk`, its number in the memory, from `start` to `end` (seconds); `level`, `tokens`,
    `reloaded`, `reason` as of `Evidence`; `score` of the selector and its `rank` among the `of` chunks, 1 the highest;
    both None if nothing was scored. `bar` is the score to reach or to keep: the lowest one of the chunks that were
    re-loaded for their score, or, if this is one of them, the highest one that was not enough; `margin` is how far
    `score` is above it. `looked`: words and heads that looked at the chunk, where the selector can say.
    """

    seconds: float
    chunk: int
    start: float
    end: float
    level: str
    tokens: int
    reloaded: bool
    reason: str
    score: float | None
    rank: int | None
    of: int
    bar: float | None
    margin: float | None
    attributions: Attribution | None = None

    def lines(self) -> list[str]:
        """Return the explanation in plain words, a few lines."""
        what = f"re-loaded ({self.reason})" if self.reloaded else f"not re-loaded{self.reason and f' ({self.reason})'}"
        said = [
            f"{format_time(self.seconds)} lies in chunk {self.chunk}, {format_range(self.start, self.end)}: "
            f"{self.level}, {self.tokens} tokens, {what}"
        ]
        if self.score is None:
            return [*said, "nothing was scored for this answer"]
        said.append(f"score {self.score:.4g}, rank {self.rank} of {self.of}{self._bar()}")
        if self.attributions is not None and self.attributions.words:
            words = ", ".join(f"'{word}' {value:.1f}x" for word, value in self.attributions.words)
            said.append(f"looked at, as a multiple of an even share, by {words}")
        if self.attributions is not None and self.attributions.heads:
            heads = ", ".join(
                f"layer {layer} head {head} {value:.1f}x" for layer, head, value in self.attributions.heads
            )
            said.append(f"and by {heads}")
        return said

    def _bar(self) -> str:
        if self.bar is None or self.margin is None:
            return ""
        if not self.reloaded and self.margin < 0:
            return f"; to be re-loaded it needed {self.bar:.4g}, {-self.margin:.4g} more"
        if not self.reloaded:
            return f"; {self.bar:.4g} was enough for others: it was excluded, or L adds nothing to it"
        side = "above" if self.margin >= 0 else "below"
        return f", {abs(self.margin):.4g} {side} {self.bar:.4g}, the best that was not re-loaded"


def by_score(moment: Evidence) -> bool:
    """Return whether a chunk was re-loaded for its own score, not because it was asked for or stands beside another."""
    return moment.reloaded and "score" in moment.reason


def score_ranks(evidence: Sequence[Evidence]) -> list[int | None]:
    """Return the rank of each chunk's score, 1 the highest; ties go to the earlier chunk."""
    order = sorted((i for i, m in enumerate(evidence) if m.score is not None), key=lambda i: -(evidence[i].score or 0))
    found: list[int | None] = [None] * len(evidence)
    for rank, i in enumerate(order, 1):
        found[i] = rank
    return found


def explain(answer: Answer, seconds: float, memory: str = "") -> Why:
    """Explain a moment of an answer. Raises SettingsError for one that the answer did not see."""
    names = list(dict.fromkeys(moment.memory for moment in answer.evidence))
    if memory not in names:
        told = f"'{memory}' is not one of its videos" if memory else "the answer is about several videos"
        raise SettingsError(f"{told}: name one of {', '.join(names)}" if any(names) else f"{told}: leave it out")
    indices = [i for i, moment in enumerate(answer.evidence) if moment.memory == memory]
    index = indices[chunk_index_at([answer.evidence[i] for i in indices], seconds)]
    moment, scores = answer.evidence[index], [m.score for m in answer.evidence if m.score is not None]
    bars = [m.score for m in answer.evidence if m.score is not None and by_score(m)]
    left = [m.score for m in answer.evidence if m.score is not None and not m.reloaded]
    wanted = max(left, default=None) if moment.reloaded else min(bars, default=None)
    known = moment.score is not None and wanted is not None
    return Why(
        seconds=seconds,
        chunk=moment.chunk,
        start=moment.start,
        end=moment.end,
        level=moment.level,
        tokens=moment.tokens,
        reloaded=moment.reloaded,
        reason=moment.reason,
        score=moment.score,
        rank=score_ranks(answer.evidence)[index],
        of=len(scores),
        bar=wanted if known else None,
        margin=moment.score - wanted if moment.score is not None and wanted is not None else None,
        attributions=answer.attributions.get(moment.chunk),
    )


class Timed(Protocol):
    """Something from `start` to `end` seconds."""

    @property
    def start(self) -> float:
        """Seconds."""

    @property
    def end(self) -> float:
        """Seconds."""


def chunk_index_at(chunks: Sequence[Timed], seconds: float) -> int:
    """Return the index of the chunk that a moment lies in; the end of the last one belongs to it.

    Raises SettingsError where there is none.
    """
    for index, moment in enumerate(chunks):
        last = index == len(chunks) - 1
        if moment.start <= seconds < moment.end or (last and seconds == moment.end):
            return index
    seen = f"only {format_range(chunks[0].start, chunks[-1].end)}" if chunks else "nothing"
    raise SettingsError(f"{format_time(seconds)} is not seen by the question, which sees {seen}")
