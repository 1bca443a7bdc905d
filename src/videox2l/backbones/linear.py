"""Video LLMs that count positions by ones: LLaVA-OneVision and LLaVA-NeXT-Video."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from videox2l.backbones.frames import CropFrames, SquareFrames
from videox2l.backbones.transformers_backbone import FrameVision, Grid, TransformersBackbone
from videox2l.errors import ModelError, SettingsError
from videox2l.flops import VisionShape
from videox2l.types import TextTokens, Turn, VideoCursor


class LinearBackbone(TransformersBackbone):
    """What families share whose tokens stand at the positions 0, 1, 2 and so on, words and pictures alike."""

    axes = 1

    def chunk_positions(
        self, visual: Tensor, grid: Grid, times: Sequence[Sequence[float]], cursor: VideoCursor
    ) -> Tensor:
        """Return the running number of each token (1, n)."""
        return self.text_positions(cursor.start + cursor.tokens, len(visual))


class LlavaOnevisionBackbone(LinearBackbone):
    """LLaVA-OneVision on its stock transformers class (arXiv 2408.03326).

    Frames are pooled to a square of tokens each; one learned newline vector ends the video and is the first token
    of the suffix here, since it is known only when the video has ended.
    """

    spare = 1

    @classmethod
    def vision_of(cls, config: Any, video_config: Mapping[str, Any], max_pixels: int | None = None) -> FrameVision:
        """Return how frames become pixels and tokens."""
        check_max_pixels(config, max_pixels)
        vision = config.vision_config
        side = math.ceil(vision.image_size // vision.patch_size / 2)
        return FrameVision(SquareFrames.from_config(video_config), side)

    @classmethod
    def tower_of(cls, config: Any) -> VisionShape:
        """Return the sizes of the vision tower and projector."""
        hidden = config.text_config.hidden_size
        return square_tower(config.vision_config, ((1, config.vision_config.hidden_size * hidden + hidden**2),))

    def suffix(self, question: str, history: Sequence[Turn] = (), system: str | None = None) -> TextTokens:
        """Return the newline vector that ends the video, and everything after it."""
        return self._end_of_video().then(super().suffix(question, history, system))

    def between_videos(self, count: int) -> list[TextTokens]:
        """Return the newline vector that ends a video, and what stands between it and the next (see `JoinsVideos`)."""
        return [self._end_of_video().then(text) for text in self._between_videos(count)]

    def _end_of_video(self) -> TextTokens:
        newline = self.model.model.image_newline.detach().to(self.device, self.shape.dtype)
        return TextTokens(torch.tensor([-1], device=self.device), newline[None])


class LlavaNextVideoBackbone(LinearBackbone):
    """LLaVA-NeXT-Video on its stock transformers class: the middle square of each frame, pooled to half its side."""

    @classmethod
    def vision_of(cls, config: Any, video_config: Mapping[str, Any], max_pixels: int | None = None) -> FrameVision:
        """Return how frames become pixels and tokens."""
        check_max_pixels(config, max_pixels)
        frames, vision = CropFrames.from_config(video_config), config.vision_config
        if frames.size != vision.image_size:
            raise ModelError(
                f"crop_size={frames.size} of the video processor config is not the size of the vision tower, "
                f"{vision.image_size}"
            )
        return FrameVision(frames, vision.image_size // vision.patch_size // _pool(config))

    @classmethod
    def tower_of(cls, config: Any) -> VisionShape:
        """Return the sizes of the vision tower and projector."""
        hidden = config.text_config.hidden_size
        maps = ((1 / _pool(config) ** 2, config.vision_config.hidden_size * hidden + hidden**2),)
        return square_tower(config.vision_config, maps, summary_rows=1)


def _pool(config: Any) -> int:
    return int(getattr(config, "spatial_pool_stride", 2))


def square_tower(vision: Any, maps: tuple[tuple[float, int], ...], summary_rows: int = 0) -> VisionShape:
    """Return the sizes of a plain vision transformer on square pictures of one size, and its projector's `maps`."""
    size, patch = (side if isinstance(side, int) else side[0] for side in (vision.image_size, vision.patch_size))
    return VisionShape(
        layers=vision.num_hidden_layers,
        width=vision.hidden_size,
        mlp=2 * vision.intermediate_size,
        patch=3 * patch**2,
        maps=maps,
        side=size // patch,
        summary_rows=summary_rows,
    )


def check_max_pixels(config: Any, max_pixels: int | None) -> None:
    """Raise SettingsError where a pixel budget was given to a family without one."""
    if max_pixels is not None:
        raise SettingsError(f"max_pixels has no effect on {config.model_type}: its frames have one fixed size")
