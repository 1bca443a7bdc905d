"""One question: memory -> selector -> budget -> plan -> reload -> question prefill -> decode -> answer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

import torch

from videox2l.ask.answer import Answer, Cost, Step, chunk_index_at, evidence_of
from videox2l.ask.escalation import Escalation
from videox2l.ask.options import ResolvedOptions
from videox2l.ask.view import LoadedView, View, with_lines
from videox2l.engine.backbone import Backbone
from videox2l.engine.decode import TextStream, TokenGenerator
from videox2l.memory import CacheLayout, Memory, Plan, build_cache, update_cache
from videox2l.select import bound
from videox2l.select.probes import Attribution, Explainer
from videox2l.types import TextTokens, Turn

STAGES = ("select", "reload", "prefill", "decode")


@dataclass
class QuestionRun:
    """One question on its way to an answer: the stages, what they leave to each other, and what they cost.

    `prompt` makes the text that stands behind the video and the dialogue from the words of a question; `said` are
    those words and the dialogue's, for selectors that compare words. `laid`, if given, is a cache to begin with.
    """

    backbone: Backbone
    view: View
    question: str
    prompt: Callable[[str], TextTokens]
    wish: ResolvedOptions
    said: str = ""
    laid: LoadedView | None = None
    text: TextTokens = field(init=False)
    plan: Plan = field(init=False)
    memory: Memory = field(init=False)
    writer: TokenGenerator = field(init=False)
    steps: list[Step] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if self.laid is not None and not self.laid.matches(self.view):
            self.laid = None
        self._asked = replace(self.prompt(self.question), text=self.said or self.question)
        self._budget = bound(self.wish.budget, self._asked, self.backbone)
        self._explained = [chunk_index_at(self.view.memory.chunks, seconds) for seconds in self.wish.why]
        self._begin("asked")

    # --- the stages -------------------------------------------------------------------------------------------

    def select(self, written: Sequence[int] = ()) -> Plan:
        """Score the chunks for the question, and what is `written` of its answer, and plan their levels."""
        with self._stage("select"):
            memory, budget = self.view.memory, self._budget
            wanted = budget.needs_scores and memory.finest != memory.coarsest
            asked = self._asked
            if written:
                said = f"{asked.text}\n{self.backbone.decode(written)}"
                asked = replace(self._with(asked, written), text=said)
            return budget.plan(self.wish.selector.score(asked, memory, self.backbone) if wanted else None, memory)

    def reload(self, plan: Plan) -> None:
        """Bring the planned levels to the device; what already lies there is not brought again."""
        with self._stage("reload"):
            question = self.question
            if self.wish.subtitles:
                question = with_lines(question, self.view.memory, plan, self.backbone)
            self.text = self._asked if question == self.question else self.prompt(question)
            room = len(self.text) + self.wish.sampling.max_new_tokens
            memory = self.view.with_levels(plan, self.backbone)
            laid, self.laid = self.laid, None  # never two caches at once
            if laid is None or memory.reposition != "keep":
                del laid
                mixed = build_cache(memory, plan, self.backbone, room)
            else:
                mixed = self._change(laid, memory, plan, room)
            self._tokens = mixed.offsets[-1]
            self._reloaded += sum(
                memory.chunks[i].size(plan.ratios[i]) for i in mixed.brought if plan.ratios[i] < memory.coarsest
            )
            self.laid, self.plan, self.memory = LoadedView(mixed, plan, self.view), plan, memory

    def _change(self, laid: LoadedView, memory: Memory, plan: Plan, room: int) -> CacheLayout:
        said = 0 if memory.dialogue is None else len(memory.dialogue)
        held = replace(laid.mixed, text=laid.mixed.offsets[-1] + said, next_position=memory.next_position + said)
        mixed = update_cache(held, memory, laid.plan, plan)
        mixed.cache.reserve(mixed.text + room)
        return mixed

    def prefill(self, written: Sequence[int] = ()) -> None:
        """Read the question, and what is `written` of its answer, and make ready to write on."""
        with self._stage("prefill"):
            assert self.laid is not None
            mixed = self.laid.mixed
            text = self._with(self.text, written)
            positions = self.backbone.text_positions(mixed.next_position, len(text))
            hidden = self.backbone.forward(text.embeds, positions, mixed.cache)
            logits = self.backbone.logits(hidden[-1:])[0]
            if not written:
                self.writer = TokenGenerator(self.backbone, self.wish.sampling, self._watch())
            self._prefilled += len(text)
            self.writer.begin(mixed.cache, logits, mixed.next_position + len(text))

    def write(self) -> int | None:
        """Write one more token of the answer and return it, or None when it is over."""
        with self._stage("decode"):
            token = self.writer.step()
            self._written += token is not None
            return token

    def _with(self, text: TextTokens, written: Sequence[int]) -> TextTokens:
        if not written:
            return text
        ids = torch.tensor(written, device=text.ids.device)
        return text.then(TextTokens(ids, self.backbone.embed(ids)))

    def _watch(self) -> int:
        escalation = self.wish.escalation
        return escalation.draft if escalation is not None and escalation.measure == "mean" else 1

    def attributions(self) -> dict[int, Attribution]:
        """Have the selector explain the scores of the moments that are asked about, if anything was scored."""
        memory, selector = self.view.memory, self.wish.selector
        if not isinstance(selector, Explainer):
            return {}
        scored = (i for i in dict.fromkeys(self._explained) if self.plan.scores[i] is not None)
        return {self.view.seen[i]: selector.explain(self._asked, memory, self.backbone, i) for i in scored}

    # --- what they cost ---------------------------------------------------------------------------------------

    def _begin(self, why: str) -> None:
        self._why, self._at = why, len(self.writer.ids) if why == "re-selected" else 0
        self._reloaded = self._prefilled = self._written = 0
        self._seconds = dict.fromkeys(STAGES, 0.0)

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        start = perf_counter()
        yield
        self._seconds[name] += perf_counter() - start

    def end_step(self, settled: str = "", then: str = "") -> None:
        """Note what was done since the last step; another one begins, and `then` says why."""
        memory = self.view.memory
        each = memory.shape.token_bytes
        cost = Cost(
            tokens=self._tokens,
            bytes=self._tokens * each,
            full_tokens=memory.full_tokens,
            full_bytes=memory.full_tokens * each,
            reloaded_bytes=self._reloaded * each,
            prompt_tokens=self._prefilled,
            new_tokens=self._written,
            seconds=self._seconds,
            dialogue_tokens=0 if memory.dialogue is None else len(memory.dialogue),
        )
        finer = (number for number, r in zip(self.view.seen, self.plan.ratios, strict=True) if r < memory.coarsest)
        text = self.backbone.decode(self.writer.ids).strip()
        looked_at = (self.wish.escalation or Escalation()).entropy(self.writer) if self._at == 0 else None
        self.steps.append(Step(self._why, self._at, tuple(finer), looked_at, text, settled, cost))
        self._begin(then)


def run_question(asking: QuestionRun) -> Answer:
    """Take a question through its stages and return the answer."""
    escalation = asking.wish.escalation
    settled = ""
    if escalation is None:
        asking.reload(asking.select())
        asking.prefill()
    else:
        settled = _escalate(asking, escalation)
    text = _write(asking)
    asking.end_step(settled)
    return Answer(
        question=asking.question,
        text=text,
        ids=tuple(asking.writer.ids),
        finish=asking.writer.finish or "length",
        evidence=evidence_of(asking.memory, asking.plan, asking.view.seen),
        cost=Cost.of([step.cost for step in asking.steps]),
        steps=tuple(asking.steps),
        attributions=asking.attributions() if asking.wish.why else {},
    )


def _escalate(asking: QuestionRun, escalation: Escalation) -> str:
    """Draft the answer on more and more re-loaded chunks until it is settled; return why it is."""
    pinned = asking.view.numbers_within(asking.wish.pinned)
    before: TokenGenerator | None = None
    for plan in escalation.rungs(asking.view.memory, pinned, asking.select):
        if before is not None:
            asking.end_step(then="unsure")
        asking.reload(plan)
        asking.prefill()
        while len(asking.writer.ids) < escalation.draft and asking.write() is not None:
            pass
        settled = escalation.settled(asking.writer, before)
        if settled:
            return settled
        before = asking.writer
    return "spent"


def _write(asking: QuestionRun) -> str:
    """Write the answer to its end, piece by piece, scoring the chunks again on the way where that is wished."""
    stream, pieces = TextStream(asking.backbone.decode), []
    every, tell = asking.wish.reselect_every, asking.wish.on_text or (lambda _: None)

    def show(piece: str) -> None:
        pieces.append(piece)
        if piece:
            tell(piece)

    for drafted in asking.writer.ids:
        show(stream.push(drafted))
    while (token := asking.write()) is not None:
        show(stream.push(token))
        if every and len(asking.writer.ids) % every == 0 and asking.writer.finish is None:
            _reselect(asking)
    show(stream.end())
    return "".join(pieces).strip()


def _reselect(asking: QuestionRun) -> None:
    """Score again with the answer so far; where the plan changes, go on behind the new mix."""
    asking.end_step(then="re-selected")
    plan = asking.select(asking.writer.ids)
    if plan.ratios != asking.plan.ratios:
        asking.reload(plan)
        asking.prefill(asking.writer.ids)
    asking.plan = plan


def joined_words(question: str, history: Sequence[Turn]) -> str:
    """Return the words of a dialogue for selectors that compare words, the last question first."""
    return "\n".join([question, *(f"{turn.question} {turn.answer}" for turn in reversed(history))])
