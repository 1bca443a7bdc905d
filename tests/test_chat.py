"""Dialogues: turns are kept, not read again, and equal the stock model's pass over the whole dialogue."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import FAMILIES, make_qwen25, make_video_xl
from tests.families.models import MAKERS, needs
from tests.test_asking import Fixed, endless, frames
from tests.test_exactness import stock_inputs
from videox2l import ArraySource, Memory, SettingsError, Turn, VideoX2L
from videox2l.ask.chat import Chat
from videox2l.engine.decode import StopText
from videox2l.memory import DialogueKV, Plan
from videox2l.select import ManualSelector

QUESTIONS = ["What happens in the video?", "Who rings the bell?", "And then?"]
NEW = 7


def between(question: str) -> str:
    """The end of a turn and the next question in the chat template of the tests, written out."""
    return f"<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


@torch.no_grad()
def stock_dialogue(family: str, video: np.ndarray, stop: int | None) -> list[list[int]]:
    """Greedy answers of the stock model, the whole dialogue in one pass for every token, eager attention."""
    model, processor = FAMILIES[family]()
    inputs = stock_inputs(family, model, processor, video, 1.0)
    model.get_decoder().set_attn_implementation("eager")

    def say(ids: torch.Tensor) -> None:
        inputs["input_ids"] = torch.cat((inputs["input_ids"], ids), 1)
        if "position_ids" in inputs:
            last = inputs["position_ids"][..., -1:]
            inputs["position_ids"] = torch.cat((inputs["position_ids"], last + torch.arange(1, ids.shape[1] + 1)), -1)

    answers: list[list[int]] = []
    for question in QUESTIONS:
        if answers:
            say(processor.tokenizer(between(question), return_tensors="pt").input_ids)
        answers.append([])
        for _ in range(NEW):
            token = int(model(**inputs, use_cache=False).logits[0, -1].argmax())
            if token == stop:
                break
            answers[-1].append(token)
            say(torch.tensor([[token]]))
    return answers


@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("earlier", ["keep", "recompute"])
def test_three_turns_equal_the_stock_model(family: str, video: np.ndarray, earlier: str, stops: bool) -> None:
    stop = stock_dialogue(family, video, None)[0][3] if stops else None
    stock = stock_dialogue(family, video, stop)
    x2l = endless(VideoX2L.from_model(*FAMILIES[family]()))
    if stop is not None:
        x2l.backbone.model.generation_config.eos_token_id = [stop]  # type: ignore[attr-defined]
    memory = x2l.ingest(ArraySource(video, fps=1.0), ratios=(1,), chunk_frames=4)

    def answers(chat: Chat, damage: Any = lambda chat: None) -> list[list[int]]:
        found = []
        for question in QUESTIONS:
            found.append(list(chat.ask(question, reload="all", max_new_tokens=NEW).ids))
            damage(chat)
        return found

    def lay_out_again(chat: Chat) -> None:
        chat._loaded = None

    def shift(chat: Chat) -> None:
        chat._loaded = None
        chat._kept = replace(chat._kept, first=chat._kept.first - 1)  # type: ignore[type-var, union-attr]

    assert answers(x2l.chat(memory, earlier=earlier)) == stock
    assert answers(x2l.chat(memory, earlier=earlier), lay_out_again) == stock
    if earlier == "keep":
        wrong = answers(x2l.chat(memory), shift)  # the negative control: earlier turns one position late
        assert wrong[0] == stock[0]
        assert wrong[1:] != stock[1:]


class Counting:
    """A backbone that counts the tokens of each forward pass."""

    def __init__(self, backbone: Any) -> None:
        self._backbone = backbone
        self.passes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def forward(self, embeds: torch.Tensor, *args: Any) -> torch.Tensor:
        self.passes.append(len(embeds))
        return self._backbone.forward(embeds, *args)

    def taken(self) -> list[int]:
        passes, self.passes = self.passes, []
        return passes


@pytest.fixture(scope="module")
def counting() -> Counting:
    return Counting(endless(VideoX2L.from_model(*make_qwen25())).backbone)


@pytest.fixture(scope="module")
def x2l(counting: Counting) -> VideoX2L:
    return VideoX2L(counting)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def memory(x2l: VideoX2L) -> Memory:
    return x2l.ingest(ArraySource(frames()), ratios=(2, 8), chunk_frames=4)


@pytest.mark.parametrize("selector", ["keys", "attention", ManualSelector([(9, 10)])])
def test_only_the_new_turn_is_prefilled(selector: Any, x2l: VideoX2L, memory: Memory, counting: Counting) -> None:
    looks = {"keys": 1, "attention": 2}.get(
        str(selector), 0
    )  # passes of the selector: they too read the new turn alone
    tokenizer = x2l.backbone.tokenizer
    counting.taken()
    chat = x2l.chat(memory)
    told = 0
    for number, question in enumerate(QUESTIONS):
        answer = chat.ask(question, selector=selector, reload=1, max_new_tokens=NEW)
        new = len(x2l.backbone.suffix(question)) if number == 0 else 1 + len(tokenizer(between(question)).input_ids)
        assert counting.taken() == [new] * (looks + 1) + [1] * (NEW - 1)
        assert answer.cost.prompt_tokens == new
        assert answer.cost.dialogue_tokens == told
        told += new + NEW - 1
    whole = x2l.chat(memory, earlier="recompute")
    prompts = [whole.ask(q, selector=selector, reload=1, max_new_tokens=NEW).cost.prompt_tokens for q in QUESTIONS]
    assert prompts[2] == told - NEW + 1  # the control: all of the dialogue is read again
    assert prompts[0] < prompts[1] < prompts[2]


def test_what_lies_on_the_device_is_not_brought_again(x2l: VideoX2L, memory: Memory) -> None:
    chat = x2l.chat(memory)
    wanted = [
        ManualSelector([(9, 10), (17, 18)]),
        ManualSelector([(9, 10), (17, 18)]),
        ManualSelector([(9, 10), (0, 1)]),
    ]
    costs = [chat.ask(q, selector=s, reload=2, max_new_tokens=3).cost for q, s in zip(QUESTIONS, wanted, strict=True)]
    each = 16 * memory.shape.token_bytes
    assert [cost.reloaded_bytes for cost in costs] == [2 * each, 0, each]
    assert len({cost.tokens for cost in costs}) == 1


def reference(x2l: VideoX2L, memory: Memory, plans: list[Plan], earlier: str) -> list[list[int]]:
    """A dialogue written out: each turn's own pass on a fresh mix of its plan, with the turns before it behind that.

    "keep": the keys and values of earlier turns are taken from the caches in which they were first computed.
    """
    from videox2l.memory import build_cache

    backbone = x2l.backbone
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    ids: list[int] = []
    answers: list[list[int]] = []
    for question, plan in zip(QUESTIONS, plans, strict=True):
        text = backbone.suffix(question).ids.tolist()
        if answers:
            text = [ids[-1], *backbone.tokenizer(between(question)).input_ids]
        mixed = build_cache(memory, plan, backbone)
        position, cache = mixed.next_position, mixed.cache
        if earlier == "keep":
            for keys, values in kept:
                cache.append(keys, values)
                position += keys.shape[2]
        elif answers:
            text = [*ids[:-1], *text]
        begin = len(cache)
        for token in [text, *[None] * (NEW - 1)]:
            new = token or [answers[-1][-1]]
            hidden = backbone.forward(
                backbone.embed(torch.tensor(new)), backbone.text_positions(position, len(new)), cache
            )
            position += len(new)
            if token is not None:
                answers.append([])
            answers[-1].append(int(backbone.logits(hidden[-1:])[0].argmax()))
        kept.append(cache.columns(begin))
        ids = [*(ids[:-1] if earlier == "keep" and ids else []), *text, *answers[-1]]
    return answers


@pytest.mark.parametrize("earlier", ["keep", "recompute"])
def test_turns_before_another_plan(earlier: str, x2l: VideoX2L, memory: Memory) -> None:
    plans = [Plan.at([2.0 if i in finer else 8.0 for i in range(6)]) for finer in ((0, 1), (4,), (1, 2, 3))]
    chat = x2l.chat(memory, earlier=earlier)
    found = [list(chat.ask(q, reload=Fixed(p), max_new_tokens=NEW).ids) for q, p in zip(QUESTIONS, plans, strict=True)]
    assert found == reference(x2l, memory, plans, earlier)
    other = "keep" if earlier == "recompute" else "recompute"
    assert found != reference(x2l, memory, plans, other)  # the two ways differ here, so the test can tell


def test_keys_are_turned_to_new_positions(family: str) -> None:
    """In the first layer keys depend on token and position alone: turned ones equal those of a pass at that place."""
    backbone = VideoX2L.from_model(*FAMILIES[family]()).backbone
    text = backbone.follow_up("Who rings the bell?")

    def columns(first: int) -> tuple[torch.Tensor, torch.Tensor]:
        cache = backbone.new_cache()
        backbone.forward(text.embeds, backbone.text_positions(first, len(text)), cache)
        return cache.columns(0)

    kept = DialogueKV(*columns(20), first=20)
    for first in (33, 7):
        expect = columns(first)[0][0]
        assert (kept.keys_at(first, backbone)[0] - expect).abs().max() < 1e-4
        assert (kept.keys_at(first + 1, backbone)[0] - expect).abs().max() > 0.1
    assert kept.keys_at(20, backbone) is kept.keys


def test_a_dialogue_moves_behind_what_is_seen(x2l: VideoX2L, memory: Memory) -> None:
    """A narrower view ends earlier: the turns stand right behind it, in the cache and after it."""
    chat = x2l.chat(memory)
    chat.ask(QUESTIONS[0], reload="all", max_new_tokens=3)
    first = chat._kept.first  # type: ignore[union-attr]
    chat.ask(QUESTIONS[1], reload="all", max_new_tokens=3, as_of=12)
    part = memory.only([0, 1, 2])
    assert (first, chat._kept.first) == (memory.next_position, part.next_position)  # type: ignore[union-attr]
    chat.ask(QUESTIONS[2], reload="all", max_new_tokens=3)
    assert chat._kept.first == memory.next_position  # type: ignore[union-attr]


def test_dialogues_do_not_touch_each_other(x2l: VideoX2L, memory: Memory) -> None:
    def alone(questions: list[str]) -> list[tuple[int, ...]]:
        chat = x2l.chat(memory)
        return [chat.ask(question, max_new_tokens=NEW).ids for question in questions]

    one, two = QUESTIONS, QUESTIONS[::-1]
    expect = alone(one), alone(two)
    stateless = x2l.ask(memory, one[1], max_new_tokens=NEW)
    first, second = x2l.chat(memory), x2l.chat(memory)
    mixed: tuple[list[Any], list[Any]] = ([], [])
    for a, b in zip(one, two, strict=True):
        mixed[1].append(second.ask(b, max_new_tokens=NEW).ids)
        mixed[0].append(first.ask(a, max_new_tokens=NEW).ids)
        assert x2l.ask(memory, one[1], max_new_tokens=NEW).ids == stateless.ids
    assert mixed == expect
    assert memory.dialogue is None


def test_a_question_that_fails_leaves_the_dialogue_as_it_was(x2l: VideoX2L, memory: Memory) -> None:
    chat, same = x2l.chat(memory), x2l.chat(memory)
    for each in (chat, same):
        each.ask(QUESTIONS[0], max_new_tokens=NEW)

    class Broken:
        def score(self, *_: Any) -> torch.Tensor:
            raise RuntimeError("broken")

    def stop(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SettingsError, match="question is empty"):
        chat.ask(" ")
    with pytest.raises(RuntimeError, match="broken"):
        chat.ask("hm?", selector=Broken())
    with pytest.raises(KeyboardInterrupt):
        chat.ask("hm?", on_text=stop)
    assert chat.turns == same.turns
    assert chat.ask(QUESTIONS[1], max_new_tokens=NEW).ids == same.ask(QUESTIONS[1], max_new_tokens=NEW).ids


def test_a_dialogue_follows_a_memory_that_grows(x2l: VideoX2L) -> None:
    memory = x2l.ingest(ArraySource(frames(8)), ratios=(2, 8), chunk_frames=4, live=True)
    chat = x2l.chat(memory)
    assert len(chat.ask(QUESTIONS[0], max_new_tokens=3).evidence) == 2
    x2l.append(memory, ArraySource(frames(8, seed=3)))
    answer = chat.ask(QUESTIONS[1], max_new_tokens=3)
    assert len(answer.evidence) == 4
    assert chat._kept.first == memory.next_position  # type: ignore[union-attr]


def test_selectors_see_the_dialogue(x2l: VideoX2L, memory: Memory) -> None:
    class Listening:
        def __init__(self) -> None:
            self.asked: list[Any] = []
            self.behind: list[int] = []

        def score(self, question: Any, memory: Memory, backbone: Any) -> torch.Tensor:
            self.asked.append(question)
            self.behind.append(0 if memory.dialogue is None else len(memory.dialogue))
            return torch.zeros(len(memory))

    ear = Listening()
    chat = x2l.chat(memory)
    answers = [chat.ask(question, selector=ear, max_new_tokens=4).text for question in QUESTIONS]
    assert ear.asked[0].text == QUESTIONS[0]
    assert ear.asked[2].text.split("\n", 1)[0] == QUESTIONS[2]
    assert ear.asked[2].text == f"{QUESTIONS[2]}\n{QUESTIONS[1]} {answers[1]}\n{QUESTIONS[0]} {answers[0]}"
    assert ear.behind[0] == 0 < ear.behind[1] < ear.behind[2]


def test_escalation_and_re_selection_within_a_dialogue(x2l: VideoX2L, memory: Memory) -> None:
    from videox2l.ask.escalation import Escalation

    plain, steps, again = x2l.chat(memory), x2l.chat(memory), x2l.chat(memory)
    for question in QUESTIONS:
        expect = plain.ask(question, reload=2, max_new_tokens=NEW)
        careful = steps.ask(question, reload=2, max_new_tokens=NEW, escalate=Escalation(below=0.0, start=0))
        assert careful.ids == expect.ids
        assert len(careful.steps) == 3
        new = expect.cost.prompt_tokens
        assert careful.cost.prompt_tokens == 3 * new
        assert len(again.ask(question, reload=2, max_new_tokens=NEW, reselect_every=3).steps) == 3


def test_summary_tokens_stand_at_their_columns() -> None:
    """Video-XL counts columns: where a plan has another size, the turns before move with their keys."""
    x2l = endless(VideoX2L.from_model(*make_video_xl()))
    memory = x2l.ingest(ArraySource(frames(40)), ratios=(2, 4))
    assert memory.reposition == "compact"
    chat = x2l.chat(memory)
    for number, question in enumerate(QUESTIONS):
        answer = chat.ask(question, reload=number, max_new_tokens=3)
        assert chat._kept.first == answer.cost.tokens  # type: ignore[union-attr]
    alike = [chat.ask(q, reload="all", max_new_tokens=NEW).ids for chat in [x2l.chat(memory)] for q in QUESTIONS]
    again = [
        c.ask(q, reload="all", max_new_tokens=NEW).ids
        for c in [x2l.chat(memory, earlier="recompute")]
        for q in QUESTIONS
    ]
    assert alike == again


def test_the_demo_model_answers_a_dialogue_as_it_answers_its_history() -> None:
    """Where answers are words of the tokenizer, ids and text are the same: kept turns equal `ask(history=...)`."""
    x2l = VideoX2L.from_pretrained("demo")
    memory = x2l.ingest(ArraySource(frames(16)), ratios=(1,))
    questions = ["what digit appears with the red star ?", "does a blue circle appear ?", "and what is the colour ?"]
    chat = x2l.chat(memory)
    turns: list[Turn] = []
    for question in questions:
        stateless = x2l.ask(memory, question, reload="all", history=turns, max_new_tokens=4)
        answer = chat.ask(question, reload="all", max_new_tokens=4)
        assert answer.ids == stateless.ids
        assert answer.finish == "stop"
        turns.append(Turn(question, answer.text))
    assert chat.turns == tuple(turns)


@pytest.mark.parametrize("name", sorted({**FAMILIES, **MAKERS, "video_xl": make_video_xl}))
def test_a_follow_up_is_what_the_template_puts_behind_an_answer(name: str) -> None:
    if name in MAKERS:
        needs(name)
    backbone = VideoX2L.from_model(*{**FAMILIES, **MAKERS, "video_xl": make_video_xl}[name]()).backbone
    first = backbone.suffix(QUESTIONS[0]).ids.tolist()
    whole = backbone.suffix(QUESTIONS[1], [Turn(QUESTIONS[0], "someone")]).ids.tolist()
    behind = backbone.follow_up(QUESTIONS[1]).ids.tolist()
    assert whole[: len(first)] == first
    assert whole[-len(behind) :] == behind
    assert backbone.decode(whole[len(first) : -len(behind)]).strip() == "someone"


def test_wrong_ways_are_refused(x2l: VideoX2L, memory: Memory) -> None:
    with pytest.raises(SettingsError, match="earlier='forget' is not known: use keep or recompute"):
        x2l.chat(memory, earlier="forget")


@pytest.mark.parametrize("earlier", ["keep", "recompute"])
def test_a_dialogue_forgets_what_stood_behind_a_stop_text(video: np.ndarray, earlier: str) -> None:
    """It goes on as if the model had ended its answer by a token of its own there."""

    def made() -> tuple[VideoX2L, Memory]:
        x2l = endless(VideoX2L.from_model(*make_qwen25()))
        return x2l, x2l.ingest(ArraySource(video), ratios=(1,))

    x2l, memory = made()
    whole = x2l.ask(memory, QUESTIONS[0], reload="all", max_new_tokens=NEW)
    texts = [x2l.backbone.decode([token]) for token in whole.ids]
    at = next(i for i in range(2, NEW) if texts[i].strip().isalpha() and texts[i] not in "".join(texts[:i]))
    text = texts[at]
    chat = x2l.chat(memory, earlier=earlier)  # type: ignore[arg-type]
    pieces: list[str] = []
    first = chat.ask(QUESTIONS[0], reload="all", max_new_tokens=NEW, stop=text, on_text=pieces.append)
    assert list(first.ids) == list(whole.ids[:at])
    assert "".join(pieces).strip() == first.text == x2l.backbone.decode(whole.ids[:at]).strip()
    assert first.finish == "stop"
    second = chat.ask(QUESTIONS[1], reload="all", max_new_tokens=NEW)

    ended, same = made()
    ended.backbone.model.generation_config.eos_token_id = whole.ids[at]  # type: ignore[attr-defined]
    other = ended.chat(same, earlier=earlier)  # type: ignore[arg-type]
    assert list(other.ask(QUESTIONS[0], reload="all", max_new_tokens=NEW).ids) == list(first.ids)
    ended.backbone.model.generation_config.eos_token_id = None  # type: ignore[attr-defined]
    assert list(other.ask(QUESTIONS[1], reload="all", max_new_tokens=NEW).ids) == list(second.ids)


def test_stop_texts_that_begin_in_one_piece_and_end_in_another() -> None:
    stop = StopText(("END", "stop here"))
    shown = [stop.push(piece) for piece in ("a st", "op the EN", "x, ", "E", "N", "D", "more")]
    assert "".join(shown) + stop.end() == "a stop the ENx, "
    assert stop.met
    open_ = StopText(("END",))
    assert open_.push("the EN") + open_.end() == "the EN"
    assert not open_.met
