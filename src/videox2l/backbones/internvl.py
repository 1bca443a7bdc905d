"""InternVL on its stock transformers class: numbered frames, each a picture in the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from videox2l.backbones.frames import SquareFrames
from videox2l.backbones.linear import LinearBackbone, check_max_pixels
from videox2l.backbones.prompts import VideoMarkup
from videox2l.backbones.transformers_backbone import FrameVision
from videox2l.errors import ModelError
from videox2l.types import TextTokens


@dataclass(frozen=True)
class NumberedMarkup(VideoMarkup):
    """ "Frame1: " in front of the first frame, each on a line of its own."""

    start: str = "<img>"

    def opening(self, group: int, times: Sequence[float]) -> str:
        """Return the number of a frame, from 1, and the start mark."""
        return ("\n" if group else "") + f"Frame{group + 1}: {self.start}"


class InternVLBackbone(LinearBackbone):
    """InternVL 3 and 3.5 (arXiv 2504.10479): one tile per frame, pixels shuffled into a square of tokens."""

    def __init__(
        self, model: Any, tokenizer: Any, video_config: Mapping[str, Any], max_pixels: int | None = None
    ) -> None:
        check_max_pixels(model, max_pixels)
        super().__init__(model, tokenizer, video_config)
        self.frames = SquareFrames.from_config(self.video_config)
        vision = model.config.vision_config
        size, patch = (int(side[0]) for side in (vision.image_size, vision.patch_size))
        if (self.frames.height, self.frames.width) != (size, size):
            raise ModelError(
                f"size={self.frames.height}x{self.frames.width} of the video processor config is not the size of the "
                f"vision tower, {size}x{size}"
            )
        side = int(size // patch * model.config.downsample_ratio)
        self.vision = FrameVision(self.frames, side, "pixel_values", batched=False)

    def video_markup(self) -> VideoMarkup:
        """Return the words around each frame, with the tokens that the tokenizer names."""
        names = {"video_token": "<video>", "start_image_token": "<img>", "end_image_token": "</img>"}
        video, start, end = (str(getattr(self.tokenizer, name, None) or known) for name, known in names.items())
        pad = str(self.tokenizer.convert_ids_to_tokens(self._token_id("image_token_id")))
        return NumberedMarkup(video, pad, end, start=start)

    def between_videos(self, count: int) -> list[TextTokens]:
        """Return what stands between `count` videos (see `JoinsVideos`)."""
        return self._between_videos(count)
