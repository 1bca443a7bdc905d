"""The loop: each video is read once, every method asks it all its questions, every answer becomes a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videox2l.ask.answer import part_thought
from videox2l.errors import SettingsError, X2LError
from videox2l.evaluate.base import Benchmark, Method, MethodOutput, Row, Sample, VideoSession
from videox2l.evaluate.encode import EncodedVideo
from videox2l.evaluate.runfile import RunFolder, versions
from videox2l.evaluate.summary import summarise

if TYPE_CHECKING:
    from videox2l.pipeline import VideoX2L

Progress = Callable[[int, int, str], None]
"""Called with the rows done, the rows in all, and a note."""


@dataclass(frozen=True)
class Run:
    """What is run: a benchmark, methods and budgets, on chunks of `chunk_frames` (None: the model's default).

    `max_new_tokens`: length of answers, None for the benchmark's. `strict`: what cannot be answered ends the run.
    """

    benchmark: Benchmark
    methods: Sequence[Method]
    budgets: Sequence[Fraction]
    chunk_frames: int | None = None
    max_new_tokens: int | None = None
    strict: bool = False

    @property
    def length(self) -> int:
        """Tokens that an answer may have."""
        return self.benchmark.max_new_tokens if self.max_new_tokens is None else self.max_new_tokens

    def __post_init__(self) -> None:
        names = [method.name for method in self.methods]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise SettingsError(f"method {doubled[0]} is named twice")
        if not names or not self.budgets:
            raise SettingsError("a run needs at least one method and one budget")

    def cells(self) -> list[tuple[Method, Fraction]]:
        """Return methods with budgets; methods that no budget changes are run once, at the first."""
        return [
            (method, budget)
            for number, budget in enumerate(self.budgets)
            for method in self.methods
            if method.at_budget or number == 0
        ]

    def settings(self, x2l: VideoX2L) -> dict[str, Any]:
        """Return all that decides the rows, as plain JSON values."""
        return {
            "benchmark": {"name": self.benchmark.name, **self.benchmark.settings()},
            "methods": {method.name: repr_of(method) for method in self.methods},
            **({} if self.max_new_tokens is None else {"max_new_tokens": self.max_new_tokens}),
            "budgets": [str(budget) for budget in self.budgets],
            "chunk_frames": x2l.backbone.default_chunk_frames if self.chunk_frames is None else self.chunk_frames,
            "model": x2l.identity,
            "dtype": str(x2l.backbone.shape.dtype).removeprefix("torch."),
            "versions": versions(),
        }


def repr_of(method: Method) -> str:
    """Return a method's settings as one line without addresses of objects."""
    fields = {
        name: value
        for name, value in vars(method).items()
        if name not in ("name", "about") and not callable(value) and name not in _FACTS
    }
    return f"{type(method).__name__}({', '.join(f'{name}={value!r}' for name, value in fields.items())})"


_FACTS = ("at_budget", "uses_question", "reusable")


def run(x2l: VideoX2L, work: Run, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Run what is missing in the folder `out`, then write and return its summary.

    A run that was stopped at any instant goes on where it stopped and ends with the same rows. Raises SettingsError
    when the folder holds a run of other settings, or when the benchmark lacks something.
    """
    work.benchmark.check()
    folder = RunFolder.open(out, work.settings(x2l))
    samples, cells = work.benchmark.samples(), work.cells()
    known = len({sample.id for sample in samples})
    if known != len(samples):
        raise SettingsError(f"benchmark {work.benchmark.name} gives {len(samples) - known} samples the same id")
    total = len(samples) * len(cells)
    with folder.writing() as rows:
        for video, group in groupby(samples, key=lambda sample: sample.video):
            asked = list(group)
            for row in _video(x2l, work, video, asked, cells, folder):
                rows.add(row)
                if progress is not None:
                    progress(len(folder.done), total, f"{video} {row.method}")
    order = [folder.done[s.id, m.name, str(b)] for s in samples for m, b in cells]
    summary = summarise(order, {method.name: method for method in work.methods}, work.benchmark)
    folder.write_summary(summary)
    return summary


def _video(
    x2l: VideoX2L,
    work: Run,
    name: str,
    samples: Sequence[Sample],
    cells: Sequence[tuple[Method, Fraction]],
    folder: RunFolder,
) -> Iterator[Row]:
    """Yield the rows of one video that the folder lacks; a video that lacks none is not opened."""
    missing = [
        (method, budget, lacking)
        for method, budget in cells
        if (lacking := [s for s in samples if (s.id, method.name, str(budget)) not in folder.done])
    ]
    if not missing:
        return
    benchmark, video, broken = work.benchmark, None, ""
    try:
        with benchmark.open(name) as source:
            video = EncodedVideo(x2l, source, work.chunk_frames, benchmark.subtitles(name))
    except (X2LError, OSError) as error:
        if work.strict:
            raise
        broken = str(error)
    for method, budget, lacking in missing:
        session = None if video is None else method.prepare(video, float(budget), work.length)
        for sample in lacking:
            reply, flops, wrong = MethodOutput.nothing(), None, broken
            if video is not None and session is not None:
                asked = replace(sample, question=benchmark.prompt(sample, video.manifest["pts"]))
                try:
                    reply, flops = _asked(video, session, asked)
                except SettingsError as error:  # such as a control token in the question
                    if work.strict:
                        raise
                    wrong = str(error)
            yield row_of(benchmark, sample, (method, budget), video, reply, flops=flops, error=wrong)


def _asked(video: EncodedVideo, asker: VideoSession, sample: Sample) -> tuple[MethodOutput, int | None]:
    with video.meter.counting() as count:
        reply = asker.ask(sample)
    return reply, count.flops


def row_of(
    benchmark: Benchmark,
    sample: Sample,
    cell: tuple[Method, Fraction],
    video: EncodedVideo | None,
    reply: MethodOutput,
    *,
    flops: int | None = None,
    error: str = "",
) -> Row:
    """Return the row of one answer, or of a question that could not be answered."""
    method, budget = cell
    prediction = part_thought(reply.text)[1]
    return Row(
        benchmark=benchmark.name,
        id=sample.id,
        video=sample.video,
        cluster=sample.cluster,
        group=sample.group,
        kind=sample.kind,
        labels=dict(sample.labels),
        method=method.name,
        budget=str(budget),
        question=sample.question,
        truth=sample.truth,
        prediction=prediction,
        right=0.0 if error else benchmark.score(sample, prediction),
        recall=recall(sample.needs, reply.reloaded),
        tokens=reply.tokens,
        bytes_attended=reply.bytes_attended,
        bytes_full=0 if video is None else video.full_bytes,
        bytes_kept=reply.bytes_kept,
        bytes_device=reply.bytes_device,
        bytes_reloaded=reply.bytes_reloaded,
        bytes_selected=reply.bytes_selected,
        flops_ingest=reply.flops_ingest,
        flops_question=flops,
        seconds={name: round(value, 6) for name, value in reply.seconds.items()},
        scores=None if reply.scores is None else [round(score, 6) for score in reply.scores],
        plan=reply.plan,
        manifest="" if video is None else video.manifest_hash,
        error=error,
    )


Spans = Sequence[tuple[float, float]]


def recall(needs: Sequence[Spans], seen: Spans | None) -> float | None:
    """Return the share of `needs` of which some moment overlaps what was seen; None without needs or a choice."""
    if not needs or seen is None:
        return None
    found = [any(a < end and start < b for start, end in moments for a, b in seen) for moments in needs]
    return sum(found) / len(found)
