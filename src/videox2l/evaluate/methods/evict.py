"""Eviction after the fact: the whole video is prefilled, then tokens are scored and the best are kept.

What these methods share: they hold full KV once, score every visual token per layer and head, and keep the best of
each head; kept keys stay at their positions, and the text before the video is always kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videox2l.engine.cache import BufferCache
from videox2l.evaluate.base import VideoSession
from videox2l.evaluate.encode import EncodedVideo, FullKV
from videox2l.evaluate.static_cache import StaticSession, layered_cache

Scores = Callable[[EncodedVideo, int], Sequence[Tensor]]
"""Scores (heads, n) of the visual tokens for each layer, higher = keep first, when so many are to be kept."""


@dataclass(frozen=True)
class EvictMethod:
    """Keeps the visual tokens with the highest scores, as many in every layer and head."""

    name: str
    about: str
    scores: Scores
    at_budget: bool = True
    uses_question: bool = False
    reusable: bool = True

    def prepare(self, video: EncodedVideo, budget: float, max_new_tokens: int) -> VideoSession:
        """Prefill the video and evict."""
        n = video.allowance(budget)
        layers = [best(scores, n) for scores in self.scores(video, n)]
        cache = kept_cache(video, layers, room=64)
        return StaticSession(video, cache, max_new_tokens, video.full.flops)


def best(scores: Tensor, n: int) -> Tensor:
    """Return the `n` best tokens (heads, n) of scores (heads, tokens), in order of time."""
    return scores.topk(min(n, scores.shape[-1]), dim=-1).indices.sort(-1).values


def kept_cache(video: EncodedVideo, kept: Sequence[Tensor], room: int) -> BufferCache:
    """Return a cache of the prefix and of the visual tokens `kept` (heads, n) in each layer."""
    full = video.full
    return layered_cache(video.backbone, [_gathered(full, layer, index) for layer, index in enumerate(kept)], room)


def _gathered(full: FullKV, layer: int, index: Tensor) -> tuple[Tensor, Tensor]:
    held = full.cache.layers[layer]
    pick = (index + full.prefix).to(held.keys.device)[..., None].expand(-1, -1, held.keys.shape[-1])
    keys, values = (
        torch.cat([whole[:, : full.prefix], whole.gather(1, pick)], dim=1) for whole in (held.keys[0], held.values[0])
    )
    return keys, values
