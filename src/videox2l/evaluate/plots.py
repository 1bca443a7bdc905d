"""Figures of reports (library: matplotlib, drawn without a screen)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videox2l.errors import SettingsError
from videox2l.evaluate.summary import FULL, OURS, accuracy, paired

if TYPE_CHECKING:
    from videox2l.evaluate.runfile import RunData

INK, PALE = "#1c2430", "#9aa5b4"
OURS_COLOUR, WIN, LOSS = "#0a7d54", "#0a7d54", "#c2413b"
COLOURS = ("#3b6fb6", "#b5651d", "#7a4fa3", "#2a9db0", "#8c7a1f", "#c0569c", "#5b6b7b", "#a33f3f", "#4f8f3a", "#6a5acd")
MARKERS = "osD^vPX<>h"


def figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    """Return a figure and its axes. Raises SettingsError where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise SettingsError("reports need matplotlib: pip install 'videox2l[plot]'") from None
    made = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(made)
    axes = made.subplots(1, columns, squeeze=False, sharey=True)[0]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.tick_params(colors=INK)
    return made, axes


def curves(run: RunData, file: Path) -> str:
    """Draw accuracy against the share of full KV that was attended to."""
    made, axes = figure(10, 5.6)
    _label(axes[0], _curves(axes[0], run))
    axes[0].set_ylabel("right, %", color=INK)
    made.savefig(file)
    return CURVES


def overview(runs: Sequence[RunData], file: Path) -> str:
    """Draw the curves of several runs beside one another."""
    made, axes = figure(5.6 * len(runs), 5.2, len(runs))
    ends = [_curves(ax, run) for ax, run in zip(axes, runs, strict=True)]
    for ax, names in zip(axes, ends, strict=True):  # when the axis, which they share, is settled
        _label(ax, names)
    axes[0].set_ylabel("right, %", color=INK)
    made.savefig(file)
    return CURVES


def by_density(runs: Sequence[RunData], file: Path) -> str:
    """Draw accuracy against density, a panel per budget. Returns "" where fewer than two densities were run."""
    dense = sorted((run for run in runs if run.density), key=lambda run: run.density)
    shared = [b for b in dense[0].budgets if all(b in run.budgets for run in dense)] if dense else []
    if len({run.density for run in dense}) < 2 or not shared:
        return ""
    made, axes = figure(5.6 * len(shared), 5.2, len(shared))
    methods = list(dict.fromkeys(method for run in dense for method in run.methods))
    for ax, budget in zip(axes, shared, strict=True):
        for number, method in enumerate(methods):
            cells = [(run.density, cell) for run in dense if (cell := run.cell(method, budget) or run.fixed(method))]
            ours = method == OURS
            colour = OURS_COLOUR if ours else COLOURS[number % len(COLOURS)]
            x, y = [density for density, _ in cells], [100 * cell["accuracy"] for _, cell in cells]
            asks = cells[0][1]["uses_question"]
            ax.plot(
                x, y, color=colour, linewidth=2.6 if ours else 1.2, linestyle=(0, (4, 2)) if asks and not ours else "-",
                marker=MARKERS[number % len(MARKERS)], markersize=7 if ours else 5, zorder=3 if ours else 2,
                label=method,
            )  # fmt: skip
        ax.set_xscale("log", base=2)
        densities = sorted({run.density for run in dense})
        ax.set_xlim(densities[0] / 1.1, densities[-1] * 1.1)
        ax.set_ylim(0, 103)
        ax.set_xticks(densities, [str(density) for density in densities])
        ax.minorticks_off()
        ax.set_xlabel("askable facts in 8 frames", color=INK)
        ax.set_title(f"at {budget} of full KV", loc="left", color=INK, fontsize=11)
    made.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    axes[0].set_ylabel("right, %", color=INK)
    made.savefig(file)
    return "Accuracy against density. Dashed: the method looks at the question."


CURVES = (
    "Accuracy against the share of full KV attended. Dashed: the method looks at the question. The bars of "
    f"{OURS} are 95 % intervals over videos; the intervals of the others are as wide, see the table."
)


def _curves(ax: Any, run: RunData) -> list[tuple[float, float, str, str]]:
    """Draw the lines of one run; return where each ends, with its name and colour."""
    ends: list[tuple[float, float, str, str]] = []
    plain = [m for m in run.methods if m == OURS or (m.partition(":")[0] != OURS and not run.fixed(m))]
    for number, method in enumerate(plain):
        cells = [cell for budget in run.budgets if (cell := run.cell(method, budget))]
        x = [cell["attended_share"] for cell in cells]
        y = [100 * cell["accuracy"] for cell in cells]
        low = [max(0.0, 100 * (cell["accuracy"] - cell["low"])) for cell in cells]
        high = [max(0.0, 100 * (cell["high"] - cell["accuracy"])) for cell in cells]
        ours, asks = method == OURS, cells[0]["uses_question"]
        colour = OURS_COLOUR if ours else COLOURS[number % len(COLOURS)]
        ax.errorbar(
            x, y, yerr=[low, high] if ours else None, color=colour, linewidth=2.6 if ours else 1.2, capsize=3,
            elinewidth=1.2,
            linestyle="-" if ours or not asks else (0, (4, 2)), marker=MARKERS[number % len(MARKERS)],
            markersize=7 if ours else 5, zorder=3 if ours else 2,
        )  # fmt: skip
        ends.append((x[-1], y[-1], method, colour))
    full, none = run.fixed(FULL), run.fixed("none")
    if full:
        level = 100 * full["accuracy"]
        ax.axhline(level, color=PALE, linewidth=1, zorder=1)
        ax.annotate(
            "full KV", (0.5, level), xytext=(0, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
            color=INK, fontsize=9, ha="center",
        )  # fmt: skip
    if none:
        text = f"no video: {100 * none['accuracy']:.0f} %"
        ax.text(0.99, 0.015, text, transform=ax.transAxes, ha="right", color=INK, fontsize=9)
    ax.set_xscale("log", base=2)
    shares = sorted({cell["attended_share"] for m in plain for b in run.budgets if (cell := run.cell(m, b))})
    ax.set_xlim(shares[0] / 1.75, shares[-1] * 1.12)
    ax.set_xticks([_share(budget) for budget in run.budgets], run.budgets)
    ax.minorticks_off()
    ax.set_xlabel("share of full KV that a question attends to", color=INK)
    ax.set_title(f"{run.title}: accuracy at equal bytes", loc="left", color=INK, fontsize=11)
    return ends


def _label(ax: Any, ends: list[tuple[float, float, str, str]]) -> None:
    """Write each name left of the line's end, moved apart so that none covers another."""
    low, high = ax.get_ylim()
    gap = (high - low) / 26
    placed: list[float] = []
    x = min(end[0] for end in ends)
    for _, y, name, colour in sorted(ends, key=lambda end: end[1]):
        at = max(y, placed[-1] + gap) if placed else y
        placed.append(at)
        ax.annotate(
            name, (x, y), xytext=(x / 1.16, at), textcoords="data", color=colour, fontsize=9, ha="right", va="center",
            fontweight="bold" if name == OURS else "normal",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3},
        )  # fmt: skip
    ax.set_ylim(low, max(high, placed[-1] + gap))


def plot_differences(run: RunData, file: Path) -> str:
    """Draw how much better or worse ours is than each other method, per budget."""
    budgets = [b for b in run.budgets if run.cell(OURS, b) and not run.fixed(OURS)]
    others = [m for m in run.methods if m == FULL or (m.partition(":")[0] != OURS and not run.fixed(m))]
    if not budgets or not others:
        return ""
    made, axes = figure(3.4 * len(budgets) + 1.6, 0.34 * len(others) + 1.5, len(budgets))
    for ax, budget in zip(axes, budgets, strict=True):
        ours = run.rows(OURS, budget)
        for row, other in enumerate(others):
            test = paired(ours, run.rows(other, budget))
            colour = PALE if test["low"] <= 0 <= test["high"] else WIN if test["difference"] > 0 else LOSS
            ax.barh(row, 100 * test["difference"], color=colour, height=0.66)
            ax.plot([100 * test["low"], 100 * test["high"]], [row, row], color=INK, linewidth=1)
        ax.axvline(0, color=INK, linewidth=0.8)
        ax.set_title(f"at {budget}", loc="left", fontsize=10, color=INK)
        ax.set_xlabel("points", color=INK)
    axes[0].set_yticks(range(len(others)), ["full KV" if other == FULL else other for other in others])
    axes[0].invert_yaxis()
    made.suptitle(f"{run.title}: {OURS} minus the other method", x=0.01, ha="left", color=INK)
    made.savefig(file)
    return (
        f"{OURS} minus each other method, paired, with 95 % intervals over videos: green where ours is better, red "
        "where it is worse, grey where the interval holds zero."
    )


def kinds(run: RunData, file: Path) -> str:
    """Draw accuracy by kind of question at the middle budget."""
    budget = run.budgets[len(run.budgets) // 2]
    names = [m for m in run.methods if run.rows(m, budget)]
    found = sorted({row.kind for m in names for row in run.rows(m, budget)})
    if len(found) < 2:
        return ""
    made, axes = figure(0.75 * len(found) + 2.8, 0.3 * len(names) + 1.5)
    ax = axes[0]
    for y, method in enumerate(names):
        for x, kind in enumerate(found):
            part = [row for row in run.rows(method, budget) if row.kind == kind]
            value = accuracy(part).mean if part else float("nan")
            shade = 1 - 0.72 * value if value == value else 1.0
            ax.add_patch(_square(x, y, (shade * 0.85, 0.35 + shade * 0.6, 0.25 + shade * 0.72)))
            text = f"{100 * value:.0f}" if value == value else ""
            ax.text(x, y, text, ha="center", va="center", fontsize=8.5, color="white" if value > 0.62 else INK)
    ax.set_xlim(-0.5, len(found) - 0.5)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xticks(range(len(found)), found, rotation=30, ha="right")
    ax.set_yticks(range(len(names)), names)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)
    ax.set_title(f"{run.title}: % right by kind at {budget}", loc="left", fontsize=10, color=INK)
    made.savefig(file)
    return f"Percent right by kind of question at {budget}."


def _square(x: int, y: int, colour: tuple[float, float, float]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=1.5)


def _share(budget: str) -> float:
    top, _, bottom = budget.partition("/")
    return float(top) / float(bottom or 1)


FIGURES: dict[str, Callable[[RunData, Path], str]] = {
    "curves": curves,
    "differences": plot_differences,
    "kinds": kinds,
}
"""What is drawn of each run: a function writes a PNG and returns its caption, or "" where there is nothing to draw."""
