"""Compression by ranking: prefill once, score every token, keep the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor

from videox2l.compress.base import FIRST_CHUNK, ChunkContext, ChunkKV, Compressor, Scorer, compress_window
from videox2l.engine.backbone import Backbone
from videox2l.engine.cache import BufferCache
from videox2l.flops import kept_tokens
from videox2l.memory.levels import LevelKV
from videox2l.types import VisualTokens


@dataclass
class QueryTap:
    """A probe that keeps the last `window` queries of every layer, of each chunk where `sizes` tells their tokens."""

    window: int
    sizes: Sequence[int] = ()
    queries: list[Tensor] = field(default_factory=list)
    scaling: float = 1.0

    def __call__(self, layer: int, query: Tensor, key: Tensor, scaling: float) -> None:
        """Copy the queries of one layer; layers come in order."""
        del layer, key
        self.scaling = scaling
        if self.window:
            chunks = torch.split(query[0], list(self.sizes) or query.shape[2], 1)
            last = [chunk[:, -self.window :] for chunk in chunks]
            self.queries.append(torch.cat(last, 1) if len(last) > 1 else last[0].clone())


def prefill_chunk(
    tokens: VisualTokens, context: BufferCache, backbone: Backbone, window: int = 0, echo: bool = False
) -> ChunkKV:
    """Run a chunk behind `context`, take its KVs out, and leave `context` as it was; see `prefill_window`."""
    return prefill_window([tokens], context, backbone, window, echo)[0]


def prefill_window(
    chunks: Sequence[VisualTokens], context: BufferCache, backbone: Backbone, window: int = 0, echo: bool = False
) -> list[ChunkKV]:
    """Run chunks behind `context` in one forward, take the KVs of each out, and leave `context` as it was.

    A token sees `context`, all tokens of the chunks before its own, and those before it. `window`: take so many of
    the last queries of each chunk. `echo`: run each chunk a second time behind itself, at the positions that follow,
    and take that pass's queries.
    """
    start, sizes = len(context), [len(chunk) for chunk in chunks]
    ends = list(accumulate(sizes))
    tap = QueryTap(0 if echo else window, sizes)
    backbone.forward(*_joined(chunks), context, tap)
    keys, values = context.columns(start)
    queries: list[Tensor | None] = [None] * len(chunks)
    if tap.queries:
        kept = [min(window, size) for size in sizes]
        queries = list(torch.split(torch.stack([q.to(keys.device) for q in tap.queries]), kept, 2))
    for number in range(len(chunks) - 1, -1, -1) if echo else ():  # from the last on: an echo is written over it
        context.crop(start + ends[number])
        tokens, heard = chunks[number], QueryTap(sizes[number])
        shift = tokens.positions.max() + 1 - tokens.positions.min()
        backbone.forward(tokens.embeds, tokens.positions + shift, context, heard)
        queries[number] = torch.stack([q.to(keys.device) for q in heard.queries])
    context.crop(start)
    cut = zip(torch.split(keys, sizes, 2), torch.split(values, sizes, 2), queries, chunks, strict=True)
    return [ChunkKV(*parts, tap.scaling) for parts in cut]


def _joined(chunks: Sequence[VisualTokens]) -> tuple[Tensor, Tensor]:
    """Return embeddings (n, width) and positions (axes, n) of all tokens of chunks that follow one another."""
    if len(chunks) == 1:
        return chunks[0].embeds, chunks[0].positions
    return torch.cat([chunk.embeds for chunk in chunks]), torch.cat([chunk.positions for chunk in chunks], 1)


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
        return self.compress_window([tokens], context, backbone, ratios, [task])[0]

    def compress_window(
        self,
        chunks: Sequence[VisualTokens],
        context: BufferCache,
        backbone: Backbone,
        ratios: Sequence[float],
        tasks: Sequence[ChunkContext],
    ) -> list[dict[float, LevelKV]]:
        """Prefill `chunks` behind `context` in one forward and return a level per ratio for each."""
        found = prefill_window(chunks, context, backbone, self.scorer.window, self.scorer.echo)
        return [self._levels(chunk, ratios, task) for chunk, task in zip(found, tasks, strict=True)]

    def _levels(self, chunk: ChunkKV, ratios: Sequence[float], task: ChunkContext) -> dict[float, LevelKV]:
        task.on_keys(chunk.keys)
        n = len(chunk.tokens)
        index = self.scorer.score(chunk).topk(kept_tokens(n, min(ratios)), dim=-1, sorted=True).indices
        pick = index[..., None].expand(-1, -1, -1, chunk.keys.shape[-1])  # of (layers, heads, kept)
        level = LevelKV(chunk.keys.gather(2, pick), chunk.values.gather(2, pick), index.int(), ranked=True)
        return {ratio: level.first(kept_tokens(n, ratio)) for ratio in sorted(ratios)}


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

    def compress_window(
        self,
        chunks: Sequence[VisualTokens],
        context: BufferCache,
        backbone: Backbone,
        ratios: Sequence[float],
        tasks: Sequence[ChunkContext],
    ) -> list[dict[float, LevelKV]]:
        """Prefill `chunks` behind `context` in one forward, twice, and return a level per ratio for each."""
        *finer, coarsest = sorted(ratios)
        found = compress_window(self.fine, chunks, context, backbone, finer or ratios, tasks)
        if finer:
            coarse = compress_window(self.coarse, chunks, context, backbone, (coarsest,), tasks)
            found = [levels | others for levels, others in zip(found, coarse, strict=True)]
        return found
