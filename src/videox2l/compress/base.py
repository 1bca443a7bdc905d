"""What a compressor and a scorer promise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from videox2l.backbones.base import Backbone, VisualTokens
from videox2l.backbones.cache import BufferCache
from videox2l.memory.levels import LevelKV


@dataclass(frozen=True)
class ChunkKV:
    """All KVs of one chunk after its prefill, uncompressed.

    `keys`, `values` (layers, heads, n, head_dim), keys rotated; `queries` (layers, query_heads, w, head_dim) of the
    chunk's last w tokens, rotated, or None when the scorer asked for none; `tokens` what went in; `scaling` of
    the attention logits.
    """

    keys: Tensor
    values: Tensor
    queries: Tensor | None
    tokens: VisualTokens
    scaling: float


class Compressor(Protocol):
    """Makes the levels of a chunk. It owns the chunk's forward pass, since summary tokens change it."""

    def compress(
        self, tokens: VisualTokens, context: BufferCache, backbone: Backbone, ratios: Sequence[float]
    ) -> dict[float, LevelKV]:
        """Prefill `tokens` behind `context` and return a level per ratio.

        Leaves `context` as it was. Levels may be views of one another.
        """


class Scorer(Protocol):
    """Ranks the tokens of a chunk for keeping."""

    @property
    def window(self) -> int:
        """How many of the chunk's last queries `score` needs; 0 for none."""

    def score(self, chunk: ChunkKV) -> Tensor:
        """Return scores (layers, heads, n), higher = keep first."""
