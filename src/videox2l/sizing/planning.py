"""Many forecasts of one video on one device, for one model: what does not change is done once."""

from __future__ import annotations

from videox2l.backbones.checkpoint import first_line
from videox2l.errors import ModelError
from videox2l.sizing.devices import Device
from videox2l.sizing.dryrun import VisionRun
from videox2l.sizing.footage import Footage
from videox2l.sizing.forecast import Forecast, forecast
from videox2l.sizing.sketch import Sketch, sketch
from videox2l.sizing.wish import EstimateRequest


class Planner:
    """Makes forecasts for settings; models are sketched once per precision and size of frames."""

    def __init__(self, model: str, revision: str | None, footage: Footage, device: Device) -> None:
        self.model, self.revision, self.footage, self.device = model, revision, footage, device
        self._sketches: dict[tuple[object, ...], Sketch] = {}
        self._seen: dict[tuple[object, ...], VisionRun] = {}

    def sketch(self, wish: EstimateRequest) -> Sketch:
        """Return the sketch of the model for some settings."""
        key = (wish.max_pixels, wish.dtype, wish.quantize)
        if key not in self._sketches:
            self._sketches[key] = sketch(
                self.model,
                revision=self.revision,
                max_pixels=wish.max_pixels,
                dtype=wish.dtype,
                quantize=wish.quantize,
            )
        return self._sketches[key]

    def forecast(self, wish: EstimateRequest) -> Forecast:
        """Return the forecast for some settings."""
        try:
            return self._forecast(wish)
        except (NotImplementedError, IndexError, RuntimeError) as error:
            raise ModelError(
                f"'{self.model}' cannot be planned: its code looks at values, which are not there ({first_line(error)})"
            ) from error

    def _forecast(self, wish: EstimateRequest) -> Forecast:
        return forecast(self.sketch(wish), self.footage, self.device, wish, self.model, self._seen)

    def pixels(self, wish: EstimateRequest) -> int | None:
        """Return the pixels of a frame as the model sees it, None for families of one fixed size."""
        frames = getattr(getattr(self.sketch(wish).backbone, "vision", None), "frames", None)
        if frames is None or not hasattr(frames, "max_pixels"):
            return None
        height, width = frames.size(self.footage.height, self.footage.width)
        return int(height * width)
