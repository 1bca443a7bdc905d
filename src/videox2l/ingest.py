"""From a source of frames to a memory: chunk after chunk, nothing else held."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from videox2l.compress import ChunkEncoder, Compressor, History
from videox2l.compress.lazy import check_l_tier
from videox2l.engine.backbone import Backbone
from videox2l.errors import MemoryFileError, SettingsError, VideoError
from videox2l.memory import Memory
from videox2l.memory.disk.folder import content_of, head_of, memory_of
from videox2l.memory.disk.journal import describe_differences
from videox2l.memory.disk.layout import check_bits
from videox2l.memory.disk.stores import ObjectStore, RamStore
from videox2l.memory.disk.writer import MemoryWriter, continue_writer, open_writer
from videox2l.memory.features import PICTURES, chunk_features
from videox2l.select.embedding import DualEncoder
from videox2l.types import VideoCursor, VideoInfo
from videox2l.units import Cue
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
    l_bits: int | None = None
    h_bits: int | None = None
    live: bool = False
    embedder: Mapping[str, str] | None = None  # name and weights of the dual encoder that frames are embedded with

    def __post_init__(self) -> None:
        if not self.ratios or any(ratio < 1 for ratio in self.ratios):
            raise SettingsError(f"ratios={list(self.ratios)} is not possible: use one or more numbers from 1 up")
        if list(self.ratios) != sorted(set(self.ratios)):
            raise SettingsError(f"ratios={list(self.ratios)} must rise, finest first, such as 2,32")
        History.parse(self.history)
        check_l_tier(self.l_tier, self.history, self.ratios)
        check_bits(self.l_bits, "l_bits")
        check_bits(self.h_bits, "h_bits")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return {**asdict(self), "ratios": list(self.ratios)}


@dataclass(frozen=True)
class FrameRun:
    """The frames of one chunk; `end` (seconds) is where the next chunk starts; `last`: the source has no more.

    `before`: the last frame that was left out, in the first run behind it.
    """

    frames: Sequence[Frame]
    end: float
    last: bool = False
    before: Frame | None = None


def runs(
    source: FrameSource, length: int, skip: Sequence[tuple[float, int]] = (), shift: float = 0.0
) -> Iterator[FrameRun]:
    """Cut a source into runs of `length` frames; the last may be shorter.

    A run is given out when the frame after it has come, so that the last one is known to be the last. `skip`: pts and
    indices of frames at the beginning that are left out, `shift` seconds later than in the source; VideoError if the
    source begins with others.
    """
    held: list[Frame] = []
    before: Frame | None = None
    frames = iter(source)
    for number, (pts, index) in enumerate(skip):
        frame = next(frames, None)
        if frame is None or (frame.pts + shift, frame.index) != (pts, index):
            found = "the video ends" if frame is None else f"frame {frame.index} at {frame.pts:.3f} s came"
            raise VideoError(
                f"the video is not the one whose ingest was stopped: its sample {number} is frame {index} at "
                f"{pts:.3f} s, now {found}. Ingest it into a new folder."
            )
        before = frame
    for frame in frames:
        if len(held) == length:
            yield FrameRun(held, frame.pts, before=before)
            held, before = [], None
        held.append(frame)
    if held:
        yield FrameRun(held, _end_of(held, source), last=True, before=before)


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
    store: ObjectStore | None = None,
    subtitles: Sequence[Cue] = (),
    embedder: DualEncoder | None = None,
) -> Memory:
    """Read `source` once and return its memory. Raises VideoError if it has no frames.

    With a `store` every chunk is on disk before the next one is read, and an ingest that was stopped goes on behind
    its last whole chunk. Raises MemoryFileError if the store holds a memory of something else.
    """
    check_chunk_frames(settings, backbone)
    encoder = encoder_for(backbone, compressor, settings)
    text = backbone.prefix(known_of(source))
    memory = Memory(
        identity=identity,
        settings=settings.to_dict(),
        manifest=facts_of(source),
        shape=backbone.shape,
        ratios=settings.ratios,
        prefix=tuple(part.cpu() for part in encoder.prefix(text)),  # type: ignore[arg-type]
        next_position=len(text),
        reposition="compact" if compressor.compact else "keep",
        complete=False,
        subtitles=tuple(subtitles),
    )
    if store is None and settings.l_bits is None and settings.h_bits is None:
        extend(memory, source, backbone, encoder, progress=progress, embedder=embedder)
        return memory
    if store is None:
        store = RamStore()
    with open_writer(store, head_of(memory)) as writer:
        if subtitles:
            writer.subtitles([asdict(line) for line in subtitles])
        memory = memory_of(writer.source)
        if memory.complete and not settings.live:
            return memory
        if memory.chunks and memory.manifest.get("sha256") is None:
            raise MemoryFileError(
                f"'{store}' holds the beginning of a source without a content hash, which cannot be read again: "
                "append to it, or ingest into a new folder"
            )
        encoder.restore(memory.prefix, memory.chunks)
        extend(memory, source, backbone, encoder, progress=progress, writer=writer, skip=0, embedder=embedder)
    return memory


def append(
    memory: Memory,
    source: FrameSource,
    backbone: Backbone,
    compressor: Compressor,
    settings: IngestSettings,
    progress: Progress | None = None,
    embedder: DualEncoder | None = None,
) -> None:
    """Encode `source` behind the last chunk of `memory`, its time 0 where that one ends; chunks show as they finish.

    An append to a store that was stopped goes on behind its last whole chunk, if it is called with the same source.
    """
    encoder = encoder_for(backbone, compressor, settings)
    shift = memory.chunks[-1].end if memory.chunks else 0.0
    if memory.source is None:
        encoder.restore(memory.prefix, memory.chunks)
        extend(memory, source, backbone, encoder, progress=progress, live=True, shift=shift, embedder=embedder)
        return
    with continue_writer(memory.source) as writer:
        now = memory_of(writer.source)
        memory.source, memory.chunks, memory.manifest = now.source, now.chunks, now.manifest
        memory.next_position, memory.complete = now.next_position, now.complete
        content, skip = content_of(facts_of(source)), len(memory.chunks)
        shift = memory.chunks[-1].end if memory.chunks else 0.0
        journal = writer.journal
        if not memory.complete:
            before = journal.begun.get("content", writer.source.head["content"])
            if content["sha256"] is not None and content == before:
                skip, shift = journal.first, journal.begun.get("shift", 0.0)
            elif before["sha256"] is not None:
                wrong = "; ".join(describe_differences(before, content))
                raise MemoryFileError(
                    f"'{writer.place}' waits for the rest of another source ({wrong}): end that first"
                )
        if skip == len(memory.chunks) and journal.first != skip:
            writer.begin(content, shift)
        encoder.restore(memory.prefix, memory.chunks)
        extend(
            memory,
            source,
            backbone,
            encoder,
            progress=progress,
            writer=writer,
            skip=skip,
            live=True,
            shift=shift,
            embedder=embedder,
        )


def check_chunk_frames(settings: IngestSettings, backbone: Backbone) -> None:
    """Raise SettingsError where chunks of this length cannot be encoded."""
    if settings.chunk_frames % backbone.group_frames or settings.chunk_frames < 1:
        raise SettingsError(
            f"chunk_frames={settings.chunk_frames} is not possible: {backbone.name} needs a multiple of "
            f"{backbone.group_frames}"
        )


def encoder_for(backbone: Backbone, compressor: Compressor, settings: IngestSettings) -> ChunkEncoder:
    """Return the encoder of an ingest; where finer levels are made later, it makes the coarsest alone."""
    ratios = settings.ratios[-1:] if settings.l_tier == "lazy" else settings.ratios
    return ChunkEncoder(backbone, compressor, ratios, History.parse(settings.history))


def extend(
    memory: Memory,
    source: FrameSource,
    backbone: Backbone,
    encoder: ChunkEncoder,
    *,
    progress: Progress | None = None,
    writer: MemoryWriter | None = None,
    skip: int | None = None,
    live: bool = False,
    shift: float = 0.0,
    embedder: DualEncoder | None = None,
) -> None:
    """Encode the frames of `source` into chunks at the end of `memory`, which `encoder` stands behind.

    `skip`: the source begins with the frames of the chunks from this number on. `endless`: no chunk is known to be the
    last one. `shift` seconds are added to all times. `embedder` embeds some frames of each chunk.
    """
    lazy = memory.settings["l_tier"] == "lazy"
    start = memory.prefix[0].shape[2]
    origin = memory.chunks[0].start if memory.chunks else None
    done = sum(chunk.frames for chunk in memory.chunks)
    cursor = VideoCursor(start, origin or 0.0, sum(encoder.sizes), memory.next_position, done, known_of(source))
    given = (list(memory.manifest["pts"]), list(memory.manifest["indices"])) if memory.chunks else ([], [])
    begun = sum(chunk.frames for chunk in memory.chunks[:skip])
    known, length = list(zip(*given, strict=True))[begun:], int(memory.settings["chunk_frames"])
    live = live or bool(memory.settings.get("live"))
    for run in runs(source, length, known, shift):
        pts = [frame.pts + shift for frame in run.frames]
        if origin is None:
            origin = pts[0]
            cursor = replace(cursor, origin=origin, tokens=0, next_position=start, frames=0)
        if run.before is not None:
            cursor = replace(cursor, last=run.before.image)
        tokens = backbone.visual_tokens([frame.image for frame in run.frames], pts, cursor)
        last = run.last and not live
        levels = encoder.make(tokens, last)
        features = chunk_features(levels, tokens, backbone)
        if embedder is not None:
            features[PICTURES] = embedder.of_chunk([frame.image for frame in run.frames])
        chunk = memory.add(
            pts[0],
            run.end + shift,
            len(pts),
            tokens.positions,
            levels,
            tokens if lazy else None,
            last,
            thumbnail(run.frames[0].image),
            features,
        )
        if writer is None:
            encoder.extend(levels, tokens.positions)
        else:
            memory.chunks[-1] = writer.add(chunk, pts, [frame.index for frame in run.frames])
            quantised = memory.settings["l_bits"] is not None or memory.settings["h_bits"] is not None
            encoder.extend(memory.chunks[-1].levels if quantised else levels, tokens.positions)
        given[0].extend(pts)
        given[1].extend(frame.index for frame in run.frames)
        cursor = cursor.after(tokens, len(pts))
        memory.next_position = cursor.next_position
        done += len(pts)
        if progress is not None:
            expected = source.expected_frames
            progress(done, None if expected is None else expected + begun, pts[-1])
    if not memory.chunks:
        raise VideoError("the video has no frames in the range that was asked for")
    facts = facts_of(source)
    if writer is not None and not (memory.complete and done == len(known) + begun):
        writer.finish({key: value for key, value in facts.items() if key not in ("pts", "indices")})
    memory.manifest = {**facts, "pts": given[0], "indices": given[1]}
    memory.complete = True


def facts_of(source: FrameSource) -> dict[str, Any]:
    """Return what is known of a source now, as plain JSON values."""
    facts: dict[str, Any] = json.loads(source.manifest.to_json())
    return facts


def known_of(source: FrameSource) -> VideoInfo:
    """Return what is known of a source before it is read."""
    return VideoInfo(source.expected_frames, source.manifest.duration)


def thumbnail(image: npt.NDArray[np.uint8], side: int = 160) -> bytes:
    """Return a JPEG of a frame (height, width, 3), its longer side at most `side` pixels."""
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((side, side))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=75)
    return file.getvalue()
