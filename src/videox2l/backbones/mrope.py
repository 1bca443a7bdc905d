"""Video LLMs that count positions by time, height and width: Qwen2.5-VL."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from videox2l.backbones.base import VideoCursor, VisualTokens
from videox2l.backbones.frames import PatchFrames, stack
from videox2l.backbones.frontend import decoder_inputs
from videox2l.backbones.positions import mrope_positions
from videox2l.backbones.transformers_backbone import TransformersBackbone


class MRopeBackbone(TransformersBackbone):
    """Qwen2.5-VL on its stock transformers class (arXiv 2502.13923).

    Time positions follow the true pts of each group of frames, not its index, so that variable frame rates and
    gaps keep their meaning.
    """

    axes = 3

    def __init__(
        self, model: Any, tokenizer: Any, video_config: Mapping[str, Any], max_pixels: int | None = None
    ) -> None:
        super().__init__(model, tokenizer, video_config)
        self.frames = PatchFrames.from_config(self.video_config, max_pixels)
        self.group_frames = self.frames.temporal
        self.rate = float(model.config.vision_config.tokens_per_second)

    @torch.no_grad()
    def visual_tokens(self, frames: Sequence[np.ndarray], pts: Sequence[float], cursor: VideoCursor) -> VisualTokens:
        """Run the vision tower on the frames of one chunk; `group_frames` of them become one group of tokens."""
        pixels, (t, gh, gw) = self.frames(stack(frames).to(self.device))
        height, width = gh // self.frames.merge, gw // self.frames.merge
        n = t * height * width
        found = decoder_inputs(
            self.model,
            self.decoder,
            input_ids=torch.full((1, n), self.video_token_id, device=self.device),
            position_ids=torch.zeros(3, 1, n, dtype=torch.long, device=self.device),
            pixel_values_videos=pixels.to(self.shape.dtype),
            video_grid_thw=torch.tensor([[t, gh, gw]], device=self.device),
        )
        times = torch.tensor(pts[:: self.group_frames], dtype=torch.float64) - cursor.origin
        positions = mrope_positions(times, height, width, cursor.start, self.rate)
        return VisualTokens(found["inputs_embeds"][0], positions, (t, height, width))

    def processing(self) -> dict[str, Any]:
        """Return the settings by which frames become visual tokens."""
        return {**dataclasses.asdict(self.frames), "tokens_per_second": self.rate}
