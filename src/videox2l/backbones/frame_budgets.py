"""Frame sizes that depend on how many frames a video has: one budget of pixels is shared by all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from videox2l.backbones.frames import PatchFrames

# What the families' processors sample at most, where their configs do not say.
_MOST_FRAMES = 768
_MOST_FRAMES_DIVIDED = 180


@dataclass(frozen=True)
class SharedPatchFrames(PatchFrames):
    """Qwen3-VL's preprocessing: `min_pixels` and `max_pixels` are those of a whole video.

    Where the number of frames is not known, or greater than the processor would ever sample (`most_frames`), each frame
    gets the share that it has in a video of `most_frames`. `cap_tokens`: no frame gets more visual tokens than this.
    """

    most_frames: int = _MOST_FRAMES
    cap_tokens: int | None = None

    @classmethod
    def of_video(cls, config: Mapping[str, Any]) -> SharedPatchFrames:
        """Read a Qwen3-VL style video processor config."""
        cap = int(config.get("max_video_tokens") or 768) if config.get("cap_pixels_per_frame") else None
        return cls(**_plain(config), most_frames=int(config.get("max_frames") or _MOST_FRAMES), cap_tokens=cap)

    def size(self, height: int, width: int, total: int | None = None) -> tuple[int, int]:
        """Return the frame size that the model sees, in a video of `total` frames."""
        factor = self.patch * self.merge
        frames = max(min(total or self.most_frames, self.most_frames), self.temporal)
        if min(height, width) < factor:
            scale = max(factor / height, factor / width)
            height, width = int(height * scale), int(width * scale)
        self._check_shape(height, width)
        high, wide = round(height / factor) * factor, round(width / factor) * factor
        pixels = round(frames / self.temporal) * self.temporal * high * wide
        budget = self.max_pixels
        if self.cap_tokens is not None:
            each = min(self.cap_tokens * factor**2, self.max_pixels // frames)
            budget = max(each, int(self.min_pixels * 1.05)) * frames
        if pixels > budget:
            shrink = math.sqrt(frames * height * width / budget)
            return self._down(height / shrink, factor), self._down(width / shrink, factor)
        if pixels < self.min_pixels:
            stretch = math.sqrt(self.min_pixels / (frames * height * width))
            return math.ceil(height * stretch / factor) * factor, math.ceil(width * stretch / factor) * factor
        return high, wide

    @staticmethod
    def _down(size: float, factor: int) -> int:
        return max(factor, math.floor(size / factor) * factor)


@dataclass(frozen=True)
class DividedPatchFrames(PatchFrames):
    """VideoLLaMA 3's preprocessing: `max_pixels` of a whole video are divided among its frames.

    As in `SharedPatchFrames`, a number of frames that is not known, or too great, counts as `most_frames`.
    """

    most_frames: int = _MOST_FRAMES_DIVIDED

    @classmethod
    def of_video(cls, config: Mapping[str, Any]) -> DividedPatchFrames:
        """Read a VideoLLaMA 3 style video processor config."""
        config = {"temporal_patch_size": 1, **config}
        return cls(**_plain(config), most_frames=int(config.get("max_frames") or _MOST_FRAMES_DIVIDED))

    def size(self, height: int, width: int, total: int | None = None) -> tuple[int, int]:
        """Return the frame size that the model sees, in a video of `total` frames."""
        frames = max(min(total or self.most_frames, self.most_frames), 1)
        return self._fit(height, width, self.max_pixels // frames)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that `PatchFrames` reads from a config."""
    found = PatchFrames.from_config(config)
    return {field.name: getattr(found, field.name) for field in fields(PatchFrames)}
