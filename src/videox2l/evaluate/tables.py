"""The tables of a report: ours, and the figures that a benchmark's own rules give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from videox2l.evaluate.base import Row
from videox2l.evaluate.document import Block, Heading, Table, Text
from videox2l.evaluate.runfile import RunData, share_of
from videox2l.evaluate.summary import FULL, OURS, accuracy, outcomes, paired

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


SIGNIFICANT = 0.01
MOST_COLUMNS = 16


def runs_table(runs: Sequence[RunData]) -> list[Block]:
    """Return what was run."""
    header = ["run", "benchmark", "questions", "videos", "budgets", "model", "versions", "machine"]
    rows = []
    for run in runs:
        first = next(iter(run.cells.values()))
        versions = ", ".join(f"{name} {value}" for name, value in run.settings["versions"].items())
        model = run.settings["model"]
        machine = run.machine
        rows.append(
            [
                run.name,
                f"{run.title}, seed {run.settings['benchmark'].get('seed', '-')}",
                str(len({row.id for row in first})),
                str(len({row.cluster for row in first})),
                ", ".join(run.budgets),
                f"{model['architecture']} {model['weights'][:8]}, {run.settings['dtype']}",
                versions,
                str(machine["gpu"] or f"{machine['processor']} CPU, {machine['threads']} thread(s)"),
            ]
        )
    return [Table(header, rows)]


def of_run(run: RunData) -> list[Block]:
    """Return everything about one run but its figures."""
    blocks: list[Block] = [Heading(3, "Accuracy"), accuracy_table(run)]
    blocks += official(run.summary)
    blocks += [Text(verdict) for verdict in verdicts(run)]
    for budget in run.budgets:
        blocks += _tests(run, budget)
    blocks += [Heading(3, "Cost"), *(table for budget in run.budgets for table in _costs(run, budget))]
    labels = sorted({label for rows in run.cells.values() for row in rows for label in row.labels})
    for label in ("kind", *labels):
        blocks += _by(run, label)
    return blocks


def marks(cell: dict[str, Any]) -> str:
    """Return the marks of a method: q, 1, and ! as in the legend."""
    found = ["q" if cell.get("uses_question") else "", "" if cell.get("reusable", True) else "1"]
    return " ".join(mark for mark in [*found, "!" if cell["off_budget"] else ""] if mark)


def percent(cell: dict[str, Any] | None, interval: bool = True) -> str:
    """Return an accuracy for a table."""
    if cell is None:
        return ""
    ends = f" ({100 * cell['low']:.0f}-{100 * cell['high']:.0f})" if interval else ""
    return f"{100 * cell['accuracy']:.1f}{ends}"


def accuracy_table(run: RunData) -> Table:
    """Return how often each method was right, by budget."""
    header = ["method", "", *run.budgets, "at any budget", "what it is"]
    rows = []
    for method in run.methods:
        cells = [run.cell(method, budget) if not run.fixed(method) else None for budget in run.budgets]
        about = run.about(method)
        flags = " ".join(sorted({mark for cell in [*cells, run.fixed(method)] if cell for mark in marks(cell).split()}))
        shown = [percent(cell) + (" !" if cell and cell["off_budget"] else "") for cell in cells]
        rows.append([method, flags, *shown, percent(run.fixed(method)), about.get("about", "")])
    return Table(header, rows, emphasis=OURS)


def verdicts(run: RunData) -> list[str]:
    """Say for each budget, in plain words, against which question-agnostic rivals ours leads, and against which not."""
    said = []
    tests = run.summary["tests"]
    by_task = tests.get("rivals_by_task", {})
    parts = [("all questions", tests["rivals"])] + [(name, by_task[name]) for name in by_task if name == "retrieval"]
    for name, found in parts:
        for budget in run.budgets:
            test = found.get(f"{OURS}@{budget}") or (found.get(OURS) if len(run.budgets) == 1 else None)
            if not test:
                continue
            blind = {key: value for key, value in test["rivals"].items() if value["question_agnostic"]}
            if not blind:
                continue
            leads = [key for key, value in blind.items() if value["difference"] > 0 and value["p"] < SIGNIFICANT]
            loses = [key for key, value in blind.items() if value["difference"] < 0 and value["p"] < SIGNIFICANT]
            rest = [key for key in blind if key not in leads and key not in loses]
            text = f"{budget}, {name}: {OURS} leads {len(leads)} of {len(blind)} question-agnostic rivals"
            held = sum(blind[key]["p_holm"] < SIGNIFICANT for key in leads)
            text += f" with p < {SIGNIFICANT:g} ({held} of them also after Holm's correction)"
            if rest:
                text += "; not shown to differ: " + ", ".join(_short(key) for key in rest)
            if loses:
                text += "; loses to " + ", ".join(_short(key) for key in loses)
            said.append(text + ".")
    return said


def _short(cell: str) -> str:
    return cell.partition("@")[0]


def _tests(run: RunData, budget: str) -> list[Block]:
    ours = run.rows(OURS, budget)
    if not ours or run.fixed(OURS):
        return []
    test = run.summary["tests"]["rivals"].get(f"{OURS}@{budget}") or run.summary["tests"]["rivals"].get(OURS, {})
    rows = []
    others = [FULL, *run.rivals(budget)] if run.rows(FULL, budget) else run.rivals(budget)
    for other in others:
        found = paired(ours, run.rows(other, budget))
        holm = test["rivals"].get(f"{other}@{budget}") or test["rivals"].get(other) or {}
        best = " (best rival)" if test.get("best") in (other, f"{other}@{budget}") else ""
        rows.append(
            [
                other + best,
                f"{100 * found['difference']:+.1f} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})",
                str(found["wins"]),
                str(found["losses"]),
                f"{found['p']:.2g}",
                f"{holm['p_holm']:.2g}" if "p_holm" in holm else "",
                f"{found['p_clusters']:.2g}",
            ]
        )
    header = ["against", f"{OURS} is better by, points", "wins", "losses", "p", "p (Holm)", "p (videos)"]
    return [Heading(3, f"{OURS} at {budget} against the others"), Table(header, rows)]


def _costs(run: RunData, budget: str) -> list[Block]:
    header = [
        f"at {budget}", "", "right", "attended", "share", "kept", "device", "re-loaded", "selection reads", "ingest",
        "question", "first token", "recall",
    ]  # fmt: skip
    rows = []
    for method in run.methods:
        cell = run.cell(method, budget) or (run.fixed(method) if budget == run.budgets[0] else None)
        if cell is None:
            continue
        rows.append(
            [
                method,
                marks(cell),
                percent(cell, interval=False),
                bytes_cell(cell["bytes_attended"]),
                f"{100 * cell['attended_share']:.1f} %",
                bytes_cell(cell["bytes_kept"]),
                bytes_cell(cell["bytes_device"]),
                bytes_cell(cell["bytes_reloaded"]),
                bytes_cell(cell["bytes_selected"]),
                flops(cell["flops_ingest"]),
                flops(cell["flops_question"]),
                f"{1000 * cell['seconds_first_token']:.0f} ms",
                "" if cell["recall"] is None else f"{100 * cell['recall']:.0f} %",
            ]
        )
    return [Table(header, rows, emphasis=OURS)]


def bytes_cell(count: float | None) -> str:
    """Return bytes for people."""
    if count is None:
        return ""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def flops(count: float | None) -> str:
    """Return FLOPs for people."""
    if count is None:
        return ""
    for unit in ("", "k", "M", "G", "T", "P"):
        if count < 1000 or unit == "P":
            return f"{count:.3g} {unit}FLOP"
        count /= 1000
    raise AssertionError


def _by(run: RunData, label: str) -> list[Block]:
    def value(row: Row) -> str:
        return row.kind if label == "kind" else row.labels.get(label, "")

    kinds = sorted({value(row) for rows in run.cells.values() for row in rows} - {""})
    if not 2 <= len(kinds) <= MOST_COLUMNS:
        return []
    blocks: list[Block] = [Heading(3, f"By {label}")]
    shown = run.budgets if label == "kind" else run.budgets[len(run.budgets) // 2 :][:1]
    for budget in shown:
        counts = dict.fromkeys(kinds, 0)
        rows = []
        for method in run.methods:
            mine = run.rows(method, budget)
            if not mine or (run.fixed(method) and budget != shown[0]):
                continue
            parts = {kind: [row for row in mine if value(row) == kind] for kind in kinds}
            counts = {kind: len(part) for kind, part in parts.items()}
            right = [f"{100 * accuracy(part).mean:.0f}" if outcomes(part) else "" for part in parts.values()]
            rows.append([method, *right])
        header = [f"at {budget}", *(f"{kind} ({counts[kind]})" for kind in kinds)]
        blocks.append(Table(header, rows, emphasis=OURS))
    return blocks


def side_by_side(runs: Sequence[RunData]) -> list[Block]:
    """Return the accuracy of several runs in one table per budget."""
    budgets = sorted({budget for run in runs for budget in run.budgets}, key=share_of, reverse=True)
    methods = list(dict.fromkeys(method for run in runs for method in run.methods))
    blocks: list[Block] = []
    for budget in budgets:
        rows = []
        for method in methods:
            cells = [run.cell(method, budget) or run.fixed(method) for run in runs]
            known = [cell["accuracy"] for cell in cells if cell]
            if known:
                mean = f"{100 * fmean(known):.1f}" if len(known) == len(runs) else ""
                rows.append([method, *(percent(cell) for cell in cells), mean])
        header = [f"at {budget}", *(f"{run.name}: {run.title}" for run in runs), "mean of the runs"]
        blocks.append(Table(header, rows, emphasis=OURS))
    return blocks
