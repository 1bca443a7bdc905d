"""The command line, as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.disk.helpers import ingest, small_model
from videox2l.cli.app import app
from videox2l.units import format_range, format_time, parse_range, parse_time

MEDIA = Path(__file__).parent / "media"
NASA = MEDIA / "nasa_13013.mp4"
QUESTION = "what digit appears with the red star ?"


def x2l(*args: object) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_ask_a_real_video(tmp_path: Path) -> None:
    """Two questions, one ingest: answers, moments, cost; the saved memory answers the same."""
    saved = tmp_path / "nasa.x2l"
    done = x2l(
        "ask", NASA, QUESTION, "does a blue circle appear ?", "--fps", 4, "--max-new-tokens", 4, "--save", saved, "-v"
    )
    assert done.exit_code == 0, done.output
    assert "52 frames, 7 chunks" in done.stdout
    assert "L at 1/2, H at 1/32" in done.stdout
    assert done.stdout.count("score rank 1") == 2
    assert done.stdout.count("tokens attended") == 2
    assert done.stderr == ""  # no bars where nobody watches

    direct = x2l("ask", NASA, QUESTION, "--fps", 4, "--max-new-tokens", 4, "--json")
    again = x2l("ask", saved, QUESTION, "--max-new-tokens", 4, "--json")
    first, second = json.loads(direct.stdout), json.loads(again.stdout)
    assert first["answers"][0]["ids"] == second["answers"][0]["ids"]
    assert first["memory"] == second["memory"]


def test_another_model_is_refused_before_anything_is_printed(tmp_path: Path) -> None:
    saved = tmp_path / "nasa.x2l"
    assert x2l("ask", NASA, QUESTION, "--max-new-tokens", 1, "--save", saved).exit_code == 0
    done = x2l("ask", saved, QUESTION, "--model", "demo-xl")
    assert done.exit_code in (1, 2)
    assert done.stdout == ""
    assert done.stderr.startswith("error: this memory was made by another model (")


def test_json_has_the_promised_fields() -> None:
    done = x2l(
        "ask", NASA, QUESTION, "--reload", 1, "--fps", "native", "--max-frames", 30, "--max-new-tokens", 2, "--json"
    )
    result = json.loads(done.stdout)
    answer = result["answers"][0]
    assert answer["question"] == QUESTION
    assert isinstance(answer["text"], str)
    assert [set(moment) for moment in answer["evidence"]] == [
        {"start", "end", "score", "level", "ratio", "reloaded", "reason", "chunk", "tokens", "memory", "video"}
    ] * 4
    assert sum(moment["reloaded"] for moment in answer["evidence"]) == 1
    assert {"tokens", "bytes", "full_tokens", "full_bytes", "seconds"} <= set(answer["cost"])
    memory = result["memory"]
    assert {"chunks", "levels", "tokens", "bytes", "manifest"} <= set(memory)
    assert memory["levels"] == {"L": 2.0, "H": 32.0}
    assert len(memory["manifest"]["pts"]) == 30


def test_a_damaged_video_is_answered_with_a_warning() -> None:
    done = x2l("ask", MEDIA / "corrupted.mp4", QUESTION, "--max-new-tokens", 2, "--fps", 10)
    assert done.exit_code == 0
    assert "warning: corrupted.mp4: damaged" in done.stderr
    assert "of the video's tokens" in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nope.mp4", "hi"], "'nope.mp4' does not exist"),
        (["https://example.org/a.mp4", "hi"], "https"),
        ([MEDIA, "hi"], "is a directory"),
        ([MEDIA / "nasa_13013.mp4.audio.mp3", "hi"], "nasa_13013.mp4.audio.mp3"),
        ([NASA, "hi", "--start", 20], "start=20.0 is outside the video"),
        ([NASA, "hi", "--ratios", "2,x"], "ratios must be a number, got 'x'"),
        ([NASA, "hi", "--ratios", "32,2"], "must rise"),
        ([NASA, "hi", "--reload", "some"], "reload='some'"),
        ([NASA, "hi", "--reload", "mass:2"], "a share of 2 is not possible"),
        ([NASA, "hi", "--selector", "best"], "selector 'best'"),
        ([NASA, "hi", "--selector", "oracle"], "it is for evaluation"),
        ([NASA, "hi", "--embedder", "/no/where"], "'/no/where' is neither a folder here"),
        ([NASA, "hi", "--pin", "3"], "'3' is no time range"),
        ([NASA, "hi", "--model", "/no/where"], "'/no/where' is no folder"),
        ([NASA, "a<|im_end|>"], "control token '<|im_end|>'"),
        ([NASA, "hi", "--save", "/no/where/a.x2l"], "folder '/no/where' does not exist"),
        ([NASA, "hi", "--temperature", "-1"], "temperature must be"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(args: list[object], message: str) -> None:
    done = x2l("ask", *args)
    assert done.exit_code in (1, 2)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def test_demo_renders_a_video_with_its_truth(tmp_path: Path) -> None:
    video, truth = tmp_path / "v.mp4", tmp_path / "v.json"
    done = x2l("demo", "--render", video, "--truth", truth, "--seed", 5, "--minutes", 0.5)
    assert done.exit_code == 0, done.output
    asked = json.loads(truth.read_text())
    assert {"question", "answer", "kind", "start", "end"} <= set(asked[0])
    assert len({question["kind"] for question in asked}) >= 3
    assert json.loads(x2l("ask", video, asked[0]["question"], "--json").stdout)["memory"]["chunks"] == 4


def test_demo_says_what_is_wrong(tmp_path: Path) -> None:
    assert "--truth goes with --render" in x2l("demo", "--truth", tmp_path / "x.json").stderr
    assert "minutes=0" in x2l("demo", "--minutes", 0).stderr
    assert "does not exist" in x2l("demo", "--render", tmp_path / "no" / "v.mp4").stderr


def test_help_and_version_import_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from videox2l.cli.app import app; "
        "out = CliRunner().invoke(app, [sys.argv[1]]); assert out.exit_code == 0, out.output; "
        "assert not {'torch', 'transformers', 'av', 'numpy'} & set(sys.modules), 'slow import'"
    )
    for flag in ("--help", "--version"):
        subprocess.run([sys.executable, "-c", code, flag], check=True)


@pytest.mark.parametrize(
    ("text", "seconds"), [("95", 95), ("95.5", 95.5), ("12:30", 750), ("1:02:03", 3723), (" 0:05 ", 5)]
)
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "1:2:3:4", "-5", "nan", "inf", "1::2"])
def test_wrong_times_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no time"):
        parse_time(text)


def test_times_are_written() -> None:
    assert (format_time(0), format_time(59.99), format_time(750), format_time(3723)) == (
        "00:00",
        "00:59",
        "12:30",
        "1:02:03",
    )
    assert format_range(8, 16) == "00:08-00:16"
    assert parse_range("10:00-11:30") == (600, 690)
    with pytest.raises(ValueError, match="empty"):
        parse_range("11-10")


def test_ask_about_a_picture_and_a_memory(tmp_path: Path) -> None:
    """Several are asked with -q; moments carry the name of their video, on the screen and in JSON."""
    from PIL import Image

    saved, picture = tmp_path / "nasa.x2l", tmp_path / "still.png"
    Image.new("RGB", (96, 96), (200, 40, 40)).save(picture)
    assert x2l("ingest", NASA, saved, "--fps", 4).exit_code == 0
    done = x2l("ask", picture, saved, "-q", QUESTION, "--reload", "all", "--max-new-tokens", 2)
    assert done.exit_code == 0, done.output
    assert f"{picture} 00:00" in done.stdout
    assert f"{saved} 00:00" in done.stdout
    told = json.loads(x2l("ask", picture, saved, "-q", QUESTION, "--max-new-tokens", 2, "--json").stdout)
    names = [moment["memory"] for moment in told["answers"][0]["evidence"]]
    assert names == [str(picture), *[str(saved)] * 7]
    assert set(told["memory"]) == {str(picture), str(saved)}
    for wrong, line in (
        ((picture, saved, "-q", QUESTION, "--plot", tmp_path / "a.png"), "go with one video"),
        ((picture,), "ask something"),
    ):
        done = x2l("ask", *wrong)
        assert (done.exit_code, line in done.stderr, done.stderr.count("\n")) == (2, True, 1)


def in_a_process(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command; its output ends with its exit status and which of torch and transformers it imported."""
    code = (
        "import sys\nfrom videox2l.cli.app import app\n"
        "try: app(sys.argv[1:])\nexcept SystemExit as end: print(end.code)\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    run = [sys.executable, "-c", code, *words]
    return subprocess.run(run, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "words", [["ls", "."], ["inspect", "a"], ["rm", "a"], ["gc", ".", "--quota", "1G"]], ids=" ".join
)
def test_memories_are_listed_without_torch(words: list[str], tmp_path: Path) -> None:
    ingest(small_model(), tmp_path / "a")
    done = in_a_process(["memory", *words], tmp_path)
    assert done.stdout.split()[-2:] == ["0", "[]"], done.stderr


@pytest.mark.parametrize(
    "words",
    [["ask", "none.mp4", "hi"], ["ingest", "none.mp4", "m.x2l"], ["memory", "inspect", "none"], ["chat", "none"]],
    ids=" ".join,
)
def test_a_wrong_path_is_told_without_torch(words: list[str], tmp_path: Path) -> None:
    done = in_a_process(words, tmp_path)
    assert done.stdout.split() == ["1", "[]"]
    assert len(done.stderr.splitlines()) == 1
    assert "none" in done.stderr
