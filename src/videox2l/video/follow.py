"""Frames of a video that still runs: a file that grows, a pipe, or a URL that FFmpeg reads."""

from __future__ import annotations

import hashlib
import io
import math
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import av

from videox2l.errors import SettingsError, VideoError, VideoWarning
from videox2l.video.files import FORMATS, admit
from videox2l.video.orientation import Display
from videox2l.video.sampling import TOLERANCE
from videox2l.video.source import Frame, Manifest

#: What may be opened by URL. FFmpeg's pseudo-protocols (concat:, subfile:, file:, ...) are not among them.
SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "srt", "udp", "rtp", "tcp", "http", "https")
_TRANSPORT = "rtsp,rtsps,rtmp,rtmps,srt,udp,rtp,tcp,tls,http,https,crypto"
_LIVE = "rtsp,rtp,sdp,hls"
_HEAD = 1 << 16
_PAUSE = 2.0  # seconds without a picture that are told, or three samples
_BACK = 0.5  # seconds that times must go back to count as a new beginning


class FollowSource:
    """Gives out the sampled frames of a video that still runs, as they come. A `FrameSource`.

    `where`: a file that grows (MPEG-TS, Matroska, FLV or fragmented MP4; a plain MP4 has its index at the end), "-" for
    standard input, a named pipe, or a URL of `SCHEMES`. URLs are opened as they are: give only those that you trust.
    `fps`: for every k the first frame with pts >= k / fps. `idle`: seconds without news after which a file has ended.

    Of a file the manifest's sha256 covers the first 64 KiB, all that is known not to change; the others have none.
    Raises VideoError when there is nothing to read, or not in a container that can be read while it is written.
    """

    def __init__(self, where: str, *, fps: float = 1.0, idle: float = 5.0) -> None:
        if not (math.isfinite(fps) and fps > 0):
            raise SettingsError(f"fps={fps!r} must be a finite number above 0.")
        if not (math.isfinite(idle) and idle >= 0):
            raise SettingsError(f"idle={idle!r} must be a finite number of seconds, 0 or more.")
        self.where, self.fps, self.idle = where, fps, idle
        self.scheme = where.split("://", 1)[0].lower() if "://" in where else ""
        if self.scheme and self.scheme not in SCHEMES:
            raise VideoError(f"{self.scheme}: cannot be followed: use a file, -, or a URL of {', '.join(SCHEMES)}.")
        self._pts: list[float] = []
        self._indices: list[int] = []
        self._facts: dict[str, Any] = {"container": "", "codec": "", "width": 0, "height": 0, "rotation": 0}
        self._warnings: list[str] = []
        self._holes: list[tuple[float, float]] = []
        self._bad = 0
        self._complete = False
        self._sha256 = None if self.scheme else self._head_hash()

    @property
    def expected_frames(self) -> None:
        """Not known."""

    @property
    def manifest(self) -> Manifest:
        """What is known so far."""
        return Manifest(
            source=self.scheme + "://..." if self.scheme else os.path.basename(self.where) or self.where,
            duration=None, frames=None, fps=self.fps, max_frames=None, start=None, end=None, mode="follow",
            effective_fps=self.fps, fps_note=None, mode_used="exact", mode_note=None, shift=0.0, pts=tuple(self._pts),
            indices=tuple(self._indices), bad_packets=self._bad, warnings=tuple(self._warnings),
            complete=self._complete, sha256=self._sha256, holes=tuple(self._holes), **self._facts,
        )  # fmt: skip

    def __iter__(self) -> Iterator[Frame]:
        """Give out frames as they come; ends when the source does."""
        with self._open() as container:
            streams = container.streams.video
            if not streams:
                raise VideoError(f"{self.manifest.source!r} has no video stream.")
            stream = streams[0]
            stream.thread_type = "SLICE"
            self._facts |= {"container": container.format.name, "codec": stream.codec.canonical_name}
            yield from self._sample(container, stream)
        if not self._pts:
            raise VideoError(
                f"{self.manifest.source!r}: no frame could be decoded from front to back. Follow what can be read "
                "while it is written, such as MPEG-TS or Matroska; leave --follow out for a file that is whole."
            )
        self._complete = True

    def _sample(self, container: Any, stream: Any) -> Iterator[Frame]:
        origin = display = None
        cell, index, latest = -1, -1, 0.0
        for picture in self._pictures(container, stream):
            if picture.pts is None:
                continue
            seconds = float(picture.pts * picture.time_base)
            if origin is None:
                origin = seconds
                display = Display.of(picture, stream.sample_aspect_ratio)
                height, width = display.size
                lies = display.orientation
                self._facts |= {"height": height, "width": width}
                self._facts |= {"rotation": lies.degrees, "mirrored": lies.mirrored}
                for text in display.remarks():
                    self._warn(text)
            index += 1
            pts = seconds - origin
            if pts < latest - _BACK:  # a source that was started again, or times that ran over
                origin -= latest - pts
                self._warn(f"the source's own times start anew at {latest:.3f} s; they were continued")
                pts = latest
            latest = max(latest, pts)
            if math.floor((pts + TOLERANCE) * self.fps) <= cell or (self._pts and pts <= self._pts[-1]):
                continue
            cell = math.floor((pts + TOLERANCE) * self.fps)
            assert display is not None
            pause = pts - self._pts[-1] if self._pts else 0.0
            resumes = pause > max(_PAUSE, 3 / self.fps)
            if resumes:
                self._holes.append((self._pts[-1] + 1 / self.fps, pts))
                self._warn(f"nothing came between {self._pts[-1]:.3f} s and {pts:.3f} s")
            self._pts.append(pts)
            self._indices.append(index)
            yield Frame(display.image(picture), pts, index, resumes)

    def _pictures(self, container: Any, stream: Any) -> Iterator[Any]:
        """Decoded frames; packets that cannot be decoded are counted and left out."""
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:
                self._warn(f"reading stopped: {error}")
                return
            if packet is None:
                return
            try:
                yield from packet.decode()
            except av.error.FFmpegError:
                self._bad += 1
                if self._bad == 1:
                    self._warn("packets that could not be decoded were left out")

    def _warn(self, text: str) -> None:
        self._warnings.append(text)
        warnings.warn(f"{self.manifest.source}: {text}", VideoWarning, stacklevel=3)

    def _open(self) -> Any:
        try:
            if self.scheme:
                allowed = {"format_whitelist": f"{FORMATS},{_LIVE}", "protocol_whitelist": _TRANSPORT}
                return av.open(self.where, options=allowed, timeout=(30.0, 30.0), metadata_errors="ignore")
            file = _Growing(self._stream(), 0.0 if self._sha256 is None else self.idle)
            return av.open(file, options={"format_whitelist": FORMATS}, metadata_errors="ignore")
        except (av.error.FFmpegError, OSError) as error:
            raise VideoError(
                f"{self.manifest.source!r} cannot be followed ({error}): it must be in a container that can be read "
                "while it is written, such as MPEG-TS or Matroska."
            ) from None

    def _stream(self) -> BinaryIO:
        if self.where == "-":
            return os.fdopen(os.dup(0), "rb", buffering=0)
        return open(self.where, "rb", buffering=0)

    def _head_hash(self) -> str | None:
        """Hash of the first bytes of a file, waiting until there are enough of them; None for pipes."""
        if self.where == "-" or Path(self.where).is_fifo():
            return None
        path = admit(self.where)
        until = time.monotonic() + self.idle
        while path.stat().st_size < _HEAD and time.monotonic() < until:
            time.sleep(0.05)
        with path.open("rb") as file:
            return hashlib.sha256(file.read(_HEAD)).hexdigest()


class _Growing(io.RawIOBase):
    """A file or pipe to be read from front to back; at the end it waits up to `idle` seconds for more."""

    def __init__(self, file: BinaryIO, idle: float) -> None:
        self.file, self.idle = file, idle

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        until = time.monotonic() + self.idle
        while True:
            data = self.file.read(size)
            if data or time.monotonic() >= until:
                return data or b""
            time.sleep(0.02)

    def close(self) -> None:
        self.file.close()
        super().close()
