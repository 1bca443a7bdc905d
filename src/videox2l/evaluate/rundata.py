"""A finished run, read back for reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videox2l.errors import SettingsError
from videox2l.evaluate.base import Row
from videox2l.evaluate.runfile import RUN, SUMMARY, read_json, read_rows, read_summary
from videox2l.evaluate.summary import OURS


@dataclass(frozen=True)
class RunData:
    """A finished run as it lies in its folder. `cells`: the rows by method and budget, as they were run."""

    name: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    summary: dict[str, Any]
    cells: dict[tuple[str, str], list[Row]]

    @classmethod
    def load(cls, path: Path) -> RunData:
        """Read a run's folder. Raises SettingsError for one that is no run, or not finished."""
        rows = read_rows(path)
        if not (path / SUMMARY).exists():
            raise SettingsError(f"the run in '{path}' is not finished: give the command that began it once more")
        run = read_json(path / RUN)
        cells: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            cells.setdefault((row.method, row.budget), []).append(row)
        return cls(path.name, run["settings"], run["machine"], read_summary(path), cells)

    @property
    def title(self) -> str:
        """What was run, in a few words."""
        bench = self.settings["benchmark"]
        parts = [f"{bench['frames']} frames" if bench.get("frames") else "", str(bench.get("split") or "")]
        return ", ".join([bench["name"], *(part for part in parts if part)])

    @property
    def methods(self) -> list[str]:
        """The methods, in the order in which they were named."""
        return [name for name in self.settings["methods"] if any(name == method for method, _ in self.cells)]

    @property
    def budgets(self) -> list[str]:
        """The budgets, largest first."""
        return sorted(self.settings["budgets"], key=share_of, reverse=True)

    def cell(self, method: str, budget: str) -> dict[str, Any] | None:
        """Return the summary of a cell."""
        found: dict[str, Any] | None = self.summary.get(f"{method}@{budget}")
        if found is None and (method, budget) in self.cells:
            found = self.summary.get(method)
        return found

    def fixed(self, method: str) -> dict[str, Any] | None:
        """Return the summary of a method that no budget changes."""
        found: dict[str, Any] | None = self.summary.get(method)
        return found if found is not None and found["budget"] is None else None

    def rows(self, method: str, budget: str) -> list[Row]:
        """Return the rows of a cell; those of a method that no budget changes for any budget."""
        if (method, budget) not in self.cells and self.fixed(method):
            return next(rows for (name, _), rows in self.cells.items() if name == method)
        return self.cells.get((method, budget), [])

    def about(self, method: str) -> dict[str, Any]:
        """Return any cell of a method: what it is stands in each."""
        return next(cell for budget in [*self.budgets] if (cell := self.cell(method, budget) or self.fixed(method)))

    def rivals(self, budget: str) -> list[str]:
        """Return the methods at a budget that are not variants of ours."""
        return [m for m in self.methods if m.partition(":")[0] != OURS and not self.fixed(m) and self.cell(m, budget)]


def share_of(budget: str) -> float:
    """Return a budget such as '1/8' as a number."""
    top, _, bottom = budget.partition("/")
    return float(top) / float(bottom or 1)
