"""Levels of a chunk: its KVs at each ratio, and a bounded cache of levels that were made after the ingest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from videox2l.errors import SettingsError
from videox2l.flops import kept_tokens
from videox2l.types import VisualTokens


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

    def between(self, first: int, stop: int) -> LevelKV:
        """Return the tokens from `first` to `stop`, as views. Only for levels without positions of their own."""
        keys, values, index = (x[:, :, first:stop] for x in (self.keys, self.values, self.index))
        return LevelKV(keys, values, index, self.ranked)

    def to(self, device: torch.device | str) -> LevelKV:
        """Return the level on `device`, contiguous."""
        keys, values, index = (x.to(device).contiguous() for x in (self.keys, self.values, self.index))
        return LevelKV(keys, values, index, self.ranked, None if self.positions is None else self.positions.to(device))

    def nbytes(self) -> int:
        """Bytes of the keys and values."""
        return 2 * self.keys.numel() * self.keys.element_size()


Columns = Sequence[tuple[Tensor, Tensor]]
"""Room in a cache for some tokens: for each layer where keys and values go, views (heads, n, head_dim)."""


class Levels(Mapping[float, LevelKV]):
    """A chunk's levels by ratio, finest first, in host memory.

    Subclasses bring levels from elsewhere when they are looked up. What can be said without reading has methods of its
    own.
    """

    def __init__(self, levels: Mapping[float, LevelKV]) -> None:
        self._levels = dict(sorted(levels.items()))

    def __getitem__(self, ratio: float) -> LevelKV:
        return self._levels[ratio]

    def __iter__(self) -> Iterator[float]:
        return iter(self._levels)

    def __len__(self) -> int:
        return len(self._levels)

    def __contains__(self, ratio: object) -> bool:
        return ratio in self._levels

    @property
    def ranked(self) -> bool:
        """Whether the finest level stands in order of importance, so that it serves all coarser ratios."""
        return self._levels[min(self._levels)].ranked

    def size(self, ratio: float) -> int:
        """Return how many tokens the level at `ratio` has."""
        return len(self._levels[ratio])

    def nested(self, ratio: float) -> bool:
        """Return whether the level at `ratio` is the first tokens of the finest one."""
        return self._levels[ratio].is_part_of(self._levels[min(self._levels)])

    def first(self, n: int) -> LevelKV:
        """Return the `n` most important tokens of the finest level."""
        return self._levels[min(self._levels)].first(n)

    def in_memory(self, ratio: float, n: int) -> bool:
        """Return whether the level at `ratio`, of `n` tokens, is in host memory."""
        return True

    def with_level(self, ratio: float, level: LevelKV) -> Levels:
        """Return these levels and one more."""
        return Levels({**self._levels, ratio: level})


@dataclass(frozen=True)
class Chunk:
    """One chunk of a memory.

    `start`, `end` seconds (end = where the next chunk starts); `frames` sampled frames; `tokens` raw visual tokens;
    `positions` (axes, tokens) int64; `levels` ratio -> KVs, finest first. A ranked finest level serves the coarser
    ratios too, which then need no storage of their own: `levels` holds them as views of it, unless they come from
    passes of their own. `visual` are the visual tokens themselves where finer levels are made from them only when they
    are wanted. `last`: the ingest knew that no chunk follows. `thumbnail`: a small JPEG of the chunk's first frame.
    `features`: small tensors by name, for selectors (see the module `features`). `window`: the chunk's number in the
    window that was prefilled together, from 0 on, and how many chunks that has.
    """

    start: float
    end: float
    frames: int
    positions: Tensor
    levels: Levels  # any mapping is taken, and wrapped
    visual: VisualTokens | None = None
    last: bool = False
    thumbnail: bytes | None = field(default=None, repr=False)
    features: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    window: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        levels: Mapping[float, LevelKV] = self.levels
        if not isinstance(levels, Levels):
            object.__setattr__(self, "levels", Levels(levels))

    @property
    def tokens(self) -> int:
        """Number of raw visual tokens."""
        return self.positions.shape[1]

    @cached_property
    def next_position(self) -> int:
        """The position behind the largest one of the chunk's tokens."""
        return int(self.positions.max()) + 1

    def level(self, ratio: float) -> LevelKV:
        """Return the KVs at `ratio`: a stored level, or any coarser one of a ranked level."""
        return self.levels[ratio] if ratio in self.levels else self.levels.first(self.size(ratio))

    def size(self, ratio: float) -> int:
        """Return how many tokens `level(ratio)` has, without reading it."""
        if ratio in self.levels:
            return self.levels.size(ratio)
        if self.levels.ranked and ratio > min(self.levels):
            return kept_tokens(self.tokens, ratio)
        raise SettingsError(f"no level at ratio {ratio:g}: this memory keeps {describe(self.levels)}")

    def kept(self) -> tuple[float, ...]:
        """Return the ratios of the levels that need storage: the finest, and those that are no part of it."""
        finest, *others = self.levels
        return (finest, *(ratio for ratio in others if not self.levels.nested(ratio)))


def describe(ratios: Mapping[float, object] | tuple[float, ...]) -> str:
    """Return ratios for a message: '2, 32'."""
    return ", ".join(f"{ratio:g}" for ratio in sorted(ratios))
