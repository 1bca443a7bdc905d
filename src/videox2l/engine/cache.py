"""A KV cache that writes into one preallocated buffer per layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from videox2l.engine.rope import rerotate


class BufferLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer: the first `length` columns of a buffer (1, heads, capacity, head_dim).

    `update` copies the new columns in and returns views, so a decoded token costs one column of
    writing instead of a copy of the whole cache. The buffer doubles when it is full.
    """

    is_sliding = False
    is_croppable = True

    def __init__(self, capacity: int = 0, device: torch.device | None = None) -> None:
        super().__init__()
        self.capacity = capacity
        self.home = device
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor | None = None) -> None:
        """Allocate the buffers like `key_states`, on the layer's own device if it was given one."""
        values = key_states if value_states is None else value_states
        self._keys = self._allocate(key_states, self.capacity, self.home)
        self._values = self._allocate(values, self.capacity, self.home)
        self.is_initialized = True

    @staticmethod
    def _allocate(like: Tensor, capacity: int, device: torch.device | None = None) -> Tensor:
        return like.new_empty(like.shape[0], like.shape[1], capacity, like.shape[3], device=device or like.device)

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` columns in all; what is there stays."""
        if capacity <= self.capacity:
            return
        self.capacity = capacity
        if self.is_initialized:
            for name in ("_keys", "_values"):
                old = getattr(self, name)
                new = self._allocate(old, capacity)
                new[:, :, : self.length] = old[:, :, : self.length]
                setattr(self, name, new)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append columns (1, heads, n, head_dim); return views of all columns."""
        end = self.length + key_states.shape[2]
        if end > self.capacity:
            self.reserve(max(end, 2 * self.capacity))
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._keys[:, :, self.length : end] = key_states
        self._values[:, :, self.length : end] = value_states
        self.length = end
        self.keys, self.values = self._keys[:, :, :end], self._values[:, :, :end]
        return self.keys, self.values

    def replace(self, edits: Sequence[tuple[int, int, Tensor, Tensor]]) -> None:
        """Put new columns in the place of others: `edits` are (start, stop, keys, values), in order, apart.

        `keys`, `values` (heads, n, head_dim); what stands behind them moves. While it runs the layer is held twice.
        """
        keys, values, at = self.keys, self.values, 0
        grown = self.length + sum(new.shape[1] - (stop - start) for start, stop, new, _ in edits)
        self.capacity, self.length, self.is_initialized = max(self.capacity, grown), 0, False
        for start, stop, *new in [*edits, (keys.shape[2], 0, keys[0, :, :0], values[0, :, :0])]:
            self.update(keys[:, :, at:start], values[:, :, at:start])
            self.update(*(part.to(keys.device)[None] for part in new))
            at = stop

    def crop(self, length: int) -> None:
        """Forget all columns from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot crop a cache of {self.length} columns to {length}")
        self.length = length
        if self.is_initialized:
            self.keys, self.values = self._keys[:, :, :length], self._values[:, :, :length]

    def get_seq_length(self, *_: Any) -> int:
        """Return the number of columns."""
        return self.length

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """Return the key length that the next `query_length` queries see, and its offset."""
        new = query_length if isinstance(query_length, int) else len(query_length)
        return self.length + new, 0

    def get_max_length(self) -> int:
        """Return -1: the buffer grows."""
        return -1

    get_max_cache_shape = get_max_length  # the name before transformers 5


class BufferCache(Cache):  # type: ignore[misc]
    """The cache of all layers. `capacity` columns per layer are allocated at the first write.

    `devices`: where each layer's columns lie; by default where the first ones come from.
    """

    def __init__(self, layers: int, capacity: int = 0, devices: Sequence[torch.device] | None = None) -> None:
        super().__init__(layers=[BufferLayer(capacity, None if devices is None else devices[i]) for i in range(layers)])

    def __len__(self) -> int:
        return int(self.layers[0].length)

    def __bool__(self) -> bool:
        return True  # an empty cache is still a cache

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Append columns to every layer: `keys` and `values` (layers, heads, n, head_dim) on any device."""
        for index, layer in enumerate(self.layers):
            device = layer.keys.device if layer.is_initialized else layer.home or keys.device
            layer.update(keys[index].to(device)[None], values[index].to(device)[None])

    def extend(self, n: int) -> list[tuple[Tensor, Tensor]]:
        """Append `n` columns for the caller to fill: for each layer views of its keys and values (heads, n, head_dim).

        The views are good until the cache outgrows its capacity. Something must have been appended before.
        """
        room = []
        for layer in self.layers:
            end = layer.length + n
            layer.reserve(end if end <= layer.capacity else max(end, 2 * layer.capacity))
            keys, values = layer._keys[0, :, end - n : end], layer._values[0, :, end - n : end]
            layer.length = end
            layer.crop(end)
            room.append((keys, values))
        return room

    def replace(self, edits: Sequence[tuple[int, int, Tensor, Tensor]]) -> None:
        """Put new columns in the place of others, in every layer: `edits` are (start, stop, keys, values).

        They are in order and apart; `keys`, `values` (layers, heads, n, head_dim) on any device. What stands behind
        them moves.
        """
        for index, layer in enumerate(self.layers):
            layer.replace([(start, stop, keys[index], values[index]) for start, stop, keys, values in edits])

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` columns in all."""
        for layer in self.layers:
            layer.reserve(capacity)

    def rerotate(self, start: int, cos: Tensor, sin: Tensor) -> None:
        """Turn the keys of the columns from `start` on further, in place: `cos`, `sin` (1, head_dim), for all alike."""
        for layer in self.layers:
            keys = layer.keys[:, :, start:]
            keys.copy_(rerotate(keys, cos.to(keys.device), sin.to(keys.device)))

    def columns(self, start: int) -> tuple[Tensor, Tensor]:
        """Return copies of the columns from `start` on: two tensors (layers, heads, n, head_dim)."""
        device = self.layers[0].keys.device
        keys = torch.stack([layer.keys[0, :, start:].to(device) for layer in self.layers])
        values = torch.stack([layer.values[0, :, start:].to(device) for layer in self.layers])
        return keys, values

    def crop(self, max_length: int) -> None:
        """Forget all columns from `max_length` on, in every layer."""
        for layer in self.layers:
            layer.crop(max_length)

    def nbytes(self) -> int:
        """Return the bytes of the keys and values that attention reads."""
        return sum(2 * layer.keys.numel() * layer.keys.element_size() for layer in self.layers if layer.length)


class RaggedLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of several caches of different lengths: row i of what is appended goes to cache i."""

    is_sliding = False

    def __init__(self, layers: Sequence[BufferLayer]) -> None:
        super().__init__()
        self.rows = layers

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor | None = None) -> None:
        """Do nothing: each cache has its own buffers."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[list[Tensor], list[Tensor]]:
        """Append columns (rows, heads, n, head_dim); return all keys and all values of each cache."""
        pairs = [row.update(key_states[i : i + 1], value_states[i : i + 1]) for i, row in enumerate(self.rows)]
        return [keys for keys, _ in pairs], [values for _, values in pairs]

    def get_seq_length(self, *_: Any) -> int:
        """Return the number of columns of the longest cache."""
        return max(row.length for row in self.rows)

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """Return the longest key length that the next `query_length` queries see, and its offset."""
        new = query_length if isinstance(query_length, int) else len(query_length)
        return self.get_seq_length() + new, 0

    def get_max_length(self) -> int:
        """Return -1: the buffers grow."""
        return -1

    get_max_cache_shape = get_max_length  # the name before transformers 5


class RaggedCache(Cache):  # type: ignore[misc]
    """Several caches through which one token each goes in one pass; nothing is padded, copied or shared."""

    def __init__(self, caches: Sequence[BufferCache]) -> None:
        rows = zip(*(cache.layers for cache in caches), strict=True)
        super().__init__(layers=[RaggedLayer(layers) for layers in rows])
