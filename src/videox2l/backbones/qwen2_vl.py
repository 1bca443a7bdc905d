"""Video LLMs that count positions by time, height and width: Qwen2-VL and Qwen2.5-VL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from videox2l.backbones.frames import LongPatchFrames, PatchFrames
from videox2l.backbones.positions import mrope_positions, spelled_out
from videox2l.backbones.transformers_backbone import Grid, PatchVision, TransformersBackbone
from videox2l.flops import VisionShape
from videox2l.types import TextTokens, VideoCursor


class MRopeBackbone(TransformersBackbone):
    """Qwen2-VL (arXiv 2409.12191) and Qwen2.5-VL (arXiv 2502.13923) on their stock transformers classes.

    Qwen2-VL counts groups of frames. Qwen2.5-VL counts time: its positions follow the true pts of each group, so that
    variable frame rates and gaps keep their meaning.
    """

    axes = 3

    def __init__(
        self, model: Any, tokenizer: Any, video_config: Mapping[str, Any], max_pixels: int | None = None
    ) -> None:
        super().__init__(model, tokenizer, video_config, max_pixels)
        self.rate = positions_per_second(model.config)

    @classmethod
    def vision_of(cls, config: Any, video_config: Mapping[str, Any], max_pixels: int | None = None) -> PatchVision:
        """Return how frames become pixels and tokens."""
        whole = max_pixels is None
        return PatchVision(
            LongPatchFrames.of_video(video_config) if whole else PatchFrames.from_config(video_config, max_pixels)
        )

    @classmethod
    def tower_of(cls, config: Any) -> VisionShape:
        """Return the sizes of the vision tower and its merger."""
        vision = config.vision_config
        if config.model_type == "qwen2_vl":
            mlp = 2 * int(vision.embed_dim * vision.mlp_ratio)
            return merging_tower(vision, vision.embed_dim, mlp, vision.hidden_size)
        window = vision.window_size // vision.spatial_merge_size // vision.patch_size * vision.spatial_merge_size
        tower = merging_tower(vision, vision.hidden_size, 3 * vision.intermediate_size, vision.out_hidden_size)
        return replace(tower, window=window, full=len(vision.fullatt_block_indexes))

    def between_videos(self, count: int) -> list[TextTokens]:
        """Return what stands between `count` videos (see `JoinsVideos`)."""
        return self._between_videos(count)

    def chunk_positions(
        self, visual: Tensor, grid: Grid, times: Sequence[Sequence[float]], cursor: VideoCursor
    ) -> Tensor:
        """Return time, height and width of each token (3, n)."""
        if self.rate is None:
            first = self.groups_before(cursor)
            return mrope_positions(torch.arange(first, first + grid[0]), grid[1], grid[2], cursor.start, 1)
        seconds = torch.tensor([group[0] for group in times], dtype=torch.float64) - cursor.origin
        return mrope_positions(seconds, grid[1], grid[2], cursor.start, self.rate)

    def stock_positions(self, ids: Tensor, grid: Grid, times: Sequence[Sequence[float]]) -> dict[str, Tensor]:
        """Return positions (3, 1, n) token by token: the library's own are wrong (see `positions`)."""
        rate, gap = positions_per_second(self.model.config), times[1][0] - times[0][0] if len(times) > 1 else 0.0
        return {"position_ids": spelled_out(ids, self.video_token_id, grid, 1 if rate is None else gap * rate)}

    def processing(self) -> dict[str, Any]:
        """Return the settings by which frames become visual tokens."""
        return {**super().processing(), "tokens_per_second": self.rate}


def merging_tower(vision: Any, width: int, mlp: int, hidden: int, mergers: int = 1) -> VisionShape:
    """Return the sizes of a tower of any picture size whose neighbouring patches are merged by two linear maps."""
    merge = vision.spatial_merge_size
    wide = width * merge**2
    return VisionShape(
        layers=vision.depth,
        width=width,
        mlp=mlp,
        patch=3 * vision.temporal_patch_size * vision.patch_size**2,
        maps=((mergers / merge**2, wide**2 + wide * hidden),),
        merge=merge,
        rows_per_token=mergers,
    )


def positions_per_second(config: Any) -> float | None:
    """Return how many positions a second has, or None for a model that counts groups of frames."""
    rate = getattr(config.vision_config, "tokens_per_second", None)
    return None if rate is None else float(rate)
