"""`x2l eval BENCH --data DIR` with the demo model, from files to figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.evaluate.benchmarks.layouts import LAYOUTS, rows_of
from videox2l import VideoX2L
from videox2l.cli.app import app
from videox2l.evaluate.base import BenchmarkOptions
from videox2l.evaluate.benchmarks import PUBLIC

Layout = Callable[[str], Path]
QUESTIONS = {"videomme": 9, "mlvu": 9, "longvideobench": 5, "vnbench": 16, "lvbench": 4}


def x2l(*args: object) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_benchmark_runs(layout: Layout, tmp_path: Path, demo: VideoX2L, name: str) -> None:
    """Rows, figures and predictions: those of "full" are what the model says with all of the video before it."""
    root, out = layout(name), tmp_path / "out"
    more = ("--tasks", "plotQA,needle,ego,count,order,anomaly_reco,topic_reasoning") if name == "mlvu" else ()
    done = x2l("eval", name, "--strict", "--data", root, "--out", out, "--methods", "full,H", "--budget", "1/4", *more)
    assert done.exit_code == 0, done.output
    rows = rows_of(out)
    assert len(rows) == 2 * QUESTIONS[name]
    assert {row.method for row in rows} == {"full", "H"}
    summary = json.loads((out / "summary.json").read_text())
    assert {"accuracy", "low", "high", "n", "bytes_attended", "bytes_kept", "recall", "metrics"} <= set(summary["full"])
    assert all(figure in done.stdout for figure in summary["full"]["metrics"])

    bench = PUBLIC[name](BenchmarkOptions(data=root, tasks=tuple(more[1].split(",")) if more else ()))
    sample = bench.samples()[0]
    with bench.open(sample.video) as source:
        memory = demo.ingest(source, ratios=(1,))
    said = demo.ask(memory, sample.question, reload="all", max_new_tokens=bench.max_new_tokens).text
    [row] = [row for row in rows if (row.id, row.method) == (sample.id, "full")]
    assert row.prediction == said
    assert row.right == bench.score(sample, said)


def test_a_run_goes_on_and_refuses_other_subtitles(layout: Layout, tmp_path: Path) -> None:
    root, out = layout("longvideobench"), tmp_path / "out"
    first = x2l("eval", "longvideobench", "--data", root, "--out", out, "--methods", "H", "--subtitles")
    assert first.exit_code == 0, first.output
    before = (out / "samples.jsonl").read_bytes()
    assert x2l("eval", "longvideobench", "--data", root, "--out", out, "--methods", "H", "--subtitles").exit_code == 0
    assert (out / "samples.jsonl").read_bytes() == before
    other = x2l("eval", "longvideobench", "--data", root, "--out", out, "--methods", "H")
    assert other.exit_code in (1, 2)
    assert "subtitles" in other.output


def test_a_selector_reads_the_subtitles(layout: Layout, tmp_path: Path) -> None:
    """BM25 over the lines: the question has a word of one line alone, though its prompt repeats all of them."""
    root, out = layout("longvideobench"), tmp_path / "out"
    settings = ("--methods", "x2l:text", "--subtitles", "--budget", "1/2", "--chunk-frames", 2)
    done = x2l("eval", "longvideobench", "--data", root, "--out", out, *settings)
    assert done.exit_code == 0, done.output
    row = next(row for row in rows_of(out) if row.id == "86CxyhFV9MI_0")
    assert row.scores is not None
    # Chunks of two seconds. "Now the star comes." is shown from 1.9 to 2.3 s, "It stays for a while." from 3.5 to 5 s.
    assert row.scores[2] == 0 < min(row.scores[:2])


def test_a_run_that_needs_a_judge(layout: Layout, tmp_path: Path) -> None:
    """Nothing is scored: no accuracy in strict JSON, and a report that gives the local figures."""
    root, out = layout("mlvu"), tmp_path / "out"
    done = x2l("eval", "mlvu", "--data", root, "--out", out, "--methods", "full,x2l", "--tasks", "subPlot,summary")
    assert done.exit_code == 0, done.output

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    summary = json.loads((out / "summary.json").read_text(), parse_constant=refuse)
    assert (summary["full"]["accuracy"], summary["full"]["n"]) == (None, 0)
    assert {row.right for row in rows_of(out)} == {None}
    pytest.importorskip("matplotlib")
    done = x2l("report", out, "--out", tmp_path / "report")
    assert done.exit_code == 0, done.output
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| method | rouge_l_subPlot | rouge_l_summary | needs_judge |" in text


def test_what_is_missing_is_one_line(layout: Layout, tmp_path: Path) -> None:
    root = layout("vnbench")
    (root / "VNBench_new" / "44120_ret_edit1.mp4").unlink()
    done = x2l("eval", "vnbench", "--strict", "--data", root, "--out", tmp_path / "out", "--model", "nowhere")
    assert done.exit_code in (1, 2)
    assert done.output.count("\n") == 1  # told before the model is looked for
    assert "missing 1 videos: VNBench_new/44120_ret_edit1.mp4" in done.output
    assert not (tmp_path / "out").exists()


def test_one_bad_item_does_not_end_a_run(layout: Layout, tmp_path: Path) -> None:
    root, out = layout("vnbench"), tmp_path / "out"
    (root / "VNBench_new" / "44120_ret_edit1.mp4").unlink()
    done = x2l("eval", "vnbench", "--data", root, "--out", out, "--methods", "H", "--max-new-tokens", 2)
    assert done.exit_code == 0, done.output
    assert "their questions are counted as unanswered" in done.output
    rows = rows_of(out)
    left_out = [row for row in rows if row.error]
    assert {row.video for row in left_out} == {"VNBench_new/44120_ret_edit1.mp4"}
    assert all(row.right == 0 and not row.prediction and "is missing" in row.error for row in left_out)
    assert 0 < len(left_out) < len(rows)
    assert "unanswered, counted as wrong" in done.output
