"""InfiniPot-V's way (arXiv 2506.15745): a memory of fixed size, compressed again after every chunk."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from videox2l.evaluate.base import VideoSession
from videox2l.evaluate.encode import EncodedVideo
from videox2l.evaluate.static_cache import StaticSession, layered_cache

PROTECTED = 1e9


@dataclass(frozen=True)
class InfiniPotMethod:
    """Keeps what is new in time (TaR) and what has large values (VaN); the rest is gone for later chunks too.

    After each chunk, of the kept tokens and the chunk's own: a share `tar` of the budget goes to the newest frames
    (`recent` of all tokens at hand, as far as they fit) and to the older tokens whose keys are least like those of the
    same place in the newest frames; the rest to the largest value norms. Selection is per layer and head. The
    shares are those of the published code; its pooling of value norms is left out.
    """

    name: str = "infinipot"
    about: str = "InfiniPot-V, arXiv 2506.15745"
    tar: float = 0.5
    recent: float = 0.25
    at_budget: bool = True
    uses_question: bool = False
    reusable: bool = True

    def prepare(self, video: EncodedVideo, budget: float, max_new_tokens: int) -> VideoSession:
        """Read the video chunk by chunk."""
        n, backbone, prefix = video.allowance(budget), video.backbone, video.prefix_tokens
        cache = backbone.new_cache()
        with video.meter.counting() as count:
            video.prefill(cache, ())
            place: list[Tensor] = [torch.empty(backbone.shape.heads, 0, dtype=torch.long) for _ in cache.layers]
            starts = accumulate((len(chunk.tokens) for chunk in video.chunks), initial=0)
            for chunk, start in zip(video.chunks, starts, strict=False):
                tokens = chunk.tokens.to(backbone.device)
                backbone.forward(tokens.embeds, tokens.positions, cache)
                cells = tokens.grid[1] * tokens.grid[2]
                new = torch.arange(start, start + len(tokens)).expand(backbone.shape.heads, -1)
                place = [torch.cat([held, new], dim=1) for held in place]
                if place[0].shape[1] > n:
                    kept = []
                    for number, layer in enumerate(cache.layers):
                        keys, values = layer.keys[0, :, prefix:], layer.values[0, :, prefix:]
                        index = self.choose(keys.cpu(), values.cpu(), place[number], cells, n)
                        place[number] = place[number].gather(1, index)
                        pick = index.to(keys.device)[..., None].expand(-1, -1, keys.shape[-1])
                        kept.append(
                            (
                                torch.cat([layer.keys[0, :, :prefix], keys.gather(1, pick)], dim=1),
                                torch.cat([layer.values[0, :, :prefix], values.gather(1, pick)], dim=1),
                            )
                        )
                    cache = layered_cache(backbone, kept, room=max(64, 2 * len(tokens)))
        return StaticSession(video, cache, max_new_tokens, count.flops)

    def choose(self, keys: Tensor, values: Tensor, place: Tensor, cells: int, n: int) -> Tensor:
        """Return which `n` columns (heads, n), in order, to keep of keys and values (heads, m, d).

        `place` (heads, m): the number of each token in the video, frames of `cells` tokens one after the other.
        """
        m = keys.shape[1]
        budget = n - round((1 - self.tar) * n)
        newest = max(1, int(self.recent * m) // cells) * cells
        newest = min(newest, budget, m)
        units = F.normalize(keys.float(), dim=-1)
        # The newest columns are the chunk's own: the same tokens in every head.
        cell = place % cells
        sums = units.new_zeros(keys.shape[0], cells, keys.shape[2])
        sums.scatter_add_(1, cell[:, m - newest :, None].expand(-1, -1, keys.shape[2]), units[:, m - newest :])
        counts = torch.zeros(keys.shape[0], cells).scatter_add_(1, cell[:, m - newest :], torch.ones(len(keys), newest))
        mean = sums / counts.clamp_min(1)[..., None]
        alike = (units * mean.gather(1, cell[..., None].expand(-1, -1, keys.shape[2]))).sum(-1)  # (heads, m)
        score = values.float().norm(dim=-1)
        score[:, m - newest :] = PROTECTED
        old = budget - newest
        if old > 0:
            different = (-alike[:, : m - newest]).topk(min(old, m - newest), dim=-1).indices
            score.scatter_(1, different, PROTECTED)
        kept: Tensor = score.topk(n, dim=-1).indices.sort(-1).values
        return kept
