"""Options that would change nothing are errors, and errors come before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from videox2l import ArraySource, Memory, SettingsError, VideoX2L
from videox2l.cli.app import app
from videox2l.options import check_target_file
from videox2l.plot import check_plot
from videox2l.select import ManualSelector, OracleSelector
from videox2l.takeaway import check_moments, check_report
from videox2l.units import Cue


@pytest.fixture(scope="module")
def x2l() -> VideoX2L:
    return VideoX2L.from_pretrained("demo")


@pytest.fixture(scope="module")
def memory(x2l: VideoX2L, tmp_path_factory: pytest.TempPathFactory) -> Memory:
    frames = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3), np.uint8)
    store = tmp_path_factory.mktemp("memory") / "m.x2l"
    return x2l.ingest(ArraySource(frames, fps=1.0), chunk_frames=4, store=store)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"subtitles": True}, "it has none: add them"),
        ({"pinned": ["20-30"]}, "pinned 00:20-00:30 is nowhere in what the question sees, 00:00-00:12"),
        ({"pinned": ["0-2", "1:00:00-2:00:00"]}, "pinned 1:00:00-2:00:00 is nowhere"),
        ({"excluded": ["20-30"]}, "excluded 00:20-00:30 is nowhere"),
        ({"pinned": ["0-4"], "within": "4-12"}, "pinned 00:00-00:04 is nowhere in what the question sees, 00:04-00:12"),
        ({"selector": "manual:20-30"}, "'manual': 00:20-00:30 is nowhere"),
        ({"selector": "fuse:keys+manual:20-30"}, "'manual': 00:20-00:30 is nowhere"),
        ({"selector": ManualSelector([(0, 4), (20, 30)])}, "'manual': 00:20-00:30 is nowhere"),
    ],
)
def test_options_without_effect(x2l: VideoX2L, memory: Memory, options: dict[str, object], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        x2l.ask(memory, "what digit ?", reload=1, max_new_tokens=2, **options)  # type: ignore[arg-type]


def test_the_same_options_where_they_have_one(x2l: VideoX2L, memory: Memory) -> None:
    shown = [Cue(1.0, 2.0, "the bell")]
    memory.set_subtitles(shown)
    ask: dict[str, object] = {"pinned": ["0-2"], "excluded": ["8-12"], "selector": "manual:4-6", "subtitles": True}
    assert x2l.ask(memory, "what digit ?", reload=1, max_new_tokens=2, **ask).reloaded  # type: ignore[arg-type]
    memory.set_subtitles([])
    oracle = OracleSelector([(0, 4), (20, 30)])  # the truth may lie where a view does not reach
    assert x2l.ask(memory, "what digit ?", reload=1, max_new_tokens=2, selector=oracle).reloaded


@pytest.mark.parametrize("option", ["--with-subtitles", "--pin=20-30", "--selector=manual:20-30", "--selector=text"])
def test_an_error_comes_before_the_first_line_of_an_answer(memory: Memory, option: str) -> None:
    assert memory.source is not None
    done = CliRunner().invoke(app, ["ask", str(memory.source.place), "what digit ?", option])
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert "what digit" not in done.stdout


def test_an_error_comes_first_of_a_library_too(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["ask", "--library", str(tmp_path / "none"), "what digit ?"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.count("error:") == 1


@pytest.mark.parametrize("check", [check_plot, check_moments, check_report])
def test_a_place_where_nothing_can_be_written(check: Callable[[Path], Path], tmp_path: Path) -> None:
    ending = {check_plot: ".png", check_moments: ".srt", check_report: ".html"}[check]
    (tmp_path / f"folder{ending}").mkdir()
    for path in (tmp_path / f"folder{ending}", Path(f"/proc/x{ending}"), tmp_path / "none" / f"x{ending}"):
        with pytest.raises(SettingsError, match="cannot write") as caught:
            check(path)
        assert len(str(caught.value).splitlines()) == 1
    assert check(tmp_path / f"x{ending}") == tmp_path / f"x{ending}"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"folder{ending}"]


def test_a_file_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.html"
    path.write_text("old")
    check_target_file(path, (".html",), "a report")
    assert path.read_text() == "old"
