"""Why a moment was re-loaded for an answer, or was not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from videox2l.errors import SettingsError
from videox2l.select.explain import Looked
from videox2l.times import clock, span

if TYPE_CHECKING:
    from videox2l.answer import Answer, Evidence


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
    looked: Looked | None = None

    def lines(self) -> list[str]:
        """Return the explanation in plain words, a few lines."""
        what = f"re-loaded ({self.reason})" if self.reloaded else f"not re-loaded{self.reason and f' ({self.reason})'}"
        said = [
            f"{clock(self.seconds)} lies in chunk {self.chunk}, {span(self.start, self.end)}: "
            f"{self.level}, {self.tokens} tokens, {what}"
        ]
        if self.score is None:
            return [*said, "nothing was scored for this answer"]
        said.append(f"score {self.score:.4g}, rank {self.rank} of {self.of}{self._bar()}")
        if self.looked is not None and self.looked.words:
            words = ", ".join(f"'{word}' {value:.1f}x" for word, value in self.looked.words)
            said.append(f"looked at, as a multiple of an even share, by {words}")
        if self.looked is not None and self.looked.heads:
            heads = ", ".join(f"layer {layer} head {head} {value:.1f}x" for layer, head, value in self.looked.heads)
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


def ranks(evidence: Sequence[Evidence]) -> list[int | None]:
    """Return the rank of each chunk's score, 1 the highest; ties go to the earlier chunk."""
    order = sorted((i for i, m in enumerate(evidence) if m.score is not None), key=lambda i: -(evidence[i].score or 0))
    found: list[int | None] = [None] * len(evidence)
    for rank, i in enumerate(order, 1):
        found[i] = rank
    return found


def explain(answer: Answer, seconds: float) -> Why:
    """Explain a moment of an answer. Raises SettingsError for one that the answer did not see."""
    index = chunk_at(answer.evidence, seconds)
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
        rank=ranks(answer.evidence)[index],
        of=len(scores),
        bar=wanted if known else None,
        margin=moment.score - wanted if moment.score is not None and wanted is not None else None,
        looked=answer.looked.get(moment.chunk),
    )


class Span(Protocol):
    """Something from `start` to `end` seconds."""

    @property
    def start(self) -> float:
        """Seconds."""

    @property
    def end(self) -> float:
        """Seconds."""


def chunk_at(chunks: Sequence[Span], seconds: float) -> int:
    """Return the index of the chunk that a moment lies in; the end of the last one belongs to it.

    Raises SettingsError where there is none.
    """
    for index, moment in enumerate(chunks):
        last = index == len(chunks) - 1
        if moment.start <= seconds < moment.end or (last and seconds == moment.end):
            return index
    seen = f"only {span(chunks[0].start, chunks[-1].end)}" if chunks else "nothing"
    raise SettingsError(f"{clock(seconds)} is not seen by the question, which sees {seen}")
