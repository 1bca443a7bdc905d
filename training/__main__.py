"""Train the demo model: `python -m training --run runs/demo --export src/videox2l/demo/model`."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Sequence
from pathlib import Path

import torch

from training.export import export_model
from training.recipe import newest, train
from training.workers import launch


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, go on training, or export."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="checkpoints and log; resumed if there")
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("config.toml"), help="the recipe")
    parser.add_argument("--export", type=Path, help="write the model folder here at the end")
    parser.add_argument("--no-training", action="store_true", help="only export the newest checkpoint")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    if not given.no_training:
        given.run.mkdir(parents=True, exist_ok=True)
        config = tomllib.loads(given.config.read_text())
        launch(train, config["workers"], (config, given.run, torch.device(given.device)))
    if given.export:
        export_model(newest(given.run), given.export)


if __name__ == "__main__":
    main()
