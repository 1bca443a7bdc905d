"""A run's folder: what was run (`run.json`), and one row per question, method and budget (`samples.jsonl`)."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from videox2l.errors import SettingsError
from videox2l.evaluate.base import Row
from videox2l.evaluate.summary import OURS
from videox2l.version import __version__

RUN, SAMPLES, SUMMARY = "run.json", "samples.jsonl", "summary.json"


def versions() -> dict[str, str]:
    """Return the versions on which numbers depend."""
    import torch
    import transformers

    return {"videox2l": __version__, "torch": str(torch.__version__), "transformers": str(transformers.__version__)}


def machine() -> dict[str, Any]:
    """Return the class of machine, for people; a run may be continued on another one."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "system": platform.system(),
    }


@dataclass
class RunFolder:
    """The folder of one run. `done`: the rows that are there, by question, method and budget."""

    path: Path
    settings: dict[str, Any]
    done: dict[tuple[str, str, str], Row] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, Any]) -> RunFolder:
        """Begin a run, or go on with one of the same settings.

        Raises SettingsError that names what differs when the folder holds a run of other settings.
        """
        plain = json.loads(json.dumps(settings))
        path.mkdir(parents=True, exist_ok=True)
        file = path / RUN
        if file.exists():
            known = read_json(file)
            wrong = list(_differences(known.get("settings", {}), plain))
            if wrong:
                raise SettingsError(f"'{path}' holds another run ({'; '.join(wrong[:4])}): use another --out")
        elif (path / SAMPLES).exists():
            raise SettingsError(f"'{path}' holds rows of an unknown run: use another --out")
        else:
            _replace(file, {"settings": plain, "machine": machine()})
        folder = cls(path, plain)
        folder.done = {(row.id, row.method, row.budget): row for row in folder._read()}
        return folder

    def _read(self) -> list[Row]:
        """Read the rows; a last line that was torn by a stop is cut off."""
        file = self.path / SAMPLES
        if not file.exists():
            return []
        whole = file.read_bytes()
        end = whole.rfind(b"\n") + 1
        if end < len(whole):
            with file.open("r+b") as handle:
                handle.truncate(end)
        return read_rows(self.path)

    @contextmanager
    def writing(self) -> Iterator[RowWriter]:
        """Append rows; each is handed to the system at once, so that a killed run loses at most the row in hand."""
        with (self.path / SAMPLES).open("a", encoding="utf-8") as file:
            yield RowWriter(self, file)
            file.flush()
            os.fsync(file.fileno())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`; what is not known (NaN) is null there."""
        _replace(self.path / SUMMARY, _without_nan(summary))


@dataclass(frozen=True)
class RowWriter:
    """Appends rows to a run."""

    folder: RunFolder
    file: TextIO

    def add(self, row: Row) -> None:
        """Write one row."""
        self.file.write(json.dumps(row.to_dict(), ensure_ascii=False, separators=(",", ":")) + "\n")
        self.file.flush()
        self.folder.done[row.id, row.method, row.budget] = row


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a run's folder. Raises SettingsError that names the first line that is no row."""
    file = path / SAMPLES
    if not file.exists():
        raise SettingsError(f"'{path}' holds no run: there is no {SAMPLES}")
    rows = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                rows.append(Row.from_dict(json.loads(line)))
            except (ValueError, KeyError, TypeError):
                raise SettingsError(f"'{file}' line {number} is no row of this version") from None
    return rows


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object. Raises SettingsError."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise SettingsError(f"'{file}' is no JSON object")
    return found


def _replace(file: Path, values: Mapping[str, Any]) -> None:
    """Write a file so that it is there whole or not at all."""
    beside = file.with_suffix(".new")
    beside.write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, file)


def read_summary(path: Path) -> dict[str, Any]:
    """Read a run's summary, with NaN for accuracies that are not known. Raises SettingsError."""
    found: dict[str, Any] = _with_nan(read_json(path / SUMMARY))
    return found


_FIGURES = ("accuracy", "low", "high", "difference")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _with_nan(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: math.nan if part is None and key in _FIGURES else _with_nan(part) for key, part in value.items()}


def _differences(known: Any, wanted: Any, name: str = "") -> Iterator[str]:
    if isinstance(known, dict) and isinstance(wanted, dict):
        for key in sorted(set(known) | set(wanted)):
            yield from _differences(known.get(key), wanted.get(key), f"{name}.{key}" if name else key)
    elif known != wanted:
        yield f"{name}: there {_short(known)}, here {_short(wanted)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


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
        if self.density:
            redundancy = bench.get("redundancy", 1)
            parts.append(f"density {self.density}" + (f", redundancy {redundancy}" if redundancy > 1 else ""))
        return ", ".join([bench["name"], *(part for part in parts if part)])

    @property
    def density(self) -> int:
        """Askable facts in 8 frames of a generated benchmark; 0 where that is no setting of the run."""
        return int(self.settings["benchmark"].get("density", 0))

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
