"""What the command line shows: progress on stderr, answers on stdout."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from videox2l.ask.answer import Answer, Why
from videox2l.memory import Memory
from videox2l.units import format_bytes, format_range, format_time


def step_lines(answer: Answer) -> str:
    """Return the steps of an answer in one line: what each had re-loaded, and how unsure the model was."""
    parts = []
    for step in answer.steps:
        begin = f"{step.why} after {step.at} tokens: " if step.at else ""
        doubt = "" if step.entropy is None else f" (entropy {step.entropy:.2f})"
        parts.append(f"{begin}{len(step.reloaded)} chunks{doubt}" if step.reloaded else f"{begin}H{doubt}")
    last = answer.steps[-1].settled
    return " -> ".join(parts) + (f": {last}" if last else "")


class Screen:
    """Writes to the terminal. With `quiet` only `json` writes."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.out = Console(quiet=quiet, highlight=False, soft_wrap=True)
        self.err = Console(stderr=True, quiet=quiet, highlight=False)

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Show a spinner while something loads."""
        with self.err.status(escape(what)):
            yield

    @contextlib.contextmanager
    def bar(self, what: str) -> Iterator[Callable[[int, int | None, str], None]]:
        """Show a progress bar; yields a function of done, expected, and a note."""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.fields[expected]}"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.err, transient=True, disable=not self.err.is_terminal) as progress:
            task = progress.add_task(escape(what), total=None, expected="?", note="")

            def update(done: int, expected: int | None, note: str) -> None:
                progress.update(task, completed=done, total=expected, expected=expected or "?", note=note)

            yield update

    @contextlib.contextmanager
    def ingest_bar(self, name: str) -> Iterator[Callable[[int, int | None, float], None]]:
        """Show how far the ingest of a video is: frames, and the time in the video."""
        with self.bar(f"ingesting {name}") as update:
            yield lambda done, expected, pts: update(done, expected, f"frames, at {format_time(pts)}")

    def line(self, text: str) -> None:
        """Print one line of plain text."""
        self.out.print(text, markup=False)

    def memory(self, memory: Memory, saved: Path | None = None) -> None:
        """Print what the memory holds."""
        levels = ", ".join(f"{memory.level_name(ratio)} at 1/{ratio:g}" for ratio in memory.ratios)
        frames = sum(chunk.frames for chunk in memory.chunks)
        self.line(
            f"{memory.manifest.get('source', 'video')}: {format_time(memory.duration)}, {frames} frames, "
            f"{len(memory)} chunks, {levels}; {format_bytes(memory.nbytes())} of KVs kept, "
            f"full KV would be {format_bytes(memory.full_tokens * memory.shape.token_bytes)}"
        )
        if memory.manifest.get("fps_note"):
            self.line(f"  note: {memory.manifest['fps_note']}")
        if saved is not None:
            self.line(f"  saved to {saved}")

    def question(self, text: str, echo: bool = True) -> None:
        """Print a question, unless it was just typed, and the beginning of its answer's line."""
        self.out.print((f"\n[bold]Q[/bold] {escape(text)}\n" if echo else "") + "[bold]A[/bold] ", end="")

    def piece(self, text: str) -> None:
        """Print a piece of an answer as it is written."""
        self.out.print(text, end="", markup=False)
        self.out.file.flush()

    def answer(self, answer: Answer) -> None:
        """End the answer's line; print the re-loaded moments and the cost."""
        self.line("" if answer.finish == "stop" else " ... (cut at max_new_tokens)")
        if answer.reloaded:
            table = Table("moment", "score", "level", "why", box=None, pad_edge=False, padding=(0, 2, 0, 2))
            for moment in answer.reloaded:
                score = "-" if moment.score is None else f"{moment.score:.3f}"
                table.add_row(format_range(moment.start, moment.end), score, moment.level, moment.reason)
            self.out.print(table)
        if len(answer.steps) > 1:
            self.line(f"  steps: {step_lines(answer)}")
        cost = answer.cost
        share = cost.tokens / cost.full_tokens
        seconds = " ".join(f"{stage} {time:.2f}" for stage, time in cost.seconds.items())
        self.line(
            f"  cost: {cost.tokens:,} of {cost.full_tokens:,} tokens attended ({share:.1%}), "
            f"{format_bytes(cost.bytes)} of {format_bytes(cost.full_bytes)}; "
            f"{format_bytes(cost.reloaded_bytes)} re-loaded; "
            + (f"{cost.dialogue_tokens:,} tokens of the dialogue kept; " if cost.dialogue_tokens else "")
            + f"{sum(cost.seconds.values()):.2f} s ({seconds})"
        )

    def why(self, why: Why) -> None:
        """Print why a moment was re-loaded, or was not."""
        for line in why.lines():
            self.line(f"  why: {line}")

    def json(self, value: Any) -> None:
        """Print one JSON object on stdout."""
        json.dump(value, sys.stdout, ensure_ascii=False, indent=2)
        sys.stdout.write("\n")
