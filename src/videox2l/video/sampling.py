"""Which frames of a video to take: the settings, and the choice that follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from videox2l.errors import SettingsError
from videox2l.units import as_times

Mode = Literal["auto", "exact", "fast"]

#: Times closer than this (seconds) count as equal.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class FrameSampling:
    """Which frames to take: for every k the first frame with pts >= start + k / fps, each frame once.

    fps: samples per second. None takes every frame, or `max_frames` spread over the range if that is given.
    max_frames: upper bound; `fps` is lowered until it holds.
    start, end: range in seconds since the first frame, half open: start <= pts < end.
    at: times in seconds, which rise: of each the frame that is shown then, which is the last with pts <= time. The
        other settings must be None then, and the mode "auto" or "exact".
    mode: how much is decoded on the way.
        "exact" decodes every frame of the range.
        "auto" takes the same frames, but leaves out those on which no sampled frame depends.
        "fast" may besides move a sample to a key frame that is at most half a step away.
        Where a file does not allow skipping, both fall back to "exact"; the manifest says so.

    Raises `SettingsError` for values that cannot work.
    """

    fps: float | None = 1.0
    max_frames: int | None = None
    start: float | None = None
    end: float | None = None
    mode: Mode = "auto"
    at: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("fps", "start", "end"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise SettingsError(f"{name}={value!r} is not a finite number. Give a number, or None.")
        if self.fps is not None and self.fps <= 0:
            raise SettingsError(f"fps={self.fps!r} must be above 0. Use None to take every frame.")
        limit = self.max_frames
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise SettingsError(f"max_frames={limit!r} must be a whole number of at least 1, or None.")
        if self.start is not None and self.start < 0:
            raise SettingsError(f"start={self.start!r} must not be negative: seconds since the first frame.")
        if self.end is not None and self.end <= (self.start or 0.0):
            raise SettingsError(f"end={self.end!r} must be above start={self.start or 0.0!r} (seconds).")
        if self.mode not in ("auto", "exact", "fast"):
            raise SettingsError(f"mode={self.mode!r} is unknown. Use 'auto', 'exact' or 'fast'.")
        if self.at is not None:
            object.__setattr__(self, "at", as_times(self.at, "at"))
            if (self.fps, self.max_frames, self.start, self.end) != (None,) * 4 or self.mode == "fast":
                raise SettingsError("at=... goes with fps=None and mode 'auto' or 'exact' alone: leave the others out.")


@dataclass(frozen=True, eq=False)
class FrameChoice:
    """The frames that a `SamplingParams` takes of one video.

    picks: (n,) int64, presentation-order indices, ascending.
    first, last: the frames of the range, half open, as presentation-order indices.
    fps: what was used; None if every frame of the range is taken.
    note: why fps was lowered, or None.
    """

    picks: npt.NDArray[np.int64]
    first: int
    last: int
    fps: float | None
    note: str | None = None


def choose(seconds: npt.NDArray[np.float64], duration: float, sampling: FrameSampling) -> FrameChoice:
    """Apply a `SamplingParams` to the presentation times of all frames.

    seconds: (n,) float64, ascending, first frame at 0. duration: seconds up to the end of the last frame.
    Raises `SettingsError` if the range holds no frame, or no frame of its own is shown at a time that is listed.
    """
    if sampling.at is not None:
        return _shown_at(seconds, duration, sampling.at)
    start = sampling.start or 0.0
    end = math.inf if sampling.end is None else sampling.end
    first = int(np.searchsorted(seconds, start - TOLERANCE))
    last = int(np.searchsorted(seconds, end - TOLERANCE))
    if start >= duration or first >= len(seconds):
        raise SettingsError(f"start={start!r} is outside the video, which lasts {duration:.3f} s.")
    if first >= last:
        raise SettingsError(
            f"no frame lies between start={start!r} and end={end!r}; the video lasts {duration:.3f} s. Widen the range."
        )
    inside = seconds[first:last]
    span = min(end, duration) - start
    limit = sampling.max_frames
    if sampling.fps is None:
        if limit is None or len(inside) <= limit:
            return FrameChoice(np.arange(first, last, dtype=np.int64), first, last, None)
        picks = _grid(inside - start, limit / span, limit)
        return FrameChoice(first + picks, first, last, limit / span)
    picks = _grid(inside - start, sampling.fps)
    if limit is None or len(picks) <= limit:
        return FrameChoice(first + picks, first, last, sampling.fps)
    fps = limit / span
    note = f"fps {sampling.fps} lowered to {fps:.4g} so that max_frames={limit} holds"
    return FrameChoice(first + _grid(inside - start, fps, limit), first, last, fps, note)


def _shown_at(seconds: npt.NDArray[np.float64], duration: float, at: tuple[float, ...]) -> FrameChoice:
    """Choose the frames that are shown at some times; they are the range, too."""
    if at[-1] >= duration - TOLERANCE:
        first = next(time for time in at if time >= duration - TOLERANCE)
        raise SettingsError(f"at: {first:g} s is outside the video, which lasts {duration:.3f} s: leave it out.")
    picks = np.searchsorted(seconds, np.array(at) + TOLERANCE, side="right").astype(np.int64) - 1
    for pair in np.flatnonzero(np.diff(picks) == 0)[:1].tolist():
        raise SettingsError(
            f"at: one frame, that of {seconds[picks[pair]]:.3f} s, is shown at both {at[pair]:g} s and "
            f"{at[pair + 1]:g} s: leave one of them out."
        )
    return FrameChoice(picks, int(picks[0]), int(picks[-1]) + 1, None)


def _grid(since: npt.NDArray[np.float64], fps: float, limit: int | None = None) -> npt.NDArray[np.int64]:
    """Indices of the frames that are the first of their grid cell; `since` is seconds since the start."""
    cells = np.floor((since + TOLERANCE) * fps)
    if limit is not None:
        cells = np.minimum(cells, limit - 1)
    return np.flatnonzero(np.diff(cells, prepend=-1.0) > 0).astype(np.int64)
