"""The sound of a video at the times of its pictures: one track, 16 kHz mono, streamed in blocks."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from videox2l.errors import SettingsError, VideoError, VideoWarning
from videox2l.units import format_time
from videox2l.video.decode import first_frame
from videox2l.video.files import admit, open_container
from videox2l.video.timeline import LEAST, Packets

RATE = 16000
"""Samples per second of what is given out."""

BLOCK = 120.0
"""Seconds of sound that are held and transcribed at once, at most."""

_JITTER = 0.05  # seconds that a frame's time may differ from where the samples before it end
_SILENCE = 10 ** (-60 / 20)
Samples = npt.NDArray[np.float32]


class SoundTrack:
    """One track of sound of a local video file, in seconds since the first frame of the video.

    `track` counts from 1. Where nothing can be decoded there is silence, so that all else keeps its time: `holes` are
    such stretches of half a second or more, (start, end) in seconds; `end` is where the sound ends that was
    read; `loudest` its largest amplitude, of 1. All three are known when the reading is over.
    Raises VideoError where the file has no sound that can be decoded, SettingsError where it has no such track.
    """

    def __init__(self, path: str | os.PathLike[str], track: int = 1) -> None:
        self.path, self.track = admit(path), track
        self.holes: list[tuple[float, float]] = []
        self.end = self.loudest = 0.0
        with open_container(self.path) as container:
            self.languages = tuple(stream.metadata.get("language", "und") for stream in container.streams.audio)
            if not self.languages:
                raise VideoError(f"{self.path.name!r} has no sound track: there is nothing to transcribe.")
            if track > len(self.languages):
                raise SettingsError(f"audio_track must be at most {len(self.languages)}, got {track}: {self.listed()}")
            if container.streams.audio[track - 1].codec_context is None:
                raise VideoError(f"{self.path.name!r}: no decoder for its sound track {track}; re-encode it.")

    def listed(self) -> str:
        """Return the tracks in words."""
        names = ", ".join(f"{i} ({language})" for i, language in enumerate(self.languages, 1))
        return f"{self.path.name!r} has the sound tracks {names}"

    def blocks(self, start: float = 0.0, end: float | None = None) -> Iterator[tuple[int, Samples]]:
        """Yield (first sample, samples (n,) float32) one behind the other, each at most `BLOCK` seconds.

        They are cut where it is quietest in the last third, so that few words are cut. The cuts depend on what comes
        from `start` on alone: a reading that begins at the start of a block yields the same blocks from there.
        """
        size, begin = int(BLOCK * RATE), round(start * RATE)
        stop = None if end is None else round(end * RATE)
        parts, held = list[Samples](), 0
        for at, piece in self.pieces():
            piece = piece[max(0, begin + held - at) : None if stop is None else max(0, stop - at)]
            if len(piece):
                parts.append(piece)
                held += len(piece)
            while held > size:
                block = np.concatenate(parts)
                cut = _quietest(block[:size])
                yield begin, block[:cut]
                begin, held, parts = begin + cut, held - cut, [block[cut:]]
            if stop is not None and at >= stop:
                break
        if held:
            yield begin, np.concatenate(parts)

    def pieces(self) -> Iterator[tuple[int, Samples]]:
        """Yield (first sample, samples (n,) float32 from -1 to 1), from sample 0 on, without a gap."""
        done, skip, due = 0, 0, 0.0  # samples given out, to leave out; the second at which the next frame is due
        resampler, kind = None, None
        self.holes, self.loudest = [], 0.0
        for time, frame in self._frames():
            now = (frame.format.name, frame.layout.name, frame.sample_rate)
            if resampler is None or now != kind or abs(time - due) > _JITTER:
                at = round(time * RATE)
                for piece in _resampled(resampler, None):
                    piece = piece[: max(0, at - done)]
                    yield done, piece
                    done += len(piece)
                if at - done >= LEAST * RATE and resampler is not None:
                    self.holes.append((done / RATE, at / RATE))
                for first in range(done, at, RATE):
                    yield first, np.zeros(min(RATE, at - first), np.float32)
                skip, done, due = max(0, done - at), max(done, at), time
                resampler, kind = av.AudioResampler("flt", "mono", RATE), now
            due += frame.samples / frame.sample_rate
            for piece in _resampled(resampler, frame):
                skip, piece = max(0, skip - len(piece)), piece[skip:]
                if len(piece):
                    self.loudest = max(self.loudest, float(np.abs(piece).max()))
                    self.end = (done + len(piece)) / RATE
                    yield done, piece
                    done += len(piece)
        for piece in _resampled(resampler, None):
            yield done, piece
            done += len(piece)

    def _frames(self) -> Iterator[tuple[float, Any]]:
        """Yield (seconds, frame of sound) as far as they can be decoded; what comes before the video is part of it."""
        picture = first_frame(self.path)
        origin = 0.0 if picture.pts is None else float(picture.pts * picture.time_base)
        after = 0.0
        with open_container(self.path) as container:
            stream = container.streams.audio[self.track - 1]
            for packet in _with_end(Packets(container, stream)):
                try:
                    frames = stream.codec_context.decode(packet)
                except av.error.FFmpegError:
                    continue
                for frame in frames:
                    if not frame.sample_rate or not frame.samples:
                        continue
                    time = after if frame.pts is None else float(frame.pts * frame.time_base) - origin
                    after = time + frame.samples / frame.sample_rate
                    yield time, frame

    def warn(self) -> None:
        """Warn (VideoWarning) of what a reading met: holes with their times, and silence."""
        name = self.path.name
        if self.holes:
            listed = ", ".join(f"{format_time(a)}-{format_time(b)}" for a, b in self.holes[:8])
            more = f" and {len(self.holes) - 8} more" if len(self.holes) > 8 else ""
            warnings.warn(f"{name}: no sound could be read from {listed}{more}", VideoWarning, stacklevel=2)
        if not self.end:
            warnings.warn(f"{name}: nothing of its sound track could be decoded", VideoWarning, stacklevel=2)
        elif self.loudest < _SILENCE:
            warnings.warn(f"{name}: its sound track {self.track} is silent", VideoWarning, stacklevel=2)


def _with_end(packets: Packets) -> Iterator[Any]:
    yield from packets
    yield None  # empties the decoder


def _resampled(resampler: Any, frame: Any) -> Iterator[Samples]:
    if resampler is not None:
        for made in resampler.resample(frame):
            yield made.to_ndarray().reshape(-1)


def _quietest(block: Samples, step: int = RATE // 10) -> int:
    """Return the middle of the quietest tenth of a second in the last third of a block."""
    first = len(block) * 2 // 3
    tail = block[first : first + (len(block) - first) // step * step].reshape(-1, step)
    return first + int(np.square(tail).mean(1).argmin()) * step + step // 2
