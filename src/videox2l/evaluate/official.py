"""The figures that a benchmark's own rules give, as a table of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from videox2l.evaluate.document import Block, Heading, Table

TITLE = "Figures of the benchmark's own rules"


def official(summary: Mapping[str, Any]) -> list[Block]:
    """Return a table of the `metrics` of a run's summary, a row per cell; nothing where the benchmark has none."""
    cells = {name: cell["metrics"] for name, cell in summary.items() if name != "tests" and cell.get("metrics")}
    figures = list(dict.fromkeys(figure for metrics in cells.values() for figure in metrics))
    if not figures:
        return []
    rows = [[name, *_shown(metrics, figures)] for name, metrics in cells.items()]
    return [Heading(3, TITLE), Table(["method", *figures], rows)]


def _shown(metrics: Mapping[str, float], figures: Sequence[str]) -> list[str]:
    return [f"{metrics[figure]:.1f}" if figure in metrics else "" for figure in figures]
