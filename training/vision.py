"""First phase: the vision tower learns to read needles, with direct heads on its output.

Through the language-model loss alone digits stay unread for a long time. Here every visual token that sees a
good part of a needle must tell its colour, shape and digit; every other token, that there is none. Positions
come from a coarse grid first (every 8th pixel, then 4th, 2nd, any), and needles are clear before they are faint.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.forward import encode_grids
from training.geometry import SIDE, TEMPORAL, TOKENS_PER_GRID, patchify
from training.workers import rank
from videox2l.demo.cast import SPLITS, digits_of
from videox2l.demo.draw import BLANK, COLOURS, GREY, NATIVE, SHAPES, TEXTURE, paste, sprite, texture
from videox2l.demo.world import STYLES, TEXTURES_PER_SPLIT, Event, draw_decoy, draw_event

CLASSES = {"colour": len(COLOURS), "shape": len(SHAPES), "digit": 10}
IGNORED = -100
CURRICULUM = ((0.07, 8, "clear"), (0.12, 4, "clear"), (0.2, 2, "mixed"), (1.0, 1, "mixed"))
"""(until this share of the phase, positions are multiples of this many pixels, needles look like this)"""


class VisionPhase:
    """Trains `model.model.visual` as a classifier of single tokens."""

    name = "vision"

    def __init__(self, model: Any, seed: int, batch: int, device: torch.device, half: bool = False) -> None:
        self.visual, self.seed, self.batch, self.device = model.model.visual, seed, batch, device
        self.half = half
        width = model.config.vision_config.out_hidden_size
        self.heads = nn.ModuleDict({name: nn.Linear(width, classes + 1) for name, classes in CLASSES.items()})
        self.modules: nn.Module = nn.ModuleDict({"visual": self.visual, "heads": self.heads}).to(device)

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Return the parameters of the tower and of the heads."""
        return list(self.modules.named_parameters())

    def loss(self, step: int, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Return the mean cross-entropy of the heads over all tokens which have a label."""
        grid, visibility = next((pixels, looks) for until, pixels, looks in CURRICULUM if progress <= until)
        rng = np.random.default_rng([0xC11, self.seed, step, rank()])
        frames, labels = zip(*(make_clip(rng, grid, visibility) for _ in range(self.batch)), strict=True)
        patches = patchify(torch.from_numpy(np.stack(frames)).to(self.device)).flatten(0, 1)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            features = encode_grids(self.visual, patches).float()  # (batch, 9, width)
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


def make_clip(
    rng: np.random.Generator, grid: int, visibility: str = "mixed"
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
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
    shown = ((0, 1), (0, 1), (0, 1), (0,), (1,))[int(rng.integers(5))]
    what = rng.random()
    if what < 0.82:
        event, named = _needle(rng, visibility)
        event = _snapped(event, grid)
        for t in shown:
            _show(frames[t], event, t)
        if event.style == "change" and len(shown) == 1:
            _show(frames[1 - shown[0]], replace(event, colour=GREY, digit=BLANK), 1 - shown[0])
        seen = np.mean([_seen(event, t) for t in shown], axis=0)
        labels[seen >= 0.3] = named
        labels[(seen >= 0.12) & (seen < 0.3)] = IGNORED
    elif what < 0.92:
        decoy = draw_decoy(rng, 0, TEMPORAL)
        if rng.random() < 0.2:
            decoy = replace(_needle(rng, visibility)[0], colour=GREY, digit=BLANK, style="overlay")
        for t in shown:
            _show(frames[t], decoy, t)
    grain = rng.standard_normal(frames.shape, dtype=np.float32) * np.float32(rng.uniform(0, 5))
    gain = np.float32(rng.uniform(0.86, 1.14))
    return np.clip(frames * gain + grain, 0, 255).astype(np.uint8), labels


def _needle(rng: np.random.Generator, visibility: str) -> tuple[Event, tuple[int, int, int]]:
    """Draw a needle that training may show, and the labels of its colour, shape and digit."""
    things = list(digits_of("train").items())
    (colour, shape), digits = things[int(rng.integers(len(things)))]
    digit = digits[int(rng.integers(len(digits)))]
    style = STYLES[int(rng.integers(len(STYLES)))]
    event = draw_event(rng, (colour, shape), digit, 0, TEMPORAL, style, visibility)
    return event, (list(COLOURS).index(colour) + 1, SHAPES.index(shape) + 1, digit + 1)


def _snapped(event: Event, grid: int) -> Event:
    """Move a needle to a multiple of `grid` pixels; on a coarse grid it stands still."""
    event = event if grid == 1 else replace(event, dx=0, dy=0)
    return replace(event, x=event.x // grid * grid, y=event.y // grid * grid)


def _show(frame: npt.NDArray[np.uint8], event: Event, t: int) -> None:
    if event.style == "insert":
        frame[:] = event.card
    paste(frame, sprite(event.look), *(int(c) for c in event.place(t)))


def _seen(event: Event, t: int) -> npt.NDArray[np.float64]:
    """Return the share of each of the nine tokens that a needle fills at a time."""
    x, y = (int(c) for c in event.place(t))
    return np.outer(overlap(y, event.size), overlap(x, event.size)).flatten()


def overlap(start: int, size: int) -> npt.NDArray[np.float64]:
    """Share of each of the three columns (or rows) of tokens that the needle covers."""
    side = NATIVE // SIDE
    edges = np.arange(SIDE) * side
    share: npt.NDArray[np.float64] = (np.minimum(edges + side, start + size) - np.maximum(edges, start)) / side
    return np.clip(share, 0.0, 1.0)
