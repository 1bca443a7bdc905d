"""VideoLLaMA 3 on its stock transformers class: a time before each frame, and no tokens for what did not change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videox2l.backbones.frames import DividedPatchFrames, PatchFrames, stack
from videox2l.backbones.linear import LinearBackbone
from videox2l.backbones.prompts import VideoMarkup
from videox2l.backbones.transformers_backbone import Grid, PatchVision, token_id
from videox2l.errors import ModelError
from videox2l.flops import VisionShape
from videox2l.types import VideoCursor, VisualTokens

# A token stays where its pixels changed by more than this in the mean, in normalised values times 255.
_CHANGE = 0.1


class CommaMarkup(VideoMarkup):
    """ "Time 3.0s:" in front of each frame, with commas between them."""

    def opening(self, group: int, times: Sequence[float]) -> str:
        """Return the time of a frame."""
        return ("," if group else "") + f"Time {times[0]:.1f}s:"


class VideoLlama3Backbone(LinearBackbone):
    """VideoLLaMA 3 (arXiv 2501.13106).

    Visual tokens whose pixels are those of the frame before are left out, if the video processor config says so (as the
    library's does by default); the first frame of a chunk is compared with the last one of the chunk before.
    """

    def __init__(
        self, model: Any, tokenizer: Any, video_config: Mapping[str, Any], max_pixels: int | None = None
    ) -> None:
        super().__init__(model, tokenizer, video_config, max_pixels)
        self.dropping = drops_tokens(self.video_config)

    @classmethod
    def vision_of(cls, config: Any, video_config: Mapping[str, Any], max_pixels: int | None = None) -> PatchVision:
        """Return how frames become pixels and tokens."""
        given, whole = {"temporal_patch_size": 1, **video_config}, max_pixels is None
        frames = DividedPatchFrames.of_video(given) if whole else PatchFrames.from_config(given, max_pixels)
        if frames.temporal != 1:
            raise ModelError(
                f"temporal_patch_size={frames.temporal} is not supported for {config.model_type}: only 1 is"
            )
        return PatchVision(frames)

    @classmethod
    def tower_of(cls, config: Any) -> VisionShape:
        """Return the sizes of the vision tower and projector."""
        vision, hidden = config.vision_config, config.text_config.hidden_size
        merge = 2  # as published; the processor's, not the model's
        return VisionShape(
            layers=vision.num_hidden_layers,
            width=vision.hidden_size,
            mlp=2 * vision.intermediate_size,
            patch=3 * vision.patch_size**2,
            maps=((1 / merge**2, vision.hidden_size * hidden + hidden**2),),
            merge=merge,
        )

    @classmethod
    def video_markup(cls, config: Any, tokenizer: Any) -> VideoMarkup:
        """Return the words before each frame."""
        token = str(tokenizer.convert_ids_to_tokens(token_id(config, "video_token_id")))
        return CommaMarkup(token, token)

    def visual_tokens(self, frames: Sequence[np.ndarray], pts: Sequence[float], cursor: VideoCursor) -> VisualTokens:
        """Run the model's own front end on the frames of one chunk, words between them included."""
        return replace(super().visual_tokens(frames, pts, cursor), last=frames[-1] if self.dropping else None)

    def pixels(self, frames: Sequence[np.ndarray], cursor: VideoCursor) -> tuple[dict[str, Tensor], Grid]:
        """Return the model's arguments for the frames of one chunk, and the grid (t, h, w) of their visual tokens."""
        behind = self.dropping and cursor.last is not None
        given = [cursor.last, *frames] if behind else frames
        found, (t, high, wide) = self.vision(stack(given), cursor.facts)  # type: ignore[arg-type]
        patches, merge = found["pixel_values_videos"], self.vision.frames.merge  # type: ignore[attr-defined]
        kept = changed(patches.view(t, high * wide, -1)) if self.dropping else torch.ones(t, high * wide).bool()
        if behind:
            patches, kept, t = patches[high * wide * merge**2 :], kept[1:], t - 1
        arguments = {
            "pixel_values_videos": patches,
            "video_grid_thw": torch.tensor([[t, high * merge, wide * merge]]),
            "video_merge_sizes": torch.tensor([merge]),
            "video_compression_mask": kept.flatten(),
        }
        return arguments, (t, high, wide)

    def visual_counts(self, pixels: Mapping[str, Tensor], grid: Grid) -> list[int]:
        """Return how many visual tokens each frame has."""
        found: list[int] = pixels["video_compression_mask"].view(grid[0], -1).sum(1).tolist()
        return found

    def processing(self) -> dict[str, Any]:
        """Return the settings by which frames become visual tokens."""
        return {**super().processing(), "use_token_compression": self.dropping}


def drops_tokens(video_config: Mapping[str, Any]) -> bool:
    """Return whether tokens whose pixels stay the same are left out."""
    return video_config.get("use_token_compression", True) is not False


def changed(pixels: Tensor) -> Tensor:
    """Return which tokens (frames, n) differ from those of the frame before; the first frame's all do.

    `pixels` (frames, n, d) normalised. A frame without any change keeps its first token.
    """
    kept = torch.ones(pixels.shape[:2], dtype=torch.bool)
    kept[1:] = (pixels[1:] - pixels[:-1]).abs().mean(-1) * 255 > _CHANGE
    kept[:, 0] |= ~kept.any(1)
    return kept
