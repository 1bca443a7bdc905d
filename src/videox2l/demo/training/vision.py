"""First phase: the vision tower learns to read needles, with direct heads on its output.

Through the language-model loss alone digits stay unread for a long time. Here every visual token that sees a
good part of a needle must tell its colour, shape and digit; every other token, that there is none. Positions
come from a coarse grid first (every 8th pixel, then 4th, 2nd, any).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videox2l.demo.draw import COLOURS, NATIVE, SHAPES, TEXTURE, paste, sprite, texture
from videox2l.demo.training.forward import encode_grids
from videox2l.demo.training.geometry import SIDE, TEMPORAL, TOKENS_PER_GRID, patchify
from videox2l.demo.training.workers import rank
from videox2l.demo.world import SIZES, SPLITS, TEXTURES_PER_SPLIT

CLASSES = {"colour": len(COLOURS), "shape": len(SHAPES), "digit": 10}
IGNORED = -100
CURRICULUM = ((0.25, 8), (0.5, 4), (0.65, 2), (1.0, 1))
"""(until this share of the phase, positions are multiples of this many pixels)"""


class VisionPhase:
    """Trains `model.model.visual` as a classifier of single tokens."""

    name = "vision"

    def __init__(self, model: Any, seed: int, batch: int, device: torch.device) -> None:
        self.visual, self.seed, self.batch, self.device = model.model.visual, seed, batch, device
        width = model.config.vision_config.out_hidden_size
        self.heads = nn.ModuleDict({name: nn.Linear(width, classes + 1) for name, classes in CLASSES.items()})
        self.modules: nn.Module = nn.ModuleDict({"visual": self.visual, "heads": self.heads}).to(device)

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Return the parameters of the tower and of the heads."""
        return list(self.modules.named_parameters())

    def loss(self, step: int, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Return the mean cross-entropy of the heads over all tokens which have a label."""
        grid = next(pixels for until, pixels in CURRICULUM if progress <= until)
        rng = np.random.default_rng([0xC11, self.seed, step, rank()])
        frames, labels = zip(*(make_clip(rng, grid) for _ in range(self.batch)), strict=True)
        patches = patchify(torch.from_numpy(np.stack(frames)).to(self.device)).flatten(0, 1)
        features = encode_grids(self.visual, patches)  # (batch, 9, width)
        truth = torch.from_numpy(np.stack(labels)).to(self.device)  # (batch, 9, 3)
        total, measured = 0.002 * features.square().mean(), {}
        for i, name in enumerate(CLASSES):
            logits, target = self.heads[name](features).flatten(0, 1), truth[..., i].flatten()
            total = total + F.cross_entropy(logits, target, ignore_index=IGNORED)
            needle = (target > 0) & (target != IGNORED)
            measured[name] = (logits.argmax(-1) == target)[needle].float().mean().item()
            measured["none"] = (logits.argmax(-1) == target)[target == 0].float().mean().item()
        measured["rms"] = features.square().mean().sqrt().item()
        return total, measured


def make_clip(rng: np.random.Generator, grid: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Draw two frames and the labels of their nine tokens: (2, 48, 48, 3) and (9, 3), 0 for no needle."""
    first = SPLITS["train"] * 1_000_000
    frames = np.empty((TEMPORAL, NATIVE, NATIVE, 3), dtype=np.uint8)
    cut = rng.random() < 0.1
    ground = texture(first + int(rng.integers(TEXTURES_PER_SPLIT)))
    x, y = rng.integers(1, TEXTURE - NATIVE, 2).tolist()
    dx, dy = rng.integers(-1, 2, 2).tolist()
    frames[0] = ground[y : y + NATIVE, x : x + NATIVE]
    if cut:
        ground = texture(first + int(rng.integers(TEXTURES_PER_SPLIT)))
    frames[1] = ground[y + dy : y + dy + NATIVE, x + dx : x + dx + NATIVE]
    labels = np.zeros((TOKENS_PER_GRID, len(CLASSES)), dtype=np.int64)
    if rng.random() < 0.85:
        size = int(rng.choice(SIZES))
        left, top = (int(c) * grid for c in rng.integers(0, (NATIVE - size) // grid + 1, 2))
        colour, shape, digit = (int(rng.integers(n)) for n in CLASSES.values())
        needle = sprite(list(COLOURS)[colour], SHAPES[shape], digit, size)
        shown = ((0, 1), (0, 1), (0, 1), (0,), (1,))[int(rng.integers(5))]
        for t in shown:
            paste(frames[t], needle, left, top)
        seen = np.outer(_overlap(top, size), _overlap(left, size)).flatten()
        labels[seen >= 0.3] = (colour + 1, shape + 1, digit + 1)
        labels[(seen >= 0.12) & (seen < 0.3)] = IGNORED
    grain = rng.standard_normal(frames.shape, dtype=np.float32) * np.float32(rng.uniform(0, 5))
    gain = np.float32(rng.uniform(0.9, 1.1))
    return np.clip(frames * gain + grain, 0, 255).astype(np.uint8), labels


def _overlap(start: int, size: int) -> npt.NDArray[np.float64]:
    """Share of each of the three columns (or rows) of tokens that the needle covers."""
    side = NATIVE // SIDE
    edges = np.arange(SIDE) * side
    share: npt.NDArray[np.float64] = (np.minimum(edges + side, start + size) - np.maximum(edges, start)) / side
    return np.clip(share, 0.0, 1.0)
