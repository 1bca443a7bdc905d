"""Classes of devices: how much they hold, and how fast one of them was where that was measured."""

from __future__ import annotations

from dataclasses import dataclass, replace

from videox2l.errors import SettingsError
from videox2l.units import parse_bytes

OVERHEAD = 800_000_000
"""Bytes that a CUDA context, its libraries and the allocator's leftovers take: an assumption."""


@dataclass(frozen=True)
class MeasuredPace:
    """What was measured on a device, and `source`, where that stands.

    An ingest takes `layer` seconds per chunk and layer (of vision tower and decoder) or its FLOPs at `flops` per
    second, whichever is more; the first token `first` seconds per decoder layer, selection included, others `next`.
    """

    source: str
    layer: float
    flops: float
    first: float
    next: float


_H200 = MeasuredPace(
    "one H200, shape of Qwen2.5-VL 7B in bfloat16, 3,600 frames of 224x224: ingest 60 s with the GPU busy 24 % of it, "
    "first token 44 ms, later ones 20 ms (docs/scale.md)",
    layer=60 / 450 / (28 + 32),
    flops=2.19e15 / (0.24 * 60),
    first=0.044 / 28,
    next=0.020 / 28,
)


@dataclass(frozen=True)
class Device:
    """A class of devices: `memory` bytes, of which `overhead` are taken before anything is loaded."""

    name: str
    memory: int
    overhead: int = OVERHEAD
    pace: MeasuredPace | None = None


_GB = {
    "t4": 16,
    "l4": 24,
    "rtx3090": 24,
    "rtx4090": 24,
    "rtx5090": 32,
    "a100-40g": 40,
    "l40s": 48,
    "a100": 80,
    "h100": 80,
}
DEVICES = {name: Device(name, size * 10**9) for name, size in _GB.items()} | {
    "h100": Device("h100", 80 * 10**9),
    "h200": Device("h200", 141 * 10**9, pace=_H200),
    "cpu": Device("cpu", 64 * 10**9, overhead=0),
}


def device_for(text: str) -> Device:
    """Return the device that "24G", "h100" or "h100:60G" means. Raises SettingsError that lists what is possible."""
    name, _, size = text.lower().partition(":")
    if name in DEVICES:
        known = DEVICES[name]
        return replace(known, name=text.lower(), memory=parse_bytes(size, "gpu")) if size else known
    if size or not name[:1].isdigit():
        raise SettingsError(f"gpu '{text}' is not known: give its memory such as 24G, or one of {', '.join(DEVICES)}")
    return Device(text, parse_bytes(name, "gpu"))
