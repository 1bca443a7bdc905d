"""Frames that are in memory already."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from videox2l.errors import SettingsError, VideoError
from videox2l.video.source import Frame, Manifest


class ArraySource:
    """Gives out frames from memory. A `FrameSource`.

    frames: (T, height, width, 3) uint8 RGB array, or an iterable of (height, width, 3) uint8 arrays.
    fps: frame k is at k / fps seconds. pts: or the times themselves, ascending seconds, one for each frame.
    name: what the manifest calls the source.

    The manifest's sha256 covers pixels, shape and times. An array is hashed at once, an iterable as it passes by.
    Raises `SettingsError` for values that cannot work, `VideoError` for frames of another shape or type.
    """

    def __init__(
        self,
        frames: npt.NDArray[np.uint8] | Iterable[npt.NDArray[np.uint8]],
        *,
        fps: float = 1.0,
        pts: Sequence[float] | None = None,
        name: str = "array",
    ) -> None:
        if isinstance(fps, bool) or not isinstance(fps, int | float) or not (math.isfinite(fps) and fps > 0):
            raise SettingsError(f"fps={fps!r} must be a finite number above 0.")
        if pts is not None and any(not b > a for a, b in pairwise(pts)):
            raise SettingsError("pts must be strictly ascending: the time of each frame in seconds.")
        known = len(frames) if isinstance(frames, np.ndarray | Sequence) else None
        if known == 0:
            raise VideoError("there are no frames in the array.")
        if known is not None and pts is not None and len(pts) != known:
            raise SettingsError(f"{len(pts)} pts were given for {known} frames. Give one for each.")
        self._frames = frames
        self._fps = fps
        self._pts = [float(t) for t in pts] if pts is not None else None
        self._known = known
        self._started = False
        self._given: list[float] = []  # times of the frames given out
        self._facts = self._empty(name)
        if known is not None:
            height, width = _checked(next(iter(frames))).shape[:2]
            times = [self._time(k) for k in range(known)]
            digest = hashlib.sha256()
            for time, image in zip(times, frames, strict=True):
                _feed(digest, time, _checked(image))
            self._facts = replace(
                self._facts, width=width, height=height, frames=known, sha256=digest.hexdigest(),
                duration=self._duration(times),
            )  # fmt: skip

    @property
    def expected_frames(self) -> int | None:
        """Number of frames; None for an iterable without a length."""
        return self._known

    @property
    def manifest(self) -> Manifest:
        """What is known so far; complete after the iteration."""
        return replace(self._facts, pts=tuple(self._given), indices=tuple(range(len(self._given))))

    def __iter__(self) -> Iterator[Frame]:
        """Give out all frames. Raises `VideoError` when iterated twice."""
        if self._started:
            raise VideoError(f"{self._facts.source!r} was read already. Make a new ArraySource of the frames.")
        self._started = True
        return self._give()

    def _give(self) -> Iterator[Frame]:
        times = self._given
        digest = hashlib.sha256()
        for index, image in zip(count(), self._frames, strict=False):
            shape = _checked(image).shape
            if index == 0:
                self._facts = replace(self._facts, height=shape[0], width=shape[1])
            elif shape[:2] != (self._facts.height, self._facts.width):
                first = (self._facts.height, self._facts.width, 3)
                raise VideoError(f"frame {index} has shape {shape}, the first one {first}. Scale them first.")
            times.append(self._time(index))
            _feed(digest, times[-1], image)
            yield Frame(np.ascontiguousarray(image), times[-1], index)
        if not times:
            raise VideoError("there are no frames in the iterable.")
        self._facts = replace(
            self._facts,
            frames=len(times),
            duration=self._duration(times),
            sha256=digest.hexdigest(),
            complete=True,
        )

    def _time(self, index: int) -> float:
        if self._pts is None:
            return index / self._fps
        if index >= len(self._pts):
            raise SettingsError(f"only {len(self._pts)} pts were given, but there are more frames.")
        return self._pts[index]

    def _duration(self, times: list[float]) -> float:
        step = 1 / self._fps if self._pts is None or len(times) < 2 else times[-1] - times[-2]
        return times[-1] - times[0] + step

    def _empty(self, name: str) -> Manifest:
        fps = self._fps if self._pts is None else None
        return Manifest(
            source=name, container="memory", codec="rawvideo", width=0, height=0, rotation=0, duration=None,
            frames=None, fps=fps, max_frames=None, start=None, end=None, mode="exact", effective_fps=fps,
            fps_note=None, mode_used="exact", mode_note=None, shift=0.0, pts=(), indices=(), bad_packets=0,
            warnings=(), complete=False, sha256=None,
        )  # fmt: skip


def _checked(image: Any) -> npt.NDArray[np.uint8]:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise VideoError(f"a frame must be a uint8 array of shape (height, width, 3), not {found}.")
    return image


def _feed(digest: Any, time: float, image: npt.NDArray[np.uint8]) -> None:
    digest.update(f"{time!r} {image.shape}\n".encode())
    digest.update(np.ascontiguousarray(image).data)
