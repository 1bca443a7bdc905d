"""`boards`: the same colors and digits on every board; a letter alone tells which one is asked about."""

from __future__ import annotations

import numpy as np

from videox2l.demo.boards import MIX, TASKS, BoardVideo, board_choices, make_board_questions, make_boards
from videox2l.demo.questions import WorldQuestion
from videox2l.evaluate.base import BenchmarkOptions
from videox2l.evaluate.generated import FIRST_SEED, PER_VIDEO, Generated


class Boards(Generated[BoardVideo]):
    """Boards of eight facts in nine visual tokens, under a letter: "what digit has blue in scene k ?".

    Everything that a question names but the letter stands on every board. A video has at most 64 frames, 16 boards.
    "demo-boards" was trained for it.
    """

    name = "boards"
    tasks = TASKS

    def __init__(self, options: BenchmarkOptions) -> None:
        super().__init__(options, MIX, frames=32)
        self.script(0)  # what does not fit shows at once

    def script(self, number: int) -> BoardVideo:
        """Return the script of a video."""
        return make_boards(FIRST_SEED * (self.seed + 1) + number, self.frames, self.split)

    def ask(self, video: BoardVideo, rng: np.random.Generator) -> list[WorldQuestion]:
        """Return questions about a video."""
        return make_board_questions(video, rng, PER_VIDEO, self.mix)

    def choices(self, question: WorldQuestion) -> tuple[str, ...]:
        """Return the answers that a question of its kind can have."""
        return board_choices(question.kind)
