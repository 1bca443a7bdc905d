"""Reports: figures are PNGs, the page holds everything, tables say what the rows say, losses included."""

from __future__ import annotations

import builtins
import html.parser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.evaluate.test_runner import work
from videox2l import VideoX2L
from videox2l.cli.app import app
from videox2l.evaluate.document import Figure, Heading, Table, Text, to_html, to_markdown
from videox2l.evaluate.runfile import RunData
from videox2l.evaluate.runner import run
from videox2l.evaluate.tables import bytes_cell, flops, verdicts


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    demo, folder = VideoX2L.from_pretrained("demo"), tmp_path_factory.mktemp("runs")
    for name, seed in (("one", 0), ("two", 1)):
        run(demo, work(8, "full,none,x2l,uniform,keydiff,rekv", seed, "1/4,1/8"), folder / name)
    return [folder / "one", folder / "two"]


class Outside(html.parser.HTMLParser):
    """Collects whatever a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.images += tag == "img"
        self.found += [v for k, v in attrs if k in ("src", "href") and v and not v.startswith("data:")]


def test_a_report(runs: list[Path], tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["report", *map(str, runs), "--out", str(tmp_path / "r")])
    assert shown.exit_code == 0, shown.output
    out = tmp_path / "r"
    text, page = (out / "report.md").read_text(), Outside()
    page.feed((out / "report.html").read_text())
    assert page.found == []
    assert page.images == 7
    for file in out.glob("*.png"):
        with Image.open(file) as picture:
            assert picture.size[0] > 300
        assert file.name in text
    first = RunData.load(runs[0])
    for budget in ("1/4", "1/8"):
        cell = first.cell("uniform", budget)
        assert cell is not None
        assert f"{100 * cell['accuracy']:.1f} ({100 * cell['low']:.0f}-{100 * cell['high']:.0f})" in text
        assert f"### x2l at {budget} against the others" in text
    assert "question-agnostic rivals" in text
    assert "two: haystack, 32 frames, dev" in text


def test_losses_are_said() -> None:
    test = {"difference": -0.2, "p": 0.001, "p_holm": 0.002, "question_agnostic": True}
    good = {"difference": 0.2, "p": 0.001, "p_holm": 0.02, "question_agnostic": True}
    near = {"difference": 0.1, "p": 0.4, "p_holm": 0.4, "question_agnostic": True}
    asks = {"difference": -0.3, "p": 0.0, "p_holm": 0.0, "question_agnostic": False}
    rivals = {"rivals": {"bad@1/8": test, "good@1/8": good, "near@1/8": near, "asks@1/8": asks}}
    data = RunData("n", {"budgets": ["1/8"], "methods": {}}, {}, {"tests": {"rivals": {"x2l@1/8": rivals}}}, {})
    (said,) = verdicts(data)
    assert said == (
        "1/8, all questions: x2l leads 1 of 3 question-agnostic rivals with p < 0.01 (0 of them also after Holm's "
        "correction); not shown to differ: near; loses to bad."
    )


def test_what_is_no_finished_run(runs: list[Path], tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert shown.exit_code in (1, 2)
    assert "holds no run" in shown.output
    part = tmp_path / "part"
    part.mkdir()
    for name in ("run.json", "samples.jsonl"):
        (part / name).write_bytes((runs[0] / name).read_bytes())
    shown = CliRunner().invoke(app, ["report", str(part)])
    assert shown.exit_code in (1, 2)
    assert "is not finished" in shown.output


def test_without_matplotlib(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    shown = CliRunner().invoke(app, ["report", str(runs[0]), "--out", str(tmp_path)])
    assert shown.exit_code in (1, 2)
    assert "videox2l[plot]" in shown.output


def test_documents(tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    Image.new("RGB", (2, 2)).save(picture)
    blocks = [
        Heading(1, "A & B"),
        Text("x < y"),
        Table(["a", "b"], [["1|2", ""], ["m", "n"]], "m"),
        Figure(picture, "p"),
    ]
    assert to_markdown(blocks, tmp_path) == (
        "# A & B\n\nx < y\n\n| a | b |\n| --- | --- |\n| 1\\|2 |  |\n| **m** | **n** |\n\n![p](p.png)\n"
    )
    page = to_html(blocks)
    assert "<title>A &amp; B</title>" in page
    assert "x &lt; y" in page
    assert '<tr class="ours"><td>m</td>' in page


def test_figures_for_people() -> None:
    assert (bytes_cell(999), bytes_cell(1234), bytes_cell(5e9), bytes_cell(None)) == ("999 B", "1.23 kB", "5 GB", "")
    assert (flops(5.45e8), flops(12), flops(None)) == ("545 MFLOP", "12 FLOP", "")
