"""What the command line shows: progress on stderr, answers on stdout."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from videox2l.errors import MemoryFileError
from videox2l.units import format_bytes, format_range, format_time

if TYPE_CHECKING:  # a screen needs no torch
    from videox2l.ask.answer import Answer
    from videox2l.memory import Memory
    from videox2l.video import Clip


def step_lines(answer: Answer) -> str:
    """Return the steps of an answer in one line: what each had re-loaded, and how unsure the model was."""
    parts = []
    for step in answer.steps:
        begin = f"{step.why} after {step.at} tokens: " if step.at else ""
        doubt = "" if step.entropy is None else f" (entropy {step.entropy:.2f})"
        parts.append(f"{begin}{len(step.reloaded)} chunks{doubt}" if step.reloaded else f"{begin}H{doubt}")
    last = answer.steps[-1].settled
    return " -> ".join(parts) + (f": {last}" if last else "")


def progress_of(summary: Mapping[str, Any]) -> str:
    """Return how much of its video a memory holds: "12:00", or "ingested 01:28 of 12:00"."""
    if summary["complete"]:
        return format_time(summary["duration"])
    whole = summary["manifest"].get("duration")
    return f"ingested {format_time(summary['duration'])}" + (f" of {format_time(whole)}" if whole else ", not complete")


def open_memory(where: str) -> Memory:
    """Open a memory. Raises MemoryFileError that says how one is made."""
    from videox2l.memory import Memory
    from videox2l.memory.disk.source import is_memory

    if not is_memory(where):
        raise MemoryFileError(f"'{where}' holds no memory: make one of a video with x2l ingest VIDEO {where}")
    return Memory.load(where)


class Screen:
    """Writes to the terminal. With `quiet` only `json` writes."""

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet, self.verbose = quiet, verbose
        self.out = Console(quiet=quiet, highlight=False, soft_wrap=True)
        self.err = Console(stderr=True, quiet=quiet, highlight=False)
        self._heading = ""  # of the answer that is to come

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

    def memory(self, summary: Mapping[str, Any], saved: Path | str | None = None) -> None:
        """Print what a memory (`Memory.summary()`) holds, and how far its ingest came."""
        manifest = summary["manifest"]
        kept, full = format_bytes(summary["bytes"]["kept"]), format_bytes(summary["bytes"]["full"])
        each = summary["tokens"]["full"] / max(1, summary["frames"])
        held = (
            f"{summary['frames']} frames, {summary['chunks']} chunks, {each:.0f} tokens a frame; {kept} kept of {full}"
        )
        self.line(f"{manifest.get('source', 'video')}: {progress_of(summary)}, {held}")
        if self.verbose:
            levels = ", ".join(f"{name} at 1/{ratio:g}" for name, ratio in summary["levels"].items())
            settings = ", ".join(f"{key} {value}" for key, value in summary["settings"].items() if key != "ratios")
            self.line(f"  levels: {levels}; {settings}")
        holes = manifest.get("holes") or ()
        if holes:
            listed = ", ".join(format_range(*hole) for hole in holes[:6]) + (", ..." if len(holes) > 6 else "")
            self.line(f"  holes: nothing could be read from {listed}")
        for text in manifest.get("warnings") or ():
            if text.startswith("the first frame stands at"):
                self.line(f"  note: {text}")
        if manifest.get("fps_note"):
            self.line(f"  note: {manifest['fps_note']}")
        if saved is not None:
            self.line(f"  saved to {saved}")

    def question(self, text: str, echo: bool = True) -> None:
        """Take a question, which is printed, unless it was just typed, with the first piece of its answer.

        So an error comes before any line.
        """
        self._heading = (f"\n[bold]Q[/bold] {escape(text)}\n" if echo else "") + "[bold]A[/bold] "

    def piece(self, text: str) -> None:
        """Print a piece of an answer as it is written."""
        self.out.print(self._heading, end="")
        self._heading = ""
        self.out.print(text, end="", markup=False)
        self.out.file.flush()

    def answer(self, answer: Answer) -> None:
        """End the answer's line; print the re-loaded moments and the cost."""
        self.piece("")
        self.line("" if answer.finish == "stop" else " ... (cut at max_new_tokens)")
        if answer.draft is not None and self.verbose:
            self.line(f"  unsure, it wrote: {answer.draft}")
        for choice in answer.choices:
            gain = "" if choice.calibrated is None else f", {choice.calibrated:+.2f} with the video"
            self.line(f"  {choice.text}: log likelihood {choice.log_likelihood:.2f}, {choice.mean:.2f} per token{gain}")
        cost = answer.cost
        share = f"{cost.tokens / cost.full_tokens:.1%}" if cost.full_tokens else "0%"
        if not self.verbose:
            self.line(f"  {answer.cost_line()}")
            return
        if answer.reloaded:
            table = Table("moment", "score", "level", "why", box=None, pad_edge=False, padding=(0, 2, 0, 2))
            for moment in answer.reloaded:
                score = "-" if moment.score is None else f"{moment.score:.3f}"
                table.add_row(escape(moment.where), score, moment.level, moment.reason)
            self.out.print(table)
            self.line("  (score: of the selector, higher is nearer to the question; level: L is detail, H is gist)")
        if answer.confidence is not None:
            sure = answer.confidence
            self.line(f"  entropy {sure.entropy:.3f} nats, log likelihood {sure.log_likelihood:.3f} per token")
        if len(answer.steps) > 1:
            self.line(f"  steps: {step_lines(answer)}")
        stages = " ".join(f"{stage} {time:.2f}" for stage, time in cost.seconds.items())
        self.line(
            f"  cost: {cost.tokens:,} of {cost.full_tokens:,} tokens attended ({share}), "
            f"{format_bytes(cost.bytes)} of {format_bytes(cost.full_bytes)}; "
            f"{format_bytes(cost.reloaded_bytes)} re-loaded; "
            + (f"{cost.dialogue_tokens:,} tokens of the dialogue kept; " if cost.dialogue_tokens else "")
            + f"{sum(cost.seconds.values()):.2f} s ({stages})"
        )

    def why(self, lines: Sequence[str]) -> None:
        """Print why a moment was re-loaded, or was not (`Why.lines()`)."""
        for line in lines:
            self.line(f"  why: {line}")

    def plot(self, answer: Answer, path: Path, memory: Memory, video: str | None) -> None:
        """Draw the time line of an answer into a file, with pictures of `video` where it is given."""
        from videox2l.plot import draw

        draw(answer, path, memory, video)
        self.line(f"  time line: {path}")

    def clips(self, clips: Sequence[Clip]) -> None:
        """Print which clips were written."""
        for clip in clips:
            self.line(f"  clip: {clip.path}{'' if clip.copied else ' (encoded anew)'}")

    def json(self, value: Any) -> None:
        """Print one JSON object on stdout."""
        json.dump(value, sys.stdout, ensure_ascii=False, indent=2)
        sys.stdout.write("\n")
