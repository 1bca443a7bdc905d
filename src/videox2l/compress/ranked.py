"""Compression by ranking: prefill once, score every token, keep the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from videox2l.compress.base import FIRST_CHUNK, ChunkContext, ChunkKV, Compressor, Scorer
from videox2l.engine.attention import Probe
from videox2l.engine.backbone import Backbone
from videox2l.engine.cache import BufferCache
from videox2l.flops import kept_tokens
from videox2l.memory.levels import LevelKV
from videox2l.types import VisualTokens


@dataclass
class QueryTap:
    """A probe that keeps the last `window` queries of every layer."""

    window: int
    queries: list[Tensor] = field(default_factory=list)
    scaling: float = 1.0

    def __call__(self, layer: int, query: Tensor, key: Tensor, scaling: float) -> None:
        """Copy the queries of one layer; layers come in order."""
        del layer, key
        self.scaling = scaling
        if self.window:
            self.queries.append(query[0, :, -self.window :].clone())


def prefill_chunk(
    tokens: VisualTokens, context: BufferCache, backbone: Backbone, window: int = 0, echo: bool = False
) -> ChunkKV:
    """Run a chunk behind `context`, take its KVs out, and leave `context` as it was.

    `echo`: run it a second time behind itself, at the positions that follow, and take that pass's queries.
    """
    start, n = len(context), len(tokens)
    tap = QueryTap(0 if echo else window)
    probe: Probe = tap
    backbone.forward(tokens.embeds, tokens.positions, context, probe)
    if echo:
        probe = tap = QueryTap(n)
        shift = tokens.positions.max() + 1 - tokens.positions.min()
        backbone.forward(tokens.embeds, tokens.positions + shift, context, probe)
        context.crop(start + n)
    keys, values = context.columns(start)
    context.crop(start)
    queries = torch.stack([q.to(keys.device) for q in tap.queries]) if tap.queries else None
    return ChunkKV(keys, values, queries, tokens, tap.scaling)


@dataclass(frozen=True)
class RankedCompressor:
    """Keeps the tokens that `scorer` ranks highest, per layer and head, with their original positions.

    The finest level stands in order of importance and every coarser level is a prefix of it: one forward pass, one
    copy in storage, and any ratio between the finest and the coarsest can be read later.
    """

    scorer: Scorer
    compact: ClassVar[bool] = False

    def compress(
        self,
        tokens: VisualTokens,
        context: BufferCache,
        backbone: Backbone,
        ratios: Sequence[float],
        task: ChunkContext = FIRST_CHUNK,
    ) -> dict[float, LevelKV]:
        """Prefill `tokens` behind `context` and return a level per ratio, the coarser as views of the finest."""
        chunk = prefill_chunk(tokens, context, backbone, self.scorer.window, self.scorer.echo)
        task.on_keys(chunk.keys)
        finest = kept_tokens(len(tokens), min(ratios))
        index = self.scorer.score(chunk).topk(finest, dim=-1, sorted=True).indices  # (layers, heads, finest)
        pick = index[..., None].expand(-1, -1, -1, chunk.keys.shape[-1])
        level = LevelKV(chunk.keys.gather(2, pick), chunk.values.gather(2, pick), index.int(), ranked=True)
        return {ratio: level.first(kept_tokens(len(tokens), ratio)) for ratio in sorted(ratios)}


@dataclass(frozen=True)
class PairCompressor:
    """Makes the coarsest of several levels with `coarse`, all others, or a single one, with `fine`.

    Two forward passes per chunk, and no level is a prefix of the other: both are stored whole, so that H costs its own
    bytes beside those of L (at 2 and 32 a sixteenth more).
    """

    fine: Compressor
    coarse: Compressor
    compact: ClassVar[bool] = False

    def compress(
        self,
        tokens: VisualTokens,
        context: BufferCache,
        backbone: Backbone,
        ratios: Sequence[float],
        task: ChunkContext = FIRST_CHUNK,
    ) -> dict[float, LevelKV]:
        """Prefill `tokens` behind `context` twice and return a level per ratio."""
        *finer, coarsest = sorted(ratios)
        if not finer:
            return self.fine.compress(tokens, context, backbone, ratios, task)
        levels = self.fine.compress(tokens, context, backbone, finer, task)
        return levels | self.coarse.compress(tokens, context, backbone, (coarsest,), task)
