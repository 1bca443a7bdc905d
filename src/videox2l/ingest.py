"""From a source of frames to a memory: chunk after chunk, nothing else held."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from videox2l.backbones.base import Backbone, VideoCursor
from videox2l.compress import ChunkEncoder, Compressor, History
from videox2l.compress.lazy import check_l_tier
from videox2l.errors import SettingsError, VideoError
from videox2l.memory import Memory
from videox2l.video import Frame, FrameSource

Progress = Callable[[int, int | None, float], None]
"""Called with the frames done, the frames expected (None if unknown), and the pts reached, after each chunk."""


@dataclass(frozen=True)
class IngestSettings:
    """How a video is compressed. All of it is part of the memory's fingerprint."""

    ratios: tuple[float, ...]
    history: str
    compressor: str
    chunk_frames: int
    l_tier: str = "stored"

    def __post_init__(self) -> None:
        if not self.ratios or any(ratio < 1 for ratio in self.ratios):
            raise SettingsError(f"ratios={list(self.ratios)} is not possible: use one or more numbers from 1 up")
        if list(self.ratios) != sorted(set(self.ratios)):
            raise SettingsError(f"ratios={list(self.ratios)} must rise, finest first, such as 2,32")
        History.parse(self.history)
        check_l_tier(self.l_tier, self.history, self.ratios)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return {**asdict(self), "ratios": list(self.ratios)}


@dataclass(frozen=True)
class FrameRun:
    """The frames of one chunk; `end` (seconds) is where the next chunk starts; `last`: the source has no more."""

    frames: Sequence[Frame]
    end: float
    last: bool = False


def runs(source: FrameSource, length: int) -> Iterator[FrameRun]:
    """Cut a source into runs of `length` frames; the last may be shorter.

    A run is given out when the frame after it has come, so that the last one is known to be the last.
    """
    held: list[Frame] = []
    for frame in source:
        if len(held) == length:
            yield FrameRun(held, frame.pts)
            held = []
        held.append(frame)
    if held:
        yield FrameRun(held, _end_of(held, source), last=True)


def _end_of(frames: Sequence[Frame], source: FrameSource) -> float:
    """The last frame lasts as long as a sampling step, but not beyond the end of the video."""
    last = frames[-1].pts
    rate = source.manifest.effective_fps
    end = last + (1 / rate if rate else 0.0)
    duration = source.manifest.duration
    return min(end, duration) if duration and duration > last else end


def ingest(
    source: FrameSource,
    backbone: Backbone,
    compressor: Compressor,
    settings: IngestSettings,
    identity: dict[str, str],
    progress: Progress | None = None,
) -> Memory:
    """Read `source` once and return its memory. Raises VideoError if it has no frames."""
    if settings.chunk_frames % backbone.group_frames or settings.chunk_frames < 1:
        raise SettingsError(
            f"chunk_frames={settings.chunk_frames} is not possible: {backbone.name} needs a multiple of "
            f"{backbone.group_frames}"
        )
    lazy = settings.l_tier == "lazy"
    ratios = settings.ratios[-1:] if lazy else settings.ratios
    encoder = ChunkEncoder(backbone, compressor, ratios, History.parse(settings.history))
    text = backbone.prefix()
    memory = Memory(
        identity=identity,
        settings=settings.to_dict(),
        manifest={},
        shape=backbone.shape,
        ratios=settings.ratios,
        prefix=tuple(part.cpu() for part in encoder.prefix(text)),  # type: ignore[arg-type]
        next_position=len(text),
        reposition="compact" if compressor.compact else "keep",
    )
    cursor = VideoCursor(start=len(text), origin=0.0, tokens=0, next_position=len(text))
    done = 0
    for run in runs(source, settings.chunk_frames):
        pts = [frame.pts for frame in run.frames]
        if not done:
            cursor = VideoCursor(cursor.start, pts[0], 0, cursor.start)
        tokens = backbone.visual_tokens([frame.image for frame in run.frames], pts, cursor)
        levels = encoder.add(tokens, run.last)
        memory.add(pts[0], run.end, len(pts), tokens.positions, levels, visual=tokens if lazy else None)
        cursor = cursor.after(tokens)
        memory.next_position = cursor.next_position
        done += len(pts)
        if progress is not None:
            progress(done, source.expected_frames, pts[-1])
    if not memory.chunks:
        raise VideoError("the video has no frames in the range that was asked for")
    memory.manifest = json.loads(source.manifest.to_json())
    return memory
