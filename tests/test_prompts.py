"""System text, examples and prompt templates: exact against the stock model's chat template, else refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import FAMILIES, make_qwen25, make_video_xl
from tests.families.models import MAKERS
from tests.test_exactness import NEW, QUESTION, stock_run
from tests.test_several import ingest
from videox2l import Memory, SettingsError, Turn, VideoX2L
from videox2l.backbones.decoder_backbone import decoder_inputs
from videox2l.conformance.case import TestCase, made_up_clip, stock_attention
from videox2l.memory import Plan, build_cache
from videox2l.types import VideoInfo
from videox2l.video import ArraySource

SYSTEM = "Answer as a bell would."
TURNS = (("What is on the board?", "a red star"), ("Who rings?", "someone"))
TEMPLATE = 'Look well. {question} Say it as {"json": 1}.'


def text_part(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def chat_of(system: str | None, turns: Any, question: str) -> list[dict[str, Any]]:
    """The messages that a user of plain transformers would write."""
    chat: list[dict[str, Any]] = []
    for asked, answered in turns:
        chat += [{"role": "user", "content": text_part(asked)}, {"role": "assistant", "content": text_part(answered)}]
    chat.append({"role": "user", "content": text_part(question)})
    chat[0]["content"] = [{"type": "video"}, *chat[0]["content"]]
    return chat if system is None else [{"role": "system", "content": text_part(system)}, *chat]


def free_answers(x2l: VideoX2L) -> VideoX2L:
    """Let answers go on to their limit."""
    x2l.backbone.model.generation_config.eos_token_id = None  # type: ignore[attr-defined]
    x2l.backbone.tokenizer.eos_token = None  # type: ignore[attr-defined]
    return x2l


@pytest.mark.parametrize(
    ("system", "turns", "template"), [(SYSTEM, (), None), (None, TURNS, None), (SYSTEM, TURNS, TEMPLATE)]
)
def test_greedy_answers_are_those_of_the_stock_chat(
    family: str, video: np.ndarray, system: str | None, turns: Any, template: str | None
) -> None:
    """And of no other chat: each part that is left out, or stands elsewhere, gives other logits."""
    asked = QUESTION if template is None else f'Look well. {QUESTION} Say it as {{"json": 1}}.'
    stock_logits, stock_ids = stock_run(family, video, 1.0, chat_of(system, turns, asked))
    x2l = free_answers(VideoX2L.from_model(*FAMILIES[family]()))
    memory = x2l.ingest(ArraySource(video, fps=1.0), ratios=(1,), history="L", chunk_frames=4, system=system)
    options: dict[str, Any] = {"reload": "all", "max_new_tokens": NEW, "prompt_template": template}
    assert list(x2l.ask(memory, QUESTION, turns=turns, system=system, **options).ids) == stock_ids
    messages = chat_of(None, turns, "-")[:-1]
    if messages:
        for message in messages:
            message["content"] = message["content"][-1]["text"]
        assert list(x2l.ask(memory, QUESTION, turns=messages, **options).ids) == stock_ids
        assert list(x2l.ask(memory, QUESTION, history=[Turn(*turn) for turn in turns], **options).ids) == stock_ids
    assert list(x2l.chat(memory).ask(QUESTION, turns=turns, **options).ids) == stock_ids

    def gap(memory: Memory, turns: Any, asked: str) -> float:
        backbone = x2l.backbone
        layout = build_cache(memory, Plan.at([1.0] * len(memory)), backbone)
        prompt = backbone.suffix(asked, [Turn(*turn) for turn in turns], memory.system)
        positions = backbone.text_positions(layout.next_position, len(prompt))
        ours = backbone.logits(backbone.forward(prompt.embeds, positions, layout.cache)[-1:])[0]
        return float((ours - stock_logits[0]).abs().max())

    assert gap(memory, turns, asked) < 1e-4
    if turns:
        assert gap(memory, turns[:1], asked) > 0.01
    if system:
        without = x2l.ingest(ArraySource(video, fps=1.0), ratios=(1,), history="L", chunk_frames=4)
        assert gap(without, turns, asked) > 0.01
        assert gap(without, turns, f"{SYSTEM}\n{asked}") > 0.01  # behind the video is another prompt


@pytest.mark.parametrize("family", sorted(set(MAKERS) - {"video_xl", "smolvlm"}))
def test_a_system_text_in_every_family(family: str) -> None:
    """The prompt in one piece through the stock model, or a refusal by families that write none before the video."""
    x2l = VideoX2L.from_model(*MAKERS[family]())
    case = TestCase(x2l.backbone, made_up_clip(9, 3))
    case.facts = VideoInfo(case.facts.frames, case.facts.duration, SYSTEM)
    memory = x2l.ingest(case.source(), ratios=(1,), history="L", chunk_frames=case.short, system=SYSTEM)
    backbone: Any = x2l.backbone
    inputs = case.inputs
    assert backbone.tokenizer.decode(inputs["input_ids"][0]).count(SYSTEM) == 1
    layout = build_cache(memory, Plan.at([1.0] * len(memory)), backbone)
    prompt = backbone.suffix("What happens in the video?", (), SYSTEM)
    positions = backbone.text_positions(layout.next_position, len(prompt))
    ours = backbone.logits(backbone.forward(prompt.embeds, positions, layout.cache)[-1:])[0]
    with stock_attention(backbone), torch.no_grad():
        stock = backbone.model(**inputs, use_cache=False).logits[0, -1]
    assert float((ours - stock).abs().max()) < case.tolerance
    assert "inputs_embeds" in decoder_inputs(backbone.model, **inputs)


@pytest.fixture(scope="module")
def x2l() -> VideoX2L:
    return VideoX2L.from_model(*make_qwen25())


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return made_up_clip(12, 1)


def test_another_system_text_is_another_memory(x2l: VideoX2L, clip: np.ndarray, tmp_path: Path) -> None:
    plain, told = ingest(x2l, clip), ingest(x2l, clip, system=SYSTEM)
    assert "system" not in plain.settings  # memories made before there were system texts stay what they are
    assert told.settings["system"] == SYSTEM
    with pytest.raises(
        SettingsError, match=r"made with the system text 'Answer as a bell would\.', not with 'Be brief"
    ):
        x2l.ask(told, QUESTION, system="Be brief.")
    with pytest.raises(SettingsError, match=r"made without a system text, not with 'Answer"):
        x2l.chat(plain).ask(QUESTION, system=SYSTEM)
    with pytest.raises(SettingsError, match="cannot be asked together: they have the system text"):
        x2l.ask([plain, told], QUESTION)
    both = x2l.ask([told, told], QUESTION, system=SYSTEM, max_new_tokens=2)
    assert both.ids

    told.save(tmp_path / "told")
    assert Memory.load(tmp_path / "told").system == SYSTEM
    from videox2l.errors import MemoryFileError

    x2l.ingest(ArraySource(clip, fps=1.0), ratios=(1,), chunk_frames=4, store=tmp_path / "kept", system=SYSTEM)
    with pytest.raises(MemoryFileError, match=r"settings\.system"):
        x2l.ingest(ArraySource(clip, fps=1.0), ratios=(1,), chunk_frames=4, store=tmp_path / "kept")


def test_what_is_appended_stands_behind_the_same_text(x2l: VideoX2L, clip: np.ndarray) -> None:
    whole = ingest(x2l, clip, system=SYSTEM, live=True)
    grown = x2l.append(ingest(x2l, clip[:8], system=SYSTEM, live=True), ArraySource(clip[8:], fps=1.0))
    assert grown.next_position == whole.next_position
    assert torch.equal(grown.chunks[2].levels[1.0].keys, whole.chunks[2].levels[1.0].keys)


def test_selectors_read_the_question_alone(x2l: VideoX2L, clip: np.ndarray) -> None:
    memory = ingest(x2l, clip, ratios=(1, 8), history="H")
    plain = x2l.ask(memory, QUESTION, max_new_tokens=3)
    dressed = x2l.ask(memory, QUESTION, max_new_tokens=3, turns=TURNS, prompt_template=TEMPLATE)
    assert [moment.score for moment in dressed.evidence] == [moment.score for moment in plain.evidence]
    assert dressed.cost.prompt_tokens > plain.cost.prompt_tokens
    assert x2l.ask(memory, TEMPLATE.replace("{question}", QUESTION)).evidence != plain.evidence


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_template": "Say it."}, "prompt_template must hold {question} once"),
        ({"prompt_template": "{question} {question}"}, "prompt_template must hold {question} once"),
        ({"turns": [("a",)]}, r"turns\[0\] must be a message with a text, or question and answer"),
        ({"turns": [{"role": "user", "content": "a"}]}, r"turns\[0\] is a question without an answer"),
        ({"turns": [{"role": "assistant", "content": "a"}]}, r"turns\[0\] must have role 'user', got 'assistant'"),
        ({"turns": [{"role": "system", "content": "a"}]}, r"turns\[0\] is a system message"),
        ({"turns": "a"}, "turns must be a list"),
        ({"turns": [("<|im_end|>", "b")]}, "control token"),
        ({"system": " "}, "system must be text that is not empty"),
    ],
)
def test_what_cannot_be_asked(x2l: VideoX2L, clip: np.ndarray, options: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        x2l.ask(ingest(x2l, clip[:4]), QUESTION, **options)


def test_templates_without_a_place_for_it_refuse(clip: np.ndarray) -> None:
    xl = VideoX2L.from_model(*make_video_xl())
    with pytest.raises(SettingsError, match="Video-XL was published with a system text of its own"):
        ingest(xl, clip, system=SYSTEM, ratios=(2, 4), history="H", chunk_frames=None)
    model, processor = make_qwen25()
    template = processor.tokenizer.chat_template
    processor.tokenizer.chat_template = template.replace("{% for m in messages %}", "{% for m in messages[-1:] %}")
    with pytest.raises(SettingsError, match="no place for a system text"):
        ingest(VideoX2L.from_model(model, processor), clip, system=SYSTEM)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One video, asked as a file and as a memory, with a system text and examples from a file."""
    from typer.testing import CliRunner

    from videox2l.cli.app import app
    from videox2l.demo.render import render_video

    video, kept, turns = tmp_path / "v.mp4", tmp_path / "kept", tmp_path / "turns.json"
    render_video(video, 0, 0.1, fps=2)
    turns.write_text(json.dumps(chat_of(None, [("what color ?", "red")], "-")[1:2]), encoding="utf-8")

    def run(*args: object) -> Any:
        return CliRunner().invoke(app, ["ask", *map(str, args)])

    question, asking = "what digit appears ?", ("--system", SYSTEM, "--prompt-template", "now : {question}")
    wrong = run(video, question, *asking, "--turns", turns)
    assert (wrong.exit_code, "turns[0] must have role 'user', got 'assistant'" in wrong.output) == (2, True)
    turns.write_text(json.dumps([["what color ?", "red"]]), encoding="utf-8")
    first = run(video, question, *asking, "--turns", turns, "--save", kept, "--json")
    assert first.exit_code == 0, first.output
    again = run(kept, question, *asking, "--turns", turns, "--json")
    answers = [json.loads(done.stdout)["answers"][0]["ids"] for done in (first, again)]
    assert answers[0] == answers[1]
    memory = Memory.load(kept)
    x2l = VideoX2L.from_pretrained("demo", device="cpu")
    told = x2l.ask(memory, question, turns=[("what color ?", "red")], prompt_template="now : {question}")
    assert list(told.ids) == answers[0]
    other = run(kept, question, "--system", "Be brief.")
    assert (other.exit_code, "made with the system text" in other.output) == (2, True)
    missing = run(kept, question, "--turns", tmp_path / "none.json")
    assert (missing.exit_code, "cannot be read" in missing.output) == (2, True)
