"""Runs: rows, resuming after a real kill, refusal of other settings, and figures worked out by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from videox2l import VideoX2L
from videox2l.errors import SettingsError
from videox2l.evaluate.base import BenchmarkOptions, Row, Sample, parse_budget
from videox2l.evaluate.generated import said
from videox2l.evaluate.haystack import Haystack
from videox2l.evaluate.registry import benchmark_by_name, method_by_name
from videox2l.evaluate.runfile import read_rows
from videox2l.evaluate.runner import Run, recall, run
from videox2l.evaluate.summary import cell_summary, outcomes, paired

pytestmark = pytest.mark.slow

METHODS = "full,x2l,x2l:oracle,uniform"


@pytest.fixture(scope="module")
def demo() -> VideoX2L:
    return VideoX2L.from_pretrained("demo")


def work(questions: int = 8, methods: str = METHODS, seed: int = 0, budgets: str = "1/8") -> Run:
    options = BenchmarkOptions(split="dev", questions=questions, frames=32, seed=seed)
    chosen = [method_by_name(name) for name in methods.split(",")]
    return Run(Haystack(options), chosen, [parse_budget(part) for part in budgets.split(",")])


def without_times(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]
    for row in rows:
        del row["seconds"]
    return rows


def test_a_run(demo: VideoX2L, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    summary = run(demo, work(), tmp_path, lambda done, total, note: seen.append((done, total)))
    rows = read_rows(tmp_path)
    assert seen == [(i + 1, 32) for i in range(32)]
    assert len({(row.id, row.method) for row in rows}) == len(rows) == 32
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert set(summary) == {*METHODS.split(","), "tests"}
    for name in METHODS.split(","):
        cell, mine = summary[name], [row for row in rows if row.method == name]
        assert cell["n"] == 8
        assert cell["accuracy"] == pytest.approx(sum(row.right or 0 for row in mine) / 8)
        assert cell["low"] <= cell["accuracy"] <= cell["high"]
        assert cell["bytes_attended"] == pytest.approx(sum(row.bytes_attended for row in mine) / 8)
        assert not cell["off_budget"]
        assert all(row.flops_question and row.flops_ingest for row in mine)
    assert summary["full"]["attended_share"] == 1
    assert summary["x2l:oracle"]["recall"] > 0.5
    assert summary["tests"]["rivals"]["x2l"]["best"] == "uniform"
    assert set(summary["tests"]["full"]) == {"x2l", "x2l:oracle", "uniform"}


def test_killed_half_way_it_ends_with_the_same_rows(demo: VideoX2L, tmp_path: Path) -> None:
    """A real SIGKILL while rows are written, then a torn line; the same command ends as if nothing had been."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(demo, work(), whole)
    command = [sys.executable, "-m", "videox2l.cli.app", "eval", "haystack", "--split", "dev", "--questions", "8"]
    command += ["--frames", "32", "--methods", METHODS, "--budget", "1/8", "--out", str(killed)]
    alike = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums depend on it in the last bit
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=alike)
    samples = killed / "samples.jsonl"
    until = time.monotonic() + 120
    while child.poll() is None and time.monotonic() < until:
        if samples.exists() and samples.read_bytes().count(b"\n") >= 5:
            break
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    held = samples.read_bytes().count(b"\n")
    assert 5 <= held < 32, "the child was to be killed half-way"
    with samples.open("a") as file:
        file.write('{"benchmark": "hays')
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=alike)
    assert done.returncode == 0, done.stderr
    assert without_times(killed) == without_times(whole)
    summaries = [json.loads((path / "summary.json").read_text()) for path in (whole, killed)]
    for summary in summaries:
        for cell in summary.values():
            cell.pop("seconds_first_token", None)
    assert summaries[0] == summaries[1]


def test_other_settings_are_refused_by_name(demo: VideoX2L, tmp_path: Path) -> None:
    run(demo, work(2, "full"), tmp_path)
    for other, named in ((work(2, "full", seed=1), "benchmark.seed: there 0, here 1"), (work(2, "none"), "methods")):
        with pytest.raises(SettingsError, match=named):
            run(demo, other, tmp_path)
    run(demo, work(2, "full"), tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(SettingsError, match="unknown run"):
        run(demo, work(2, "full"), tmp_path)


def test_several_budgets_share_what_no_budget_changes(demo: VideoX2L, tmp_path: Path) -> None:
    summary = run(demo, work(2, "full,x2l,uniform", budgets="1/4,1/8"), tmp_path)
    assert set(summary) == {"full", "x2l@1/4", "uniform@1/4", "x2l@1/8", "uniform@1/8", "tests"}
    assert set(summary["tests"]["rivals"]["x2l@1/8"]["rivals"]) == {"uniform@1/8"}


def test_haystack_is_the_same_every_time() -> None:
    one, two = (Haystack(BenchmarkOptions(split="heldout", questions=30, frames=64)) for _ in range(2))
    assert list(one.samples()) == list(two.samples())
    assert len(one.samples()) == 30
    other = Haystack(BenchmarkOptions(split="heldout", questions=30, frames=64, seed=1))
    assert [s.question for s in other.samples()] != [s.question for s in one.samples()]
    with one.open(one.samples()[0].video) as source:
        assert source.expected_frames == 64
    with pytest.raises(SettingsError, match="dev, heldout"):
        Haystack(BenchmarkOptions(split="train"))
    with pytest.raises(SettingsError, match="digit"):
        Haystack(BenchmarkOptions(tasks=("nope",)))
    counts = Haystack(BenchmarkOptions(split="dev", questions=12, tasks=("count",))).samples()
    assert {sample.kind for sample in counts} == {"count"}
    assert all(len(sample.needs) == int(sample.truth) for sample in counts)


def test_splits_share_no_needle() -> None:
    shown = []
    for split in ("dev", "heldout"):
        bench = Haystack(BenchmarkOptions(split=split, questions=200, frames=64))
        videos = {int(sample.video.rpartition("-")[2]) for sample in bench.samples()}
        shown.append({(e.colour, e.shape, e.digit) for number in videos for e in bench.script(number).events})
    assert shown[0]
    assert not shown[0] & shown[1]


def test_haystack_from_files_shows_what_the_arrays_show(tmp_path: Path) -> None:
    drawn = Haystack(BenchmarkOptions(split="dev", questions=4, frames=12))
    filed = Haystack(BenchmarkOptions(split="dev", questions=4, frames=12, data=tmp_path))
    assert list(drawn.samples()) == list(filed.samples())
    assert drawn.settings() != filed.settings()
    video = drawn.samples()[0].video
    with drawn.open(video) as one, filed.open(video) as two:
        for small, large in zip(one, two, strict=True):
            assert small.pts == large.pts
            shrunk = large.image.reshape(48, 8, 48, 8, 3).mean((1, 3))
            assert abs(shrunk - small.image.astype(float)).mean() < 12
    written = (tmp_path / f"{video}.mp4").stat()
    with filed.open(video) as again:
        assert again.expected_frames == 12
    assert (tmp_path / f"{video}.mp4").stat().st_mtime_ns == written.st_mtime_ns


def test_what_counts_as_said() -> None:
    digit = Sample("0", "v", "?", "4", "digit", choices=tuple("0123456789"))
    assert said(digit, "4")
    assert said(digit, " 4.")
    assert said(digit, "The digit is 4.")
    assert not said(digit, "4 or 5")
    assert not said(digit, "It is 14")
    assert not said(digit, "")
    thing = Sample("1", "v", "?", "red star", "order", choices=("red star", "blue star"))
    assert said(thing, "The red star appears first.")
    assert not said(thing, "The blue star.")


def row(number: int, right: float | None, **changes: Any) -> Row:
    values: dict[str, Any] = {
        "benchmark": "b", "id": str(number), "video": str(number // 2), "cluster": str(number // 2),
        "group": str(number), "kind": "k", "labels": {}, "method": "m", "budget": "1/8", "question": "?", "truth": "a",
        "prediction": "a", "right": right, "recall": None, "tokens": 10.0, "bytes_attended": 125, "bytes_full": 1000,
        "bytes_kept": 500, "bytes_device": 100, "bytes_reloaded": 25, "bytes_selected": 7, "flops_ingest": 100,
        "flops_question": 10, "seconds": {"select": 1.0, "prefill": 2.0, "decode": 4.0}, "scores": None, "plan": None,
        "manifest": "0",
    }  # fmt: skip
    return Row(**{**values, **changes})


def test_figures_by_hand() -> None:
    rows = [row(0, 1.0), row(1, 0.0), row(2, 1.0, recall=0.5), row(3, None, recall=1.0)]
    cell = cell_summary(rows)
    assert (cell["accuracy"], cell["n"], cell["clusters"], cell["unscored"]) == (pytest.approx(2 / 3), 3, 2, 1)
    assert (cell["low"], cell["high"]) == (0.5, 1.0)
    assert (cell["recall"], cell["attended_share"], cell["seconds_first_token"]) == (0.75, 0.125, 3.0)
    assert not cell["off_budget"]
    assert cell_summary([row(0, 1.0, bytes_attended=132)])["off_budget"]
    circle = [row(0, 1.0, group="g"), row(1, 0.0, group="g"), row(2, 1.0, group="h"), row(3, 1.0, group="h")]
    assert outcomes(circle) == {"g": ("0", 0.0), "h": ("1", 1.0)}
    better = [row(i, 1.0) for i in range(6)]
    worse = [row(i, 0.0) for i in range(6)]
    test = paired(better, worse)
    assert (test["n"], test["wins"], test["losses"], test["difference"]) == (6, 6, 0, 1.0)
    assert test["p"] == pytest.approx(2 / 64)
    assert test["p_clusters"] == pytest.approx(2 / 8)  # three videos alone
    assert paired(better, better)["p_clusters"] == 1


def test_recall_by_hand() -> None:
    assert recall([[(1, 2)], [(5, 6)]], [(0, 2)]) == 0.5
    assert recall([[(1, 2), (5, 6)]], [(0, 2)]) == 1  # one of two appearances is enough
    assert recall([[(1, 2)]], []) == 0
    assert recall([], [(0, 2)]) is None
    assert recall([[(1, 2)]], None) is None
    assert recall([[(1, 2)]], [(2, 3)]) == 0  # they only touch


def test_names_and_budgets() -> None:
    assert parse_budget("1/8") == parse_budget("0.125") == Fraction(1, 8)
    for wrong in ("0", "2", "x", "1/0", "-1/8"):
        with pytest.raises(SettingsError, match="budget"):
            parse_budget(wrong)
    with pytest.raises(SettingsError, match="rekv"):
        method_by_name("nope")
    with pytest.raises(SettingsError, match="selector 'nope'"):
        method_by_name("x2l:nope")
    with pytest.raises(SettingsError, match="haystack"):
        benchmark_by_name("nope", BenchmarkOptions())
    with pytest.raises(SettingsError, match="named twice"):
        work(2, "full,full")
