"""Classes of devices: how much they hold, how fast they are, and how much of that is taken as usable."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from videox2l.errors import SettingsError

USED_COMPUTE = 0.4
"""Share of the peak that a prefill is taken to reach."""
USED_BANDWIDTH = 0.6
"""Share of memory bandwidth that decoding is taken to reach."""
OVERHEAD = 0.8e9
"""Bytes that a CUDA context, its libraries and the allocator's leftovers take."""
_UNITS = {"": 1.0, "B": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


@dataclass(frozen=True)
class Device:
    """A class of devices, by its maker's data sheet.

    `memory` bytes; `flops` per second in 16 bits, dense; `bandwidth` bytes per second of its memory, `link` of what
    brings levels to it from host memory. `overhead` bytes are taken before anything is loaded.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    link: float = 25e9
    overhead: float = OVERHEAD


DEVICES = (
    Device("t4", 16e9, 65e12, 320e9, 12e9),
    Device("l4", 24e9, 121e12, 300e9),
    Device("rtx3090", 24e9, 71e12, 936e9),
    Device("rtx4090", 24e9, 165e12, 1008e9),
    Device("rtx5090", 32e9, 209e12, 1792e9, 50e9),
    Device("a100-40g", 40e9, 312e12, 1555e9),
    Device("l40s", 48e9, 362e12, 864e9),
    Device("a100", 80e9, 312e12, 2039e9),
    Device("h100", 80e9, 989e12, 3350e9, 50e9),
    Device("h200", 141e9, 989e12, 4800e9, 50e9),
    Device("cpu", 64e9, 1e12, 50e9, 50e9, 0.0),
)
_BY_SIZE = ("t4", "rtx4090", "rtx5090", "a100-40g", "l40s", "a100", "h200")


def device_for(text: str) -> Device:
    """Return the device that "24G", "h100" or "h100:60G" means; a size alone is taken to be a usual card of that size.

    Raises SettingsError that lists what is possible.
    """
    name, _, size = text.lower().partition(":")
    known = {device.name: device for device in DEVICES}
    if name in known:
        return replace(known[name], name=text.lower(), memory=parse_bytes(size)) if size else known[name]
    if size or not re.match(r"[\d.]", name):
        raise SettingsError(f"gpu '{text}' is not known: give its memory such as 24G, or one of {', '.join(known)}")
    memory = parse_bytes(name)
    like = next((known[each] for each in _BY_SIZE if known[each].memory >= memory), known["h200"])
    return replace(like, name=f"{text} (as {like.name})", memory=memory)


def parse_bytes(text: str) -> float:
    """Return the bytes that "24G", "500M" or "1.5 GB" means (thousands, not 1,024)."""
    found = re.fullmatch(r"\s*([\d.]+)\s*([kmgt]?)i?b?\s*", text, re.IGNORECASE)
    try:
        if found:
            return float(found[1]) * _UNITS[found[2].upper()]
    except ValueError:
        pass
    raise SettingsError(f"'{text}' is no size: write such as 24G or 500M")
