"""From frames to the keyword arguments that models take for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from videox2l.backbones.base import VideoFacts
from videox2l.backbones.frames import PatchFrames

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class PatchVision:
    """Patches of groups of frames, as Qwen2-VL takes them."""

    frames: PatchFrames

    def __call__(self, frames: Tensor, facts: VideoFacts) -> tuple[dict[str, Tensor], Grid]:
        """Return the arguments for uint8 frames (f, 3, h, w), and the grid (t, h, w) of their visual tokens."""
        patches, (t, high, wide) = self.frames(frames, facts.frames)
        merge = self.frames.merge
        arguments = {"pixel_values_videos": patches, "video_grid_thw": torch.tensor([[t, high, wide]])}
        return arguments, (t, high // merge, wide // merge)

    def settings(self) -> dict[str, Any]:
        """Return everything that decides about the result, as plain JSON values."""
        return dataclasses.asdict(self.frames)


@dataclass(frozen=True)
class FrameVision:
    """Whole frames of one size, each a square of `side` x `side` visual tokens.

    `frames` turns uint8 (f, 3, h, w) into float32 of the size that the model takes, `argument` names what it takes them
    as; `batched`: with an axis for videos in front.
    """

    frames: Callable[[Tensor], Tensor]
    side: int
    argument: str = "pixel_values_videos"
    batched: bool = True

    def __call__(self, frames: Tensor, facts: VideoFacts) -> tuple[dict[str, Tensor], Grid]:
        """Return the arguments for uint8 frames (f, 3, h, w), and the grid (t, h, w) of their visual tokens."""
        del facts
        pixels = self.frames(frames)
        return {self.argument: pixels[None] if self.batched else pixels}, (len(frames), self.side, self.side)

    def settings(self) -> dict[str, Any]:
        """Return everything that decides about the result, as plain JSON values."""
        return {**dataclasses.asdict(self.frames), "side": self.side}  # type: ignore[call-overload]
