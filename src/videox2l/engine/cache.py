"""A KV cache that writes into preallocated buffers, one for all layers of a device."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from videox2l.engine.rope import rerotate


class BufferStore:
    """The buffers of neighbouring layers on one device: `keys` and `values` (layers, heads, capacity, head_dim).

    Columns of all these layers are copied in one operation. `capacity` columns are allocated at the first write, on
    `device`, or where what is written lies.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, layers: int, capacity: int, device: torch.device | None) -> None:
        self.capacity = capacity
        self.device = device
        self.layers = [BufferLayer(self, row) for row in range(layers)]
        self.is_initialized = False

    def allocate(self, keys: Tensor, values: Tensor) -> None:
        """Allocate buffers for columns like `keys` and `values` (..., heads, n, head_dim)."""
        self.device = self.device or keys.device
        self.keys, self.values = (
            part.new_empty(len(self.layers), part.shape[-3], self.capacity, part.shape[-1], device=self.device)
            for part in (keys, values)
        )
        self.is_initialized = True

    def make_room(self, end: int) -> None:
        """Double the buffers if they hold fewer than `end` columns."""
        if end > self.capacity:
            self.reserve(max(end, 2 * self.capacity))

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` columns in all; what is there stays. Both buffers of a side are held meanwhile."""
        if capacity <= self.capacity:
            return
        self.capacity = capacity
        if not self.is_initialized:
            return
        used = max(layer.length for layer in self.layers)
        for name in ("keys", "values"):
            old: Tensor = getattr(self, name)
            new = old.new_empty(*old.shape[:2], capacity, old.shape[3])
            new[:, :, :used] = old[:, :, :used]
            setattr(self, name, new)
            for layer in self.layers:  # or views would keep the old buffer alive
                layer.look()

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Append columns (layers, heads, n, head_dim), from any device, to all layers, which are of one length."""
        start = self.layers[0].length
        end = start + keys.shape[2]
        self.make_room(end)
        if not self.is_initialized:
            self.allocate(keys, values)
        self.keys[:, :, start:end] = keys
        self.values[:, :, start:end] = values
        self.set_length(end)

    def set_length(self, length: int) -> None:
        """Let all layers have `length` columns."""
        for layer in self.layers:
            layer.length = length
            layer.look()

    def replace(self, edits: Sequence[tuple[int, int, Tensor, Tensor]]) -> None:
        """Put new columns in the place of others; see `BufferCache.replace`."""
        length = self.layers[0].length
        keys, values, at = self.keys[:, :, :length], self.values[:, :, :length], 0
        grown = length + sum(new.shape[2] - (stop - start) for start, stop, new, _ in edits)
        self.capacity, self.is_initialized = max(self.capacity, grown), False
        self.allocate(keys, values)
        self.set_length(0)
        for start, stop, *new in [*edits, (length, length, keys[:, :, :0], values[:, :, :0])]:
            self.append(keys[:, :, at:start], values[:, :, at:start])
            self.append(*new)
            at = stop


class BufferLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer: the first `length` columns of its row of a store.

    `update` copies the new columns in and returns views, so a decoded token costs one column of
    writing instead of a copy of the whole cache.
    """

    is_sliding = False
    is_croppable = True

    def __init__(self, store: BufferStore, row: int) -> None:
        super().__init__()
        self.store, self.row = store, row
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor | None = None) -> None:
        """Allocate the store's buffers like `key_states` (1, heads, n, head_dim), unless another layer did."""
        if not self.store.is_initialized:
            self.store.allocate(key_states, key_states if value_states is None else value_states)
        self.is_initialized = True

    def look(self) -> None:
        """Make `keys` and `values`, (1, heads, length, head_dim), views of what the store holds now."""
        if self.store.is_initialized:
            row = slice(self.row, self.row + 1)
            self.keys, self.values = self.store.keys[row, :, : self.length], self.store.values[row, :, : self.length]
            self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append columns (1, heads, n, head_dim); return views of all columns."""
        start, end = self.length, self.length + key_states.shape[2]
        self.store.make_room(end)
        self.lazy_initialization(key_states, value_states)
        self.length = end
        self.look()
        self.keys[:, :, start:] = key_states
        self.values[:, :, start:] = value_states
        return self.keys, self.values

    def crop(self, length: int) -> None:
        """Forget all columns from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot crop a cache of {self.length} columns to {length}")
        self.length = length
        self.look()

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

    `devices`: where each layer's columns lie; by default all where the first ones come from. Layers are of one length,
    but while the model runs through them.
    """

    def __init__(self, layers: int, capacity: int = 0, devices: Sequence[torch.device] | None = None) -> None:
        places = itertools.groupby(devices if devices is not None else [None] * layers)
        self.stores = [BufferStore(len(list(rows)), capacity, device) for device, rows in places]
        super().__init__(layers=[layer for store in self.stores for layer in store.layers])

    def __len__(self) -> int:
        return int(self.layers[0].length)

    def __bool__(self) -> bool:
        return True  # an empty cache is still a cache

    def _parts(self, *columns: Tensor) -> list[tuple[Tensor, ...]]:
        """Return the rows of columns (layers, heads, n, head_dim) that belong to each store."""
        sizes = [len(store.layers) for store in self.stores]
        return list(zip(*(torch.split(part, sizes) for part in columns), strict=True))

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Append columns to every layer: `keys` and `values` (layers, heads, n, head_dim) on any device."""
        for store, part in zip(self.stores, self._parts(keys, values), strict=True):
            store.append(*part)

    def append_from(self, other: BufferCache, start: int, stop: int) -> None:
        """Append the columns from `start` to `stop` of a cache that lies on the same devices."""
        for store, source in zip(self.stores, other.stores, strict=True) if stop > start else ():
            store.append(source.keys[:, :, start:stop], source.values[:, :, start:stop])

    def extend(self, n: int) -> list[tuple[Tensor, Tensor]]:
        """Append `n` columns for the caller to fill: for each layer views of its keys and values (heads, n, head_dim).

        The views are good until the cache outgrows its capacity. Something must have been appended before.
        """
        room = []
        for store in self.stores:
            end = store.layers[0].length + n
            store.make_room(end)
            store.set_length(end)
            room += list(zip(store.keys[:, :, end - n : end], store.values[:, :, end - n : end], strict=True))
        return room

    def replace(self, edits: Sequence[tuple[int, int, Tensor, Tensor]]) -> None:
        """Put new columns in the place of others, in every layer: `edits` are (start, stop, keys, values).

        They are in order and apart; `keys`, `values` (layers, heads, n, head_dim) on any device. What stands behind
        them moves. While it runs the buffers of a device are held twice.
        """
        parts = [self._parts(keys, values) for _, _, keys, values in edits]
        for number, store in enumerate(self.stores):
            store.replace([(edit[0], edit[1], *part[number]) for edit, part in zip(edits, parts, strict=True)])  # type: ignore[misc]

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` columns in all."""
        for store in self.stores:
            store.reserve(capacity)

    def rerotate(self, start: int, cos: Tensor, sin: Tensor) -> None:
        """Turn the keys of the columns from `start` on further, in place: `cos`, `sin` (1, head_dim), for all alike."""
        for store in self.stores:
            keys = store.keys[:, :, start : len(self)]
            keys.copy_(rerotate(keys, cos.to(keys.device), sin.to(keys.device)))

    def columns(self, start: int) -> tuple[Tensor, Tensor]:
        """Return copies of the columns from `start` on: two tensors (layers, heads, n, head_dim), on one device."""
        device, end = self.stores[0].keys.device, len(self)
        keys = torch.cat([store.keys[:, :, start:end].to(device) for store in self.stores])
        values = torch.cat([store.values[:, :, start:end].to(device) for store in self.stores])
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
