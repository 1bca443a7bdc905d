"""How levels lie in objects: safetensors, cut into segments that are read and checked one by one; quantization.

A part holds some tokens of a level for all layers. Of a ranked level the parts follow one another in order of
importance, so that the first parts are all that a coarser ratio needs; of other levels each is one part.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from videox2l.errors import SettingsError
from videox2l.memory.disk.objects import (
    ITEMSIZE,
    NAMES,
    Segment,
    StoredShape,
    TensorSpec,
    dtype_name,
    level_fields,
)
from videox2l.memory.levels import LevelKV
from videox2l.types import KVShape

_DTYPES = {written: getattr(torch, name) for name, written in NAMES.items()}
_ALIGN = 64


def level_tensors(level: LevelKV, bits: int | None) -> list[Tensor]:
    """Return the tensors of `level_fields` for a level."""
    head = [] if level.positions is None else [level.positions.long()]
    head.append(level.index.int())
    if bits is None:
        return [*head, level.keys, level.values]
    keys, key_scale, key_zero = quantise(level.keys, bits, PER_TOKEN)
    values, value_scale, value_zero = quantise(level.values, bits, PER_CHANNEL)
    return [*head, key_scale, key_zero, value_scale, value_zero, keys, values]


def level_from(found: Mapping[str, Tensor], bits: int | None, dtype: torch.dtype, ranked: bool) -> LevelKV:
    """Return the level that a part's tensors hold."""
    pair = [found["keys"], found["values"]]
    if bits is not None:
        pair = [
            dequantise(codes, found[f"{name}.scale"], found[f"{name}.zero"], bits, dtype)
            for name, codes in zip(("keys", "values"), pair, strict=True)
        ]
    return LevelKV(pair[0], pair[1], found["index"], ranked, found.get("positions"))


def joined(levels: Sequence[LevelKV], n: int) -> LevelKV:
    """Return the first `n` tokens of levels that follow one another."""
    if len(levels) == 1:
        return levels[0] if len(levels[0]) == n else levels[0].first(n)
    keys, values, index = (
        torch.cat([getattr(level, name) for level in levels], dim=2)[:, :, :n] for name in ("keys", "values", "index")
    )
    return LevelKV(keys, values, index, levels[0].ranked)


def cuts(n: int, sizes: Sequence[int], bits: int | None) -> list[tuple[int, int]]:
    """Return the parts of a ranked level of `n` tokens: cut at the levels' `sizes`, and at n / 2, n / 4, ...

    Any coarser level then reads less than twice its own bytes, down to the coarsest of `sizes`. Quantised levels are
    cut at `sizes` alone: every part has scales of its own.
    """
    least = min(sizes) if bits is None else n
    edges = {0, n, *(size for size in sizes if size < n)}
    half = n
    while half // 2 > least:
        half //= 2
        edges.add(half)
    ordered = sorted(edges)
    return list(itertools.pairwise(ordered))


def raw(tensor: Tensor) -> memoryview:
    """Return a contiguous CPU tensor's bytes, shared."""
    flat = tensor.reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy().data).cast("B")


def view_as(buffer: Tensor, fields: Sequence[TensorSpec], at: int) -> dict[str, Tensor]:
    """Return the tensors that lie in `buffer` (bytes,) uint8 from `at` on: views where their alignment allows."""
    found = {}
    for field in fields:
        piece = buffer[at : at + field.nbytes]
        if piece.data_ptr() % ITEMSIZE[field.dtype]:
            piece = piece.clone()
        found[field.name] = piece.view(_DTYPES[field.dtype]).reshape(field.shape)
        at += field.nbytes
    return found


def header_of(specs: Sequence[TensorSpec]) -> bytes:
    """Return what a safetensors object begins with; its tensors follow one another."""
    header: dict[str, Any] = {}
    at = 0
    for spec in specs:
        header[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [at, at + spec.nbytes]}
        at += spec.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGN)
    return len(text).to_bytes(8, "little") + text


class ObjectBuilder:
    """Collects parts, and gives out the bytes of a safetensors object and where its parts lie."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, int, int]] = []
        self.tensors: list[list[tuple[str, Tensor]]] = []

    def add(self, label: str, first: int, stop: int, tensors: Mapping[str, Tensor]) -> None:
        """Add a part with tokens `first` to `stop`; its tensors are called `label.name`."""
        self.parts.append((label, first, stop))
        self.tensors.append([(f"{label}.{name}", tensor.cpu().contiguous()) for name, tensor in tensors.items()])

    def add_level(self, label: str, first: int, level: LevelKV, shape: KVShape, bits: int | None) -> None:
        """Add a part that holds a level."""
        self.add(label, first, first + len(level), _named_tensors(level, shape, bits))

    def add_coarse(self, positions: Tensor, level: LevelKV, shape: KVShape, bits: int | None) -> None:
        """Add a chunk's piece of the pack: `positions` (axes, n) of its raw visual tokens, and its coarsest level."""
        self.add("coarse", 0, len(level), {"at": positions.int(), **_named_tensors(level, shape, bits)})

    def build(self) -> tuple[list[memoryview], list[Segment]]:
        """Return the object in pieces, and its parts."""
        named = itertools.chain.from_iterable(self.tensors)
        specs = [TensorSpec(name, dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in named]
        pieces = [memoryview(header_of(specs))]
        parts = []
        at = start = 0
        digest = hashlib.sha256(pieces[0])
        at = len(pieces[0])
        for (label, first, stop), group in zip(self.parts, self.tensors, strict=True):
            data = at
            for _, tensor in group:
                pieces.append(raw(tensor))
                digest.update(pieces[-1])
                at += tensor.nbytes
            parts.append(Segment(label, first, stop, start, data, at, digest.hexdigest()))
            start, digest = at, hashlib.sha256()
        return pieces, parts


def own_axes(level: LevelKV) -> int:
    """Return the axes of a level's own positions, 0 if it has none."""
    return 0 if level.positions is None else level.positions.shape[0]


def _named_tensors(level: LevelKV, shape: KVShape, bits: int | None) -> dict[str, Tensor]:
    fields = level_fields(StoredShape.of(shape), len(level), bits, own_axes(level))
    return {field.name: tensor for field, tensor in zip(fields, level_tensors(level, bits), strict=True)}


PER_TOKEN, PER_CHANNEL = -1, -2


def quantise(x: Tensor, bits: int, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, scale and zero of `x` (..., n, d), so that x is about codes * scale + zero.

    `axis` is the one over which scale and zero (float32) are shared: PER_TOKEN d, PER_CHANNEL n. Codes are uint8; with
    4 bits, two to a byte along d, the even one in the lower half. Each value comes back within half a scale, rounding
    of the result to the dtype aside; constant runs come back as they were.
    """
    x = x.float()
    zero = x.amin(axis, keepdim=True)
    top = float((1 << bits) - 1)
    scale = (x.amax(axis, keepdim=True) - zero) / top
    codes = ((x - zero) / scale.where(scale > 0, 1.0)).round_().clamp_(0, top).to(torch.uint8)
    if bits == 4:
        if codes.shape[-1] % 2:
            raise SettingsError(f"4 bits are not possible for a head size of {codes.shape[-1]}: it is odd; use 8")
        codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return codes.contiguous(), scale, zero


def dequantise(codes: Tensor, scale: Tensor, zero: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Return what `quantise` took, within its error, as (..., n, d) of `dtype`."""
    if bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)
    return codes.float().mul_(scale).add_(zero).to(dtype)
