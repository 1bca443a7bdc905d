"""The true times of all frames, from a scan of the packets (nothing is decoded, no header is trusted).

Costs about 40 bytes of memory per frame of the video: 4 MB for an hour at 30 frames per second.
"""

from __future__ import annotations

import math
import os
import struct
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import islice
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from videox2l.errors import VideoError

LEAST = 0.5
"""Seconds: a stretch without pictures that is shorter is not told."""
_JUMP = 0.2  # seconds that decoding times must go back to count as a new beginning
_LEAP, _FAR = 2, 50  # times as long forward: worth a look at what follows; too far to go on from
_AVI_TAIL = 32 << 20  # bytes in which the index of an AVI file is looked for
_AHEAD = 16  # packets that are looked at then
_DEMUX_ERRORS = 16  # that many in a row end a file
_COUNTING = {"mov", "matroska", "asf", "flv"}  # containers that begin with a key frame, at 0 by custom
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
    mistimed: list[int] = field(default_factory=list)  # pts of packets whose own times cannot be true
    lost: int | None = None  # frames of an AVI file before its first packet; None elsewhere

    def __iter__(self) -> Iterator[Any]:
        offset, last = 0, None
        back = int(_JUMP / self.stream.time_base)
        for packet in self._sane(self._numbered(self._pictures()), back):
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

    def _pictures(self) -> Iterator[Any]:
        """Leave out what ends a stream; to a decoder it would mean "no more packets"."""
        return (packet for packet in self._demux() if packet.size)

    def _numbered(self, packets: Iterator[Any]) -> Iterator[Any]:
        """Give packets of an AVI file behind lost ones the numbers that they have in its index."""
        if self.container.format.name != "avi":
            yield from packets
            return
        numbers = avi_index(self.container.name.removeprefix("file:"), self.stream.index)
        lost = 0
        for packet in packets:
            if packet.dts is not None:
                if packet.pos in numbers:
                    lost = max(lost, numbers[packet.pos] - packet.dts)
                self.lost = lost if self.lost is None else self.lost
                packet.dts += lost
                packet.pts = None if packet.pts is None else packet.pts + lost
            yield packet

    def _sane(self, packets: Iterator[Any], back: int) -> Iterator[Any]:
        """Give packets whose times leave those around them, and are left by these at once, times in between.

        A byte of a time that was flipped does that; times that truly start anew go on from there.
        """
        ahead: deque[Any] = deque()
        last: int | None = None
        most = self._latest()
        while (packet := ahead.popleft() if ahead else next(packets, None)) is not None:
            dts = packet.dts
            if dts is not None and last is not None and not last - back <= dts <= last + _LEAP * back:
                ahead.extend(islice(packets, max(0, _AHEAD - len(ahead))))
                self._settle(packet, ahead, last, back)
            if packet.pts is not None and packet.dts is not None and packet.pts - packet.dts > most:
                packet.pts = packet.dts
                self.mistimed.append(packet.pts)
            last = last if packet.dts is None else packet.dts
            yield packet

    def _settle(self, packet: Any, ahead: Iterable[Any], last: int, back: int) -> None:
        """Change the times of a packet if one that follows leaps back to where `last` would have gone on."""
        early, before = packet.dts < last, packet.dts
        top = last + _FAR * back if early else packet.dts - back
        for number, other in enumerate((one for one in ahead if one.dts is not None), start=2):
            leaps = other.dts > before + _LEAP * back if early else other.dts < before - back
            if leaps and last - back <= other.dts < top:
                shown = 0 if packet.pts is None else packet.pts - packet.dts
                packet.dts = last + max(0, other.dts - last) // number
                packet.pts = None if packet.pts is None else packet.dts + shown
                self.mistimed.append(packet.dts)
                return
            before = other.dts

    def _latest(self) -> float:
        """Return the ticks by which a packet of an FLV, which tells them in plain bytes, may be shown after its time.

        No codec holds back more than 16 frames.
        """
        if "flv" not in self.container.format.name.split(","):
            return math.inf
        rate = self.stream.average_rate or self.stream.guessed_rate or 25
        return max(0.5, 17 / float(rate)) / float(self.stream.time_base)

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
            size, at, movi, start = os.fstat(file.fileno()).st_size, 12, 0, 0
            while at + 12 <= size and not start:
                file.seek(at)
                name, length, kind = struct.unpack("<4sI4s", file.read(12))
                movi = at + 8 if (name, kind) == (b"LIST", b"movi") else movi
                start = at if name == b"idx1" else 0
                at += 8 + length + length % 2
            tail_at = start or max(0, size - _AVI_TAIL)  # where the chunks before the index are damaged
            file.seek(tail_at)
            tail = file.read(_AVI_TAIL)
    except (OSError, struct.error):
        return {}
    begin = tail.rfind(b"idx1")
    index = tail[begin + 8 : begin + 8 + int.from_bytes(tail[begin + 4 : begin + 8], "little")]
    entries = [struct.unpack_from("<4s4xII", index, i) for i in range(0, len(index) - 15, 16)]
    frames = [entry for entry in entries if entry[0] in (b"%02ddc" % stream, b"%02ddb" % stream)]
    offsets = [offset for _, offset, _ in frames]
    if begin < 0 or not frames or offsets != sorted(offsets):
        return {}
    base = 0 if offsets[0] > movi else movi  # offsets count from the file's begin, or from the list's
    if not start or not movi:  # they follow from where one of the last frames lies
        found = ((tail.rfind(name + struct.pack("<I", n), 0, begin), offset) for name, offset, n in frames[:-9:-1])
        base = next((tail_at + lies - offset for lies, offset in found if lies >= 0), base)
    return {base + offset + 8: number for number, offset in enumerate(offsets)}


@dataclass(frozen=True, eq=False)
class Timeline:
    """Times of all frames of a stream, in ticks of `time_base`.

    pts: (packets,) int64, in decode order. key: (packets,) bool: decoding can start here.
    position: (frames,) int64: packet of each frame, in presentation order. Packets without a picture to show
    have no frame: those that an edit list hides, and those before the first picture that can be decoded.
    ordinal: the container's presentation times cannot be used one by one; the k-th decoded frame is frame k.
    duration: seconds from time zero, mostly the first frame, to the end of the last one.
    jumps: seconds at which the file's own times start anew. torn: seconds of packets that miss data.
    untimed: packets without times. mistimed: seconds of packets whose own times cannot be true.
    origin: ticks of time zero where what was before the first frame is known to be lost.
    lasting: (packets,) int64, how long each picture lasts by the file; or 0.
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
    mistimed: tuple[float, ...] = ()
    origin: int | None = None
    lasting: npt.NDArray[np.int64] | None = None

    @cached_property
    def shown(self) -> npt.NDArray[np.int64]:
        """(frames,) int64 ticks, ascending: the time of each frame in presentation order."""
        return self.pts[self.position]

    @property
    def zero(self) -> int:
        """Ticks from which seconds count: those of the first frame, or of frames before it that are lost."""
        return int(self.shown[0]) if self.origin is None else self.origin

    @cached_property
    def seconds(self) -> npt.NDArray[np.float64]:
        """(frames,) float64: seconds since time zero, in presentation order."""
        since = (self.shown - self.zero) * self.time_base.numerator
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
    def lossy(self) -> bool:
        """Whether packets show that pictures are missing."""
        return bool(self.torn or self.demux_errors or self.mistimed or len(self.pauses(LEAST)))

    @cached_property
    def keys(self) -> npt.NDArray[np.int64]:
        """(key packets,) int64: their positions, ascending."""
        return np.flatnonzero(self.key)

    def seconds_at(self, ticks: int) -> float:
        """Seconds since time zero of a time in ticks."""
        return float((ticks - self.zero) * self.time_base)

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
        counts = bool(_COUNTING & set(container.format.name.split(",")))
        shown = shown & (stamps >= _origin(first, stamps, keys, shown, counts))
    position = np.flatnonzero(shown)
    position = position[np.argsort(stamps[position], kind="stable")]
    if not len(position):
        raise VideoError(f"{name!r} has packets of video, but no frame to show.")
    times = stamps[position]
    zero = int(times[0]) - (packets.lost or 0)
    tail = int(durations[position[-1]]) or (int(np.median(np.diff(times))) if len(times) > 1 else 0)

    def since(ticks: Sequence[int]) -> tuple[float, ...]:
        return tuple(float((t - zero) * stream.time_base) for t in ticks)

    return Timeline(
        pts=stamps,
        key=keys,
        position=position,
        time_base=stream.time_base,
        ordinal=ordinal,
        duration=float((int(times[-1]) - zero + tail) * stream.time_base),
        jumps=since(packets.jumps),
        torn=since([int(stamps[at]) for at in torn]),
        demux_errors=packets.errors,
        untimed=untimed,
        mistimed=since(packets.mistimed),
        origin=zero,
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


def _origin(
    first: int, pts: npt.NDArray[np.int64], key: npt.NDArray[np.bool_], shown: npt.NDArray[np.bool_], counts: bool
) -> int:
    """Time zero in ticks: the first decoded frame; or the first key frame, if that one is damaged.

    A file whose times count from 0 (`counts`) begins with a key frame: where it does not, its begin is damaged.
    """
    keys = np.flatnonzero(key)
    if len(keys) and shown[keys[0]]:
        first = min(first, int(pts[keys[0]]))
    return min(first, int(pts[0])) if counts and shown[0] else first
