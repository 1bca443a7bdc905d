"""What benchmarks of generated videos share: scripts from seeds, frames drawn in memory or read from rendered files."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from videox2l.demo.draw import Pixels
from videox2l.demo.questions import WorldQuestion
from videox2l.demo.render import write_video
from videox2l.errors import SettingsError
from videox2l.evaluate.base import BenchmarkOptions, Row, Sample
from videox2l.units import Cue
from videox2l.video import ArraySource, FrameSampling, FrameSource, open_video

PER_VIDEO = 4
SPLITS = ("dev", "heldout")
FIRST_SEED = 10_000
FILE_FPS = 4


class Script(Protocol):
    """What a generated video shows, frame by frame; a frame is a second."""

    def render(self) -> Pixels:
        """Draw all frames at the size that the demo models take: uint8 (frames, 48, 48, 3)."""

    def draw_large(self, second: float) -> Pixels:
        """Draw the picture at some second: uint8 (384, 384, 3)."""


S = TypeVar("S", bound=Script)


class Generated(Generic[S]):
    """Benchmark of generated videos; a subclass writes the scripts and asks the questions.

    Split "dev" is for choosing settings, "heldout" for reporting. Videos are drawn from `seed`; PER_VIDEO questions are
    asked about each. Frames are drawn in memory at the size that the demo models take. With `data` they are rendered
    larger, into mp4 files in that folder where they are missing, and read from there: for other models.
    """

    name: str
    max_new_tokens = 12
    tasks: Mapping[str, str]
    """Kind of question -> what it is for, the rows of tables."""

    def __init__(self, options: BenchmarkOptions, mix: Mapping[str, float], frames: int = 64) -> None:
        self.split = options.split or "dev"
        if self.split not in SPLITS:
            raise SettingsError(f"split '{self.split}' is not known: {self.name} has {', '.join(SPLITS)}")
        self.seed = options.seed
        self.frames = options.frames or frames
        self.questions = options.questions or 100
        self.density, self.redundancy = options.density, options.redundancy
        self.kinds = options.tasks or tuple(mix)
        self.data = options.data
        unknown = [kind for kind in self.kinds if kind not in mix]
        if unknown:
            raise SettingsError(f"task '{unknown[0]}' is not known: {self.title} has {', '.join(mix)}")
        self.mix = {kind: mix[kind] for kind in self.kinds}
        if self.frames < 8:
            raise SettingsError(f"frames={self.frames} is not possible: {self.name} needs 8 or more")

    @property
    def title(self) -> str:
        """Name in messages."""
        return self.name

    def script(self, number: int) -> S:
        """Return the script of a video."""
        raise NotImplementedError

    def ask(self, video: S, rng: np.random.Generator) -> list[WorldQuestion]:
        """Return PER_VIDEO questions about a video, or fewer."""
        raise NotImplementedError

    def choices(self, question: WorldQuestion) -> tuple[str, ...]:
        """Return the answers that a question of its kind can have."""
        raise NotImplementedError

    def labels(self, video: S, question: WorldQuestion) -> dict[str, str]:
        """Return further facts for tables."""
        return {}

    def variant(self) -> str:
        """Return what tells scripts of equal split, seed and length apart, for names of videos and files."""
        return ""

    def settings(self) -> dict[str, Any]:
        """Return what decides which questions are asked."""
        return {
            "split": self.split,
            "seed": self.seed,
            "frames": self.frames,
            "questions": self.questions,
            "kinds": list(self.kinds),
            "files": self.data is not None,
            "per_video": PER_VIDEO,
        }

    def check(self) -> None:
        """Nothing can be missing: everything is generated."""

    def samples(self) -> Sequence[Sample]:
        """Return the questions, video after video."""
        return self._samples

    @cached_property
    def _samples(self) -> list[Sample]:
        samples: list[Sample] = []
        number = 0
        while len(samples) < self.questions:
            video = self.script(number)
            rng = np.random.default_rng([self.frames, self.seed, number])
            samples += [self._sample(video, number, i, question) for i, question in enumerate(self.ask(video, rng))]
            number += 1
        return samples[: self.questions]

    def _sample(self, video: S, number: int, i: int, question: WorldQuestion) -> Sample:
        name = f"{self.split}-{self.seed}-{self.frames}-{self.variant()}{number}"
        labels = {"task": self.tasks[question.kind], "needs": str(len(question.needs)), **self.labels(video, question)}
        return Sample(
            id=f"{name}-{i}",
            video=name,
            question=question.question,
            truth=question.answer,
            kind=question.kind,
            choices=self.choices(question),
            moments=tuple((float(start), float(end)) for start, end in question.moments),
            needs=tuple(tuple((float(a), float(b)) for a, b in options) for options in question.needs),
            labels=labels,
        )

    def open(self, video: str) -> AbstractContextManager[FrameSource]:
        """Draw the frames of a video, or read them from its file."""
        script = self.script(int(video.rpartition("-")[2]))
        if self.data is None:
            return contextlib.nullcontext(ArraySource(script.render(), name=video))
        return self._file(script, self.data / f"{video}.mp4")

    @contextlib.contextmanager
    def _file(self, script: S, file: Path) -> Iterator[FrameSource]:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            begun = file.with_suffix(".part.mp4")
            write_video(begun, script.draw_large, self.frames * FILE_FPS, fps=FILE_FPS)
            begun.replace(file)
        with open_video(file, FrameSampling(fps=1.0)) as source:
            yield source

    def subtitles(self, video: str) -> Sequence[Cue]:
        """There are none."""
        return ()

    def prompt(self, sample: Sample, pts: Sequence[float]) -> str:
        """Return the question as it is."""
        return sample.question

    def score(self, sample: Sample, prediction: str) -> float | None:
        """Return 1 for the true answer: alone, or in a sentence that names no other possible answer."""
        return float(said(sample, prediction))

    def metrics(self, rows: Sequence[Row]) -> dict[str, float]:
        """There are none besides the mean."""
        return {}


def said(sample: Sample, prediction: str) -> bool:
    """Return whether a prediction says the truth of a sample, and no other of its choices."""
    words = " ".join(re.findall(r"[a-z0-9:]+", prediction.lower()))
    if words == sample.truth or not sample.choices:
        return words == sample.truth
    padded = f" {words} "
    return {choice for choice in sample.choices if f" {choice} " in padded} == {sample.truth}
