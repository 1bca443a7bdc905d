"""`x2l chat` and the options of `x2l ask` that take several steps, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from videox2l.cli.app import app

NASA = Path(__file__).parent / "media" / "nasa_13013.mp4"
QUESTION = "what digit appears with the red star ?"


def x2l(*args: object, stdin: str | None = None) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "nasa.x2l"
    assert x2l("ingest", NASA, folder, "--fps", 4).exit_code == 0
    return folder


def test_a_piped_dialogue(memory: Path) -> None:
    done = x2l(
        "chat", memory, "-v", "--max-new-tokens", 4, stdin=f"{QUESTION}\n\nbad <|im_end|>\nand does it appear ?\n"
    )
    assert done.exit_code == 0, done.output
    assert done.stdout.count("Q ") == 3
    assert done.stdout.count("tokens attended") == 2
    assert done.stdout.count("tokens of the dialogue kept") == 1
    assert done.stderr.strip() == "error: the text holds the control token '<|im_end|>': leave it out"


def test_a_dialogue_as_json_keeps_its_turns(memory: Path) -> None:
    asked = f"{QUESTION}\nand does it appear ?\n"
    kept, again = (
        [json.loads(line) for line in x2l("chat", memory, "--json", *more, stdin=asked).stdout.splitlines()]
        for more in ([], ["--recompute"])
    )
    assert [answer["question"] for answer in kept] == asked.splitlines()
    assert kept[0]["cost"]["dialogue_tokens"] == 0 < kept[1]["cost"]["dialogue_tokens"]
    assert kept[1]["cost"]["prompt_tokens"] < again[1]["cost"]["prompt_tokens"]


def test_steps_are_told(memory: Path) -> None:
    done = x2l("ask", memory, QUESTION, "--escalate", "--escalate-below", 0, "--escalate-from", 0, "--reload", 2, "-v")
    assert "  steps: H (entropy " in done.stdout
    assert "-> 1 chunks (entropy" in done.stdout
    assert done.stdout.rstrip().splitlines()[-2].endswith(": spent")
    answer = json.loads(x2l("ask", memory, QUESTION, "--escalate", "--reload", 2, "--json").stdout)["answers"][0]
    step = answer["steps"][0]
    assert set(step) == {"why", "at", "reloaded", "entropy", "text", "settled", "cost"}
    again = json.loads(x2l("ask", memory, QUESTION, "--reselect-every", 1, "--json").stdout)["answers"][0]
    assert [step["why"] for step in again["steps"]][:1] == ["asked"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["chat", "nowhere.x2l"], "'nowhere.x2l' holds no memory: make one of a video with x2l ingest"),
        (["ask", NASA, QUESTION, "--escalate-below", "1"], "--escalate-below goes with --escalate"),
        (["ask", NASA, QUESTION, "--escalate-from", "1"], "--escalate-from goes with --escalate"),
        (["ask", NASA, QUESTION, "--escalate", "--escalate-below", "-1"], "below=-1"),
        (["ask", NASA, QUESTION, "--escalate", "--reselect-every", "2"], "use one of them"),
        (["ask", NASA, QUESTION, "--reselect-every", "0"], "reselect_every must be"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(args: list[object], message: str) -> None:
    done = x2l(*args)
    assert done.exit_code in (1, 2)
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
