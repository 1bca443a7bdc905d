"""`dense`: crowded scenes, in which details, the course of the video, and both together are asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

from videox2l.demo.crowd import MIX, TASKS, CrowdVideo, crowd_choices, make_crowd, make_crowd_questions
from videox2l.demo.questions import WorldQuestion
from videox2l.evaluate.base import BenchmarkOptions
from videox2l.evaluate.generated import FIRST_SEED, PER_VIDEO, Generated

DENSITY = 8
"""Facts in 8 frames, where nothing is said."""


class Dense(Generated[CrowdVideo]):
    """Crowded videos: every chunk holds `density` facts, and belongs to a scene with a name.

    Questions are for details (a digit of one thing), for the gist (order, number, succession and presence of scenes),
    and for what takes several steps (the scene of a thing, the scene after that one, digits of two things, which of two
    is first). Splits share no grounds and no thing with the same digit. "demo-dense" was trained for it.
    """

    name = "dense"
    tasks = TASKS

    def __init__(self, options: BenchmarkOptions) -> None:
        super().__init__(options, MIX)
        self.density = options.density or DENSITY
        self.script(0)  # what does not fit shows at once

    def settings(self) -> dict[str, Any]:
        """Return what decides which questions are asked."""
        return super().settings() | {"density": self.density}

    def variant(self) -> str:
        """Return the density."""
        return f"crowd{self.density}-"

    def script(self, number: int) -> CrowdVideo:
        """Return the script of a video."""
        return make_crowd(FIRST_SEED * (self.seed + 1) + number, self.frames, self.split, self.density)

    def ask(self, video: CrowdVideo, rng: np.random.Generator) -> list[WorldQuestion]:
        """Return questions about a video."""
        return make_crowd_questions(video, rng, PER_VIDEO, self.mix)

    def choices(self, question: WorldQuestion) -> tuple[str, ...]:
        """Return the answers that a question of its kind can have."""
        return crowd_choices(question.kind)
