"""Qwen3-VL: words of time between frames, and visual features that enter in several layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from videox2l.backbones.frames import PatchFrames, SharedPatchFrames
from videox2l.backbones.positions import mrope_positions, text_positions
from videox2l.backbones.prompts import VideoMarkup
from videox2l.backbones.qwen2_vl import merging_tower
from videox2l.backbones.transformers_backbone import Grid, PatchVision, TransformersBackbone
from videox2l.flops import VisionShape
from videox2l.types import TextTokens, VideoCursor


@dataclass(frozen=True)
class TimedMarkup(VideoMarkup):
    """The middle of each group's times in front of it: "<3.5 seconds>", and marks around the group.

    The marks that the chat template puts around the video go, as they did when the model was trained. (Processors of
    transformers 5 leave them, which makes two of each; those of 4.57 take them away.)
    """

    start: str = "<|vision_start|>"

    def opening(self, group: int, times: Sequence[float]) -> str:
        """Return the time of a group and its start mark."""
        return f"<{(times[0] + times[-1]) / 2:.1f} seconds>{self.start}"


class Qwen3VLBackbone(TransformersBackbone):
    """Qwen3-VL and Qwen3-VL-MoE on their stock transformers classes (arXiv 2511.21631).

    Words stand at the next free position, each group of frames is a picture of its own behind them, with the same time
    for all its tokens. Visual features of inner layers of the vision tower are added in the first layers of the
    decoder (DeepStack, arXiv 2406.04334): they stand behind the embeddings in one row per token.
    """

    axes = 3

    default_pixels: Mapping[str, Any] = {
        "size": {"shortest_edge": 4096, "longest_edge": 25165824}
    }  # of a whole video, as published

    @classmethod
    def vision_of(cls, config: Any, video_config: Mapping[str, Any], max_pixels: int | None = None) -> PatchVision:
        """Return how frames become pixels and tokens."""
        whole = max_pixels is None
        return PatchVision(
            SharedPatchFrames.of_video(video_config) if whole else PatchFrames.from_config(video_config, max_pixels)
        )

    @classmethod
    def tower_of(cls, config: Any) -> VisionShape:
        """Return the sizes of the vision tower and its mergers, one for each layer of features."""
        vision = config.vision_config
        mergers, mlp = 1 + len(vision.deepstack_visual_indexes), 2 * vision.intermediate_size
        return merging_tower(vision, vision.hidden_size, mlp, vision.out_hidden_size, mergers)

    @classmethod
    def video_markup(cls, config: Any, tokenizer: Any) -> VideoMarkup:
        """Return the words around each group of frames, with the marks that the config names."""
        start, pad, end = (
            str(tokenizer.convert_ids_to_tokens(token))
            for token in (config.vision_start_token_id, config.video_token_id, config.vision_end_token_id)
        )
        return TimedMarkup(start + pad + end, pad, end, start=start)

    def between_videos(self, count: int) -> list[TextTokens]:
        """Return what stands between `count` videos (see `JoinsVideos`)."""
        return self._between_videos(count)

    def chunk_positions(
        self, visual: Tensor, grid: Grid, times: Sequence[Sequence[float]], cursor: VideoCursor
    ) -> Tensor:
        """Return time, height and width of each token (3, n): words count on, a group spreads in height and width."""
        parts, free, each = [], cursor.next_position, grid[1] * grid[2]
        words = self._words_before_groups(visual, each)
        for count in words[:-1]:
            parts.append(text_positions(free, count, 3))
            picture = mrope_positions(torch.zeros(1), grid[1], grid[2], free + count, 1)
            parts.append(picture)
            free = int(picture.max()) + 1
        return torch.cat((*parts, text_positions(free, words[-1], 3)), 1)

    @staticmethod
    def _words_before_groups(visual: Tensor, each: int) -> list[int]:
        """Return how many words stand before each group of `each` visual tokens, and behind the last one."""
        starts = visual.nonzero()[::each, 0].tolist()
        ends = [0, *(start + each for start in starts)]
        return [start - end for start, end in zip([*starts, len(visual)], ends, strict=True)]

    def chunk_embeds(self, found: Mapping[str, Any]) -> Tensor:
        """Return the embeddings with the features of each further layer behind them: (n, (1 + layers) * hidden)."""
        embeds: Tensor = found["inputs_embeds"][0]
        rows = [embeds]
        for features in found["deepstack_visual_embeds"]:
            added = torch.zeros_like(embeds)
            added[found["visual_pos_masks"][0]] = features.to(embeds)
            rows.append(added)
        return torch.cat(rows, -1)

    def decoder_embeds(self, embeds: Tensor) -> dict[str, Any]:
        """Return the decoder's arguments for embeddings (n, hidden) or (n, (1 + layers) * hidden)."""
        first, *deeper = torch.split(embeds, self.text_config.hidden_size, dim=-1)
        if not deeper:
            return {"inputs_embeds": first[None]}
        everywhere = torch.ones(1, len(first), dtype=torch.bool, device=first.device)
        return {"inputs_embeds": first[None], "visual_pos_masks": everywhere, "deepstack_visual_embeds": deeper}

    def stock_positions(self, ids: Tensor, grid: Grid, times: Sequence[Sequence[float]]) -> dict[str, Tensor]:
        """Return the kinds of tokens, by which transformers 5 counts positions; they are right for this family."""
        return self.token_kinds(ids)
