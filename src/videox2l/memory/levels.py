"""A chunk's KVs at one ratio, and a chunk with all its levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from videox2l.backbones.base import VisualTokens
from videox2l.errors import SettingsError


@dataclass(frozen=True)
class LevelKV:
    """KVs of some tokens in all layers.

    `keys`, `values` (layers, heads, n, head_dim), keys rotated. `index` (layers, heads, n) int32: for each kept
    token the visual token of the chunk at whose position its key is rotated. `ranked`: the tokens stand in order
    of importance, so that the first m of them are this chunk's level with m tokens. `positions` (axes, n) int64:
    where the keys are rotated, if not at the positions of the chunk's visual tokens (summary tokens).
    """

    keys: Tensor
    values: Tensor
    index: Tensor
    ranked: bool = False
    positions: Tensor | None = None

    def __len__(self) -> int:
        return self.keys.shape[2]

    def first(self, n: int) -> LevelKV:
        """Return the `n` most important tokens, as views. Only for ranked levels, or for all tokens."""
        if n == len(self):
            return self
        if not self.ranked:
            raise SettingsError("this level is not ranked: only its own ratio can be read")
        return LevelKV(self.keys[:, :, :n], self.values[:, :, :n], self.index[:, :, :n], ranked=True)

    def is_part_of(self, other: LevelKV) -> bool:
        """Return whether these KVs are the first ones of `other`, in the same memory."""
        return self.keys.data_ptr() == other.keys.data_ptr() and len(self) <= len(other)

    def to(self, device: torch.device | str) -> LevelKV:
        """Return the level on `device`, contiguous."""
        keys, values, index = (x.to(device).contiguous() for x in (self.keys, self.values, self.index))
        return LevelKV(keys, values, index, self.ranked, None if self.positions is None else self.positions.to(device))

    def nbytes(self) -> int:
        """Bytes of the keys and values."""
        return 2 * self.keys.numel() * self.keys.element_size()


def kept_tokens(tokens: int, ratio: float) -> int:
    """Return how many of `tokens` raw tokens a level at `ratio` keeps: the whole part, at least one."""
    return max(1, int(tokens / ratio))


@dataclass(frozen=True)
class Chunk:
    """One chunk of a memory.

    `start`, `end` seconds (end = where the next chunk starts); `frames` sampled frames; `tokens` raw visual tokens;
    `positions` (axes, tokens) int64; `levels` ratio -> KVs, finest first. A ranked finest level serves the coarser
    ratios too, which then need no storage of their own: `levels` holds them as views of it, unless they come from
    passes of their own. `visual` are the visual tokens themselves where finer levels are made from them only when they
    are wanted.
    """

    start: float
    end: float
    frames: int
    positions: Tensor
    levels: Mapping[float, LevelKV]
    visual: VisualTokens | None = None

    @property
    def tokens(self) -> int:
        """Number of raw visual tokens."""
        return self.positions.shape[1]

    def level(self, ratio: float) -> LevelKV:
        """Return the KVs at `ratio`: a stored level, or any coarser one of a ranked level."""
        if ratio in self.levels:
            return self.levels[ratio]
        finest = min(self.levels)
        if self.levels[finest].ranked and ratio > finest:
            return self.levels[finest].first(kept_tokens(self.tokens, ratio))
        raise SettingsError(f"no level at ratio {ratio:g}: this memory keeps {describe(self.levels)}")

    def kept(self) -> dict[float, LevelKV]:
        """Return the levels that need storage: the finest, and those that are no part of it."""
        finest = min(self.levels)
        return {
            ratio: level
            for ratio, level in self.levels.items()
            if ratio == finest or not level.is_part_of(self.levels[finest])
        }


def describe(ratios: Mapping[float, object] | tuple[float, ...]) -> str:
    """Return ratios for a message: '2, 32'."""
    return ", ".join(f"{ratio:g}" for ratio in sorted(ratios))
