"""Frames with their times, the protocol of a frame source, and the record of what was read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from videox2l.errors import VideoError


@dataclass(frozen=True)
class Manifest:
    """What was read from a source, exactly enough to tell two readings apart.

    source: file name, without its folder. sha256: hash of the content, 64 hex digits; None if not known yet.
    container, codec: FFmpeg's names. width, height: pixels as shown, square ones, after left and right were exchanged
    (`mirrored`) and the picture was turned (`rotation`, degrees counter-clockwise).
    duration: seconds from the first frame to the end of the last one, from packet times, not from headers.
    frames: number of frames in the source; None if not known yet.
    fps, max_frames, start, end, at, mode: the settings asked for.
    effective_fps: samples per second really used; None means every frame of the range, or those at listed times.
    fps_note: why fps was lowered, or None.
    mode_used: "exact" or "fast". mode_note: what was left out, or why nothing was; may be None.
    shift: "fast" only: seconds that a sample was moved to reach a key frame, at most.
    pts, indices: of the sampled frames: seconds, and index in presentation order in the source.
    bad_packets: packets that could not be decoded. warnings: what is damaged or odd, and where.
    holes: (start, end) in seconds of stretches from which nothing could be read, ascending.
    complete: whether the iteration came to its end.
    """

    source: str
    container: str
    codec: str
    width: int
    height: int
    rotation: int
    duration: float | None
    frames: int | None
    fps: float | None
    max_frames: int | None
    start: float | None
    end: float | None
    mode: str
    effective_fps: float | None
    fps_note: str | None
    mode_used: str
    mode_note: str | None
    shift: float
    pts: tuple[float, ...]
    indices: tuple[int, ...]
    bad_packets: int
    warnings: tuple[str, ...]
    complete: bool
    sha256: str | None
    mirrored: bool = False
    holes: tuple[tuple[float, float], ...] = ()
    at: tuple[float, ...] | None = None

    def to_json(self) -> str:
        """One JSON object; `from_json` gives back an equal manifest."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read what `to_json` wrote. Raises `VideoError` if it is anything else."""
        try:
            values: Any = json.loads(text)
        except ValueError as error:
            raise VideoError(f"a manifest must be JSON: {error}") from None
        names = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            found = set(values) if isinstance(values, dict) else set()
            raise VideoError(f"not a video manifest: missing {sorted(names - found)}, unknown {sorted(found - names)}.")
        for name in ("pts", "indices", "warnings"):
            values[name] = tuple(values[name])
        values["at"] = None if values["at"] is None else tuple(values["at"])
        values["holes"] = tuple((float(start), float(end)) for start, end in values["holes"])
        return cls(**values)


@dataclass(frozen=True, eq=False)
class Frame:
    """One decoded picture.

    image: (height, width, 3) uint8 RGB, contiguous, as it is to be shown.
    pts: seconds since the first frame of the source, read or known to be lost, from its timestamps.
    index: index of the frame among all frames of the source, in presentation order.
    resumes: nothing could be read for some time before this frame; a chunk ends there.
    """

    image: npt.NDArray[np.uint8]
    pts: float
    index: int
    resumes: bool = False


@runtime_checkable
class FrameSource(Protocol):
    """Something that gives out frames, in ascending order of `pts`, each once, and can be iterated once.

    No source keeps more than a few frames in memory.
    """

    def __iter__(self) -> Iterator[Frame]:
        """Give out the frames."""
        ...

    @property
    def manifest(self) -> Manifest:
        """What is known so far: facts of the source before, everything after the iteration. A snapshot."""
        ...

    @property
    def expected_frames(self) -> int | None:
        """How many frames the iteration gives out if nothing is damaged; None if that is not known."""
        ...


class OpenSource(FrameSource, Protocol):
    """A source of frames to be used in a `with` statement."""

    def __enter__(self) -> FrameSource: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
