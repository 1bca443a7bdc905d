"""Answers that are JSON of a schema, whatever the model would say: checked by another library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.conftest import make_qwen25
from videox2l import Memory, SettingsError, VideoX2L
from videox2l.memory import Plan, build_cache
from videox2l.video import ArraySource

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

QUESTION = "What happens in the video?"
MOMENT = {
    "type": "object",
    "properties": {
        "shape": {"enum": ["star", "circle", "square"]},
        "seen": {"type": "boolean"},
        "count": {"type": "integer", "minimum": 1, "maximum": 12},
        "name": {"type": "string", "maxLength": 5},
        "moments": {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 9}, "maxItems": 2},
    },
    "required": ["shape", "seen", "count", "name", "moments"],
    "additionalProperties": False,
}
SCHEMAS = [MOMENT, {"enum": ["red", "blue"]}, {"type": "array", "items": {"const": 7}, "minItems": 2, "maxItems": 3}]


@pytest.fixture(scope="module")
def x2l() -> VideoX2L:
    return VideoX2L.from_model(*make_qwen25())


@pytest.fixture(scope="module")
def memory(x2l: VideoX2L) -> Memory:
    rng = np.random.default_rng(3)
    return x2l.ingest(ArraySource(rng.integers(0, 255, (12, 40, 56, 3), np.uint8)), ratios=(1, 4), chunk_frames=4)


def fails(text: str, schema: Any) -> bool:
    try:
        jsonschema.validate(json.loads(text), schema)
    except (ValueError, jsonschema.ValidationError):
        return True
    return False


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        *({"temperature": 3.0, "seed": seed} for seed in range(6)),
        {"temperature": 1.0, "top_k": 3, "repetition_penalty": 1.5},
        {"escalate": True},
    ],
)
def test_answers_are_valid(x2l: VideoX2L, memory: Memory, schema: Any, options: Any) -> None:
    answer = x2l.ask(memory, QUESTION, json_schema=schema, max_new_tokens=200, **options)
    assert answer.finish == "stop"
    jsonschema.validate(json.loads(answer.text), schema)
    assert fails(x2l.ask(memory, QUESTION, max_new_tokens=60, **options).text, schema)  # it does not do so by itself


def test_sampling_goes_on_inside_of_a_schema(x2l: VideoX2L, memory: Memory) -> None:
    options: dict[str, Any] = {"json_schema": MOMENT, "max_new_tokens": 200, "temperature": 3.0}
    assert len({x2l.ask(memory, QUESTION, seed=seed, **options).text for seed in range(5)}) > 1
    assert x2l.ask(memory, QUESTION, seed=1, **options).ids == x2l.ask(memory, QUESTION, seed=1, **options).ids


@pytest.mark.skipif(transformers.__version__ < "5", reason="llguidance cuts words otherwise with tokenizers of 4.57")
@torch.no_grad()
def test_tokens_are_the_likeliest_that_may_follow(x2l: VideoX2L, memory: Memory) -> None:
    """Of a language of two texts: after each token, the likeliest with which what is written still begins one."""
    texts, backbone = ('"red"', '"blue"'), x2l.backbone
    answer = x2l.ask(memory, QUESTION, json_schema={"enum": ["red", "blue"]}, max_new_tokens=20, reload="all")
    prompt, wanted, free = backbone.suffix(QUESTION), list[int](), list[bool]()
    while backbone.decode(wanted) not in texts:
        layout = build_cache(memory, Plan.at([1.0] * len(memory)), backbone)
        ids = torch.cat((prompt.ids, torch.tensor(wanted, dtype=torch.long)))
        positions = backbone.text_positions(layout.next_position, len(ids))
        logits = backbone.logits(backbone.forward(backbone.embed(ids), positions, layout.cache)[-1:])[0]
        may = [
            token
            for token in range(len(logits))
            if (more := backbone.decode([*wanted, token])) != backbone.decode(wanted)
            and any(text.startswith(more) for text in texts)
        ]
        wanted.append(max(may, key=lambda token: float(logits[token])))
        free.append(wanted[-1] == int(logits.argmax()))
    assert list(answer.ids) == wanted
    assert not all(free)  # it would have said something else


def test_a_cut_answer_says_so(x2l: VideoX2L, memory: Memory) -> None:
    answer = x2l.ask(memory, QUESTION, json_schema=MOMENT, max_new_tokens=4)
    assert answer.finish == "length"


def test_a_dialogue_keeps_to_it_too(x2l: VideoX2L, memory: Memory) -> None:
    chat = x2l.chat(memory)
    for _ in range(2):
        answer = chat.ask(QUESTION, json_schema=MOMENT, max_new_tokens=200)
        jsonschema.validate(json.loads(answer.text), MOMENT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"json_schema": {"type": "nonsense"}}, "json_schema cannot be followed"),
        ({"json_schema": {"type": "string", "pattern": "(?<=a)b"}}, "json_schema cannot be followed"),
        ({"json_schema": {"type": {1, 2}}}, "json_schema is no JSON schema"),
        ({"json_schema": "{}"}, "json_schema must be a JSON object"),
        ({"json_schema": {}, "stop": ["x"]}, "do not go together"),
    ],
)
def test_what_cannot_be_followed(x2l: VideoX2L, memory: Memory, options: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        x2l.ask(memory, QUESTION, **options)


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The schema is a file; what cannot be followed shows before a video is read, as with the demo model's words."""
    from typer.testing import CliRunner

    from videox2l.cli import app as commands
    from videox2l.cli import ingest
    from videox2l.demo.render import render_video

    video, schema = tmp_path / "v.mp4", tmp_path / "schema.json"
    render_video(video, 0, 0.1, fps=2)

    def run(wanted: Any) -> Any:
        schema.write_text(json.dumps(wanted), encoding="utf-8")
        args = ["ask", str(video), QUESTION, "--json-schema", str(schema), "--max-new-tokens", "200"]
        return CliRunner().invoke(commands.app, args)

    done = run({"type": "object"})
    assert (done.exit_code, "is none that llguidance reads" in done.output, "chunks" in done.output) == (2, True, False)
    monkeypatch.setattr(ingest, "load_model", lambda *_: VideoX2L.from_model(*make_qwen25()))
    done = run(MOMENT)
    assert done.exit_code == 0, done.output
    jsonschema.validate(json.loads(done.stdout.partition("\nA ")[2].splitlines()[0]), MOMENT)
    done = run({"type": "nonsense"})
    assert (done.exit_code, "json_schema cannot be followed" in done.output, "chunks" in done.output) == (
        2,
        True,
        False,
    )
