"""Settings that fit where those that were asked for do not: the least harmful changes that are enough."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count

from videox2l.errors import SettingsError
from videox2l.estimate.devices import Device
from videox2l.estimate.forecast import EstimateRequest, Forecast, forecast
from videox2l.estimate.header import VideoHeader
from videox2l.estimate.model import ModelShape, model_shape

TRIES = 48
"""Forecasts made at most."""
Estimate = Callable[[EstimateRequest], Forecast]


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


def estimator(model: str, video: VideoHeader, device: Device) -> Estimate:
    """Return what makes forecasts of one video on one device; a model's config is read once per options of loading."""
    shapes: dict[str, ModelShape] = {}

    def estimate(request: EstimateRequest) -> Forecast:
        key = repr(request.load)
        if key not in shapes:
            shapes[key] = model_shape(model, request.load, device.name.startswith("cpu"))
        return forecast(shapes[key], video, device, request, model)

    return estimate


def fitting(request: EstimateRequest, first: Forecast, limits: Limits, estimate: Estimate) -> Fit | None:
    """Return the settings that fit with the least harm, or None where none of those that were tried do.

    `first`: the forecast of `request`. Steps halve or double one setting, or quarter a window; the fewer and the less
    harmful, the earlier they are tried.
    """
    order, seen = count(), {repr(request)}
    heap = [(0, next(order), request, first)]
    while heap:
        harm, _, at, found = heapq.heappop(heap)
        if not any(limits.excess(found)):
            return Fit(at, found, differences(request, at))
        for more, step in steps(at, found, limits):
            if repr(step) not in seen and len(seen) <= TRIES:
                seen.add(repr(step))
                with suppress(SettingsError):  # what this model cannot do, such as weights that are quantized already
                    heapq.heappush(heap, (harm + more, next(order), step, estimate(step)))
    return None


def steps(at: EstimateRequest, found: Forecast, limits: Limits) -> Iterator[tuple[int, EstimateRequest]]:
    """Yield the next changes of each setting that can help with what is exceeded, and the harm that each does."""
    options, ratios, frames = at.ingest, at.ingest.ratios, int(found.settings["chunk_frames"])
    device, disk = limits.excess(found)
    if device:
        stays = found.ingest.weights + found.ingest.overhead
        if stays > 0.7 * limits.device and at.load.quantize != "4bit":
            yield 3, at.but(quantize="4bit" if at.load.quantize == "8bit" else "8bit")
        if stays >= limits.device:
            return  # nothing else can help
        if (window := int(found.settings["window_chunks"])) > 1:
            yield 1, at.but(window_chunks=max(1, window // 4))
        if frames % 4 == 0:
            yield 1, at.but(chunk_frames=frames // 2)
        if len(ratios) > 1 and ratios[-1] < 128:
            yield 2, at.but(ratios=(*ratios[:-1], ratios[-1] * 2))
        if found.pixels is not None and (most := at.load.max_pixels or found.pixels) >= 2 * 28 * 28 * 16:
            yield 3, at.but(max_pixels=most // 2)
    if disk:
        if options.l_bits != 4 and options.l_tier == "stored":
            yield 1, at.but(l_bits=4 if options.l_bits == 8 else 8)
        if len(ratios) > 1 and options.l_tier == "stored" and ratios[0] * 2 < ratios[-1]:
            yield 2, at.but(ratios=(ratios[0] * 2, *ratios[1:]))
        if options.l_tier != "none":
            yield 4, at.but(l_tier="none")
    if found.frames > 8 and options.at is None:
        rate = found.frames / max(found.seconds["video"] or 0.0, 1e-9)
        yield 3, at.but(fps=float(f"{(options.fps or rate) / 2:.3g}"))


def differences(old: EstimateRequest, new: EstimateRequest) -> tuple[str, ...]:
    """Return what differs between two requests, in words."""
    before, after = ({**vars(each.ingest), **vars(each.load)} for each in (old, new))
    return tuple(f"{name} {_plain(one)} -> {_plain(after[name])}" for name, one in before.items() if one != after[name])


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{part:g}" for part in value)
    return "default" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
