"""Train the model of the crowded world: `python -m training.crowd --export src/videox2l/demo/model_dense`.

It begins with the weights of the demo model. The vision tower learns two more colours, four more shapes, the kinds of
scenes, and several things in one picture; then the decoder learns all kinds of questions on videos that are drawn and
encoded for every batch: grids from a bank cannot be put together to crowded pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from training.batches import Packer
from training.command import run_command
from training.forward import encode_grids
from training.geometry import TEMPORAL, patchify
from training.language import LanguagePhase, pair_up, score
from training.loop import Schedule, finished, run_phase
from training.recipe import newest
from training.vision import IGNORED, overlap
from training.workers import rank
from videox2l.demo.crowd import (
    ALL_SHAPES,
    AT_ONCE,
    COLOURS,
    SCENES,
    THINGS,
    WORDS,
    CrowdScene,
    CrowdVideo,
    Showing,
    crowd_digits,
    make_crowd,
    make_crowd_questions,
    place_thing,
)
from videox2l.demo.draw import NATIVE, TEXTURE
from videox2l.demo.models import FOLDER

CLASSES = {"colour": len(COLOURS), "shape": len(ALL_SHAPES), "digit": 10}


class CrowdVision:
    """Trains the vision tower as a classifier of single tokens: thing and digit, and the kind of scene."""

    name = "vision"

    def __init__(self, model: Any, seed: int, batch: int, device: torch.device) -> None:
        self.visual, self.seed, self.batch, self.device = model.model.visual, seed, batch, device
        width = model.config.vision_config.out_hidden_size
        heads = {name: nn.Linear(width, classes + 1) for name, classes in CLASSES.items()}
        self.heads = nn.ModuleDict(heads | {"scene": nn.Linear(width, len(SCENES))})
        self.modules: nn.Module = nn.ModuleDict({"visual": self.visual, "heads": self.heads}).to(device)

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Return the parameters of the tower and of the heads."""
        return list(self.modules.named_parameters())

    def loss(self, step: int, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Return the mean cross-entropy of the heads over all tokens which have a label."""
        rng = np.random.default_rng([0xC12, self.seed, step, rank()])
        frames, labels = zip(*(make_picture(rng) for _ in range(self.batch)), strict=True)
        patches = patchify(torch.from_numpy(np.stack(frames)).to(self.device)).flatten(0, 1)
        features = encode_grids(self.visual, patches)  # (batch, 9, width)
        truth = torch.from_numpy(np.stack(labels)).to(self.device)  # (batch, 9, 4)
        total, measured = 0.02 * (features.square().mean() - 0.09).square(), {}
        for i, name in enumerate((*CLASSES, "scene")):
            logits, target = self.heads[name](features).flatten(0, 1), truth[..., i].flatten()
            total = total + F.cross_entropy(logits, target, ignore_index=IGNORED)
            here = target != IGNORED if name == "scene" else (target > 0) & (target != IGNORED)
            measured[name] = (logits.argmax(-1) == target)[here].float().mean().item()
        measured["rms"] = features.square().mean().sqrt().item()
        return total, measured


def make_picture(rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Draw two frames with up to four things and the labels of their nine tokens: (2, 48, 48, 3) and (9, 4)."""
    kind = SCENES[int(rng.integers(len(SCENES)))]
    x, y = rng.integers(1, TEXTURE - NATIVE, 2).tolist()
    dx, dy = rng.integers(-1, 2, 2).tolist()
    scene = CrowdScene(kind, 0, TEMPORAL, 1_000_000 + int(rng.integers(60)), x, y, dx, dy)
    quarters = rng.permutation(AT_ONCE)[: int(rng.integers(AT_ONCE + 1))].tolist()
    allowed = crowd_digits("train")
    showings = []
    for quarter in quarters:
        thing = THINGS[int(rng.integers(len(THINGS)))]
        showings.append(place_thing(rng, thing, int(rng.choice(allowed[thing])), 0, quarter))
    video = CrowdVideo(int(rng.integers(1 << 31)), "train", TEMPORAL, (scene,), tuple(showings))
    frames = video.render(noise=float(rng.uniform(0, 4)))
    gain = np.float32(rng.uniform(0.9, 1.1))
    return np.clip(frames * gain, 0, 255).astype(np.uint8), _labels(showings, SCENES.index(kind))


def _labels(showings: Sequence[Showing], scene: int) -> npt.NDArray[np.int64]:
    labels = np.zeros((9, 4), dtype=np.int64)
    labels[:, 3] = scene
    if showings:
        shares = np.stack([_share(showing) for showing in showings])  # (things, 9)
        ranked = np.sort(shares, axis=0)[::-1]
        second = ranked[1] if len(showings) > 1 else np.zeros(9)
        sure = (ranked[0] >= 0.3) & (second < 0.15)
        for token, best in enumerate(shares.argmax(axis=0)):
            thing, digit = showings[best].thing, showings[best].digit
            if sure[token]:
                named = COLOURS.index(thing[0]) + 1, ALL_SHAPES.index(thing[1]) + 1, digit + 1
                labels[token, :3] = named
            elif ranked[0, token] >= 0.1:
                labels[token, :3] = IGNORED
    return labels


def _share(showing: Showing) -> npt.NDArray[np.float64]:
    """Return the share of each of the nine tokens that a thing fills, the smaller of the two frames."""
    places = [(showing.x + t * showing.drift[0], showing.y + t * showing.drift[1]) for t in range(TEMPORAL)]
    shares = [np.outer(overlap(y, showing.size), overlap(x, showing.size)).flatten() for x, y in places]
    smallest: npt.NDArray[np.float64] = np.min(shares, axis=0)
    return smallest


@dataclass(frozen=True)
class CrowdStage:
    """What the batches look like until some share of the phase is over."""

    until: float
    frames: Sequence[int]
    density: Sequence[int]
    mix: dict[str, float]
    tokens: int = 4500
    questions: int = 20


class CrowdLanguage(LanguagePhase):
    """Trains the decoder on crowded videos; the vision tower stays as it is."""

    def __init__(self, model: Any, name: str, seed: int, stages: Sequence[CrowdStage], device: torch.device) -> None:
        super().__init__(model, name, seed, (), bank=None, mix={}, device=device, half=False)
        self.crowd_stages, self.packer = stages, Packer(WORDS)

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Return the parameters of the decoder."""
        return list(self.model.model.language_model.named_parameters())

    def loss(self, step: int, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Return the cross-entropy of the answers of a fresh batch, and the accuracy by kind and length."""
        stage = next(stage for stage in self.crowd_stages if progress <= stage.until)
        frames = stage.frames[step % len(stage.frames)]
        rng = np.random.default_rng([0x1A27, self.seed, step, rank()])
        grids = frames // TEMPORAL
        rows = max(2, stage.tokens // (9 * grids + 17 * stage.questions))
        densities = rng.choice(list(stage.density), rows).tolist()
        videos = [make_crowd(int(rng.integers(1 << 62)), frames, "train", density) for density in densities]
        talks = [pair_up(make_crowd_questions(video, rng, stage.questions, stage.mix), rng) for video in videos]
        batch = self.packer.pack(grids, rng.choice([1.0, 2.0, 2.0, 2.0, 4.0], rows).tolist(), talks)
        with torch.no_grad():
            drawn = np.stack([video.render(noise=float(rng.uniform(0, 4))) for video in videos])
            patches = patchify(torch.from_numpy(drawn).to(self.device)).flatten(0, 1)
            features = encode_grids(self.model.model.visual, patches).view(rows, -1, self.hidden)
        return score(self.forward(batch, features), batch, frames)


def train_crowd(config: dict[str, Any], folder: Path, device: torch.device) -> None:
    """Run both phases, from wherever the folder's checkpoints left off."""
    torch.set_num_threads(1)
    torch.manual_seed(config["seed"])
    model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32).to(device)
    model.train()
    settings = config["vision"]
    vision = CrowdVision(model, config["seed"], settings["batch"], device)
    pace = Schedule(settings["steps"], settings["lr"], settings["lr_end"])
    if not finished(folder / "vision.pt", pace):
        run_phase(vision, pace, folder)
    vision.modules.load_state_dict(torch.load(folder / "vision.pt", weights_only=True)["modules"])
    for number, settings in enumerate(config["language"]):
        path = folder / f"{settings['name']}.pt"
        pace = Schedule(settings["steps"], settings["lr"], settings["lr_end"])
        if not finished(path, pace):
            stages = [CrowdStage(**{"mix": config["mixes"][s.pop("kinds")], **s}) for s in settings["stages"]]
            run_phase(CrowdLanguage(model, settings["name"], config["seed"] + number, stages, device), pace, folder)
        model.load_state_dict(torch.load(path, weights_only=True)["modules"])


if __name__ == "__main__":
    run_command("dense", "crowd.toml", train_crowd, newest, WORDS)
