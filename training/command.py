"""The command of every training: train, go on training, or export."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from training.export import export_model
from training.workers import launch


def run_command(
    name: str,
    recipe: str,
    train: Callable[[dict[str, Any], Path, torch.device], None],
    newest: Callable[[dict[str, Any], Path], Any],
    words: Sequence[str] = (),
    arguments: Sequence[str] | None = None,
) -> None:
    """Train, go on training, or export.

    `train`: runs a recipe in a folder; `newest`: returns the model of the folder's newest checkpoint; `words`: those
    that the tokenizer has beyond the demo model's.
    """
    parser = argparse.ArgumentParser(description="Train, go on training, or export.")
    parser.add_argument("--run", type=Path, default=Path("runs") / name, help="checkpoints and log; resumed if there")
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name(recipe), help="the recipe")
    parser.add_argument("--export", type=Path, help="write the model folder here at the end")
    parser.add_argument("--no-training", action="store_true", help="only export the newest checkpoint")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    config = tomllib.loads(given.config.read_text())
    if not given.no_training:
        given.run.mkdir(parents=True, exist_ok=True)
        launch(train, config["workers"], (config, given.run, torch.device(given.device)))
    if given.export:
        export_model(newest(config, given.run), given.export, words)
