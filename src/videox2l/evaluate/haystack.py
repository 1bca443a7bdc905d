"""`haystack`: needles in made-up videos, generated from seeds."""

from __future__ import annotations

from typing import Any

import numpy as np

from videox2l.demo.cast import all_things
from videox2l.demo.dense import make_dense_video
from videox2l.demo.draw import COLOURS, SHAPES
from videox2l.demo.questions import QUARTERS, WorldQuestion, make_questions
from videox2l.demo.world import WorldVideo, make_video
from videox2l.errors import SettingsError
from videox2l.evaluate.base import BenchmarkOptions
from videox2l.evaluate.generated import FIRST_SEED, PER_VIDEO, Generated

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


class Haystack(Generated[WorldVideo]):
    """Needles in generated videos: retrieval, ordering and counting, as in VNBench (arXiv 2406.09367).

    A needle is a picture inserted, a glyph over the scene, or a thing that changes its colour, for one to four frames
    among decoys. Splits share no needle. With `density` every 8 frames hold so many needles, see `make_dense_video`.
    """

    name = "haystack"
    tasks = TASKS

    def __init__(self, options: BenchmarkOptions) -> None:
        self.density = options.density
        super().__init__(options, DENSE_MIX if options.density else MIX)
        if self.redundancy != 1 and not self.density:
            raise SettingsError(f"redundancy={self.redundancy} goes with density: give both")
        self.script(0)  # what does not fit shows at once

    @property
    def title(self) -> str:
        """Name in messages."""
        return "haystack with density" if self.density else "haystack"

    def settings(self) -> dict[str, Any]:
        """Return what decides which questions are asked."""
        dense = {"density": self.density, "redundancy": self.redundancy} if self.density else {}
        return super().settings() | dense

    def variant(self) -> str:
        """Return density and redundancy, where set."""
        return f"d{self.density}r{self.redundancy}-" if self.density else ""

    def script(self, number: int) -> WorldVideo:
        """Return the script of a video."""
        seed = FIRST_SEED * (self.seed + 1) + number
        if self.density:
            return make_dense_video(seed, self.frames, self.split, self.density, self.redundancy)
        return make_video(seed, self.frames, self.split)

    def ask(self, video: WorldVideo, rng: np.random.Generator) -> list[WorldQuestion]:
        """Return questions about a video."""
        return make_questions(video, rng, PER_VIDEO, self.mix)

    def labels(self, video: WorldVideo, question: WorldQuestion) -> dict[str, str]:
        """Return how the needles of a question come about: overlay, insert, change, mixed, or none."""
        styles = {event.style for event in video.events if (event.start, event.end) in question.moments}
        return {"needle": "none" if not styles else styles.pop() if len(styles) == 1 else "mixed"}

    def choices(self, question: WorldQuestion) -> tuple[str, ...]:
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
