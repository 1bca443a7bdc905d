"""Cutting stretches out of a video file: copied packet by packet where that is exact, encoded anew where not."""

from __future__ import annotations

import contextlib
import heapq
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from videox2l.errors import SettingsError, VideoError
from videox2l.video.decode import Damage, decode, exact_plan, find_stream, first_frame
from videox2l.video.files import admit, open_container
from videox2l.video.orientation import Display
from videox2l.video.sampling import TOLERANCE, FrameChoice
from videox2l.video.timeline import Packets, scan

_MP4_VIDEO = {"h264", "hevc", "av1", "mpeg4", "vp9"}
_MP4_AUDIO = {"aac", "mp3", "ac3", "eac3", "opus", "alac", "flac"}
_ENCODER = {"crf": "18", "preset": "fast", "bf": "0"}  # without B-frames times start at 0 in every player
_BT709 = 1


@dataclass(frozen=True)
class Clip:
    """A clip that was written: the frames with `start` <= pts < `end` (seconds in the source).

    `frames` in it; `copied`: its pictures are the source's bit for bit; `audio`: it has sound.
    """

    path: Path
    start: float
    end: float
    frames: int
    copied: bool
    audio: bool


class ClipCutter:
    """Cuts clips out of one file, which is scanned once. Raises VideoError for what is no readable video."""

    def __init__(self, path: str | os.PathLike[str], *, fps: float | None = None) -> None:
        self.path = admit(path)
        picture = first_frame(self.path)
        with open_container(self.path) as container:
            stream = find_stream(container, self.path.name)
            self._timeline = scan(container, stream, picture.pts, self.path.name, fps)
            self._display = Display.of(picture, stream.sample_aspect_ratio)
            self._codec = stream.codec.canonical_name
            sound = container.streams.best("audio", related=stream)
            known = sound is not None and sound.codec_context is not None and not self._timeline.jumps
            self._sound = (sound.index, sound.codec_context.codec.canonical_name) if known else None

    def cut(self, start: float, end: float, stem: str | os.PathLike[str]) -> Clip:
        """Write the frames with `start` <= pts < `end`, and the sound of that time, to `stem`.mp4 or `stem`.mkv.

        The packets are copied where the first frame is a key frame, all that follows stands on it, and the packets up
        to the last frame hold these frames alone; otherwise the frames are encoded anew, as they are shown. Raises
        SettingsError where the range holds no frame, VideoError where nothing of it can be decoded or written.
        """
        seconds = self._timeline.seconds
        first, last = (int(np.searchsorted(seconds, time - TOLERANCE)) for time in (start, end))
        if first >= last:
            raise SettingsError(f"no frame of {self.path.name!r} lies between {start:g} and {end:g} s")
        copied = self._can_copy(first, last)
        if copied:
            target = self._target(stem, self._codec)
            with contextlib.suppress(av.error.FFmpegError):
                sound = self._write(target, first, last, end, copy=True)
                if _readable(target, last - first):
                    return Clip(target, start, end, last - first, True, sound)
            target.unlink(missing_ok=True)  # its key frame does not stand alone, or the container refuses the stream
        target = self._target(stem, "h264")
        try:
            sound = self._write(target, first, last, end, copy=False)
        except (av.error.FFmpegError, VideoError) as error:
            target.unlink(missing_ok=True)
            raise VideoError(f"'{target.name}' cannot be cut out of {self.path.name!r}: {error}") from None
        return Clip(target, start, end, last - first, False, sound)

    def _can_copy(self, first: int, last: int) -> bool:
        timeline = self._timeline
        packets = timeline.position[first:last]
        low, high = int(packets.min()), int(packets.max())
        alone = high - low + 1 == last - first and low == packets[0] and bool(timeline.key[low])
        return alone and not (timeline.ordinal or timeline.jumps or timeline.torn or timeline.untimed)

    def _target(self, stem: str | os.PathLike[str], codec: str) -> Path:
        fits = codec in _MP4_VIDEO and (self._sound is None or self._sound[1] in _MP4_AUDIO)
        return Path(f"{os.fspath(stem)}{'.mp4' if fits else '.mkv'}")

    def _write(self, target: Path, first: int, last: int, end: float, *, copy: bool) -> bool:
        """Write a clip; return whether it has sound."""
        with open_container(self.path) as container, av.open(str(target), "w") as box:
            stream = find_stream(container, self.path.name)
            if copy:
                out = box.add_stream_from_template(stream)
                video = self._copied(container, stream, first, last, out)
            else:
                rate = Fraction(stream.average_rate or 30).limit_denominator(1001)
                out = box.add_stream("libx264", rate=rate, options=_ENCODER)
                video = self._encoded(first, last, out)
            sound = list[Any]()
            if self._sound is not None:
                with open_container(self.path) as other:
                    sound = list(self._heard(other, first, end))
                    voice = box.add_stream_from_template(other.streams[self._sound[0]]) if sound else None
                for packet in sound:
                    packet.stream = voice
            for packet in heapq.merge(video, sound, key=_when):
                box.mux(packet)
        return bool(sound)

    def _copied(self, container: Any, stream: Any, first: int, last: int, out: Any) -> Iterator[Any]:
        packets = self._timeline.position[first:last]
        low, high, origin = int(packets.min()), int(packets.max()), int(self._timeline.shown[first])
        for position, packet in enumerate(Packets(container, stream)):
            if position > high:
                return
            if position >= low:
                packet.pts -= origin
                packet.dts = None if packet.dts is None else packet.dts - origin
                packet.stream = out
                yield packet

    def _encoded(self, first: int, last: int, out: Any) -> Iterator[Any]:
        timeline, damage = self._timeline, Damage()
        height, width = (max(2, side - side % 2) for side in self._display.size)  # what the encoder can hold
        out.width, out.height, out.pix_fmt = width, height, "yuv420p"
        context = out.codec_context
        context.time_base, context.colorspace = timeline.time_base, _BT709
        choice = FrameChoice(np.arange(first, last, dtype=np.int64), first, last, None)
        count = 0
        for picture, index in decode(self.path, timeline, exact_plan(timeline, choice), damage):
            if not count:
                context.color_primaries, context.color_trc = picture.color_primaries, picture.color_trc
            count += 1
            frame = av.VideoFrame.from_ndarray(self._display.image(picture), format="rgb24")
            frame = frame.reformat(width, height, "yuv420p", dst_colorspace="ITU709")
            frame.pts, frame.time_base = int(timeline.shown[index] - timeline.shown[first]), timeline.time_base
            yield from out.encode(frame)
        if not count:
            raise VideoError("none of its frames can be decoded")
        yield from out.encode(None)

    def _heard(self, container: Any, first: int, end: float) -> Iterator[Any]:
        """Yield the packets of sound that begin from frame `first` on and before `end`, their times from 0."""
        timeline, (index, _) = self._timeline, self._sound or (0, "")
        stream = container.streams[index]
        zero = round(int(timeline.shown[first]) * timeline.time_base / stream.time_base)
        stop = zero + round(Fraction(end - float(timeline.seconds[first])) / stream.time_base)
        with contextlib.suppress(av.error.FFmpegError):  # without an index it is read from its beginning
            container.seek(max(0, zero - round(1 / stream.time_base)), stream=stream)
        for packet in container.demux(stream):
            if packet.pts is None or packet.pts < zero:
                continue
            if packet.pts >= stop:
                return
            packet.pts -= zero
            packet.dts = packet.pts
            yield packet


def _when(packet: Any) -> float:
    return float((packet.pts if packet.dts is None else packet.dts) * packet.time_base)


def _readable(path: Path, frames: int) -> bool:
    """Return whether a clip decodes to so many frames, the first at 0."""
    with open_container(path) as container:
        stream = find_stream(container, path.name)
        times = [frame.pts for frame in container.decode(stream)]
    return len(times) == frames and times[0] == 0
