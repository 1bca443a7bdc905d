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

    def __init__(
        self, model: Any, tokenizer: Any, video_config: Mapping[str, Any], max_pixels: int | None = None
    ) -> None:
        check_max_pixels(model, max_pixels)
        super().__init__(model, tokenizer, video_config)
        self.frames = SquareFrames.from_config(self.video_config)
        vision = model.config.vision_config
        self.vision = FrameVision(self.frames, math.ceil(vision.image_size // vision.patch_size / 2))

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

    def __init__(
        self, model: Any, tokenizer: Any, video_config: Mapping[str, Any], max_pixels: int | None = None
    ) -> None:
        check_max_pixels(model, max_pixels)
        super().__init__(model, tokenizer, video_config)
        self.frames = CropFrames.from_config(self.video_config)
        vision = model.config.vision_config
        if self.frames.size != vision.image_size:
            raise ModelError(
                f"crop_size={self.frames.size} of the video processor config is not the size of the vision tower, "
                f"{vision.image_size}"
            )
        pool = int(getattr(model.config, "spatial_pool_stride", 2))
        self.vision = FrameVision(self.frames, vision.image_size // vision.patch_size // pool)


def check_max_pixels(model: Any, max_pixels: int | None) -> None:
    """Raise SettingsError where a pixel budget was given to a family without one."""
    if max_pixels is not None:
        raise SettingsError(f"max_pixels has no effect on {model.config.model_type}: its frames have one fixed size")
