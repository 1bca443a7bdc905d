"""ExpectedAttention (arXiv 2510.00636): what queries that are still to come are expected to attend to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from videox2l.engine.rope import unrotate
from videox2l.evaluate.encode import EncodedVideo

FUTURE = 512
"""Positions behind the video over which the rotation of future queries is averaged."""


@dataclass
class QueryMoments:
    """A probe that sums the unrotated queries of every layer and their products.

    `rotations`: cos and sin (n, head_dim) of the tokens of each forward, in order.
    """

    rotations: list[tuple[Tensor, Tensor]]
    sums: list[Tensor] = field(default_factory=list)
    products: list[Tensor] = field(default_factory=list)
    scaling: float = 1.0
    seen: int = 0

    def __call__(self, layer: int, query: Tensor, key: Tensor, scaling: float) -> None:
        """Add the queries of one layer."""
        del key
        self.scaling = scaling
        cos, sin = self.rotations[0]
        plain = unrotate(query[0].float(), cos, sin)  # (query_heads, n, d)
        if layer == len(self.sums):
            heads, _, d = plain.shape
            self.sums.append(plain.new_zeros(heads, d))
            self.products.append(plain.new_zeros(heads, d, d))
        self.sums[layer] += plain.sum(1)
        self.products[layer] += plain.transpose(-1, -2) @ plain


def expected_scores(video: EncodedVideo, n: int) -> Sequence[Tensor]:
    """Expected weight of each visual token under Gaussian queries, times the norm of its value: (heads, n) per layer.

    Mean and covariance are those of the video's own queries before RoPE; they are rotated by the mean rotation over the
    positions where text will stand.
    """
    del n
    return video.made_once("expected attention", lambda: _scores(video))


def _scores(video: EncodedVideo) -> list[Tensor]:
    backbone, full = video.backbone, video.full
    moments = QueryMoments([])
    cache = backbone.new_cache(len(full))
    video.prefill(cache, ())
    for chunk in video.chunks:
        moments.rotations = [backbone.rotation(chunk.tokens.positions)]
        tokens = chunk.tokens.to(backbone.device)
        backbone.forward(tokens.embeds, tokens.positions, cache, moments)
    cos, sin = (table.mean(0) for table in backbone.rotation(backbone.text_positions(video.next_position, FUTURE)))
    turn = _turning(cos, sin)
    found = []
    for layer in range(full.layers):
        mean = moments.sums[layer] / video.visual  # (query_heads, d)
        spread = moments.products[layer] / video.visual - mean[:, :, None] * mean[:, None, :]
        mean, spread = mean @ turn.T, turn @ spread @ turn.T
        keys, values = full.keys(layer).float(), full.values(layer).float()
        heads, group = keys.shape[0], mean.shape[0] // keys.shape[0]
        at = mean.reshape(heads, group, 1, -1)
        linear = (keys[:, None] * at).sum(-1) * moments.scaling  # (heads, group, n)
        square = torch.einsum("hnd,hgde,hne->hgn", keys, spread.reshape(heads, group, *spread.shape[1:]), keys)
        weights = (linear + square * moments.scaling**2 / 2).softmax(-1).mean(1)
        found.append(weights * values.norm(dim=-1))
    return found


def _turning(cos: Tensor, sin: Tensor) -> Tensor:
    """Return the matrix (d, d) of a rotation by tables (d,) of cos and sin."""
    d = len(cos)
    half = d // 2
    swap = torch.zeros(d, d, dtype=cos.dtype, device=cos.device)
    swap[torch.arange(half), torch.arange(half) + half] = -1.0
    swap[torch.arange(half) + half, torch.arange(half)] = 1.0
    return torch.diag(cos) + torch.diag(sin) @ swap
