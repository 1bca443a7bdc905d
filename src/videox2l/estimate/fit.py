"""Settings that fit where those that were asked for do not: the least harmful changes that are enough."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from videox2l.estimate.devices import Device
from videox2l.estimate.forecast import EstimateRequest, Forecast, forecast
from videox2l.estimate.header import VideoHeader
from videox2l.estimate.model import ModelShape, model_shape

TRIES = 48
"""Forecasts made at most."""
_HARM = {
    "chunk_frames": 1,
    "l_bits": 1,
    "l_ratio": 2,
    "h_ratio": 2,
    "max_pixels": 3,
    "fps": 3,
    "quantize": 3,
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

    request: EstimateRequest
    forecast: Forecast
    changes: tuple[str, ...]


class Planner:
    """Makes forecasts of one video on one device for one model, whose config is read once per options of loading."""

    def __init__(self, model: str, video: VideoHeader, device: Device) -> None:
        self.model, self.video, self.device = model, video, device
        self._shapes: dict[str, ModelShape] = {}

    def forecast(self, request: EstimateRequest) -> Forecast:
        """Return the forecast for some settings."""
        return forecast(self._shape(request), self.video, self.device, request, self.model)

    def _shape(self, request: EstimateRequest) -> ModelShape:
        key = repr(request.load)
        if key not in self._shapes:
            self._shapes[key] = model_shape(self.model, request.load, self.device.name.startswith("cpu"))
        return self._shapes[key]


def fitting(
    request: EstimateRequest,
    first: Forecast,
    limits: Limits,
    estimate: Callable[[EstimateRequest], Forecast],
) -> Fit | None:
    """Return the settings that fit with the least harm, or None where none of those that were tried do.

    `first`: the forecast of `request`. Steps halve or double one setting; the fewer and the less harmful, the earlier
    they are tried.
    """
    order = count()
    heap = [(0, next(order), request, first)]
    seen = {repr(request)}
    while heap:
        harm, _, at, found = heapq.heappop(heap)
        device, disk = limits.excess(found)
        if not device and not disk:
            return Fit(at, found, differences(request, at))
        for name, step in steps(at, found, device, disk, limits):
            if repr(step) not in seen and len(seen) <= TRIES:
                seen.add(repr(step))
                heapq.heappush(heap, (harm + _HARM[name], next(order), step, estimate(step)))
    return None


def steps(
    at: EstimateRequest, found: Forecast, device: bool, disk: bool, limits: Limits
) -> Iterator[tuple[str, EstimateRequest]]:
    """Yield the next changes of each setting that can help with what is exceeded."""
    options, ratios, frames = at.ingest, at.ingest.ratios, int(found.settings["chunk_frames"])
    if device:
        stays = found.ingest.weights + found.ingest.overhead
        if stays > 0.7 * limits.device and at.load.quantize != "4bit":
            yield "quantize", at.but(quantize="4bit" if at.load.quantize == "8bit" else "8bit")
        if stays >= limits.device:
            return  # nothing else can help
        if frames % 4 == 0:
            yield "chunk_frames", at.but(chunk_frames=frames // 2)
        if len(ratios) > 1 and ratios[-1] < 128:
            yield "h_ratio", at.but(ratios=(*ratios[:-1], ratios[-1] * 2))
        if found.pixels is not None and (most := at.load.max_pixels or found.pixels) >= 2 * 28 * 28 * 16:
            yield "max_pixels", at.but(max_pixels=most // 2)
    if disk:
        if options.l_bits != 4 and options.l_tier == "stored":
            yield "l_bits", at.but(l_bits=4 if options.l_bits == 8 else 8)
        if len(ratios) > 1 and options.l_tier == "stored" and ratios[0] * 2 < ratios[-1]:
            yield "l_ratio", at.but(ratios=(ratios[0] * 2, *ratios[1:]))
        if options.l_tier != "none":
            yield "l_tier", at.but(l_tier="none")
    if found.frames > 8:
        rate = found.frames / max(found.seconds["video"] or 0.0, 1e-9)
        yield "fps", at.but(fps=float(f"{(options.fps or rate) / 2:.3g}"))


def differences(old: EstimateRequest, new: EstimateRequest) -> tuple[str, ...]:
    """Return what differs between two requests, in words."""
    before, after = ({**vars(each.ingest), **vars(each.load)} for each in (old, new))
    return tuple(f"{name} {_plain(one)} -> {_plain(after[name])}" for name, one in before.items() if one != after[name])


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{part:g}" for part in value)
    return "default" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
