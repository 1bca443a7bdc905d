"""The loop that every phase of training runs in: a number of steps, a cosine of the rate, a log, a checkpoint."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from training.muon import MuonAdamW
from training.workers import average, barrier, rank


@dataclass(frozen=True)
class Schedule:
    """How many steps a phase lasts, and its learning rate from first to last; times are seconds of wall clock."""

    steps: int
    lr: float
    lr_end: float
    save_every: float = 60.0
    log_every: float = 20.0

    def rate(self, progress: float) -> float:
        """Return the learning rate at a progress of 0 to 1: two percent of warm-up, then a cosine."""
        cosine = self.lr_end + (self.lr - self.lr_end) * 0.5 * (1 + math.cos(math.pi * progress))
        return cosine * min(1.0, (progress + 1e-3) / 0.02)


class Phase(Protocol):
    """One phase of training."""

    name: str
    modules: nn.Module
    """All that is saved in the phase's checkpoint."""

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Return the named parameters that this phase trains."""

    def loss(self, step: int, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a fresh batch and figures for the log; a step and process always make the same batch."""


def run_phase(phase: Phase, pace: Schedule, folder: Path) -> None:
    """Train one phase until its time is up; goes on from the checkpoint where there is one."""
    path = folder / f"{phase.name}.pt"
    optimiser = MuonAdamW(phase.trained())
    step, spent = 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        phase.modules.load_state_dict(state["modules"])
        optimiser.load_state_dict(state["optimiser"])
        step, spent = state["step"], state["spent"]
    started, saved, logged = time.monotonic() - spent, spent, spent
    figures: dict[str, list[float]] = defaultdict(list)
    while step < pace.steps:
        progress = step / pace.steps
        loss, measured = phase.loss(step, progress)
        loss.backward()  # type: ignore[no-untyped-call]
        spent = average(optimiser.parameters(), time.monotonic() - started)
        optimiser.step(pace.rate(progress))
        step += 1
        for key, value in {"loss": loss.item(), **measured}.items():
            figures[key].append(value)
        if spent - logged > pace.log_every or step == pace.steps:
            if rank() == 0:
                write_log(folder, phase.name, step, spent, pace.rate(progress), figures)
            logged, figures = spent, defaultdict(list)
        if spent - saved > pace.save_every or step == pace.steps:
            if rank() == 0:
                save(path, phase, optimiser, step, spent)
            saved = spent
    barrier()


def finished(path: Path, pace: Schedule) -> bool:
    """Tell whether a phase's checkpoint is its last one."""
    return path.exists() and torch.load(path, weights_only=True)["step"] >= pace.steps


def save(path: Path, phase: Phase, optimiser: MuonAdamW, step: int, spent: float) -> None:
    """Write a checkpoint beside the old one, then put it in its place."""
    state: dict[str, Any] = {"modules": phase.modules.state_dict(), "optimiser": optimiser.state_dict()}
    torch.save(state | {"step": step, "spent": spent}, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def write_log(folder: Path, name: str, step: int, spent: float, lr: float, figures: dict[str, list[float]]) -> None:
    """Append a line of means to the log."""
    means = {key: round(sum(values) / len(values), 4) for key, values in sorted(figures.items())}
    line = {"phase": name, "step": step, "seconds": round(spent, 1), "lr": round(lr, 6), **means}
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")
