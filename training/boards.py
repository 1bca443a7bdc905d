"""Tune the model of the boards on the boards that are drawn here: `python -m training.boards --export FOLDER`.

Its weights came without the pictures that they were trained on. Vision tower and decoder are trained together, on
videos that are drawn and encoded for every batch.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from training.batches import Packer
from training.export import export_model
from training.language import LanguagePhase, Stage, pair_up, score
from training.loop import Schedule, run_phase
from training.workers import launch, rank
from videox2l.demo.boards import GRID, SCENE, WORDS, make_board_questions, make_boards
from videox2l.demo.models import SHIPPED


class BoardLanguage(LanguagePhase):
    """Trains the whole model on boards."""

    def __init__(self, model: Any, config: dict[str, Any], device: torch.device) -> None:
        stages = [Stage(**stage) for stage in config["stages"]]
        seed, mix = config["seed"], config["mix"]
        super().__init__(model, "boards", seed, stages, bank=None, mix=mix, device=device, half=False)
        self.packer = Packer(WORDS)

    def loss(self, step: int, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Return the cross-entropy of the answers of a fresh batch, and the accuracy by kind and length."""
        stage = next(stage for stage in self.stages if progress <= stage.until)
        frames = stage.frames[step % len(stage.frames)]
        rng = np.random.default_rng([0xB0A, self.seed, step, rank()])
        grids = frames // GRID
        rows = max(2, stage.tokens // (9 * grids + 15 * stage.questions))
        videos: list[Any] = [make_boards(int(rng.integers(1 << 62)), frames, "train") for _ in range(rows)]
        talks = [pair_up(make_board_questions(video, rng, stage.questions, self.mix), rng) for video in videos]
        batch = self.packer.pack(grids, rng.choice(list(stage.steps), rows).tolist(), talks)
        return score(self.forward(batch, self.features(videos, rng)), batch, frames // SCENE)


def train_boards(config: dict[str, Any], start: Path, folder: Path, device: torch.device) -> None:
    """Run the phase, from wherever the folder's checkpoint left off, or from the model at `start`."""
    torch.set_num_threads(1)
    torch.manual_seed(config["seed"])
    model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(start, dtype=torch.float32).to(device)
    model.train()
    pace = Schedule(config["steps"], config["lr"], config["lr_end"])
    run_phase(BoardLanguage(model, config, device), pace, folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, go on training, or export."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/boards"), help="checkpoint and log; resumed if there")
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("boards.toml"), help="the recipe")
    parser.add_argument("--start", type=Path, default=SHIPPED["demo-boards"], help="the model to begin with")
    parser.add_argument("--export", type=Path, help="write the model folder here at the end")
    parser.add_argument("--no-training", action="store_true", help="only export the newest checkpoint")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    if not given.no_training:
        given.run.mkdir(parents=True, exist_ok=True)
        config = tomllib.loads(given.config.read_text())
        launch(train_boards, config["workers"], (config, given.start, given.run, torch.device(given.device)))
    if given.export:
        model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(given.start, dtype=torch.float32)
        state = torch.load(given.run / "boards.pt", weights_only=True, map_location="cpu")
        model.load_state_dict(state["modules"])
        export_model(model, given.export, WORDS)


if __name__ == "__main__":
    main()
