"""`haystack`: needles in made-up videos, generated from seeds."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import numpy as np

from videox2l.demo.cast import all_things
from videox2l.demo.draw import COLOURS, SHAPES
from videox2l.demo.questions import Question, ask
from videox2l.demo.world import WorldVideo, make_video
from videox2l.errors import SettingsError
from videox2l.evaluate.base import Options, Row, Sample
from videox2l.times import Line
from videox2l.video import ArraySource, FrameSource

PER_VIDEO = 4
SPLITS = ("dev", "heldout")
FIRST_SEED = 10_000


class Haystack:
    """Questions about events in generated videos: retrieval, order, counting, and more.

    A frame is a second. Split "dev" is for choosing settings, "heldout" for reporting. Videos are drawn from
    `seed`; PER_VIDEO questions are asked about each. Frames are drawn in memory.
    """

    name = "haystack"
    max_new_tokens = 12

    def __init__(self, options: Options) -> None:
        self.split = options.split or "dev"
        if self.split not in SPLITS:
            raise SettingsError(f"split '{self.split}' is not known: haystack has {', '.join(SPLITS)}")
        self.seed = options.seed
        self.frames = options.frames or 64
        self.questions = options.questions or 100
        self.tasks = options.tasks
        if self.frames < 8:
            raise SettingsError(f"frames={self.frames} is not possible: haystack needs 8 or more")

    def settings(self) -> dict[str, Any]:
        """Return what decides which questions are asked."""
        return {
            "split": self.split,
            "seed": self.seed,
            "frames": self.frames,
            "questions": self.questions,
            "tasks": list(self.tasks),
            "per_video": PER_VIDEO,
        }

    def check(self) -> None:
        """Nothing can be missing: everything is generated."""

    def samples(self) -> Sequence[Sample]:
        """Return the questions, video after video."""
        return self._samples

    @cached_property
    def _samples(self) -> list[Sample]:
        found: list[Sample] = []
        number = 0
        while len(found) < self.questions:
            video = self.script(number)
            rng = np.random.default_rng([self.frames, self.seed, number])
            for i, question in enumerate(ask(video, rng, PER_VIDEO)):
                if not self.tasks or question.kind in self.tasks:
                    found.append(self._sample(number, i, question))
            number += 1
        return found[: self.questions]

    def script(self, number: int) -> WorldVideo:
        """Return the script of a video."""
        return make_video(FIRST_SEED * (self.seed + 1) + number, self.frames, self.split)

    def _sample(self, number: int, i: int, question: Question) -> Sample:
        name = f"{self.split}-{self.seed}-{self.frames}-{number}"
        return Sample(
            id=f"{name}-{i}",
            video=name,
            question=question.question,
            truth=question.answer,
            kind=question.kind,
            choices=choices(question),
            moments=tuple((float(start), float(end)) for start, end in question.moments),
        )

    @contextlib.contextmanager
    def _frames(self, video: str) -> Iterator[FrameSource]:
        script = self.script(int(video.rpartition("-")[2]))
        yield ArraySource(script.render(), name=video)

    def open(self, video: str) -> AbstractContextManager[FrameSource]:
        """Draw the frames of a video."""
        return self._frames(video)

    def subtitles(self, video: str) -> Sequence[Line]:
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


def choices(question: Question) -> tuple[str, ...]:
    """Return the answers that a question of its kind can have."""
    if question.kind in ("digit", "count"):
        return tuple(str(n) for n in range(10))
    if question.kind == "presence":
        return ("yes", "no")
    if question.kind == "order":
        return tuple(" ".join(thing) for thing in all_things())
    return {"colour": tuple(COLOURS), "shape": tuple(SHAPES)}.get(question.kind, ())
