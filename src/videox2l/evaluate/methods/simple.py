"""Eviction that looks at no content, and by keys alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from videox2l.evaluate.base import VideoSession
from videox2l.evaluate.encode import EncodedVideo
from videox2l.evaluate.static_cache import StaticSession, layered_cache


@dataclass(frozen=True)
class UniformFrames:
    """Fewer frames, evenly spread, with their true times: what every user does first.

    The groups of frames that the budget pays for are prefilled alone; the last few tokens too many are left out evenly,
    so that the bytes are those of the other methods.
    """

    name: str = "uniform"
    about: str = "fewer frames, evenly spread, true times"
    at_budget: bool = True
    uses_question: bool = False
    reusable: bool = True

    def prepare(self, video: EncodedVideo, budget: float, max_new_tokens: int) -> VideoSession:
        """Prefill the sampled frames."""
        n, groups = video.allowance(budget), video.groups
        each = video.visual / len(groups)
        picked = [groups[i] for i in spread(min(len(groups), -int(-n // each)), len(groups))]
        cache = video.backbone.new_cache()
        with video.meter.counting() as count:
            video.prefill(cache, picked)
        keep = torch.tensor(spread(min(n, len(cache) - video.prefix_tokens), len(cache) - video.prefix_tokens))
        columns = torch.cat([torch.arange(video.prefix_tokens), keep + video.prefix_tokens])
        layers = [(layer.keys[0][:, columns], layer.values[0][:, columns]) for layer in cache.layers]
        plan = {"frames": [piece.start for piece in picked]}
        return StaticSession(
            video, layered_cache(video.backbone, layers, room=64), max_new_tokens, count.flops, plan=plan
        )


def spread(n: int, of: int) -> list[int]:
    """Return `n` of the numbers 0 to `of` - 1, evenly spread."""
    return [int((i + 0.5) * of / n) for i in range(n)]


def stride_scores(video: EncodedVideo, n: int) -> Sequence[Tensor]:
    """Every r-th token of the full prefill, whatever it holds."""
    full = video.full
    row = torch.zeros(video.visual)
    row[spread(n, video.visual)] = 1.0
    return [row.expand(full.keys(layer).shape[0], -1) for layer in range(full.layers)]


def streaming_scores(video: EncodedVideo, n: int, sinks: int = 4) -> Sequence[Tensor]:
    """StreamingLLM (arXiv 2309.17453): the first tokens as attention sinks, and the most recent ones.

    Evicted after the full prefill; the text before the video is kept besides.
    """
    full = video.full
    row = torch.arange(video.visual, dtype=torch.float32)
    row[: min(sinks, n // 4)] = torch.inf
    return [row.expand(full.keys(layer).shape[0], -1) for layer in range(full.layers)]


def keydiff_scores(video: EncodedVideo, n: int) -> Sequence[Tensor]:
    """KeyDiff (arXiv 2504.15364) over the whole video: the keys that differ most from the mean direction."""
    del n
    full = video.full

    def score(layer: int) -> Tensor:
        keys = F.normalize(full.keys(layer).float(), dim=-1)
        anchor = F.normalize(keys.mean(dim=1, keepdim=True), dim=-1)
        return -(keys * anchor).sum(-1)

    return video.made_once("keydiff", lambda: [score(layer) for layer in range(full.layers)])
