"""Compression by averaging neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from videox2l.compress.base import FIRST_CHUNK, ChunkContext, ChunkKV
from videox2l.compress.ranked import prefill_window
from videox2l.engine.backbone import Backbone
from videox2l.engine.cache import BufferCache
from videox2l.engine.rope import rotate, unrotate
from videox2l.memory.levels import LevelKV
from videox2l.types import VisualTokens


def block_shape(grid: tuple[int, int, int], ratio: float) -> tuple[int, int, int]:
    """Return (frames, rows, columns) of the blocks that are averaged at `ratio`.

    A block grows within its frame first, nearly square; only when a whole frame is one block does it span frames.
    """
    _, height, width = grid
    rows = min(height, 2 ** math.floor(math.log2(max(ratio, 1)) / 2))
    columns = min(width, max(1, round(ratio / rows)))
    if columns == width:
        rows = min(height, max(1, round(ratio / columns)))
    frames = max(1, round(ratio / (rows * columns))) if (rows, columns) == (height, width) else 1
    return frames, rows, columns


def block_labels(grid: tuple[int, int, int], block: tuple[int, int, int]) -> Tensor:
    """Return for each token of the grid, in raster order, the number of its block: (n,) int64."""
    axes = [torch.arange(size) // step for size, step in zip(grid, block, strict=True)]
    counts = [int(axis[-1]) + 1 for axis in axes]
    t, y, x = axes
    labels = (t[:, None, None] * counts[1] + y[None, :, None]) * counts[2] + x[None, None, :]
    return labels.reshape(-1)


@dataclass(frozen=True)
class PoolCompressor:
    """The mean of each block of neighbouring tokens, keys and values.

    Keys are averaged before RoPE, since a mean of rotated keys mixes phases, and the mean is rotated at the position
    of the block's middle token. Levels are not nested: each is stored.
    """

    compact: ClassVar[bool] = False

    def compress(
        self,
        tokens: VisualTokens,
        context: BufferCache,
        backbone: Backbone,
        ratios: Sequence[float],
        task: ChunkContext = FIRST_CHUNK,
    ) -> dict[float, LevelKV]:
        """Prefill `tokens` behind `context` and return a level per ratio."""
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
        found = prefill_window(chunks, context, backbone)
        for chunk, task in zip(found, tasks, strict=True):
            task.on_keys(chunk.keys)
        return [self._levels(chunk, backbone, ratios) for chunk in found]

    def _levels(self, chunk: ChunkKV, backbone: Backbone, ratios: Sequence[float]) -> dict[float, LevelKV]:
        tokens = chunk.tokens
        cos, sin = backbone.rotation(tokens.positions)
        plain = unrotate(chunk.keys, cos.to(chunk.keys.device), sin.to(chunk.keys.device))
        levels = {}
        for ratio in sorted(ratios):
            labels = block_labels(tokens.grid, block_shape(tokens.grid, ratio))
            middle = _middles(labels)
            keys = _means(plain, labels)
            at = middle.to(cos.device)
            keys = rotate(keys, cos[at].to(keys.device), sin[at].to(keys.device)).to(chunk.keys.dtype)
            values = _means(chunk.values.float(), labels).to(chunk.values.dtype)
            index = middle.int().to(keys.device).expand(*keys.shape[:2], -1)
            levels[ratio] = LevelKV(keys, values, index)
        return levels


def _means(x: Tensor, labels: Tensor) -> Tensor:
    """Average x (layers, heads, n, d) over tokens of equal label: (layers, heads, blocks, d)."""
    labels = labels.to(x.device)
    sizes = torch.bincount(labels).to(x)
    sums = x.new_zeros(*x.shape[:2], len(sizes), x.shape[-1]).index_add_(2, labels, x)
    return sums / sizes[:, None]


def _middles(labels: Tensor) -> Tensor:
    """Return for each block the index of the middle one of its tokens: (blocks,)."""
    order = labels.argsort(stable=True)
    sizes = torch.bincount(labels)
    return order[sizes.cumsum(0) - sizes + sizes // 2]
