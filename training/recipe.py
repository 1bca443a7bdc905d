"""The phases of a recipe, one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from training.forward import encode_grids
from training.geometry import demo_config, patchify
from training.language import LanguagePhase, Stage
from training.loop import Schedule, finished, run_phase
from training.vision import VisionPhase, make_clip

FEATURE_SIZE = 0.3
"""Root mean square of the visual tokens when the decoder first meets them."""


def train(config: dict[str, Any], folder: Path, device: torch.device) -> None:
    """Run all phases of a recipe, from wherever the folder's checkpoints left off."""
    torch.set_num_threads(1)
    torch.manual_seed(config["seed"])
    model: Any = Qwen2_5_VLForConditionalGeneration(demo_config()).to(device)
    settings = config["vision"]
    vision = VisionPhase(model, config["seed"], settings["batch"], device, config["half"])
    path, pace = folder / "vision.pt", _pace(settings)
    if not finished(path, pace):
        run_phase(vision, pace, folder)
    vision.modules.load_state_dict(torch.load(path, weights_only=True)["modules"])
    settle(model.model.visual, config["seed"])
    for number, settings in enumerate(config["language"]):
        path, pace = folder / f"{settings['name']}.pt", _pace(settings)
        if not finished(path, pace):
            stages = [Stage(**stage) for stage in settings["stages"]]
            bank = None if settings["live"] else folder / "grids.bank"
            seed, mix, half = config["seed"] + number, settings["mix"], config["half"]
            phase = LanguagePhase(model, settings["name"], seed, stages, bank=bank, mix=mix, device=device, half=half)
            run_phase(phase, pace, folder)
        model.load_state_dict(torch.load(path, weights_only=True)["modules"])


@torch.no_grad()
def settle(visual: Any, seed: int) -> None:
    """Scale the output of the vision tower so that its tokens are about as large as those of words."""
    rng = np.random.default_rng(seed)
    frames = torch.from_numpy(np.stack([make_clip(rng, 1)[0] for _ in range(256)]))
    last = visual.merger.mlp[2]
    patches = patchify(frames.to(last.weight.device)).flatten(0, 1)
    scale = FEATURE_SIZE / encode_grids(visual, patches).square().mean().sqrt()
    last.weight.mul_(scale)
    last.bias.mul_(scale)


def newest(_: dict[str, Any], folder: Path) -> Any:
    """Return the model of the newest checkpoint of a language phase, finished or not."""
    paths = [path for path in folder.glob("*.pt") if path.stem != "vision"]
    model: Any = Qwen2_5_VLForConditionalGeneration(demo_config())
    newest = max(paths, key=lambda path: path.stat().st_mtime)
    model.load_state_dict(torch.load(newest, weights_only=True, map_location="cpu")["modules"])
    return model


def _pace(settings: dict[str, Any]) -> Schedule:
    return Schedule(settings["steps"], settings["lr"], settings["lr_end"])
