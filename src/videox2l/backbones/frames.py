"""Frames to pixel values in pure torch, equal to what the models' own video processors make of them.

transformers' video processors need torchvision, hold a whole video at once and have no streaming form; these
work per chunk. Resizing is bicubic with antialiasing on uint8, which is what torchvision does there: the results
are equal bit for bit (tests compare them where torchvision is present).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from videox2l.errors import ModelError, SettingsError

_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL's numbers, as processor configs hold them


def stack(frames: Sequence[np.ndarray]) -> Tensor:
    """Return uint8 RGB frames (h, w, 3) of one size as one tensor (frames, 3, h, w)."""
    sizes = {frame.shape for frame in frames}
    if len(sizes) != 1:
        raise SettingsError(f"the frames of a chunk must have one size, got {sorted(sizes)}")
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def _field(config: Mapping[str, Any], name: str, default: Any = None) -> Any:
    value = config.get(name, default)
    if value is None:
        raise ModelError(f"the model's video processor config has no '{name}'")
    return value


@dataclass(frozen=True)
class Normalise:
    """Resize, rescale and normalise as a processor config says."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale: float
    mode: str

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Normalise:
        """Read the fields of a Hugging Face (video) processor config."""
        resample = config.get("resample", 3)
        if resample not in _RESAMPLING:
            raise ModelError(f"resample={resample} of the video processor config is not supported: use 0, 1, 2 or 3")
        plain = config.get("do_normalize", True) is False
        return cls(
            mean=(0.0,) * 3 if plain else tuple(_field(config, "image_mean")),
            std=(1.0,) * 3 if plain else tuple(_field(config, "image_std")),
            rescale=config.get("rescale_factor") or 1 / 255 if config.get("do_rescale", True) else 1.0,
            mode=_RESAMPLING[resample],
        )

    def __call__(self, video: Tensor, height: int, width: int) -> Tensor:
        """Turn uint8 (frames, 3, h, w) into float32 (frames, 3, height, width)."""
        video = self.resize(video, height, width)
        # Rescaling is folded into mean and std, in this order of operations, as the library does.
        mean = torch.tensor(self.mean, device=video.device)[:, None, None] * (1 / self.rescale)
        std = torch.tensor(self.std, device=video.device)[:, None, None] * (1 / self.rescale)
        return (video.float() - mean) / std

    def resize(self, video: Tensor, height: int, width: int) -> Tensor:
        """Resize uint8 (frames, 3, h, w), in uint8."""
        if video.shape[-2:] == (height, width):
            return video
        options = {} if self.mode == "nearest" else {"antialias": True}
        return F.interpolate(video, size=(height, width), mode=self.mode, **options)


@dataclass(frozen=True)
class PatchFrames:
    """Qwen2-VL's preprocessing: native aspect ratio within a pixel budget, patches in merge order."""

    normalise: Normalise
    patch: int
    merge: int
    temporal: int
    min_pixels: int
    max_pixels: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any], max_pixels: int | None = None) -> PatchFrames:
        """Read a Qwen2-VL style (video) processor config; `max_pixels` per frame overrides its budget."""
        size = config.get("size") or {}
        low = config.get("min_pixels") or size.get("shortest_edge") or 56 * 56
        high = max_pixels or config.get("max_pixels") or size.get("longest_edge") or 28 * 28 * 1280
        patch, merge = _field(config, "patch_size", 14), _field(config, "merge_size", 2)
        if max_pixels is not None and max_pixels < (patch * merge) ** 2:
            raise SettingsError(
                f"max_pixels={max_pixels} is less than one visual token: use at least {(patch * merge) ** 2}"
            )
        return cls(
            normalise=Normalise.from_config(config),
            patch=patch,
            merge=merge,
            temporal=_field(config, "temporal_patch_size", 2),
            min_pixels=min(low, high),
            max_pixels=high,
        )

    def size(self, height: int, width: int, total: int | None = None) -> tuple[int, int]:
        """Return the frame size that the model sees: multiples of patch * merge within the pixel budget."""
        del total  # the budget is one frame's
        return self._fit(height, width, self.max_pixels)

    def _fit(self, height: int, width: int, budget: int) -> tuple[int, int]:
        factor = self.patch * self.merge
        self._check_shape(height, width)
        high, wide = round(height / factor) * factor, round(width / factor) * factor
        if high * wide > budget:
            shrink = math.sqrt(height * width / budget)
            high = max(factor, math.floor(height / shrink / factor) * factor)
            wide = max(factor, math.floor(width / shrink / factor) * factor)
        elif high * wide < self.min_pixels:
            stretch = math.sqrt(self.min_pixels / (height * width))
            high = math.ceil(height * stretch / factor) * factor
            wide = math.ceil(width * stretch / factor) * factor
        return high, wide

    @staticmethod
    def _check_shape(height: int, width: int) -> None:
        if max(height, width) > 200 * min(height, width):
            raise SettingsError(f"a frame of {width}x{height} is too narrow: the aspect ratio must be below 200")

    def __call__(self, video: Tensor, total: int | None = None) -> tuple[Tensor, tuple[int, int, int]]:
        """Turn uint8 (frames, 3, h, w) into patches (t * gh * gw, 3 * temporal * patch^2) and the grid (t, gh, gw).

        A number of frames that is no multiple of the temporal patch is filled up with the last frame. `total`: how
        many frames the whole video has, if that is known.
        """
        height, width = self.size(video.shape[-2], video.shape[-1], total)
        x = self.normalise(video, height, width)
        x = torch.cat((x, x[-1:].expand(-len(x) % self.temporal, -1, -1, -1)))
        t, gh, gw = len(x) // self.temporal, height // self.patch, width // self.patch
        x = x.reshape(t, self.temporal, 3, *self._split(gh), *self._split(gw))
        x = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)  # t, rows, columns, in-row, in-column, rgb, time, y, x
        return x.reshape(t * gh * gw, -1), (t, gh, gw)

    def _split(self, patches: int) -> tuple[int, int, int]:
        return patches // self.merge, self.merge, self.patch


@dataclass(frozen=True)
class SquareFrames:
    """Every frame resized to one fixed size, aspect ratio not kept (LLaVA-OneVision)."""

    normalise: Normalise
    height: int
    width: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SquareFrames:
        """Read a LLaVA-OneVision style (video) processor config."""
        size = _field(config, "size")
        if "height" not in size or "width" not in size:
            raise ModelError(f"size={size} of the video processor config is not supported: height and width needed")
        return cls(Normalise.from_config(config), size["height"], size["width"])

    def __call__(self, video: Tensor) -> Tensor:
        """Turn uint8 (frames, 3, h, w) into float32 (frames, 3, height, width)."""
        return self.normalise(video, self.height, self.width)


@dataclass(frozen=True)
class TwiceFrames:
    """Every frame resized twice: its longer side to `edge`, then to a square of `size` (SmolVLM)."""

    normalise: Normalise
    edge: int | None
    size: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TwiceFrames:
        """Read a SmolVLM video processor config."""
        size = (config.get("video_sampling") or {}).get("video_size") or _field(config, "size")
        edge = size.get("longest_edge")
        if edge is None and not ("height" in size and "width" in size):
            raise ModelError(f"size={size} of the video processor config is not supported: longest_edge needed")
        square = _field(config, "max_image_size", {"longest_edge": 364})["longest_edge"]
        return cls(Normalise.from_config(config), None if edge is None else min(int(edge), 4096), int(square))

    def __call__(self, video: Tensor) -> Tensor:
        """Turn uint8 (frames, 3, h, w) into float32 (frames, 3, size, size)."""
        height, width = video.shape[-2:]
        if self.edge is not None:
            high = self.edge if height > width else self._even(int(self.edge / (width / height)))
            wide = self.edge if width >= height else self._even(int(self.edge * (width / height)))
            video = self.normalise.resize(video, max(high, 1), max(wide, 1))
        return self.normalise(video, self.size, self.size)

    @staticmethod
    def _even(side: int) -> int:
        return side + side % 2


@dataclass(frozen=True)
class CropFrames:
    """CLIP's preprocessing: the shorter side resized to `edge`, then a square of `size` cut from the middle."""

    normalise: Normalise
    edge: int
    size: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> CropFrames:
        """Read a CLIP style image processor config."""
        size, crop = _field(config, "size"), _field(config, "crop_size")
        edge = size if isinstance(size, int) else size.get("shortest_edge")
        square = {"height": crop, "width": crop} if isinstance(crop, int) else crop
        if edge is None or square["height"] != square["width"] or edge < square["height"]:
            raise ModelError(
                f"size={size}, crop_size={crop} of the image processor config is not supported: the shorter side must "
                "be resized to at least the square that is cut out"
            )
        return cls(Normalise.from_config(config), edge, square["height"])

    def __call__(self, video: Tensor) -> Tensor:
        """Turn uint8 (frames, 3, h, w) into float32 (frames, 3, size, size)."""
        height, width = video.shape[-2:]
        short = min(height, width)
        # Rounded down, as the library does: 1280 x 720 at 336 is 597 x 336.
        high, wide = int(self.edge * height / short), int(self.edge * width / short)
        x = self.normalise(video, high, wide)
        top, left = (high - self.size) // 2, (wide - self.size) // 2
        return x[:, :, top : top + self.size, left : left + self.size]


@dataclass(frozen=True)
class LongPatchFrames(PatchFrames):
    """Qwen2-VL's preprocessing with a budget of `video_tokens` visual tokens for a whole video.

    The processor alone gives every frame `max_pixels`, which makes two million tokens of an hour. Where a video's
    frames would come to more than the budget each gets its share, but at least `least_tokens` per group of frames, so
    that text stays readable. Both numbers are those of the authors' tool (qwen-vl-utils: nine tenths of 128,000
    tokens, 128 and 5 %).
    """

    video_tokens: int = 115_200
    least_tokens: int = 128

    @classmethod
    def of_video(cls, config: Mapping[str, Any]) -> LongPatchFrames:
        """Read a Qwen2-VL style video processor config."""
        return cls(**_plain(config))

    def size(self, height: int, width: int, total: int | None = None) -> tuple[int, int]:
        """Return the frame size that the model sees, in a video of `total` frames."""
        token = (self.patch * self.merge) ** 2
        share = self.video_tokens * token * self.temporal / (total or 1)
        return self._fit(height, width, min(self.max_pixels, int(max(share, self.least_tokens * token * 1.05))))


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
