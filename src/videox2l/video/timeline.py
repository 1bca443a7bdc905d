"""The true times of all frames, from a scan of the packets (nothing is decoded, no header is trusted).

Costs about 40 bytes of memory per frame of the video: 4 MB for an hour at 30 frames per second.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterator, Sequence
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
_NONE = -(2**63)  # no time


@dataclass
class Packets:
    """Iterates over the packets of one stream that carry a picture, in decode order, with repaired times.

    Where decoding times start anew (joined or wrapped transport streams), later times are continued. An AVI file has no
    times, its frames are counted: where damage swallows some, those behind it get the numbers of the file's index.
    Survives demuxer errors. Two passes over the same file give the same packets with the same times.
    """

    container: Any
    stream: Any
    jumps: list[int] = field(default_factory=list)  # pts of the first packet after each jump
    errors: int = 0

    def __iter__(self) -> Iterator[Any]:
        offset, last = 0, None
        back = int(_JUMP / self.stream.time_base)
        numbers = (
            avi_index(self.container.name.removeprefix("file:"), self.stream.index)
            if self.container.format.name == "avi"
            else {}
        )
        lost = 0
        for packet in self._demux():
            if not packet.size:  # end of the stream; to a decoder it would mean "no more packets"
                continue
            if numbers and packet.dts is not None and packet.pos in numbers:
                lost = max(lost, numbers[packet.pos] - packet.dts)
            if lost and packet.dts is not None:
                packet.dts += lost
                packet.pts = None if packet.pts is None else packet.pts + lost
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


def avi_index(path: str, stream: int) -> dict[int, int]:
    """Return the numbers of a stream's frames by the position of their bytes, from an AVI file's index (chunk idx1).

    Empty where there is none, as in files beyond 1 GB (OpenDML), or where it is damaged.
    """
    try:
        with open(path, "rb") as file:
            size, at, movi, index = os.fstat(file.fileno()).st_size, 12, 0, b""
            while at + 8 <= size:
                file.seek(at)
                name, length = struct.unpack("<4sI", file.read(8))
                if name == b"LIST" and file.read(4) == b"movi":
                    movi = at + 8
                elif name == b"idx1":
                    index = file.read(min(length, size - at - 8))
                    break
                at += 8 + length + length % 2
    except OSError:
        return {}
    entries = [struct.unpack_from("<4s4xI4x", index, start) for start in range(0, len(index) - 15, 16)]
    frames = [offset for name, offset in entries if name in (b"%02ddc" % stream, b"%02ddb" % stream)]
    if not movi or not frames or frames != sorted(frames):
        return {}
    base = 0 if frames[0] > movi else movi  # offsets count from the file's begin, or from the list's
    return {base + offset + 8: number for number, offset in enumerate(frames)}


@dataclass(frozen=True, eq=False)
class Timeline:
    """Times of all frames of a stream, in ticks of `time_base`.

    pts: (packets,) int64, in decode order. key: (packets,) bool: decoding can start here.
    position: (frames,) int64: packet of each frame, in presentation order. Packets without a picture to show
    have no frame: those that an edit list hides, and those before the first picture that can be decoded.
    ordinal: the container's presentation times cannot be used one by one; the k-th decoded frame is frame k.
    duration: seconds from the first frame to the end of the last one.
    jumps: seconds at which the file's own times start anew. torn: seconds of packets that miss data.
    untimed: packets without times. lasting: (packets,) int64, how long each picture lasts by the file; or 0.
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
    untimed: int = 0
    lasting: npt.NDArray[np.int64] | None = None

    @cached_property
    def shown(self) -> npt.NDArray[np.int64]:
        """(frames,) int64 ticks, ascending: the time of each frame in presentation order."""
        return self.pts[self.position]

    @cached_property
    def seconds(self) -> npt.NDArray[np.float64]:
        """(frames,) float64: seconds since the first frame, in presentation order."""
        since = (self.shown - self.shown[0]) * self.time_base.numerator
        return np.asarray(since / self.time_base.denominator, dtype=np.float64)

    def step(self, frame: int) -> float:
        """Seconds that a frame lasts, by the file or as frames mostly do; at most until the next one."""
        said = 0 if self.lasting is None else int(self.lasting[self.position[frame]])
        usual = float(said * self.time_base) if said else self._usual
        following = self.seconds[frame + 1] - self.seconds[frame] if frame + 1 < len(self.seconds) else usual
        return min(usual, float(following)) if usual > 0 else float(following)

    @cached_property
    def _usual(self) -> float:
        return float(np.median(np.diff(self.seconds))) if len(self.seconds) > 1 else 0.0

    def pauses(self, least: float) -> npt.NDArray[np.int64]:
        """Frames after which nothing comes for much longer than after nearly all others, and than they last."""
        steps = np.diff(self.seconds)
        if not len(steps):
            return np.array([], dtype=np.int64)
        limit = max(least, 3 * float(np.quantile(steps, 0.9)))
        lasting = np.zeros(len(steps))
        if self.lasting is not None:
            said = self.lasting[self.position[:-1]] * float(self.time_base)
            lasting = np.where(said < steps * 1.01, said, 0.0)
        return np.flatnonzero(steps - lasting > limit)

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


def scan(container: Any, stream: Any, first: int | None, name: str, fps: float | None = None) -> Timeline:
    """Read all packets of a stream and build its timeline. Leaves the container at its end.

    first: pts in ticks of the first frame that a decoder gave out; None if the decoder gives no times. fps: frames per
    second of a stream whose packets carry no times at all.
    Raises `VideoError` if the packets carry no times and there is no `fps`.
    """
    pts, dts, key, visible, lasting = array("q"), array("q"), bytearray(), bytearray(), array("q")
    packets = Packets(container, stream)
    torn: list[int] = []
    vp8 = stream.codec.canonical_name == "vp8"
    for packet in packets:
        pts.append(_NONE if packet.pts is None else packet.pts)
        dts.append(_NONE if packet.dts is None else packet.dts)
        key.append(packet.is_keyframe)
        lasting.append(packet.duration or 0)
        if packet.is_corrupt:
            torn.append(len(pts) - 1)
        hidden = packet.is_discard or (vp8 and not memoryview(packet)[0] & 0x10)  # VP8's show_frame bit
        visible.append(not hidden)
    if not len(pts):
        raise VideoError(f"{name!r} has a video stream, but not one picture in it.")
    stamps, durations = np.frombuffer(pts, dtype=np.int64), np.frombuffer(lasting, dtype=np.int64)
    missing = bool((stamps == _NONE).any())
    untimed = 0
    if missing:
        stamps = np.frombuffer(dts, dtype=np.int64)
        untimed = int((stamps == _NONE).sum())
    if untimed:
        stamps = _timed(stamps, np.frombuffer(pts, dtype=np.int64), durations, stream, name, fps)
    keys = np.frombuffer(key, dtype=np.bool_)
    shown = np.frombuffer(visible, dtype=np.bool_)
    ordinal = missing or container.format.name == "avi" or len(np.unique(stamps[shown])) < shown.sum()
    if not ordinal and first is not None:
        shown = shown & (stamps >= _origin(first, stamps, keys, shown))
    position = np.flatnonzero(shown)
    position = position[np.argsort(stamps[position], kind="stable")]
    if not len(position):
        raise VideoError(f"{name!r} has packets of video, but no frame to show.")
    times = stamps[position]
    tail = int(durations[position[-1]]) or (int(np.median(np.diff(times))) if len(times) > 1 else 0)

    def since(ticks: Sequence[int]) -> tuple[float, ...]:
        return tuple(float((t - int(times[0])) * stream.time_base) for t in ticks)

    return Timeline(
        pts=stamps,
        key=keys,
        position=position,
        time_base=stream.time_base,
        ordinal=ordinal,
        duration=float((int(times[-1]) - int(times[0]) + tail) * stream.time_base),
        jumps=since(packets.jumps),
        torn=since([int(stamps[at]) for at in torn]),
        demux_errors=packets.errors,
        untimed=untimed,
        lasting=durations,
    )


def _timed(
    dts: npt.NDArray[np.int64],
    pts: npt.NDArray[np.int64],
    durations: npt.NDArray[np.int64],
    stream: Any,
    name: str,
    fps: float | None,
) -> npt.NDArray[np.int64]:
    """Give packets without times those that follow from their neighbors': each lasts as long as it says, or as most.

    Decoding order stands for the order of presentation: frames are counted then (`ordinal`).
    """
    stamps = np.where(pts != _NONE, pts, dts)
    known = np.flatnonzero(stamps != _NONE)
    rate, said = stream.codec_context.framerate, int(np.median(durations))
    if not len(known) and not rate:  # what else is told of a raw stream is a default of the demuxer
        rate, said = fps, 0
    if not said and not rate:
        raise VideoError(
            f"{name!r} carries no times for its frames: say how many pictures a second has, with --fps (fps=...)."
        )
    step = said or max(1, round(1 / (float(rate) * float(stream.time_base))))
    if not len(known):
        return np.arange(len(stamps), dtype=np.int64) * step
    at = np.arange(len(stamps))
    nearest = known[np.maximum(np.searchsorted(known, at, side="right") - 1, 0)]
    return np.where(stamps != _NONE, stamps, stamps[nearest] + (at - nearest) * step)


def _origin(first: int, pts: npt.NDArray[np.int64], key: npt.NDArray[np.bool_], shown: npt.NDArray[np.bool_]) -> int:
    """Time zero in ticks: the first decoded frame; or the first key frame, if that one is damaged."""
    keys = np.flatnonzero(key)
    if len(keys) and shown[keys[0]]:
        return min(first, int(pts[keys[0]]))
    return first
