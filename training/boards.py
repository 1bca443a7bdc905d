"""Tune the model of the boards on the boards that are drawn here: `python -m training.boards --export FOLDER`.

Its weights came without the pictures that they were trained on. Vision tower and decoder are trained together, on
videos that are drawn and encoded for every batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from training.batches import Packer
from training.command import run_command
from training.language import LanguagePhase, Stage
from training.loop import Schedule, run_phase
from videox2l.demo.boards import WORDS, BoardVideo, make_board_questions, make_boards
from videox2l.demo.models import SHIPPED
from videox2l.demo.questions import WorldQuestion


class BoardLanguage(LanguagePhase):
    """Trains the whole model on boards."""

    salt, question_tokens = 0xB0A, 15

    def __init__(self, model: Any, config: dict[str, Any], device: torch.device) -> None:
        stages = [Stage(**stage) for stage in config["stages"]]
        seed, mix = config["seed"], config["mix"]
        super().__init__(model, "boards", seed, stages, bank=None, mix=mix, device=device, half=False)
        self.packer = Packer(WORDS)

    def draw(self, rng: np.random.Generator, frames: int, stage: Stage) -> BoardVideo:
        """Write the script of a video."""
        return make_boards(int(rng.integers(1 << 62)), frames, "train")

    def ask(self, video: BoardVideo, rng: np.random.Generator, n: int) -> list[WorldQuestion]:
        """Draw up to `n` questions about a video."""
        return make_board_questions(video, rng, n, self.mix)


def begun(config: dict[str, Any]) -> Any:
    """Return the model that the recipe begins with: a name of those that ship, or a folder."""
    start = SHIPPED.get(config["start"], config["start"])
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(start, dtype=torch.float32)


def train_boards(config: dict[str, Any], folder: Path, device: torch.device) -> None:
    """Run the phase, from wherever the folder's checkpoint left off."""
    torch.set_num_threads(1)
    torch.manual_seed(config["seed"])
    model = begun(config).to(device).train()
    run_phase(BoardLanguage(model, config, device), Schedule(config["steps"], config["lr"], config["lr_end"]), folder)


def newest(config: dict[str, Any], folder: Path) -> Any:
    """Return the model of the folder's checkpoint."""
    model = begun(config)
    model.load_state_dict(torch.load(folder / "boards.pt", weights_only=True, map_location="cpu")["modules"])
    return model


if __name__ == "__main__":
    run_command("boards", "boards.toml", train_boards, newest, WORDS)
