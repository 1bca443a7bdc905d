"""Given answers and confidence: log likelihoods are those of the stock model's own full forward."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import FAMILIES, make_qwen25
from tests.test_exactness import CHAT, QUESTION, stock_inputs
from tests.test_prompts import SYSTEM, TEMPLATE, TURNS, chat_of
from videox2l import Memory, SettingsError, VideoX2L
from videox2l.video import ArraySource

CHOICES = ("red star", "blue circle on the board", "7", "the bell rings")
LIMIT = 1e-4


def extended(inputs: dict[str, Any], ids: list[int]) -> dict[str, Any]:
    """Inputs of the stock model with text behind them."""
    more = {**inputs, "input_ids": torch.cat((inputs["input_ids"], torch.tensor([ids])), 1)}
    if "position_ids" in inputs:
        last = inputs["position_ids"][..., -1:]
        more["position_ids"] = torch.cat((inputs["position_ids"], last + torch.arange(1, len(ids) + 1)), -1)
    return more


@torch.no_grad()
def stock_likelihoods(family: str, video: np.ndarray, chat: Any, seen: bool = True) -> dict[str, list[float]]:
    """Log likelihood of each token of each choice: log softmax of one full forward, the choice written behind."""
    model, processor = FAMILIES[family]()
    inputs, found = stock_inputs(family, model, processor, video, 1.0, chat), {}
    model.get_decoder().set_attn_implementation("eager")
    for text in CHOICES:
        ids = processor.tokenizer(text)["input_ids"]
        if seen:
            logits = model(**extended(inputs, ids), use_cache=False).logits[0]
        else:  # the same text, no visual token in it
            whole = inputs["input_ids"][0]
            pads = whole == processor.tokenizer.convert_tokens_to_ids(
                "<|video_pad|>" if "qwen" in family else "<video>"
            )
            embeds = model.get_input_embeddings()(torch.cat((whole[~pads], torch.tensor(ids))))
            if family == "llava_onevision":  # the vector that ends a video is text
                at = int(pads.nonzero()[0])
                embeds = torch.cat((embeds[:at], model.model.image_newline[None], embeds[at:]))
            logits = model(inputs_embeds=embeds[None], use_cache=False).logits[0]
        rows = logits[-len(ids) - 1 : -1].float().log_softmax(-1)
        found[text] = [float(row[token]) for row, token in zip(rows, ids, strict=True)]
    return found


@pytest.mark.parametrize("around", [False, True])
def test_likelihoods_are_those_of_the_full_forward(family: str, video: np.ndarray, around: bool) -> None:
    """With the video and without; in another order nothing changes; of another video they differ."""
    chat = chat_of(SYSTEM, TURNS, TEMPLATE.replace("{question}", QUESTION)) if around else CHAT
    options: dict[str, Any] = {"turns": TURNS, "prompt_template": TEMPLATE} if around else {}
    x2l = VideoX2L.from_model(*FAMILIES[family]())

    def ingest(video: np.ndarray) -> Memory:
        system = SYSTEM if around else None
        return x2l.ingest(ArraySource(video, fps=1.0), ratios=(1,), history="L", chunk_frames=4, system=system)

    memory = ingest(video)
    wanted, blind = stock_likelihoods(family, video, chat), stock_likelihoods(family, video, chat, seen=False)
    answer = x2l.ask(memory, QUESTION, reload="all", choices=CHOICES, calibrate=True, **options)
    assert [choice.text for choice in answer.choices] == list(CHOICES)
    for choice in answer.choices:
        each = wanted[choice.text]
        assert choice.log_likelihood == pytest.approx(sum(each), abs=LIMIT * len(each))
        assert choice.mean == pytest.approx(sum(each) / len(each), abs=LIMIT)
        assert choice.calibrated == pytest.approx(sum(each) - sum(blind[choice.text]), abs=LIMIT * len(each) * 2)
    assert answer.text == max(CHOICES, key=lambda text: sum(wanted[text]) - sum(blind[text]))
    plain = x2l.ask(memory, QUESTION, reload="all", choices=CHOICES[::-1], **options)
    assert plain.text == max(CHOICES, key=lambda text: float(np.mean(wanted[text])))
    assert [choice.calibrated for choice in plain.choices] == [None] * 4
    assert {c.text: c.mean for c in plain.choices} == pytest.approx({c.text: c.mean for c in answer.choices}, abs=1e-6)
    other = x2l.ask(ingest(video[::-1].copy()), QUESTION, reload="all", choices=CHOICES, **options)
    assert max(abs(a.mean - b.mean) for a, b in zip(other.choices, answer.choices, strict=True)) > 100 * LIMIT


@torch.no_grad()
def test_confidence_is_of_the_stock_model(family: str, video: np.ndarray) -> None:
    """Entropy and log likelihood of every token, whatever temperature and penalties made of the logits."""
    x2l = VideoX2L.from_model(*FAMILIES[family]())
    memory = x2l.ingest(ArraySource(video, fps=1.0), ratios=(1,), history="L", chunk_frames=4)
    model, processor = FAMILIES[family]()
    inputs = stock_inputs(family, model, processor, video, 1.0)
    model.get_decoder().set_attn_implementation("eager")
    for options in ({}, {"temperature": 1.5, "seed": 3, "repetition_penalty": 1.3}):
        answer = x2l.ask(memory, QUESTION, reload="all", max_new_tokens=6, **options)  # type: ignore[arg-type]
        ids = list(answer.ids)
        rows = model(**extended(inputs, ids), use_cache=False).logits[0, -len(ids) - 1 : -1].float().softmax(-1)
        entropy = float(-(rows * rows.log()).sum(-1).mean())
        likelihood = float(rows[range(len(ids)), ids].log().mean())
        assert answer.confidence is not None
        assert answer.confidence.entropy == pytest.approx(entropy, abs=LIMIT)
        assert answer.confidence.log_likelihood == pytest.approx(likelihood, abs=LIMIT)
        assert abs(likelihood + entropy) > LIMIT  # the one is not the other


@pytest.fixture(scope="module")
def x2l() -> VideoX2L:
    return VideoX2L.from_model(*make_qwen25())


@pytest.fixture(scope="module")
def memory(x2l: VideoX2L) -> Memory:
    rng = np.random.default_rng(3)
    return x2l.ingest(ArraySource(rng.integers(0, 255, (12, 40, 56, 3), np.uint8)), ratios=(1, 4), chunk_frames=4)


def test_the_chosen_answer_is_the_answer(x2l: VideoX2L, memory: Memory) -> None:
    shown = list[str]()
    answer = x2l.ask(memory, QUESTION, choices="red star, blue circle, 7", on_text=shown.append)
    best = next(choice for choice in answer.choices if choice.text == answer.text)
    assert "".join(shown) == answer.text == x2l.backbone.decode(answer.ids)
    assert (answer.finish, answer.cost.new_tokens, best.tokens) == ("stop", len(answer.ids), len(answer.ids))
    assert answer.confidence is not None
    assert answer.confidence.log_likelihood == pytest.approx(best.mean, abs=1e-5)
    assert json.loads(json.dumps(answer.to_dict()))["choices"][0]["text"] == "red star"


def test_a_dialogue_goes_on_behind_a_choice(x2l: VideoX2L, memory: Memory) -> None:
    """The chosen answer stands in the kept KVs as it would if it were read again."""
    kept, read = x2l.chat(memory), x2l.chat(memory, earlier="recompute")
    for chat in (kept, read):
        chat.ask(QUESTION, choices=["red star", "blue circle on the board"], reload="all")
    found = [chat.ask("And then?", reload="all", max_new_tokens=6) for chat in (kept, read)]
    assert found[0].ids == found[1].ids
    assert found[0].confidence is not None
    assert found[1].confidence is not None
    assert found[0].confidence.log_likelihood == pytest.approx(found[1].confidence.log_likelihood, abs=1e-4)
    with pytest.raises(SettingsError, match="calibrate needs the whole prompt"):
        kept.ask("And then?", choices="a,b", calibrate=True)
    assert read.ask("And then?", choices="a,b", calibrate=True).choices[0].calibrated is not None


def test_an_unsure_answer_is_taken_back(x2l: VideoX2L, memory: Memory) -> None:
    """Beyond the threshold, not at it; nothing of it is shown before, and a dialogue remembers what was written."""
    from videox2l.ask.answer import NOT_SHOWN

    plain = x2l.ask(memory, QUESTION, max_new_tokens=4)
    assert plain.confidence is not None
    surprise, shown = -plain.confidence.log_likelihood, list[str]()
    kept = x2l.ask(memory, QUESTION, max_new_tokens=4, abstain=surprise, on_text=shown.append)
    assert (kept.text, kept.draft, "".join(shown)) == (plain.text, None, plain.text)
    shown.clear()
    chat = x2l.chat(memory)
    for ask in (x2l.ask, lambda _, *args, **options: chat.ask(*args, **options)):
        shown.clear()
        gone = ask(memory, QUESTION, max_new_tokens=4, abstain=surprise - 1e-4, on_text=shown.append)
        assert (gone.text, gone.draft, shown) == (NOT_SHOWN, plain.text, [NOT_SHOWN])
        assert (gone.ids, gone.confidence) == (plain.ids, plain.confidence)
    assert chat.turns[0].answer == plain.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choices": ["red"]}, "choices must be two or more different texts, got red"),
        ({"choices": ["red", "red"]}, "two or more different texts"),
        ({"choices": "red,,blue"}, "texts that are not empty"),
        ({"choices": ["red", "<|im_end|>"]}, "control token"),
        ({"choices": "a,b", "temperature": 1.0}, "choices and temperature do not go together"),
        ({"choices": "a,b", "escalate": True}, "choices and escalate do not go together"),
        ({"choices": "a,b", "stop": ["c"]}, "choices and stop do not go together"),
        ({"choices": "a,b", "json_schema": {"type": "string"}}, "choices and json_schema do not go together"),
        ({"calibrate": True}, "calibrate goes with choices"),
        ({"abstain": -1}, "abstain must be a number of 0 or more"),
        ({"abstain": 1, "json_schema": {"type": "string"}}, "json_schema and abstain do not go together"),
    ],
)
def test_what_cannot_be_weighed(x2l: VideoX2L, memory: Memory, options: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        x2l.ask(memory, QUESTION, **options)
