"""Questions about a whole library: what is found is what a comparison of all opened memories finds."""

from __future__ import annotations

import json
import shutil
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.conftest import make_qwen25
from tests.disk.helpers import ingest, small_model
from videox2l import ArraySource, Memory, MemoryFileError, SettingsError, VideoX2L
from videox2l.ask import library as module
from videox2l.cli.app import app
from videox2l.demo.world import make_video
from videox2l.options import LibraryOptions
from videox2l.select import exact, selector_by_name
from videox2l.units import Cue

NAMES = ("apple", "birch", "cedar", "daisy")


@pytest.fixture(scope="module")
def x2l() -> VideoX2L:
    return VideoX2L.from_pretrained("demo")


@pytest.fixture(scope="module")
def made(x2l: VideoX2L, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four memories of two or three chunks, each with a line of subtitles."""
    folder = tmp_path_factory.mktemp("library")
    for number, name in enumerate(NAMES):
        video = make_video(700 + number, 16 + 8 * (number % 2), "dev")
        lines = [Cue(8, 10, f"The {name} grows")]
        x2l.ingest(ArraySource(video.render(), fps=1.0, name=f"{name}.mp4"), store=folder / name, subtitles=lines)
    return folder


@pytest.fixture
def library(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "library"))


def question() -> tuple[str, str]:
    """A question about the second video, and its answer."""
    event = make_video(701, 24, "dev").events[0]
    return f"what digit appears with the {event.colour} {event.shape} ?", str(event.digit)


@pytest.mark.parametrize("search", ["exact:nothing", "keys", "embed-dot", "fuse:keys+text"])
def test_a_search_compares_what_the_opened_memories_would(x2l: VideoX2L, library: Path, search: str) -> None:
    text, _ = question()
    found = x2l.ask_library(library, text, searching=LibraryOptions(search=search, moments=99), max_new_tokens=1)
    opened = x2l.open([library / name for name in NAMES], NAMES)
    wanted = selector_by_name(search).score(replace(x2l.backbone.suffix(text), text=text), opened, x2l.backbone)
    scores = {(moment.memory, moment.chunk): moment.score for moment in found.moments}
    assert scores == pytest.approx({opened.owner(i): score for i, score in enumerate(wanted.tolist())}, rel=1e-3)
    assert [moment.score for moment in found.moments] == sorted(scores.values(), reverse=True)
    assert found.searched == (4, 10)
    assert len(set(scores.values())) > 3  # the test could see another order


def test_the_answer_is_that_of_the_memories_that_were_found(x2l: VideoX2L, library: Path) -> None:
    text, right = question()
    found = x2l.ask_library(library, text, searching=LibraryOptions(videos=2), reload=2, max_new_tokens=6)
    assert found.text == right
    best = list(dict.fromkeys(moment.memory for moment in found.moments))[:2]
    assert best[0] == "birch"
    opened = dict(x2l._libraries[str(library)]._opened)
    again = x2l.ask_library(library, text, searching=LibraryOptions(videos=2), reload=2, max_new_tokens=6)
    assert again.ids == found.ids
    assert {id(one) for one in x2l._libraries[str(library)]._opened.values()} == {id(one) for one in opened.values()}
    plain = x2l.ask([library / name for name in best], text, reload=2, max_new_tokens=6)
    assert found.ids == plain.ids
    assert len(found.reloaded) == 2  # one budget over all
    assert [(one.chunk, one.score) for one in found.evidence] == [(one.chunk, one.score) for one in plain.evidence]
    assert {(one.memory, one.video) for one in found.evidence} == {(name, f"{name}.mp4") for name in best}
    (alone,) = {one.memory for one in x2l.ask_library(library, text, searching=LibraryOptions(videos=1)).evidence}
    assert alone == "birch"


def test_memories_come_grow_and_go(x2l: VideoX2L, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(module, "read_features", lambda source, names, real=module.read_features: read.append(
        Path(str(source.place)).name) or real(source, names))  # fmt: skip
    model = VideoX2L(x2l.backbone)

    def searched() -> tuple[int, int]:
        read.clear()
        return model.ask_library(library, question()[0], max_new_tokens=1).searched

    assert (searched(), len(read)) == ((4, 10), 4)
    assert (searched(), read) == ((4, 10), [])
    shutil.move(library / "apple", library.parent / "apple")
    assert (searched(), read) == ((3, 8), [])
    shutil.move(library.parent / "apple", library / "apple")
    assert (searched(), read) == ((4, 10), ["apple"])
    clip = ArraySource(make_video(800, 8, "dev").render(), fps=1.0, name="more.mp4")
    model.append(Memory.load(library / "cedar"), clip)
    assert (searched(), read) == ((4, 11), ["cedar"])
    (library / "daisy" / "manifest.json").touch()  # another time, the same content
    assert (searched(), read) == ((4, 11), [])


def test_what_does_not_fit_is_named_and_not_mixed(x2l: VideoX2L, library: Path, tmp_path: Path) -> None:
    text = question()[0]
    ingest(small_model(), library / "stranger")
    video = make_video(701, 24, "dev")
    x2l.ingest(ArraySource(video.render(), fps=1.0, name="twin.mp4"), store=library / "twin", ratios=(1, 16))
    (library / "apple" / "journal.jsonl").write_bytes(b"{}\n")
    (library / "notes").mkdir()
    found = x2l.ask_library(library, text, searching=LibraryOptions(videos=9), max_new_tokens=1)
    assert found.left_out["stranger"].startswith("made by another model (it differs in ")
    assert "'journal.jsonl'" in found.left_out["apple"]
    asked = {moment.memory for moment in found.evidence}
    other = {"twin"} if "twin" not in asked else {"birch", "cedar", "daisy"}
    assert {name for name, why in found.left_out.items() if "other settings than" in why} == other
    assert "notes" not in found.left_out
    x2l.ingest(ArraySource(video.render(), fps=1.0, name="told.mp4"), store=library / "told", system="red star")
    (told,) = {one.memory for one in x2l.ask_library(library, text, system="red star", max_new_tokens=1).evidence}
    assert told == "told"
    plain = x2l.ask_library(library, text, searching=LibraryOptions(videos=9), max_new_tokens=1)
    assert ("told" in plain.left_out) != ("told" in {one.memory for one in plain.evidence})
    with pytest.raises(MemoryFileError, match="was made with the system text 'blue'"):
        x2l.ask_library(library, text, system="blue")
    with pytest.raises(MemoryFileError, match=r"no memory that this model can be asked about; apple: "):
        VideoX2L.from_model(*make_qwen25(seed=5)).ask_library(library, "What happens?")
    with pytest.raises(MemoryFileError, match="is no folder"):
        x2l.ask_library(tmp_path / "none", text)


def test_times_and_words_hold_for_the_search(x2l: VideoX2L, library: Path) -> None:
    text = question()[0]
    found = x2l.ask_library(library, text, said="CEDAR", max_new_tokens=1)
    assert [(moment.memory, moment.start) for moment in found.moments] == [("cedar", 8.0)]
    assert [(moment.memory, moment.chunk) for moment in found.evidence] == [("cedar", 1)]
    late = x2l.ask_library(library, text, within="0:17-0:20", max_new_tokens=1)
    assert {(moment.memory, moment.start) for moment in late.moments} == {("birch", 16.0), ("daisy", 16.0)}
    with pytest.raises(SettingsError, match="said='elm' leave no moment of the 4 memories"):
        x2l.ask_library(library, text, said="elm")
    with pytest.raises(SettingsError, match="said='elm' leaves no chunk"):
        x2l.ask(library / "apple", text, said="elm")
    with pytest.raises(SettingsError, match="said must be text that is not empty"):
        x2l.ask(library / "apple", text, said=" ")
    with pytest.raises(SettingsError, match=r"ExactSelector reads the KVs .* use exact:nothing, keys"):
        x2l.ask_library(library, text, searching=LibraryOptions(search="exact"))


def test_many_chunks_are_compared_block_by_block(x2l: VideoX2L, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = x2l.backbone.suffix(question()[0])
    selector = selector_by_name("exact:nothing")
    whole = selector.score(asked, x2l.open([library / name for name in NAMES]), x2l.backbone)
    monkeypatch.setattr(exact, "BLOCK_VALUES", 1)
    blocks = selector.score(asked, x2l.open([library / name for name in NAMES]), x2l.backbone)
    torch.testing.assert_close(whole, blocks)


def test_a_library_at_a_url(x2l: VideoX2L, library: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    for name in NAMES[:3]:
        Memory.load(library / name).save(f"{url}/{name}")
    found = x2l.ask_library(url, question()[0], max_new_tokens=6)
    assert (found.text, found.searched, found.moments[0].memory) == (question()[1], (3, 7), "birch")
    Memory.load(library / "daisy").save(f"{url}/daisy")
    assert x2l.ask_library(url, question()[0], max_new_tokens=1).searched == (4, 10)


def test_the_command(library: Path) -> None:
    text, right = question()
    done = CliRunner().invoke(app, ["ask", "--library", str(library), text, "--videos", "1", "--json"])
    assert done.exit_code == 0, done.output
    (answer,) = json.loads(done.stdout)["answers"]
    assert (answer["text"], answer["moments"][0]["video"], answer["searched"]) == (right, "birch.mp4", [4, 10])
    assert {(one["memory"], one["video"]) for one in answer["evidence"]} == {("birch", "birch.mp4")}
    shown = CliRunner().invoke(app, ["ask", "--library", str(library), text, "--videos", "1", "-v"])
    assert "found in birch (birch.mp4); searched 4 memories, 10 chunks" in shown.stdout
    for flags, message in (
        (["--library", str(library), text, "--save", "a"], "--save: not with --library"),
        (["--library", str(library), text, "--fps", "2"], "--fps: not with --library"),
        ([str(library / "apple"), text, "--videos", "2"], "--videos: only with --library"),
        (["--library", str(library), text, "--videos", "0"], "videos must be a whole number of 1 or more"),
    ):
        refused = CliRunner().invoke(app, ["ask", *flags])
        assert (refused.exit_code, message in refused.stderr) == (2, True), refused.stderr
