"""One question: memory -> selector -> budget -> plan -> reload -> question prefill -> decode -> answer."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

import torch
from torch import Tensor

from videox2l.ask.answer import (
    NOT_SHOWN,
    Answer,
    Choice,
    Confidence,
    Cost,
    Step,
    TokenLogprob,
    chunk_index_at,
    evidence_of,
    part_thought,
)
from videox2l.ask.choices import best_choice, weigh, without_video
from videox2l.ask.escalation import Escalation, escalation_for
from videox2l.ask.view import LoadedView, View, with_lines
from videox2l.engine.backbone import Backbone, warn_beyond
from videox2l.engine.decode import StopText, TextStream, TokenGenerator, advance
from videox2l.engine.schema import SchemaGrammar
from videox2l.errors import MemoryFileError, ModelError, SettingsError, X2LError
from videox2l.memory import CacheLayout, Memory, Plan, build_cache, update_cache
from videox2l.options import AskOptions, check_text
from videox2l.select import Budget, Selector, bound, budget_for, selector_by_name
from videox2l.select.probes import Attribution, Explainer
from videox2l.types import TextTokens, Turn, VideoInfo
from videox2l.units import format_range

_LARGEST = 1e18  # of a key or value: the square of what is more overflows in float32
STAGES = ("select", "reload", "prefill", "decode")
OnText = Callable[[str], None]
Prompt = Callable[[str, Sequence[Turn]], TextTokens]


@dataclass(frozen=True)
class QuestionRun:
    """Everything that one question needs, made before any of it runs.

    `prompt` makes the text that stands behind the video and the dialogue from the words of a question, template and
    examples included. `asked` is what selectors read: the question alone behind the dialogue, with the words of both
    for those that compare words. `moments` are the numbers of the chunks whose scores are to be explained; `grammar`
    is what the answer has to follow.
    """

    backbone: Backbone
    view: View
    question: str
    options: AskOptions
    prompt: Callable[[str], TextTokens]
    asked: TextTokens
    selector: Selector
    budget: Budget
    escalation: Escalation | None
    moments: tuple[int, ...]
    grammar: SchemaGrammar | None

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        view: View,
        question: str,
        options: AskOptions,
        *,
        history: Sequence[Turn] = (),
        prompt: Prompt | None = None,
    ) -> QuestionRun:
        """Resolve the options of a question behind the turns of a dialogue. Raises SettingsError.

        `prompt` returns, in place of the whole dialogue, what is still to be read for a question behind examples.
        """
        check_text(question, "the question")
        check_history(history)
        system = check_system(options, view.whole)
        _check_effects(options, view)
        if prompt is None:

            def prompt(text: str, turns: Sequence[Turn]) -> TextTokens:
                return backbone.suffix(text, (*turns, *history), system)

        turns, of_question = [Turn(*turn) for turn in options.turns], prompt

        @functools.cache
        def worded(text: str) -> TextTokens:
            return of_question(options.worded(text), turns)

        plain = not turns and options.prompt_template is None
        asked = worded(question) if plain else of_question(question, ())
        selector = selector_by_name(options.selector) if isinstance(options.selector, str) else options.selector
        return cls(
            backbone=backbone,
            view=view,
            question=question,
            options=options,
            prompt=worded,
            asked=replace(asked, text=joined_words(question, history)),
            selector=selector,
            budget=bound(budget_for(options.reload, options.pinned, options.excluded), worded(question), backbone),
            escalation=escalation_for(options.escalate),
            moments=tuple(chunk_index_at(view.memory.chunks, seconds) for seconds in options.why),
            grammar=None if options.json_schema is None else SchemaGrammar(options.json_schema, backbone),
        )

    def generator(self, prompt: TextTokens) -> TokenGenerator:
        """Return what writes an answer behind a prompt."""
        constraint = None if self.grammar is None else self.grammar.begin()
        return TokenGenerator(self.backbone, self.options, lambda: _prompt_ids(self, prompt), constraint)


def _check_effects(options: AskOptions, view: View) -> None:
    """Raise SettingsError for options that would change nothing about what a question sees of a memory."""
    if options.subtitles and not view.memory.subtitles:
        raise SettingsError(
            "the subtitles of this memory are wanted in front of the question, and it has none: add them (x2l memory "
            "subtitles add, x2l memory transcribe), or leave --with-subtitles (subtitles=True) out"
        )
    for name, ranges in (("pinned", options.pinned), ("excluded", options.excluded)):
        for start, end in ranges:
            if not view.numbers_within([(start, end)]):
                covers = format_range(view.memory.chunks[0].start, view.memory.chunks[-1].end)
                raise SettingsError(
                    f"{name} {format_range(start, end)} is nowhere in what the question sees, {covers}: name a range "
                    "that is, or leave it out"
                )


def check_history(history: object) -> None:
    """Raise SettingsError for what is no list of turns with texts."""
    if not isinstance(history, (list, tuple)) or not all(isinstance(turn, Turn) for turn in history):
        raise SettingsError(f"history must be a list of Turn(question, answer), got {history!r:.80}")
    for turn in history:
        check_text(turn.question, "a question of the history")
        check_text(turn.answer, "an answer of the history")


@dataclass(frozen=True)
class Reloaded:
    """A plan that lies in a cache on the device, with the prompt that follows it; `tokens` of it are the memory's."""

    plan: Plan
    loaded: LoadedView
    memory: Memory
    prompt: TextTokens
    tokens: int


@dataclass(frozen=True)
class Outcome:
    """An answer, and what it leaves behind for the next question of a dialogue."""

    answer: Answer
    reloaded: Reloaded
    generator: TokenGenerator


Answering = Generator[TokenGenerator, None, "Outcome"]
"""A question on its way: it stops wherever the model has to read a token of its answer, which `advance` does."""


def run_question(run: QuestionRun, loaded: LoadedView | None = None, on_text: OnText | None = None) -> Outcome:
    """Answer a question; see `answering`."""
    (outcome,) = run_together([answering(run, loaded, on_text)], 1)
    return outcome


def run_together(questions: Iterable[Answering], batch: int) -> list[Outcome]:
    """Answer questions, `batch` of them at a time, which decode together; return what comes of each, in order."""
    left, outcomes = enumerate(questions), dict[int, Outcome]()
    active: dict[int, tuple[Answering, TokenGenerator]] = {}

    def go_on(number: int, question: Answering) -> None:
        try:
            active[number] = question, next(question)
        except StopIteration as end:
            active.pop(number, None)
            outcomes[number] = end.value

    while True:
        while len(active) < batch and (new := next(left, None)) is not None:
            go_on(*new)
        if not active:
            return [outcomes[number] for number in sorted(outcomes)]
        advance([generator for _, generator in active.values()])
        for number, (question, _) in list(active.items()):
            go_on(number, question)


def answering(run: QuestionRun, loaded: LoadedView | None = None, on_text: OnText | None = None) -> Answering:
    """Answer a question. `loaded`: a cache to begin with, if it matches the view; `on_text` gets pieces of the answer.

    The memory is not changed; the cache of `loaded` is.
    """
    steps = StepRecorder(run)
    settled = ""
    if run.escalation is None:
        plan = select(run, steps)
        reloaded = reload(run, plan, steps, loaded)
        generator = prefill(run, reloaded, steps)
    else:
        reloaded, generator, settled = yield from _escalate(run, run.escalation, steps, loaded)
    choices = _choose(run, reloaded, generator, steps) if run.options.choices else ()
    told = on_text if run.options.abstain is None else None  # it may be taken back
    reloaded, written = yield from _decode(run, reloaded, generator, steps, told)
    thought, text = part_thought(written)
    steps.end(reloaded, generator, settled=settled)
    sure, draft = _confidence(generator), None
    if run.options.abstain is not None:
        if sure is not None and -sure.log_likelihood > run.options.abstain:
            text, draft = NOT_SHOWN, text
        if on_text is not None:
            on_text(text)
    answer = Answer(
        question=run.question,
        text=text,
        ids=tuple(generator.ids),
        finish=generator.finish or "length",
        evidence=evidence_of(reloaded.memory, reloaded.plan, [run.view.whole.owner(i) for i in run.view.seen]),
        cost=Cost.of([step.cost for step in steps.done]),
        steps=tuple(steps.done),
        attributions=_attributions(run, reloaded.plan),
        thought=thought,
        confidence=sure,
        choices=choices,
        draft=draft,
        logprobs=None if run.options.logprobs is None else _logprobs(generator, run.backbone),
    )
    return Outcome(answer, reloaded, generator)


def select(run: QuestionRun, steps: StepRecorder, written: Sequence[int] = ()) -> Plan:
    """Score the chunks for the question, and what is `written` of its answer, and plan their levels."""
    with steps.stage("select"):
        memory, budget, asked = run.view.memory, run.budget, run.asked
        if not budget.needs_scores or memory.finest == memory.coarsest:
            return budget.plan(None, memory)
        if written:
            words = f"{asked.text}\n{run.backbone.decode(written)}"
            asked = replace(_with_ids(asked, written, run.backbone), text=words)
        return budget.plan(run.selector.score(asked, memory, run.backbone), memory)


def reload(run: QuestionRun, plan: Plan, steps: StepRecorder, loaded: LoadedView | None = None) -> Reloaded:
    """Bring the planned levels to the device; what already lies in `loaded` is not brought again."""
    with steps.stage("reload"):
        question = run.question
        if run.options.subtitles:
            question = with_lines(question, run.view.memory, plan, run.backbone)
        prompt = run.prompt(question)
        room = len(prompt) + run.options.max_new_tokens
        memory = run.view.with_levels(plan, run.backbone)
        if loaded is None or not loaded.matches(run.view):
            del loaded  # never two caches at once
            layout = build_cache(memory, plan, run.backbone, room)
        else:
            layout = _changed(loaded, memory, plan, room)
        for chunk in layout.brought:
            if plan.ratios[chunk] < memory.coarsest:
                steps.reloaded += memory.chunks[chunk].size(plan.ratios[chunk])
        return Reloaded(plan, LoadedView(layout, plan, run.view), memory, prompt, layout.offsets[-1])


def _changed(loaded: LoadedView, memory: Memory, plan: Plan, room: int) -> CacheLayout:
    dialogue = 0 if memory.dialogue is None else len(memory.dialogue)
    layout = replace(
        loaded.layout, text=loaded.layout.offsets[-1] + dialogue, next_position=memory.next_position + dialogue
    )
    layout = update_cache(layout, memory, loaded.plan, plan)
    layout.cache.reserve(layout.text + room)
    return layout


def prefill(
    run: QuestionRun, reloaded: Reloaded, steps: StepRecorder, generator: TokenGenerator | None = None
) -> TokenGenerator:
    """Read the question behind the memory; return what generates its answer, or lets `generator` go on there."""
    with steps.stage("prefill"):
        if generator is None:
            generator = run.generator(reloaded.prompt)
        layout = reloaded.loaded.layout
        text = _with_ids(reloaded.prompt, generator.ids, run.backbone)
        last = layout.next_position + len(text) + run.options.max_new_tokens - len(generator.ids)
        warn_beyond(run.backbone, last, "the question with its answer")
        positions = run.backbone.text_positions(layout.next_position, len(text))
        hidden = run.backbone.forward(text.embeds, positions, layout.cache)
        logits = run.backbone.logits(hidden[-1:])[0]
        least, most = (float(x) for x in torch.aminmax(logits))
        if not (math.isfinite(most) and least < most):  # NaN wins over every number, and so does Inf
            raise _overflow(reloaded, logits)
        generator.begin(layout.cache, logits, layout.next_position + len(text))
        steps.prefilled += len(text)
        return generator


def _overflow(reloaded: Reloaded, logits: Tensor) -> X2LError:
    """Return the error about logits that say nothing: it names the chunk whose KVs are the cause, if it is one's."""
    memory = reloaded.memory
    for number, (chunk, ratio) in enumerate(zip(memory.chunks, reloaded.plan.ratios, strict=True)):
        level = chunk.level(ratio)
        if (layer := _too_large(level.keys, level.values)) is not None:
            where = f"layer {layer} of chunk {number} ({format_range(chunk.start, chunk.end)})"
            return MemoryFileError(f"the KVs in {where} hold NaN, Inf or numbers near it: ingest the video again")
    if (layer := _too_large(*memory.prefix)) is not None:
        where = f"layer {layer} of the text before the video"
        return MemoryFileError(f"the KVs in {where} hold NaN, Inf or numbers near it: ingest the video again")
    whole = logits.dtype == torch.float32
    cure = "fetch the model again, its weights hold NaN" if whole else "load it with dtype 'bfloat16' or 'float32'"
    return ModelError(f"the model's logits behind the question are not finite, or all the same: {cure}")


def _too_large(*tensors: Tensor) -> int | None:
    """Return the first layer in which keys or values (layers, heads, n, head_dim) overflow, if there is one."""
    for layer, pieces in enumerate(zip(*tensors, strict=True)):
        if not all(float(piece.float().abs().max()) < _LARGEST for piece in pieces if piece.numel()):
            return layer
    return None


def _step(generator: TokenGenerator, steps: StepRecorder) -> Generator[TokenGenerator, None, int | None]:
    with steps.stage("decode"):
        if generator.waits:
            yield generator
        token = generator.choose()
        steps.generated += token is not None
        return token


def _escalate(
    run: QuestionRun, escalation: Escalation, steps: StepRecorder, loaded: LoadedView | None
) -> Generator[TokenGenerator, None, tuple[Reloaded, TokenGenerator, str]]:
    """Draft the answer on more and more re-loaded chunks until it is settled; return the last draft and why."""
    pinned = run.view.numbers_within(run.options.pinned)
    before: TokenGenerator | None = None
    reloaded: Reloaded | None = None
    for plan in escalation.rungs(run.view.memory, pinned, lambda: select(run, steps)):
        if reloaded is not None and before is not None:
            steps.end(reloaded, before, then="unsure")
            loaded = reloaded.loaded
        reloaded = None
        reloaded = reload(run, plan, steps, loaded)
        generator = prefill(run, reloaded, steps)
        while len(generator.ids) < escalation.draft and (yield from _step(generator, steps)) is not None:
            pass
        settled = escalation.settled(generator, before)
        before = generator
        if settled:
            return reloaded, generator, settled
    if reloaded is None or before is None:
        raise AssertionError("an escalation has at least one rung")
    return reloaded, before, "spent"


def _choose(run: QuestionRun, reloaded: Reloaded, generator: TokenGenerator, steps: StepRecorder) -> tuple[Choice, ...]:
    """Weigh the given answers, and write the best of them."""
    with steps.stage("decode"):
        unseen = None
        if run.options.calibrate:
            if run.view.memory.dialogue is not None:
                raise SettingsError("calibrate needs the whole prompt: use a chat with earlier='recompute', or ask")
            text = run.backbone.prefix(VideoInfo(system=run.view.whole.system))
            for place in reloaded.memory.placements():
                text = text if place.text is None else text.then(place.text)
            text = text.then(reloaded.prompt)
            unseen = without_video(run.backbone, text, run.generator(reloaded.prompt))
            steps.prefilled += len(text)
        choices = weigh(run.options.choices, run.backbone, generator, unseen)
        ids = run.backbone.reply(best_choice(choices).text)
        generator.write(ids)
        steps.generated += len(ids)
        return choices


def _confidence(generator: TokenGenerator) -> Confidence | None:
    n = len(generator.ids)
    return Confidence(sum(generator.entropies) / n, -sum(generator.surprises) / n) if n else None


def _logprobs(generator: TokenGenerator, backbone: Backbone) -> tuple[TokenLogprob, ...]:
    """Return the tokens of an answer with their log likelihoods, and those of the alternatives."""

    def token(before: list[int], id_: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        text = backbone.decode([*before, id_])[len(backbone.decode(before)) :]  # a space may belong to a token
        return TokenLogprob(id_, text, logprob, top)

    found = []
    for i, (id_, surprise) in enumerate(zip(generator.ids, generator.surprises, strict=True)):
        before = generator.ids[max(0, i - 1) : i]
        top = tuple(token(before, *one) for one in generator.alternatives[i]) if generator.alternatives else ()
        found.append(token(before, id_, -surprise, top))
    return tuple(found)


def _decode(
    run: QuestionRun, reloaded: Reloaded, generator: TokenGenerator, steps: StepRecorder, on_text: OnText | None
) -> Generator[TokenGenerator, None, tuple[Reloaded, str]]:
    """Write the answer to its end, piece by piece, choosing the chunks again on the way where that is asked for."""
    stream, stop = TextStream(run.backbone.decode), StopText(run.options.stop)
    pieces, every = list[str](), run.options.reselect_every

    def show(piece: str) -> None:
        pieces.append(piece)
        if piece and on_text is not None:
            on_text(piece)

    for drafted in generator.ids:
        show(stop.push(stream.push(drafted)))
    while not stop.met and (token := (yield from _step(generator, steps))) is not None:
        show(stop.push(stream.push(token)))
        if every and len(generator.ids) % every == 0 and generator.finish is None and not stop.met:
            reloaded = _reselect(run, reloaded, generator, steps)
    show(stop.push(stream.end()) + stop.end())
    if stop.met:
        generator.end("".join(pieces))
    return reloaded, "".join(pieces).strip()


def _reselect(run: QuestionRun, reloaded: Reloaded, generator: TokenGenerator, steps: StepRecorder) -> Reloaded:
    """Choose again with the answer so far; where the plan changes, go on behind the new cache."""
    steps.end(reloaded, generator, then="re-selected")
    plan = select(run, steps, generator.ids)
    if plan.ratios == reloaded.plan.ratios:
        return replace(reloaded, plan=plan)
    reloaded = reload(run, plan, steps, reloaded.loaded)
    prefill(run, reloaded, steps, generator)
    return reloaded


def _attributions(run: QuestionRun, plan: Plan) -> dict[int, Attribution]:
    """Have the selector explain the scores of the moments that are asked about, if anything was scored."""
    selector, memory = run.selector, run.view.memory
    if not isinstance(selector, Explainer):
        return {}
    scored = (chunk for chunk in dict.fromkeys(run.moments) if plan.scores[chunk] is not None)
    return {run.view.seen[chunk]: selector.explain(run.asked, memory, run.backbone, chunk) for chunk in scored}


def _prompt_ids(run: QuestionRun, prompt: TextTokens) -> list[int]:
    """Return the ids of the text before the answer, for penalties: around the videos, and of the question."""
    between = [place.text for place in run.view.memory.placements() if place.text is not None]
    before = run.backbone.prefix(VideoInfo(system=run.view.whole.system))
    return [token for text in (before, *between, prompt) for token in text.ids.tolist() if token >= 0]


def _with_ids(text: TextTokens, ids: Sequence[int], backbone: Backbone) -> TextTokens:
    if not ids:
        return text
    tokens = torch.tensor(ids, device=text.ids.device)
    return text.then(TextTokens(tokens, backbone.embed(tokens)))


@dataclass
class StepRecorder:
    """Counts what is done on the way to an answer, and keeps it as steps. `reloaded` counts tokens finer than H."""

    run: QuestionRun
    done: list[Step] = field(default_factory=list)
    reloaded: int = 0
    prefilled: int = 0
    generated: int = 0
    _why: str = "asked"
    _at: int = 0
    _seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the seconds of a block to a stage."""
        start = perf_counter()
        yield
        self._seconds[name] += perf_counter() - start

    def end(self, reloaded: Reloaded, generator: TokenGenerator, *, settled: str = "", then: str = "") -> None:
        """Keep what was done since the last step; another one begins, and `then` says why."""
        memory = self.run.view.memory
        token_bytes = memory.shape.token_bytes
        cost = Cost(
            tokens=reloaded.tokens,
            bytes=reloaded.tokens * token_bytes,
            full_tokens=memory.full_tokens,
            full_bytes=memory.full_tokens * token_bytes,
            reloaded_bytes=self.reloaded * token_bytes,
            prompt_tokens=self.prefilled,
            new_tokens=self.generated,
            seconds=self._seconds,
            dialogue_tokens=0 if memory.dialogue is None else len(memory.dialogue),
        )
        pairs = zip(self.run.view.seen, reloaded.plan.ratios, strict=True)
        finer = tuple(number for number, ratio in pairs if ratio < memory.coarsest)
        text = self.run.backbone.decode(generator.ids).strip()
        measure = self.run.escalation or Escalation(measure="first")
        entropy = measure.entropy(generator) if self._at == 0 else None
        self.done.append(Step(self._why, self._at, finer, entropy, text, settled, cost))
        self._why, self._at = then, len(generator.ids) if then == "re-selected" else 0
        self.reloaded = self.prefilled = self.generated = 0
        self._seconds = dict.fromkeys(STAGES, 0.0)


def check_system(options: AskOptions, memory: Memory) -> str | None:
    """Return the system text of a memory. Raises SettingsError where the options name another."""
    wanted, here = options.system, memory.system
    if wanted is not None and wanted != here:
        held = "without a system text" if here is None else f"with the system text {here!r}"
        raise SettingsError(
            f"the memory was made {held}, not with {wanted!r}: what stands before a video is part of its KVs. Ingest "
            "with that system text, or put it behind the video with a prompt template"
        )
    return here


def joined_words(question: str, history: Sequence[Turn]) -> str:
    """Return the words of a dialogue for selectors that compare words, the last question first."""
    return "\n".join([question, *(f"{turn.question} {turn.answer}" for turn in reversed(history))])
