"""Dense videos: what they show, what is refused, and that two levels are worth having there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from videox2l import VideoX2L
from videox2l.cli.app import app
from videox2l.demo.cast import digits_of
from videox2l.demo.dense import make_dense_video
from videox2l.errors import SettingsError
from videox2l.evaluate.base import BenchmarkOptions, parse_budget
from videox2l.evaluate.haystack import Haystack
from videox2l.evaluate.registry import method_by_name
from videox2l.evaluate.runner import Run, run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("density", "redundancy"), [(1, 1), (1, 4), (2, 1), (2, 2), (4, 1), (8, 1)])
def test_every_chunk_has_its_facts(density: int, redundancy: int) -> None:
    video = make_dense_video(3, 64, "heldout", density, redundancy)
    length = 1 if density == 8 else 2 * redundancy
    assert len(video.events) == 8 * density
    assert all(event.end - event.start == length and event.start % length == 0 for event in video.events)
    for chunk in range(0, 64, 8):
        inside = [event for event in video.events if chunk <= event.start < event.end <= chunk + 8]
        assert len({event.thing for event in inside}) == len({event.start for event in inside}) == density
    assert len(video.things) == min(36, 8 * density)
    assert all(event.digit in digits_of("heldout")[event.thing] for event in video.events)
    assert len({(event.thing, event.digit) for event in video.events}) == len(video.things)
    assert video == make_dense_video(3, 64, "heldout", density, redundancy)
    assert video.events != make_dense_video(4, 64, "heldout", density, redundancy).events


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (BenchmarkOptions(density=3), "density must be one of 1, 2, 4, 8, got 3"),
        (BenchmarkOptions(density=-1), "density must be one of"),
        (BenchmarkOptions(density=2, redundancy=3), "redundancy must be at most 2 at density 2, got 3"),
        (BenchmarkOptions(density=8, redundancy=2), "redundancy must be at most 1 at density 8, got 2"),
        (BenchmarkOptions(density=4, redundancy=0), "redundancy must be 1 or more, got 0"),
        (BenchmarkOptions(redundancy=2), "redundancy=2 goes with density"),
        (BenchmarkOptions(density=4, frames=60), "multiple of 8"),
        (BenchmarkOptions(density=4, tasks=("colour",)), "haystack with density has digit"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(options: BenchmarkOptions, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Haystack(options)


def test_all_kinds_can_be_asked_where_everything_is_shown() -> None:
    """With density 8 nothing is absent: whether something appears is no question there."""
    samples = Haystack(BenchmarkOptions(density=8, questions=60)).samples()
    assert {sample.kind for sample in samples} == {"digit", "pair", "order", "count"}
    assert all(sample.needs for sample in samples)
    assert len({sample.id for sample in samples}) == 60


def test_two_levels_are_worth_having_where_content_is_dense(tmp_path: Path) -> None:
    """Four facts in every chunk, an eighth of full KV: true chunks at L against one level at the same bytes."""
    names = ("full", "x2l:oracle", "x2l:none", "retrieval:oracle", "H")
    bench = Haystack(BenchmarkOptions(split="dev", density=4, questions=60, tasks=("digit",)))
    work = Run(bench, [method_by_name(name) for name in names], [parse_budget("1/8")])
    summary = run(VideoX2L.from_pretrained("demo"), work, tmp_path)
    right = {name: summary[name]["accuracy"] for name in names}
    assert right["full"] > 0.9
    assert right["x2l:oracle"] - right["H"] > 0.2, right
    assert right["x2l:oracle"] - right["x2l:none"] > 0.2, right
    attended = {name: summary[name]["bytes_attended"] for name in names}
    assert attended["x2l:oracle"] == attended["retrieval:oracle"] == attended["H"] > attended["x2l:none"]
    assert (summary["x2l:oracle"]["recall"], summary["x2l:none"]["recall"]) == (1.0, 0.0)
    assert summary["retrieval:oracle"]["recall"] == 1.0


def test_density_is_an_option_and_an_axis_of_the_report(tmp_path: Path) -> None:
    command = ["eval", "haystack", "--frames", "32", "--questions", "4", "--tasks", "digit", "--budget", "1/8"]
    for density in ("1", "4"):
        options = ["--methods", "full,x2l,H", "--density", density, "--out", str(tmp_path / density)]
        shown = CliRunner().invoke(app, command + options)
        assert shown.exit_code == 0, shown.output
    settings = json.loads((tmp_path / "4" / "run.json").read_text())["settings"]["benchmark"]
    assert (settings["density"], settings["redundancy"]) == (4, 1)
    out = tmp_path / "report"
    shown = CliRunner().invoke(app, ["report", str(tmp_path / "1"), str(tmp_path / "4"), "--out", str(out)])
    assert shown.exit_code == 0, shown.output
    assert (out / "density.png").exists()
    text = (out / "report.md").read_text()
    assert "density.png" in text
    assert "density 4" in text
