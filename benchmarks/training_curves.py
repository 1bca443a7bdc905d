"""Curves of a training run of the demo models, from its log.

python benchmarks/training_curves.py docs/training/demo.jsonl docs/training/demo.png
"""

from __future__ import annotations

import argparse
import json
from itertools import accumulate
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

SHOWN = ("digit", "colour", "shape", "order", "count", "presence", "pair", "time", "describe")


def read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the lines of a log by phase, in the order of the phases."""
    phases: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        phases.setdefault(row["phase"], []).append(row)
    return phases


def share(row: dict[str, Any], kind: str) -> float | None:
    """Return the share of right answers of a kind at the longest length of up to 64 frames that a line has."""
    lengths = [int(key.split("@")[1]) for key in row if key.startswith(f"{kind}@")]
    longest = max((n for n in lengths if n <= 64), default=None)
    return row.get(kind) if longest is None else row[f"{kind}@{longest}"]


def draw(phases: dict[str, list[dict[str, Any]]]) -> Figure:
    """Draw one panel per phase, as wide as its steps."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    widths = [max(row["step"] for row in rows) ** 0.5 for rows in phases.values()]
    panels = figure.subplots(1, len(phases), sharey=True, width_ratios=widths, squeeze=False)[0]
    colours = {kind: f"C{i}" for i, kind in enumerate(SHOWN)}
    named = set[str]()
    for panel, (name, rows) in zip(panels, phases.items(), strict=True):
        for kind in SHOWN:
            points = [(row["step"], found) for row in rows if (found := share(row, kind)) is not None]
            if points:
                smooth = list(accumulate((y for _, y in points), lambda a, b: 0.6 * a + 0.4 * b))
                label = None if kind in named else kind
                named.add(kind)
                panel.plot([x for x, _ in points], smooth, color=colours[kind], label=label, linewidth=1.2)
        panel.set(title=name, xlabel="step", ylim=(0, 1.02))
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("right, training batches of up to 64 frames")
    figure.legend(loc="outside right center", frameon=False)
    return figure


def main() -> None:
    """Draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    FigureCanvasAgg(draw(read(args.log))).print_figure(args.out, dpi=110)


if __name__ == "__main__":
    main()
