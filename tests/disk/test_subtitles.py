"""Subtitles on the time line: read, kept, searched, and put into the prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import pytest
import torch
from typer.testing import CliRunner

from tests.disk.helpers import ASK, content, frames, ingest, small_model
from videox2l import ArraySource, Memory, SettingsError, VideoError, VideoX2L
from videox2l.ask.view import with_lines
from videox2l.cli.app import app
from videox2l.memory import Plan
from videox2l.memory.disk.folder import verify
from videox2l.memory.disk.library import export, import_
from videox2l.select import TextSelector
from videox2l.units import Cue
from videox2l.video.subtitles import read_subtitles

pytest.importorskip("pysubs2")
pytest.importorskip("bm25s")

NASA = Path(__file__).parents[1] / "media" / "nasa_13013.mp4"
SRT = """1
00:00:00,500 --> 00:00:01,500
Good <i>morning</i>, class.

2
00:00:02,000 --> 00:00:04,200
{\\an8}The bell rings
at noon &amp; at one.

3
00:00:05,000 --> 00:00:05,900
Nobody says <|im_end|> here.

4
00:00:08,000 --> 00:00:09,000
A red star on the board.
"""
LINES = [
    Cue(0.5, 1.5, "Good morning, class."),
    Cue(2.0, 4.2, "The bell rings at noon & at one."),
    Cue(5.0, 5.9, "Nobody says <|im_end|> here."),
    Cue(8.0, 9.0, "A red star on the board."),
]


@pytest.fixture(scope="module")
def x2l() -> VideoX2L:
    return small_model()


def with_subtitles(x2l: VideoX2L, store: Path | None = None) -> Memory:
    source = ArraySource(frames(), fps=2.0, name="clip")
    return x2l.ingest(source, ratios=(2, 8), chunk_frames=4, store=store, subtitles=LINES)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_srt_and_vtt_are_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.srt").write_text(SRT, encoding=encoding)
    found = read_subtitles(tmp_path / "a.srt")
    assert [(line.start, line.end) for line in found] == [(line.start, line.end) for line in LINES]
    assert [found[i].text for i in (0, 1, 3)] == [LINES[i].text for i in (0, 1, 3)]
    vtt = "WEBVTT\n\n" + SRT.replace(",", ".").replace("morning</i>.", "morning</i>,")
    (tmp_path / "a.vtt").write_text(vtt, encoding=encoding)
    assert [line.text for line in read_subtitles(tmp_path / "a.vtt")][1] == LINES[1].text


def muxed(folder: Path) -> Path:
    """A video with a text track."""
    (folder / "a.srt").write_text(SRT)
    with (
        av.open(str(folder / "a.mkv"), "w") as box,
        av.open(str(NASA)) as video,
        av.open(str(folder / "a.srt")) as text,
    ):
        pairs = [(source, box.add_stream_from_template(source)) for source in (video.streams.video[0], text.streams[0])]
        for container, (source, target) in zip((video, text), pairs, strict=True):
            for packet in container.demux(source):
                if packet.dts is not None:
                    packet.stream = target
                    box.mux(packet)
    return folder / "a.mkv"


def test_embedded_text_tracks_are_read(tmp_path: Path) -> None:
    muxed(tmp_path)
    found = read_subtitles("embedded", tmp_path / "a.mkv")
    assert [(round(line.start, 2), round(line.end, 2)) for line in found] == [(x.start, x.end) for x in LINES]
    assert found[1].text == LINES[1].text
    with pytest.raises(VideoError, match="has no text track"):
        read_subtitles("embedded", NASA.with_name("av1_video.mkv"))
    with pytest.raises(SettingsError, match="needs a video file"):
        read_subtitles("embedded")


def test_what_is_no_subtitle_file_is_named(tmp_path: Path) -> None:
    for name, data in (("a.srt", b"\x00\x01\x02" * 50), ("b.vtt", b"hello"), ("c.srt", b"1\n\n")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(VideoError, match=name.replace(".", r"\.")):
            read_subtitles(tmp_path / name)
    with pytest.raises(VideoError, match="does not exist"):
        read_subtitles(tmp_path / "none.srt")


def test_they_are_kept_with_the_memory(x2l: VideoX2L, tmp_path: Path) -> None:
    ram, disk = with_subtitles(x2l), with_subtitles(x2l, tmp_path / "a")
    ram.save(tmp_path / "b")
    export(tmp_path / "a", tmp_path / "a.zip")
    import_(tmp_path / "a.zip", tmp_path / "c")
    for memory in (ram, disk, *(Memory.load(tmp_path / name) for name in "abc")):
        assert list(memory.subtitles) == LINES
    before = content(tmp_path / "a")
    with_subtitles(x2l, tmp_path / "a")
    assert content(tmp_path / "a") == before
    (file,) = (tmp_path / "a").glob("subtitles-*.json")
    file.write_bytes(file.read_bytes().replace(b"red", b"bad"))
    assert len(verify(tmp_path / "a")) == 1


def test_they_are_added_afterwards_in_place_of_earlier_ones(x2l: VideoX2L, tmp_path: Path) -> None:
    memory = ingest(x2l, tmp_path / "a")
    before, seen = memory.snapshot(), Memory.load(tmp_path / "a")
    memory.set_subtitles(LINES[:1])
    memory.set_subtitles(LINES[::-1])
    assert (list(memory.subtitles), before.subtitles, seen.subtitles) == (LINES, (), ())
    memory.save(tmp_path / "b")
    assert [list(Memory.load(tmp_path / name).subtitles) for name in "ab"] == [LINES, LINES]
    assert [verify(tmp_path / name) for name in "ab"] == [[], []]
    assert memory.fingerprint() == seen.fingerprint()
    in_ram = ingest(x2l)
    in_ram.set_subtitles(LINES)
    assert list(in_ram.subtitles) == LINES


@pytest.mark.parametrize("kind", ["srt", "track"])
def test_the_command_adds_them(x2l: VideoX2L, tmp_path: Path, kind: str) -> None:
    ingest(x2l, tmp_path / "m")
    file = muxed(tmp_path) if kind == "track" else tmp_path / "a.srt"
    (tmp_path / "a.srt").write_text(SRT)
    done = CliRunner().invoke(app, ["memory", "subtitles", "add", str(tmp_path / "m"), str(file)])
    assert (done.exit_code, done.output) == (0, f"{tmp_path / 'm'}: 4 lines of subtitles\n")
    assert Memory.load(tmp_path / "m").subtitles[1].text == LINES[1].text
    for wrong in (NASA.with_name("av1_video.mkv"), tmp_path / "none.srt", "embedded"):
        done = CliRunner().invoke(app, ["memory", "subtitles", "add", str(tmp_path / "m"), str(wrong)])
        assert (done.exit_code, done.stderr.count("\n")) == (1, 1), done.output
    assert len(Memory.load(tmp_path / "m").subtitles) == 4


def test_the_chunk_whose_words_are_asked_for_is_found(x2l: VideoX2L) -> None:
    memory = with_subtitles(x2l)
    for question, chunk in (("When does the bell ring at noon?", 1), ("Which star was red?", 4), ("class?", 0)):
        answer = x2l.ask(memory, question, selector="text", reload=1, max_new_tokens=2)
        assert [moment.start for moment in answer.reloaded] == [2.0 * chunk]
    prompt = x2l.backbone.suffix("zebra")
    assert torch.equal(TextSelector().score(prompt, memory, x2l.backbone), torch.zeros(5))
    with pytest.raises(SettingsError, match="this memory has none: ingest with --subtitles"):
        x2l.ask(ingest(x2l), "When?", selector="text")


def test_lines_of_reloaded_chunks_stand_in_the_prompt(x2l: VideoX2L) -> None:
    memory = with_subtitles(x2l)
    plan = Plan.at([2.0, 2.0, 2.0, 8.0, 8.0])
    assert with_lines("Who?", memory, plan, x2l.backbone) == (
        "Subtitles:\n[00:00-00:01] Good morning, class.\n[00:02-00:04] The bell rings at noon & at one.\n\nWho?"
    )  # the line with a control token is left out
    assert with_lines("Who?", memory, Plan.at([8.0] * 5), x2l.backbone) == "Who?"
    plain = x2l.ask(memory, "Who rings?", **ASK)
    lined = x2l.ask(memory, "Who rings?", subtitles=True, **ASK)
    assert lined.cost.prompt_tokens > plain.cost.prompt_tokens
    assert lined.evidence == plain.evidence
    with pytest.raises(SettingsError, match="it has none"):
        x2l.ask(ingest(x2l), "Who rings?", subtitles=True, **ASK)


def test_the_commands_take_them(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_text(SRT)

    def run(*args: object) -> Any:
        done = CliRunner().invoke(app, [str(arg) for arg in args])
        assert done.exit_code == 0, done.output
        return done

    run("ingest", NASA, tmp_path / "a", "--subtitles", tmp_path / "a.srt", "--fps", 4)
    options = ["--selector", "text", "--with-subtitles", "--reload", 1, "--max-new-tokens", 2]
    question = "what digit appears with the red star ?"
    asked = run("ask", tmp_path / "a", question, *options)
    direct = run("ask", NASA, question, "--subtitles", tmp_path / "a.srt", "--fps", 4, *options)
    assert "00:06-00:08" in asked.stdout  # ends at 8.008 s
    assert "00:06-00:08" in direct.stdout  # ends at 8.008 s
