"""What lies where in a memory: shapes, tensors by name, and segments of objects. Knows no torch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from videox2l.errors import MemoryFileError
from videox2l.types import KVShape

if TYPE_CHECKING:
    import torch

NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "uint8": "U8",
}  # fmt: skip
"""How safetensors writes dtypes."""
INDEX = "index"
"""The feature of a chunk that `videox2l.memory.features` describes under this name."""
HEADER = 8
"""Rows of an `INDEX` before those of its keys."""
ITEMSIZE = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1}


def dtype_name(dtype: torch.dtype) -> str:
    """Return how safetensors writes a dtype."""
    return NAMES[str(dtype).removeprefix("torch.")]


@dataclass(frozen=True)
class StoredShape:
    """The shape of one token's KVs as a manifest says it: `KVShape` with its dtype by name, such as "float16"."""

    layers: int
    heads: int
    head_dim: int
    dtype: str

    @classmethod
    def of(cls, shape: KVShape) -> StoredShape:
        """Return what a manifest says of a shape."""
        return cls(shape.layers, shape.heads, shape.head_dim, str(shape.dtype).removeprefix("torch."))

    def loaded(self) -> KVShape:
        """Return the shape with torch's dtype."""
        import torch

        return KVShape(self.layers, self.heads, self.head_dim, getattr(torch, self.dtype))

    @property
    def token_bytes(self) -> int:
        """Bytes of the KVs of one token over all layers."""
        return 2 * self.layers * self.heads * self.head_dim * ITEMSIZE[NAMES[self.dtype]]


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a part: its `name`, `dtype` as safetensors writes it ("F32"), and `shape`."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * ITEMSIZE[self.dtype]

    def to_json(self) -> list[Any]:
        """Return the field as a JSON list: name, dtype, shape."""
        return [self.name, self.dtype, list(self.shape)]

    @classmethod
    def from_json(cls, values: Sequence[Any]) -> TensorSpec:
        """Read what `to_json` wrote."""
        name, dtype, shape = values
        if dtype not in ITEMSIZE:
            raise ValueError(f"dtype {str(dtype)[:40]}")
        return cls(str(name), dtype, tuple(int(n) for n in shape))


@dataclass(frozen=True)
class Segment:
    """Where a part lies in its object: bytes `start` to `end`, its tensors from `data` on, and their SHA-256.

    `first`, `stop`: which tokens of the level it holds. The first part begins with the object's header.
    """

    label: str
    first: int
    stop: int
    start: int
    data: int
    end: int
    sha256: str

    def __len__(self) -> int:
        return self.stop - self.first

    def to_json(self) -> list[Any]:
        """Return the part as a JSON list, in the order of its fields."""
        return [self.label, self.first, self.stop, self.start, self.data, self.end, self.sha256]

    @classmethod
    def from_json(cls, values: Sequence[Any]) -> Segment:
        """Read what `to_json` wrote."""
        label, first, stop, start, data, end, sha256 = values
        part = cls(str(label), int(first), int(stop), int(start), int(data), int(end), str(sha256))
        if not (0 <= part.first < part.stop and 0 <= part.start <= part.data <= part.end):
            raise ValueError(f"part {list(values)}")
        return part


def level_fields(shape: StoredShape, n: int, bits: int | None, axes: int = 0) -> list[TensorSpec]:
    """Return the tensors of a part of `n` tokens, in the order in which they lie in it.

    `axes`: of the level's own positions; 0 if it has none.
    """
    layers, heads, d = shape.layers, shape.heads, shape.head_dim
    fields = [TensorSpec("positions", "I64", (axes, n))] if axes else []
    fields.append(TensorSpec("index", "I32", (layers, heads, n)))
    if bits is None:
        return [*fields, *(TensorSpec(name, NAMES[shape.dtype], (layers, heads, n, d)) for name in ("keys", "values"))]
    for name, scales in (("keys", (layers, heads, n, 1)), ("values", (layers, heads, 1, d))):
        fields += [
            TensorSpec(f"{name}.scale", "F32", scales),
            TensorSpec(f"{name}.zero", "F32", scales),
        ]
    width = d // 2 if bits == 4 else d
    return [*fields, *(TensorSpec(name, "U8", (layers, heads, n, width)) for name in ("keys", "values"))]


def coarse_fields(
    shape: StoredShape, axes: int, tokens: int, n: int, bits: int | None, own_axes: int
) -> list[TensorSpec]:
    """Return the tensors of a chunk's piece of the pack: positions of its raw visual tokens, and the coarsest level."""
    return [TensorSpec("at", "I32", (axes, tokens)), *level_fields(shape, n, bits, own_axes)]


def check_hash(data: bytes | memoryview, sha256: str, where: str) -> None:
    """Raise MemoryFileError when `data` is not what was written; `where` names it."""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise damaged(where)


def damaged(where: str, why: str = "its content does not match its hash") -> MemoryFileError:
    """Return the error for an object that is damaged."""
    return MemoryFileError(f"{where} is damaged: {why}; copy the memory again, or ingest the video again")
