"""From rows to figures: accuracy with intervals, costs, paired tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from videox2l.evaluate.base import Benchmark, Method, Ranked, Row
from videox2l.evaluate.statistics import cluster_bootstrap, holm, mcnemar, sign_flip

if TYPE_CHECKING:
    from videox2l.evaluate.statistics import Interval

FULL = "full"
OURS = "x2l"
TOLERANCE = 0.05
"""A method whose attended bytes are further from the budget than this share of it is flagged."""


def cells_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each cell: by method, or by "method@budget" where a method has several budgets."""
    several = {m for m in {row.method for row in rows} if len({r.budget for r in rows if r.method == m}) > 1}
    cells: dict[str, list[Row]] = {}
    for row in rows:
        cells.setdefault(f"{row.method}@{row.budget}" if row.method in several else row.method, []).append(row)
    return cells


def outcomes(rows: Sequence[Row]) -> dict[str, tuple[str, float]]:
    """Return group -> cluster and how right it is: a group is as right as the worst of its rows.

    Groups with a row that could not be scored are left out.
    """
    found: dict[str, tuple[str, float]] = {}
    unknown = {row.group for row in rows if row.right is None}
    for row in rows:
        if row.group not in unknown and row.right is not None:
            known = found.get(row.group, (row.cluster, 1.0))[1]
            found[row.group] = (row.cluster, min(known, row.right))
    return found


def accuracy(rows: Sequence[Row]) -> Interval:
    """Return the mean over groups with a 95 % bootstrap interval over clusters."""
    clusters: dict[str, list[float]] = {}
    for cluster, right in outcomes(rows).values():
        clusters.setdefault(cluster, []).append(right)
    return cluster_bootstrap(list(clusters.values()))


def paired(first: Sequence[Row], second: Sequence[Row]) -> dict[str, Any]:
    """Compare two cells on the groups that both have: difference with interval, exact McNemar, a test by clusters.

    McNemar takes questions as independent; `p_clusters` flips whole videos and is the honest one where
    questions of a video share its luck. Partial scores count as right from one half on in McNemar's test.
    """
    one, two = outcomes(first), outcomes(second)
    both = [group for group in one if group in two]
    a, b = [one[group][1] for group in both], [two[group][1] for group in both]
    clusters: dict[str, list[float]] = {}
    for group, x, y in zip(both, a, b, strict=True):
        clusters.setdefault(one[group][0], []).append(x - y)
    spread = cluster_bootstrap(list(clusters.values()))
    right, wrong = [x >= 0.5 for x in a], [x >= 0.5 for x in b]
    return {
        "n": len(both),
        "difference": spread.mean,
        "low": spread.low,
        "high": spread.high,
        "wins": sum(x and not y for x, y in zip(right, wrong, strict=True)),
        "losses": sum(y and not x for x, y in zip(right, wrong, strict=True)),
        "p": mcnemar(right, wrong),
        "p_clusters": sign_flip([sum(values) for values in clusters.values()]),
    }


def cell_summary(rows: Sequence[Row], method: Method | None = None) -> dict[str, Any]:
    """Return accuracy, interval and mean costs of one cell."""
    found = accuracy(rows)
    everything, rows = rows, [row for row in rows if not row.error] or rows  # costs are those of answers
    known = [row.recall for row in rows if row.recall is not None]
    share = fmean(row.bytes_attended / max(1, row.bytes_full) for row in rows)
    budget = _share(rows[0].budget)
    follows = method is None or method.at_budget
    summary: dict[str, Any] = {
        "accuracy": found.mean,
        "low": found.low,
        "high": found.high,
        "n": len(outcomes(everything)),
        "clusters": len({row.cluster for row in everything}),
        "unscored": sum(row.right is None for row in everything),
        "unanswered": sum(bool(row.error) for row in everything),
        "bytes_attended": fmean(row.bytes_attended for row in rows),
        "bytes_kept": fmean(row.bytes_kept for row in rows),
        "bytes_device": fmean(row.bytes_device for row in rows),
        "bytes_reloaded": fmean(row.bytes_reloaded for row in rows),
        "bytes_selected": _mean([row.bytes_selected for row in rows]),
        "bytes_full": fmean(row.bytes_full for row in rows),
        "recall": fmean(known) if known else None,
        "tokens": fmean(row.tokens for row in rows),
        "flops_ingest": _mean([row.flops_ingest for row in rows]),
        "flops_question": _mean([row.flops_question for row in rows]),
        "seconds_first_token": fmean(sum(s for stage, s in row.seconds.items() if stage != "decode") for row in rows),
        "attended_share": share,
        "budget": rows[0].budget if follows else None,
        "off_budget": follows and abs(share - budget) > TOLERANCE * budget,
        "kinds": {
            kind: _brief([row for row in everything if row.kind == kind])
            for kind in sorted({row.kind for row in everything})
        },
    }
    if method is not None:
        summary["about"] = method.about
        summary["uses_question"] = method.uses_question
        summary["reusable"] = method.reusable
    return summary


def summarise(rows: Sequence[Row], methods: Mapping[str, Method], benchmark: Benchmark) -> dict[str, Any]:
    """Return the summary of a run: one entry per cell, and the paired tests under "tests"."""
    cells = cells_of(rows)
    summary: dict[str, Any] = {}
    for name, mine in cells.items():
        summary[name] = cell_summary(mine, methods.get(mine[0].method))
        if isinstance(benchmark, Ranked):
            summary[name].update(benchmark.recalls(mine))
        own = benchmark.metrics(mine)
        if own:
            summary[name]["metrics"] = own
    summary["tests"] = tests(cells, methods)
    return summary


def tests(cells: Mapping[str, Sequence[Row]], methods: Mapping[str, Method]) -> dict[str, Any]:
    """Return paired tests: every cell against full KV, and ours against every rival at the same budget.

    Ours is "x2l". Rivals are all methods at the budget that are not variants of ours. p-values of one budget are
    corrected together after Holm. Where samples have a label "task", ours is compared task by task as well.
    """
    full = next((rows for name, rows in cells.items() if rows[0].method == FULL), None)
    against_full: dict[str, Any] = {}
    if full is not None:
        against_full = {name: paired(rows, full) for name, rows in cells.items() if rows is not full}
    tasks = sorted({row.labels["task"] for rows in cells.values() for row in rows if "task" in row.labels})
    by_task = {}
    for task in tasks:
        part = {name: [row for row in rows if row.labels.get("task") == task] for name, rows in cells.items()}
        by_task[task] = _against_rivals({name: rows for name, rows in part.items() if rows}, methods)
    return {"full": against_full, "rivals": _against_rivals(cells, methods), "rivals_by_task": by_task}


def _against_rivals(cells: Mapping[str, Sequence[Row]], methods: Mapping[str, Method]) -> dict[str, Any]:
    against: dict[str, Any] = {}
    for name, ours in cells.items():
        if ours[0].method != OURS:
            continue
        rivals = {
            other: rows
            for other, rows in cells.items()
            if rows[0].budget == ours[0].budget and _is_rival(rows[0].method, methods)
        }
        found = {other: paired(ours, rows) for other, rows in rivals.items()}
        for other, p in zip(found, holm([test["p"] for test in found.values()]), strict=True):
            found[other]["p_holm"] = p
            found[other]["question_agnostic"] = not methods[rivals[other][0].method].uses_question
        best = max(found, key=lambda other: accuracy(rivals[other]).mean, default=None)
        against[name] = {"rivals": found, "best": best}
    return against


def _is_rival(name: str, methods: Mapping[str, Method]) -> bool:
    return name in methods and methods[name].at_budget and name.partition(":")[0] != OURS


def _brief(rows: Sequence[Row]) -> dict[str, Any]:
    found = accuracy(rows)
    return {"accuracy": found.mean, "low": found.low, "high": found.high, "n": len(outcomes(rows))}


def _mean(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _share(budget: str) -> float:
    top, _, bottom = budget.partition("/")
    return float(top) / float(bottom or 1)
