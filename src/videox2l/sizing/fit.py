"""Settings that fit where those that were wished do not: the least harmful changes that are enough."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from videox2l.sizing.forecast import Forecast
from videox2l.sizing.wish import EstimateRequest

Try = Callable[[EstimateRequest], Forecast]

TRIES = 24
"""Forecasts made at most: each takes about a second for a model of 7B."""
_HARM = {
    "chunk_frames": 1,
    "h_ratio": 2,
    "max_pixels": 3,
    "fps": 3,
    "quantize": 3,
    "l_bits": 1,
    "l_ratio": 2,
    "l_tier": 4,
}


@dataclass(frozen=True)
class Limits:
    """Bytes of the device, and of the disk if that counts."""

    device: float
    disk: float | None = None

    def excess(self, found: Forecast) -> tuple[bool, bool]:
        """Return whether a forecast asks too much of the device, and of the disk."""
        return found.peak > self.device, self.disk is not None and sum(found.disk.values()) > self.disk


@dataclass(frozen=True)
class Fit:
    """Settings that fit, and what was changed, such as "fps 1 -> 0.5"."""

    wish: EstimateRequest
    forecast: Forecast
    changes: tuple[str, ...]


def fitting(wish: EstimateRequest, first: Forecast, limits: Limits, forecast: Try, pixels: int | None) -> Fit | None:
    """Return the settings that fit with the least harm, or None where none of those that were tried do.

    `first`: the forecast of `wish`. `pixels` of a frame as the model sees it, None where that cannot be changed. Steps
    halve or double one setting; the fewer and the less harmful, the earlier they are tried.
    """
    order = count()
    heap: list[tuple[int, int, EstimateRequest, Forecast]] = [(0, next(order), wish, first)]
    seen = {wish}
    tries = 0
    while heap:
        harm, _, at, found = heapq.heappop(heap)
        device, disk = limits.excess(found)
        if not device and not disk:
            return Fit(at, found, differences(wish, at))
        for name, step in steps(at, found, device, disk, pixels, limits):
            if step in seen or tries >= TRIES:
                continue
            seen.add(step)
            tries += 1
            heapq.heappush(heap, (harm + _HARM[name], next(order), step, forecast(step)))
    return None


def steps(
    wish: EstimateRequest, found: Forecast, device: bool, disk: bool, pixels: int | None, limits: Limits
) -> Iterator[tuple[str, EstimateRequest]]:
    """Yield the next changes of each setting that can help with what is exceeded."""
    ratios = wish.ratios
    frames = int(found.settings["chunk_frames"])
    if device:
        stays = found.ingest.weights + found.ingest.overhead
        if stays > 0.7 * limits.device and wish.quantize != "4bit":
            yield "quantize", wish.but(quantize="4bit" if wish.quantize == "8bit" else "8bit")
        if stays >= limits.device:
            return  # nothing else can help
        if frames % 4 == 0:
            yield "chunk_frames", wish.but(chunk_frames=frames // 2)
        if len(ratios) > 1 and ratios[-1] < 128:
            yield "h_ratio", wish.but(ratios=(*ratios[:-1], ratios[-1] * 2))
        if pixels is not None and (wish.max_pixels or pixels) >= 2 * 28 * 28 * 16:
            yield "max_pixels", wish.but(max_pixels=(wish.max_pixels or pixels) // 2)
    if disk:
        if wish.l_bits != 4 and wish.l_tier == "stored":
            yield "l_bits", wish.but(l_bits=4 if wish.l_bits == 8 else 8)
        if len(ratios) > 1 and wish.l_tier == "stored" and ratios[0] * 2 < ratios[-1]:
            yield "l_ratio", wish.but(ratios=(ratios[0] * 2, *ratios[1:]))
        if wish.l_tier != "none":
            yield "l_tier", wish.but(l_tier="none")
    rate = found.frames / max(found.seconds["video"], 1e-9)
    if found.frames > 8:
        yield "fps", wish.but(fps=float(f"{(wish.fps or rate) / 2:.3g}"))


def differences(old: EstimateRequest, new: EstimateRequest) -> tuple[str, ...]:
    """Return what differs between two wishes, in words."""
    said = []
    for name in ("quantize", "chunk_frames", "ratios", "max_pixels", "fps", "l_bits", "l_tier"):
        one, two = getattr(old, name), getattr(new, name)
        if one != two:
            said.append(f"{name} {_plain(one)} -> {_plain(two)}")
    return tuple(said)


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{part:g}" for part in value)
    return "default" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
