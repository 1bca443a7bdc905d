"""Video LLMs that count positions by ones: LLaVA-OneVision."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from videox2l.backbones.base import TextTokens, Turn, VideoCursor, VisualTokens
from videox2l.backbones.frames import SquareFrames, stack
from videox2l.backbones.frontend import decoder_inputs
from videox2l.backbones.transformers_backbone import TransformersBackbone
from videox2l.errors import SettingsError


class LinearBackbone(TransformersBackbone):
    """LLaVA-OneVision on its stock transformers class (arXiv 2408.03326).

    Frames are pooled to a square of tokens each; one learned newline vector ends the video and is the first token
    of the suffix here, since it is known only when the video has ended.
    """

    axes = 1

    def __init__(
        self, model: Any, tokenizer: Any, video_config: Mapping[str, Any], max_pixels: int | None = None
    ) -> None:
        if max_pixels is not None:
            raise SettingsError("max_pixels has no effect on llava_onevision: its frames have one fixed size")
        super().__init__(model, tokenizer, video_config)
        self.frames = SquareFrames.from_config(self.video_config)
        vision = model.config.vision_config
        self.side = math.ceil(vision.image_size // vision.patch_size / 2)

    @torch.no_grad()
    def visual_tokens(self, frames: Sequence[np.ndarray], pts: Sequence[float], cursor: VideoCursor) -> VisualTokens:
        """Run the vision tower on the frames of one chunk: side x side tokens per frame."""
        pixels = self.frames(stack(frames).to(self.device)).to(self.shape.dtype)
        n = len(frames) * self.side**2
        found = decoder_inputs(
            self.model,
            self.decoder,
            input_ids=torch.full((1, n + 1), self.video_token_id, device=self.device),
            pixel_values_videos=pixels[None],
        )
        embeds = found["inputs_embeds"][0, :n]
        first = cursor.start + cursor.tokens
        return VisualTokens(embeds, self.text_positions(first, n), (len(frames), self.side, self.side))

    def suffix(self, question: str, history: Sequence[Turn] = ()) -> TextTokens:
        """Return the newline vector that ends the video, and everything after it."""
        text = super().suffix(question, history)
        newline = self.model.model.image_newline.detach().to(text.embeds)
        return TextTokens(torch.cat((text.ids.new_tensor([-1]), text.ids)), torch.cat((newline[None], text.embeds)))

    def processing(self) -> dict[str, Any]:
        """Return the settings by which frames become visual tokens."""
        return {**dataclasses.asdict(self.frames), "side": self.side}
