"""InternVL on its stock transformers class: numbered frames, each a picture in the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from videox2l.backbones.frames import SquareFrames
from videox2l.backbones.linear import LinearBackbone, check_max_pixels, square_tower
from videox2l.backbones.prompts import VideoMarkup
from videox2l.backbones.transformers_backbone import FrameVision, token_id
from videox2l.errors import ModelError
from videox2l.flops import VisionShape
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

    @classmethod
    def vision_of(cls, config: Any, video_config: Mapping[str, Any], max_pixels: int | None = None) -> FrameVision:
        """Return how frames become pixels and tokens."""
        check_max_pixels(config, max_pixels)
        frames, vision = SquareFrames.from_config(video_config), config.vision_config
        size, patch = (int(side[0]) for side in (vision.image_size, vision.patch_size))
        if (frames.height, frames.width) != (size, size):
            raise ModelError(
                f"size={frames.height}x{frames.width} of the video processor config is not the size of the "
                f"vision tower, {size}x{size}"
            )
        return FrameVision(frames, int(size // patch * config.downsample_ratio), "pixel_values", batched=False)

    @classmethod
    def tower_of(cls, config: Any) -> VisionShape:
        """Return the sizes of the vision tower and projector."""
        hidden, fold = config.text_config.hidden_size, round(1 / config.downsample_ratio) ** 2
        maps = ((1 / fold, config.vision_config.hidden_size * fold * hidden + hidden**2),)
        return square_tower(config.vision_config, maps, summary_rows=1)

    @classmethod
    def video_markup(cls, config: Any, tokenizer: Any) -> VideoMarkup:
        """Return the words around each frame, with the tokens that the tokenizer names."""
        names = {"video_token": "<video>", "start_image_token": "<img>", "end_image_token": "</img>"}
        video, start, end = (str(getattr(tokenizer, name, None) or known) for name, known in names.items())
        pad = str(tokenizer.convert_ids_to_tokens(token_id(config, "image_token_id")))
        return NumberedMarkup(video, pad, end, start=start)

    def between_videos(self, count: int) -> list[TextTokens]:
        """Return what stands between `count` videos (see `JoinsVideos`)."""
        return self._between_videos(count)
