"""What the header and first picture of a video tell: size as shown, duration."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from videox2l.errors import SettingsError, VideoError
from videox2l.units import parse_time
from videox2l.video import FrameSampling, open_video
from videox2l.video.decode import find_stream, first_frame
from videox2l.video.files import PICTURES, admit, open_container
from videox2l.video.orientation import Display


@dataclass(frozen=True)
class VideoHeader:
    """A video by its header: `height` and `width` as shown, `duration` in seconds, `rate` frames per second."""

    name: str
    height: int
    width: int
    duration: float
    rate: float | None = None

    def samples(
        self,
        fps: float | None,
        max_frames: int | None,
        start: float,
        end: float | None,
        at: tuple[float, ...] | None = None,
    ) -> int:
        """Return how many frames would be sampled."""
        if at is not None:
            if at[-1] >= self.duration:
                raise SettingsError(f"at: {at[-1]:g} s is outside the video, which lasts {self.duration:.3f} s.")
            return len(at)
        span = min(end or self.duration, self.duration) - start
        if span <= 0:
            raise SettingsError(f"start={start:g} is outside the video, which lasts {self.duration:.3f} s.")
        rate = min(value for value in (fps, self.rate, 1e9) if value is not None)
        found = max(1, int(span * rate + 1 - 1e-6))
        return found if max_frames is None else min(found, max_frames)


def read_header(video: str, size: str | None = None) -> VideoHeader:
    """Read the header of a file; or take a time such as "1:00:00" as a video of that length, of `size` pixels.

    Raises VideoError where the header has no duration, SettingsError for a size that is none.
    """
    if not Path(video).exists() and re.fullmatch(r"[\d:.]+", video):
        width, height = _size(size or "1280x720")
        return VideoHeader(f"a video of {video} at {width}x{height}", height, width, parse_time(video))
    if Path(video).is_dir() or video.lower().endswith(PICTURES):
        with open_video(video, FrameSampling(fps=None)) as source:
            height, width = next(iter(source)).image.shape[:2]
            facts = source.manifest
        seconds, count = facts.duration or 1.0, facts.frames or 1
        return VideoHeader(Path(video).name, height, width, seconds, count / seconds)
    path = admit(video)
    with open_container(path) as container:
        stream = find_stream(container, path.name)
        seconds = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
        if seconds <= 0:
            raise VideoError(f"the header of {path.name!r} tells no duration: give the length instead, such as 1:00:00")
        shown = Display.of(first_frame(path), stream.sample_aspect_ratio).size
        width, height = _size(size) if size else shown[::-1]
        rate = float(stream.average_rate) if stream.average_rate else None
    return VideoHeader(path.name, height, width, seconds, rate)


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found:
        raise SettingsError(f"size '{text}' is none: write width x height such as 1280x720")
    return int(found[1]), int(found[2])
