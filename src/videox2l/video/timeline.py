"""The true times of all frames, from a scan of the packets (nothing is decoded, no header is trusted).

Costs about 40 bytes of memory per frame of the video: 4 MB for an hour at 30 frames per second.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from videox2l.errors import VideoError

_JUMP = 0.2  # seconds that decoding times must go back to count as a new beginning
_DEMUX_ERRORS = 16  # that many in a row end a file


@dataclass
class Packets:
    """Iterates over the packets of one stream that carry a picture, in decode order, with repaired times.

    Where decoding times start anew (joined or wrapped transport streams), later times are continued.
    Survives demuxer errors. Two passes over the same file give the same packets with the same times.
    """

    container: Any
    stream: Any
    jumps: list[int] = field(default_factory=list)  # pts of the first packet after each jump
    errors: int = 0

    def __iter__(self) -> Iterator[Any]:
        offset, last = 0, None
        back = int(_JUMP / self.stream.time_base)
        for packet in self._demux():
            if not packet.size:  # end of the stream; to a decoder it would mean "no more packets"
                continue
            dts = packet.dts
            if dts is not None:
                if last is not None and dts + offset < last - back:
                    offset = last + (packet.duration or 0) - dts
                    self.jumps.append((dts if packet.pts is None else packet.pts) + offset)
                last = dts + offset
                packet.dts = last
            if packet.pts is not None:
                packet.pts += offset
            yield packet

    def _demux(self) -> Iterator[Any]:
        failures = 0
        while failures < _DEMUX_ERRORS:
            try:
                for packet in self.container.demux(self.stream):
                    failures = 0
                    yield packet
                return
            except av.error.FFmpegError:
                failures += 1
                self.errors += 1


@dataclass(frozen=True, eq=False)
class Timeline:
    """Times of all frames of a stream, in ticks of `time_base`.

    pts: (packets,) int64, in decode order. key: (packets,) bool: decoding can start here.
    position: (frames,) int64: packet of each frame, in presentation order. Packets without a picture to show
    have no frame: those that an edit list hides, and those before the first picture that can be decoded.
    ordinal: the container's presentation times cannot be used one by one; the k-th decoded frame is frame k.
    duration: seconds from the first frame to the end of the last one.
    jumps: seconds at which the file's own times start anew. torn: seconds of packets that miss data.
    """

    pts: npt.NDArray[np.int64]
    key: npt.NDArray[np.bool_]
    position: npt.NDArray[np.int64]
    time_base: Fraction
    ordinal: bool
    duration: float
    jumps: tuple[float, ...] = ()
    torn: tuple[float, ...] = ()
    demux_errors: int = 0

    @cached_property
    def shown(self) -> npt.NDArray[np.int64]:
        """(frames,) int64 ticks, ascending: the time of each frame in presentation order."""
        return self.pts[self.position]

    @cached_property
    def seconds(self) -> npt.NDArray[np.float64]:
        """(frames,) float64: seconds since the first frame, in presentation order."""
        since = (self.shown - self.shown[0]) * self.time_base.numerator
        return np.asarray(since / self.time_base.denominator, dtype=np.float64)

    @cached_property
    def keys(self) -> npt.NDArray[np.int64]:
        """(key packets,) int64: their positions, ascending."""
        return np.flatnonzero(self.key)

    def seconds_at(self, ticks: int) -> float:
        """Seconds since the first frame of a time in ticks."""
        return float((ticks - int(self.shown[0])) * self.time_base)

    def run_start(self, position: int) -> int:
        """The packet at which decoding must start for the picture of packet `position` to be right.

        That is the last key packet before it that is not shown after it: a picture that is decoded after a
        key frame but shown before it may need the frames in front of that key frame. 0 if there is none.
        """
        for key in reversed(range(int(np.searchsorted(self.keys, position, side="right")))):
            if self.pts[self.keys[key]] <= self.pts[position]:
                return int(self.keys[key])
        return 0


def scan(container: Any, stream: Any, first: int | None, name: str) -> Timeline:
    """Read all packets of a stream and build its timeline. Leaves the container at its end.

    first: pts in ticks of the first frame that a decoder gave out; None if the decoder gives no times.
    Raises `VideoError` if the packets carry no times.
    """
    pts, dts, key, visible = array("q"), array("q"), bytearray(), bytearray()
    packets = Packets(container, stream)
    torn: list[int] = []
    ends: dict[str, int] = {"pts": -(2**62), "duration": 0}
    missing_pts = missing_dts = False
    vp8 = stream.codec.canonical_name == "vp8"
    for packet in packets:
        missing_pts |= packet.pts is None
        missing_dts |= packet.dts is None
        stamp = packet.pts if packet.pts is not None else packet.dts or 0
        pts.append(stamp)
        dts.append(packet.dts or 0)
        key.append(packet.is_keyframe)
        if packet.is_corrupt:
            torn.append(stamp)
        hidden = packet.is_discard or (vp8 and not memoryview(packet)[0] & 0x10)  # VP8's show_frame bit
        visible.append(not hidden)
        if stamp >= ends["pts"]:
            ends = {"pts": stamp, "duration": packet.duration or 0}
    if not len(pts):
        raise VideoError(f"{name!r} has a video stream, but not one picture in it.")
    if missing_pts and missing_dts:
        raise VideoError(
            f"{name!r} carries no times for its frames. Remux it, e.g. `ffmpeg -i INPUT -c copy output.mkv`."
        )
    stamps = np.frombuffer(dts if missing_pts else pts, dtype=np.int64)
    keys = np.frombuffer(key, dtype=np.bool_)
    shown = np.frombuffer(visible, dtype=np.bool_)
    ordinal = missing_pts or container.format.name == "avi" or len(np.unique(stamps[shown])) < shown.sum()
    if not ordinal and first is not None:
        shown = shown & (stamps >= _origin(first, stamps, keys, shown))
    position = np.flatnonzero(shown)
    position = position[np.argsort(stamps[position], kind="stable")]
    if not len(position):
        raise VideoError(f"{name!r} has packets of video, but no frame to show.")
    times = stamps[position]
    tail = ends["duration"] or (int(np.median(np.diff(times))) if len(times) > 1 else 0)

    def since(ticks: list[int]) -> tuple[float, ...]:
        return tuple(float((t - int(times[0])) * stream.time_base) for t in ticks)

    return Timeline(
        pts=stamps,
        key=keys,
        position=position,
        time_base=stream.time_base,
        ordinal=ordinal,
        duration=float((int(times[-1]) - int(times[0]) + tail) * stream.time_base),
        jumps=since(packets.jumps),
        torn=since(torn),
        demux_errors=packets.errors,
    )


def _origin(first: int, pts: npt.NDArray[np.int64], key: npt.NDArray[np.bool_], shown: npt.NDArray[np.bool_]) -> int:
    """Time zero in ticks: the first decoded frame; or the first key frame, if that one is damaged."""
    keys = np.flatnonzero(key)
    if len(keys) and shown[keys[0]]:
        return min(first, int(pts[keys[0]]))
    return first
