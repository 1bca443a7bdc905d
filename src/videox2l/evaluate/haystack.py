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
from videox2l.demo.dense import make_dense_video
from videox2l.demo.draw import COLOURS, SHAPES
from videox2l.demo.questions import QUARTERS, WorldQuestion, make_questions
from videox2l.demo.render import write_video
from videox2l.demo.world import WorldVideo, make_video
from videox2l.errors import SettingsError
from videox2l.evaluate.base import BenchmarkOptions, Row, Sample
from videox2l.units import Cue
from videox2l.video import ArraySource, FrameSampling, FrameSource, open_video

PER_VIDEO = 4
SPLITS = ("dev", "heldout")
FIRST_SEED = 10_000
FILE_FPS = 4
MIX = {
    "digit": 0.2, "colour": 0.12, "shape": 0.12, "pair": 0.12, "order": 0.16, "count": 0.14, "presence": 0.08,
    "time": 0.06,
}  # fmt: skip
DENSE_MIX = {"digit": 0.4, "pair": 0.15, "order": 0.15, "count": 0.15, "presence": 0.15}
"""With density: several things carry the same digit there, so that it does not tell which one is meant."""
TASKS = {
    "digit": "retrieval", "colour": "retrieval", "shape": "retrieval", "pair": "retrieval", "order": "ordering",
    "time": "ordering", "count": "counting", "presence": "presence",
}  # fmt: skip
"""The three tasks of VNBench (arXiv 2406.09367), and whether something is there at all."""


class Haystack:
    """Needles in generated videos: retrieval, ordering and counting, as in VNBench (arXiv 2406.09367).

    A needle is a picture inserted, a glyph over the scene, or a thing that changes its colour, for one to four frames
    among decoys. Split "dev" is for choosing settings, "heldout" for reporting; they share no needle. Videos are drawn
    from `seed`; PER_VIDEO questions are asked about each. A frame is a second.

    Frames are drawn in memory at the size that the demo model takes. With `data` they are rendered larger, into mp4
    files in that folder where they are missing, and read from there: for other models. With `density` every 8 frames
    hold so many needles, see `make_dense_video`.
    """

    name = "haystack"
    max_new_tokens = 12

    def __init__(self, options: BenchmarkOptions) -> None:
        self.split = options.split or "dev"
        if self.split not in SPLITS:
            raise SettingsError(f"split '{self.split}' is not known: haystack has {', '.join(SPLITS)}")
        self.seed = options.seed
        self.frames = options.frames or 64
        self.questions = options.questions or 100
        self.density, self.redundancy = options.density, options.redundancy
        self.mix = DENSE_MIX if self.density else MIX
        self.kinds = options.tasks or tuple(self.mix)
        self.data = options.data
        unknown = [kind for kind in self.kinds if kind not in self.mix]
        if unknown:
            where = "haystack with density" if self.density else "haystack"
            raise SettingsError(f"task '{unknown[0]}' is not known: {where} has {', '.join(self.mix)}")
        if self.redundancy != 1 and not self.density:
            raise SettingsError(f"redundancy={self.redundancy} goes with density: give both")
        if self.frames < 8:
            raise SettingsError(f"frames={self.frames} is not possible: haystack needs 8 or more")
        self.script(0)  # what does not fit shows at once

    def settings(self) -> dict[str, Any]:
        """Return what decides which questions are asked."""
        dense = {"density": self.density, "redundancy": self.redundancy} if self.density else {}
        return {
            "split": self.split,
            "seed": self.seed,
            "frames": self.frames,
            "questions": self.questions,
            "kinds": list(self.kinds),
            "files": self.data is not None,
            "per_video": PER_VIDEO,
            **dense,
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
            mix = {kind: self.mix[kind] for kind in self.kinds}
            found += [
                self._sample(video, number, i, q) for i, q in enumerate(make_questions(video, rng, PER_VIDEO, mix))
            ]
            number += 1
        return found[: self.questions]

    def script(self, number: int) -> WorldVideo:
        """Return the script of a video."""
        seed = FIRST_SEED * (self.seed + 1) + number
        if self.density:
            return make_dense_video(seed, self.frames, self.split, self.density, self.redundancy)
        return make_video(seed, self.frames, self.split)

    def _sample(self, video: WorldVideo, number: int, i: int, question: WorldQuestion) -> Sample:
        dense = f"d{self.density}r{self.redundancy}-" if self.density else ""
        name = f"{self.split}-{self.seed}-{self.frames}-{dense}{number}"
        return Sample(
            id=f"{name}-{i}",
            video=name,
            question=question.question,
            truth=question.answer,
            kind=question.kind,
            choices=choices(question),
            moments=tuple((float(start), float(end)) for start, end in question.moments),
            needs=tuple(tuple((float(a), float(b)) for a, b in options) for options in question.needs),
            labels={"task": TASKS[question.kind], "needle": needle(video, question), "needs": str(len(question.needs))},
        )

    @contextlib.contextmanager
    def _frames(self, video: str) -> Iterator[FrameSource]:
        script = self.script(int(video.rpartition("-")[2]))
        if self.data is None:
            yield ArraySource(script.render(), name=video)
            return
        file = self.data / f"{video}.mp4"
        if not file.exists():
            self.data.mkdir(parents=True, exist_ok=True)
            begun = file.with_suffix(".part.mp4")
            write_video(begun, script, self.frames * FILE_FPS, fps=FILE_FPS)
            begun.replace(file)
        with open_video(file, FrameSampling(fps=1.0)) as source:
            yield source

    def open(self, video: str) -> AbstractContextManager[FrameSource]:
        """Draw the frames of a video, or read them from its file."""
        return self._frames(video)

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


def choices(question: WorldQuestion) -> tuple[str, ...]:
    """Return the answers that a question of its kind can have."""
    digits = tuple(str(n) for n in range(10))
    known = {
        "digit": digits,
        "count": digits,
        "colour": tuple(COLOURS),
        "shape": tuple(SHAPES),
        "presence": ("yes", "no"),
        "time": QUARTERS,
        "order": tuple(" ".join(thing) for thing in all_things()),
        "pair": tuple(f"{one} {two}" for one in digits for two in digits if one != two),
    }
    return known[question.kind]


def needle(video: WorldVideo, question: WorldQuestion) -> str:
    """Return how the needles of a question come about: overlay, insert, change, mixed, or none."""
    styles = {event.style for event in video.events if (event.start, event.end) in question.moments}
    return "none" if not styles else styles.pop() if len(styles) == 1 else "mixed"
