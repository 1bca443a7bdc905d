"""From a source of frames to a memory: window after window of chunks, nothing else held."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from videox2l.compress import (
    COMPRESSORS,
    ChunkEncoder,
    Compressor,
    History,
    WindowCompressor,
    check_windows,
    compressor_by_name,
)
from videox2l.compress.lazy import check_l_tier
from videox2l.engine.backbone import Backbone, BackboneFacts, warn_beyond
from videox2l.engine.hub import online
from videox2l.errors import MemoryFileError, ModelError, SettingsError, VideoError
from videox2l.memory import Chunk, LevelKV, Memory
from videox2l.memory.disk.folder import content_of, head_of, memory_of
from videox2l.memory.disk.journal import describe_differences
from videox2l.memory.disk.stores import ObjectStore, RamStore
from videox2l.memory.disk.writer import MemoryWriter, continue_writer, open_writer
from videox2l.memory.features import PICTURES, KeyTap, chunk_features, votes_in, votes_of
from videox2l.memory.memory import in_host_memory
from videox2l.memory.votes import Votes
from videox2l.options import IngestOptions
from videox2l.select.embedding import DualEncoder, same_encoder
from videox2l.types import VideoCursor, VideoInfo, VisualTokens
from videox2l.units import Cue
from videox2l.video import Frame, FrameSource, content_hash
from videox2l.video.ahead import ahead
from videox2l.video.audio import SoundTrack
from videox2l.video.speech import Transcriber, Transcript, transcriber_of

Progress = Callable[[int, int | None, float], None]
"""Called with the frames done, the frames expected (None if unknown), and the pts reached, after each window."""

WINDOW_TOKENS = 2048
"""Visual tokens of a window where its chunks are not counted: about as many as a large model on a GPU needs to be bound
by arithmetic, not by reading its weights."""


@dataclass(frozen=True)
class IngestSettings:
    """How a video is compressed, by names and numbers alone: part of the memory's fingerprint."""

    ratios: tuple[float, ...]
    history: str
    compressor: str
    chunk_frames: int
    l_tier: str = "stored"
    l_bits: int | None = None
    h_bits: int | None = None
    live: bool = False
    embedder: Mapping[str, str] | None = None  # name and weights of the dual encoder that frames are embedded with
    index: Votes = ()  # layers whose keys are indexed, and how each is read
    system: str | None = None  # text before the video in place of the chat template's own
    speech: Mapping[str, Any] | None = None  # what makes subtitles of the video's sound
    window_chunks: int = 1  # chunks that are prefilled in one forward
    window_tokens: int = 0  # where above 0: as many chunks as have about so many visual tokens

    def __post_init__(self) -> None:
        History.parse(self.history)
        check_l_tier(self.l_tier, self.history, self.ratios)

    def window_full(self, tokens: Sequence[int]) -> bool:
        """Return whether a window of chunks with so many visual tokens takes no more of them."""
        return len(tokens) >= self.window_chunks and sum(tokens) + tokens[-1] > self.window_tokens

    @classmethod
    def of(
        cls,
        options: IngestOptions,
        backbone: BackboneFacts,
        embedder: DualEncoder | None = None,
        device: str | None = None,
    ) -> IngestSettings:
        """Resolve options for a backbone on a kind of device, by default its own ("cuda"). Raises SettingsError."""
        compressor = backbone.default_compressor if options.compressor is None else options.compressor
        if options.l_tier == "lazy" and not isinstance(compressor, str):
            raise SettingsError("l_tier='lazy' needs a compressor by name: levels are made later, maybe elsewhere")
        settings = cls(
            ratios=options.ratios,
            history=options.history,
            compressor=compressor if isinstance(compressor, str) else repr(compressor),
            chunk_frames=options.chunk_frames or backbone.default_chunk_frames,
            l_tier="stored" if options.l_tier == "none" else options.l_tier,
            l_bits=options.l_bits,
            h_bits=options.h_bits,
            live=options.live,
            embedder=None if embedder is None else embedder.identity(),
            index=votes_of(backbone),
            system=options.system,
            window_chunks=options.window_chunks or 1,
        )
        check_chunk_frames(settings, backbone)
        made = compressor_by_name(compressor) if isinstance(compressor, str) else compressor
        if settings.window_chunks > 1:
            check_windows(made)
        device = device or str(getattr(backbone, "device", "cpu"))
        by_tokens = options.window_chunks is None and device.startswith("cuda")
        if by_tokens and isinstance(made, WindowCompressor) and not options.live:
            return replace(settings, window_tokens=WINDOW_TOKENS)
        return settings

    @classmethod
    def of_memory(cls, memory: Memory) -> IngestSettings:
        """Return the settings that a memory was made with."""
        known = {**memory.settings, "ratios": tuple(memory.settings["ratios"])}
        return cls(**{**known, "index": tuple(tuple(vote) for vote in known.get("index", ()))})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON values; of a system text and windows there is no word without them."""
        found = {**asdict(self), "ratios": list(self.ratios), "index": [list(vote) for vote in self.index]}
        return {name: value for name, value in found.items() if name not in _UNTOLD or value != _UNTOLD[name]}

    def info(self, source: FrameSource) -> VideoInfo:
        """Return what is known of a source and its prompt before it is read."""
        return replace(info_of(source), system=self.system)

    def encoder(self, backbone: Backbone, compressor: Compressor) -> ChunkEncoder:
        """Return the encoder of an ingest; where finer levels are made later, it makes the coarsest alone."""
        ratios = self.ratios[-1:] if self.l_tier == "lazy" else self.ratios
        return ChunkEncoder(backbone, compressor, ratios, History.parse(self.history))


_UNTOLD: dict[str, Any] = {"system": None, "window_chunks": 1, "window_tokens": 0}
_WINDOWS = ("window_chunks", "window_tokens")


@dataclass(frozen=True)
class _Seen:
    """A chunk as the vision tower has seen it: what waits until its window is whole. `pts`, `end` in seconds."""

    tokens: VisualTokens
    pts: list[float]
    indices: list[int]
    end: float
    thumbnail: bytes
    features: dict[str, Tensor]


class Ingestor:
    """Turns frames into chunks at the end of a memory: `add` frames as they come, then `finish`.

    The vision tower sees a chunk when the frame after it has come, so that the last one is known to be the last. A
    window of chunks is prefilled when it is whole: as long as the settings say, or where the video has a hole or ends.
    `shift` seconds are added to all times. `writer`: every chunk is on disk before `add` returns. `resume`: the source
    begins with the frames of the memory's chunks from this number on, which are compared and left out; those of a
    window that was being written are encoded again, for the sake of the chunks behind them. `live`: no chunk is known
    to be the last one. `embedder` embeds some frames of each chunk.
    """

    def __init__(
        self,
        memory: Memory,
        encoder: ChunkEncoder,
        *,
        info: VideoInfo,
        writer: MemoryWriter | None = None,
        resume: int | None = None,
        live: bool = False,
        shift: float = 0.0,
        embedder: DualEncoder | None = None,
    ) -> None:
        self.memory = memory
        self.done = sum(chunk.frames for chunk in memory.chunks)
        self._encoder, self._writer, self._embedder, self._shift = encoder, writer, embedder, shift
        self._backbone = encoder.backbone
        self._live = live or bool(memory.settings.get("live"))
        self._settings = IngestSettings.of_memory(memory)
        self.length = self._settings.chunk_frames
        chunks = memory.chunks
        begun = 0 if resume is None else min(_begun_window(chunks), len(chunks) - resume)
        self._number = len(chunks) - begun  # of the chunk that is seen next
        start, origin = memory.prefix[0].shape[2], chunks[0].start if chunks else 0.0
        encoder.restore(memory.prefix, chunks[: self._number])
        position = memory.only(range(self._number)).next_position if begun else memory.next_position
        self._again = sum(chunk.frames for chunk in chunks[self._number :])  # frames that are encoded once more
        self._cursor = VideoCursor(start, origin, sum(encoder.sizes), position, self.done - self._again, info)
        self._pts: list[float] = list(memory.manifest["pts"]) if chunks else []
        self._indices: list[int] = list(memory.manifest["indices"]) if chunks else []
        self.skipped = sum(chunk.frames for chunk in chunks[:resume])
        self._known = list(zip(self._pts, self._indices, strict=True))[self.skipped :][::-1]
        self._repeated = len(self._known)
        self._pending: list[Frame] = []
        self._window: list[_Seen] = []
        self._before: Frame | None = None  # the last frame that was left out

    @property
    def reached(self) -> float:
        """Time (seconds) of the last frame that was encoded."""
        return self._pts[-1]

    def add(self, frame: Frame) -> list[Chunk]:
        """Take one more frame; return the chunks of the window that is whole now, if there is one.

        Raises VideoError where the source is not the one whose ingest was stopped.
        """
        if self._known and not self._check_known(frame):
            return []
        chunks: list[Chunk] = []
        if self._pending and (frame.resumes or len(self._pending) == self.length):
            self._see(end_before(frame, self._pending))
            if frame.resumes or self._settings.window_full([len(chunk.tokens) for chunk in self._window]):
                chunks = self._encode(last=False)
        self._pending.append(frame)
        return chunks

    def listen(self, speech: Transcript, second: float) -> None:
        """Keep what is said in the video up to `second`, and a little beyond, as subtitles."""
        keep_speech(self.memory, speech, second, self._writer)

    def finish(self, source: FrameSource) -> list[Chunk]:
        """Encode what is left and complete the memory; return the last chunks, those that were made now.

        Raises VideoError where there were no frames, or fewer than an ingest that was stopped had read.
        """
        if self._known:
            self._check_known(None)
        if self._pending:
            self._see(_end_of(self._pending, source))
        chunks = self._encode(last=not self._live) if self._window else []
        memory = self.memory
        if not memory.chunks:
            raise VideoError("the video has no frames in the range that was asked for")
        facts = facts_of(source)
        if self._shift:
            late = [[start + self._shift, end + self._shift] for start, end in facts.get("holes", ())]
            facts["holes"] = [*memory.manifest.get("holes", ()), *late]
        if self._writer is not None and not (memory.complete and self.done == self._repeated + self.skipped):
            self._writer.finish({key: value for key, value in facts.items() if key not in ("pts", "indices")})
        memory.manifest = {**facts, "pts": self._pts, "indices": self._indices}
        memory.complete = True
        return chunks

    def _check_known(self, frame: Frame | None) -> bool:
        """Compare a frame with the one that stood there when the ingest was stopped; return whether it is encoded."""
        pts, index = self._known[-1]
        if frame is not None and (frame.pts + self._shift, frame.index) == (pts, index):
            self._known.pop()
            if len(self._known) < self._again:
                return True
            self._before = frame
            return False
        now = "the video ends" if frame is None else f"frame {frame.index} at {frame.pts:.3f} s came"
        raise VideoError(
            f"the video is not the one whose ingest was stopped: its sample {self._repeated - len(self._known)} is "
            f"frame {index} at {pts:.3f} s, now {now}. Ingest it into a new folder."
        )

    def _see(self, end: float) -> None:
        """Make the pending frames the next chunk of the window, which ends at second `end` of the source."""
        frames, self._pending = self._pending, []
        cursor, number = self._cursor, self._number
        pts = [frame.pts + self._shift for frame in frames]
        images = [frame.image for frame in frames]
        if not number:
            cursor = replace(cursor, origin=pts[0], tokens=0, next_position=cursor.start, frames=0)
        if self._before is not None:
            cursor, self._before = replace(cursor, last=self._before.image), None
        tokens = self._backbone.visual_tokens(images, pts, cursor)
        check_finite(tokens.embeds[None], f"the visual tokens of chunk {number}")
        pictures = {} if self._embedder is None else {PICTURES: self._embedder.of_chunk(images)}
        indices = [frame.index for frame in frames]
        self._window.append(_Seen(tokens, pts, indices, end + self._shift, thumbnail(images[0]), pictures))
        self._cursor, self._number = cursor.after(tokens, len(pts)), number + 1

    def _encode(self, last: bool) -> list[Chunk]:
        """Prefill the window in one forward; return its chunks that were not there before. `last`: none follows."""
        window, self._window = self._window, []
        memory, votes = self.memory, votes_in(self.memory.settings, self._backbone)
        taps = [KeyTap(seen.tokens, self._backbone, votes) for seen in window]
        made = self._encoder.make_window([seen.tokens for seen in window], last, taps)
        quantized = memory.settings["l_bits"] is not None or memory.settings["h_bits"] is not None
        first, chunks = self._number - len(window), []
        for place, (seen, levels, tap) in enumerate(zip(window, made, taps, strict=True)):
            check_level_finite(levels[min(levels)], f"chunk {first + place}")
            if first + place < len(memory.chunks):
                chunk = memory.chunks[first + place]
            else:
                features = chunk_features(levels, seen.tokens, self._backbone, tap) | seen.features
                chunk = Chunk(
                    start=seen.pts[0],
                    end=seen.end,
                    frames=len(seen.pts),
                    positions=seen.tokens.positions,
                    levels=levels,  # type: ignore[arg-type]  # any mapping is taken
                    visual=seen.tokens if memory.settings["l_tier"] == "lazy" else None,
                    last=last and place + 1 == len(window),
                    thumbnail=seen.thumbnail,
                    features=features,
                    window=(place, len(window)),
                )
                chunk = self._keep(chunk, seen)
                chunks.append(chunk)
            self._encoder.extend(chunk.levels if quantized else levels, seen.tokens.positions)
        return chunks

    def _keep(self, chunk: Chunk, seen: _Seen) -> Chunk:
        """Put a chunk at the end of the memory; return it as it is there."""
        memory, chunk = self.memory, in_host_memory(chunk)
        if self._writer is not None:
            chunk = self._writer.add(chunk, seen.pts, seen.indices)
        memory.chunks.append(chunk)  # other threads may ask about it from here on
        self._pts += seen.pts
        self._indices += seen.indices
        memory.next_position = max(memory.next_position, chunk.next_position)
        warn_beyond(self._backbone, memory.next_position, "the video")
        self.done += len(seen.pts)
        return chunk


def _begun_window(chunks: Sequence[Chunk]) -> int:
    """Return how many chunks of the last window are there, if it was being written when its ingest was stopped."""
    place, size = chunks[-1].window if chunks else (0, 1)
    return place + 1 if place + 1 < size else 0


def runs(source: FrameSource, length: int) -> Iterator[tuple[list[Frame], float]]:
    """Yield the frames of each chunk of `length` frames, and the second at which it ends."""
    frames: list[Frame] = []
    for frame in source:
        if frames and (frame.resumes or len(frames) == length):
            yield frames, end_before(frame, frames)
            frames = []
        frames.append(frame)
    if frames:
        yield frames, _end_of(frames, source)


def end_before(frame: Frame, frames: Sequence[Frame]) -> float:
    """Return the second at which a chunk ends that `frame` follows: there, or a usual step behind its last frame.

    The latter where a hole lies between them.
    """
    if not frame.resumes:
        return frame.pts
    steps = [after.pts - before.pts for before, after in pairwise(frames)]
    return min(frame.pts, frames[-1].pts + (median(steps) if steps else 0.0))


def _end_of(frames: Sequence[Frame], source: FrameSource) -> float:
    """The last frame lasts as long as a sampling step, but not beyond the end of the video.

    Where times are listed there is no step: it lasts as long as frames of the video do on average.
    """
    last, facts = frames[-1].pts, source.manifest
    rate = facts.effective_fps
    if facts.at is not None and facts.frames and facts.duration:
        rate = facts.frames / facts.duration
    end = last + (1 / rate if rate else 0.0)
    duration = source.manifest.duration
    return min(end, duration) if duration and duration > last else end


def _read(
    source: FrameSource, ingestor: Ingestor, progress: Progress | None, speech: Transcript | None = None
) -> Iterator[Memory]:
    """Take a source through an ingestor, to its end; yield its memory after every frame, and at the end.

    What is said up to a frame is written down before it is yielded.
    """

    def tell(chunks: Sequence[Chunk]) -> None:
        if chunks and progress is not None:
            expected = source.expected_frames
            progress(ingestor.done, None if expected is None else expected + ingestor.skipped, ingestor.reached)

    with contextlib.closing(ahead(source, ingestor.length)) as frames:
        for frame in frames:
            tell(ingestor.add(frame))
            if speech is not None:
                ingestor.listen(speech, frame.pts)
            yield ingestor.memory
    if speech is not None:
        ingestor.listen(speech, math.inf)
    tell(ingestor.finish(source))
    yield ingestor.memory


def finished(steps: Iterator[Memory]) -> Memory:
    """Take the steps of an ingest to their end; return its memory."""
    (memory,) = deque(steps, maxlen=1)
    return memory


def ingest_steps(
    source: FrameSource,
    backbone: Backbone,
    options: IngestOptions,
    identity: dict[str, str],
    *,
    store: ObjectStore | None = None,
    progress: Progress | None = None,
    subtitles: Sequence[Cue] | Transcript = (),
) -> Iterator[Memory]:
    """Read `source` once; yield its memory so far after every frame, and at the end (`finished` returns that).

    `subtitles`: cues, or what makes them of the video's sound while the video is read.
    Between two frames the caller may do other things with the model, such as ask. Closing the iterator stops the ingest
    behind its last whole window. With a `store` every window is on disk before the next one is read, and an ingest that
    was stopped goes on behind its last whole chunk. Raises VideoError if there are no frames, SettingsError, and
    MemoryFileError if the store holds a memory of something else.
    """
    embedder = options.embedder
    if isinstance(embedder, str):
        embedder = DualEncoder.from_pretrained(embedder, backbone.device)
    settings = IngestSettings.of(options, backbone, embedder)
    speech, cues = (subtitles, ()) if isinstance(subtitles, Transcript) else (None, subtitles)
    if speech is not None:
        settings = replace(settings, speech=speech.identity)
    named = options.compressor is None or isinstance(options.compressor, str)
    compressor = compressor_by_name(settings.compressor) if named else options.compressor
    encoder = settings.encoder(backbone, compressor)
    info = settings.info(source)
    text = backbone.prefix(info)
    keys, values = encoder.prefix(text)
    check_level_finite(LevelKV(keys, values, torch.empty(0)), "the text before the video")
    memory = Memory(
        identity=identity,
        settings=settings.to_dict(),
        manifest=facts_of(source),
        shape=backbone.shape,
        ratios=settings.ratios,
        prefix=(keys.cpu(), values.cpu()),
        next_position=len(text),
        reposition="compact" if compressor.compact else "keep",
        complete=False,
        subtitles=tuple(cues),
    )
    if store is None and settings.l_bits is None and settings.h_bits is None:
        yield from _read(source, Ingestor(memory, encoder, info=info, embedder=embedder), progress, speech)
        return
    store = RamStore() if store is None else store
    with open_writer(store, head_of(memory), _WINDOWS if options.window_chunks is None else ()) as writer:
        if cues:
            writer.subtitles([asdict(line) for line in cues])
        memory = memory_of(writer.source)
        if memory.complete and not settings.live:
            yield memory
            return
        if memory.chunks and memory.manifest.get("sha256") is None:
            raise MemoryFileError(
                f"'{store}' holds the beginning of a source without a content hash, which cannot be read again: "
                "append to it, or ingest into a new folder"
            )
        if speech is not None and writer.journal.speech:
            speech.resume(writer.journal.speech, memory.subtitles)
        ingestor = Ingestor(memory, encoder, info=info, writer=writer, resume=0, embedder=embedder)
        yield from _read(source, ingestor, progress, speech)


def keep_speech(memory: Memory, speech: Transcript, second: float, writer: MemoryWriter | None) -> None:
    """Write down what is said up to `second`, and keep it as the subtitles of a memory, on disk too with a writer."""
    if not speech.until(second):
        return
    memory.subtitles = tuple(speech.cues)
    if writer is not None:
        writer.subtitles([asdict(line) for line in speech.cues], speech.state)


def transcribe(
    memory: Memory,
    video: str | Path,
    model: str | Path | Transcriber,
    *,
    language: str | None = None,
    audio_track: int = 1,
    device: str = "cpu",
    progress: Callable[[float], None] | None = None,
) -> None:
    """Write down what is said in a memory's video, as its subtitles, in place of those that it has.

    `model`: a Whisper model by size, folder or hub id, or a Transcriber; `language`: a code such as "en", by default
    found. On disk the lines are kept block after block, and a transcription that was stopped goes on. `progress` gets
    the second that was reached. Raises SettingsError, ModelError, VideoError without sound, and MemoryFileError where
    the memory is not one of this video alone.
    """
    track = SoundTrack(video, audio_track)
    known, here = memory.manifest.get("sha256"), content_hash(video)
    several = memory.source is not None and bool(memory.source.journal.begun)
    if known != here or several:
        why = "it holds several videos" if several else f"its video has the hash {known}, this file {here}"
        raise MemoryFileError(f"'{track.path.name}' is not what the memory was made of: {why}")
    speech = Transcript(track, transcriber_of(model, device, online), language)
    speech.reached, speech.end = memory.manifest.get("start") or 0.0, memory.manifest.get("end")
    with contextlib.ExitStack() as stack:
        writer = None if memory.source is None else stack.enter_context(continue_writer(memory.source))
        if writer is not None:
            state = writer.journal.speech
            if {name: state.get(name) for name in speech.identity} == speech.identity:
                speech.resume(state, memory_of(writer.source).subtitles)
        while not speech.over:
            keep_speech(memory, speech, speech.reached, writer)
            if progress is not None:
                progress(speech.reached)
        memory.subtitles = tuple(speech.cues)
        if writer is not None:
            memory.source = writer.source


def append(
    memory: Memory,
    source: FrameSource,
    backbone: Backbone,
    *,
    embedder: DualEncoder | None = None,
    progress: Progress | None = None,
) -> None:
    """Encode `source` behind the last chunk of `memory`, its time 0 where that one ends; chunks show as they finish.

    An append to a store that was stopped goes on behind its last whole chunk, if it is called with the same source.
    Raises SettingsError, VideoError, MemoryFileError.
    """
    settings = IngestSettings.of_memory(memory)
    if settings.compressor not in COMPRESSORS:
        raise SettingsError(f"compressor {settings.compressor} has no name: a memory made with it cannot grow")
    if settings.embedder is not None:
        embedder = embedder or DualEncoder.from_pretrained(settings.embedder["name"], backbone.device)
        embedder = same_encoder(embedder, settings.embedder)
    encoder, info = settings.encoder(backbone, compressor_by_name(settings.compressor)), settings.info(source)
    if memory.source is None:
        shift = memory.chunks[-1].end if memory.chunks else 0.0
        ingestor = Ingestor(memory, encoder, info=info, live=True, shift=shift, embedder=embedder)
        finished(_read(source, ingestor, progress))
        return
    with continue_writer(memory.source) as writer:
        now = memory_of(writer.source)
        memory.source, memory.chunks, memory.manifest = now.source, now.chunks, now.manifest
        memory.next_position, memory.complete = now.next_position, now.complete
        first, shift = _place_of(memory, source, writer)
        ingestor = Ingestor(
            memory, encoder, info=info, writer=writer, resume=first, live=True, shift=shift, embedder=embedder
        )
        finished(_read(source, ingestor, progress))


def _place_of(memory: Memory, source: FrameSource, writer: MemoryWriter) -> tuple[int, float]:
    """Return the number of the first chunk that `source` makes, and its shift in seconds: those of an append that was
    stopped, or behind the last chunk. Raises MemoryFileError where the memory waits for another source.
    """
    content, first = content_of(facts_of(source)), len(memory.chunks)
    shift = memory.chunks[-1].end if memory.chunks else 0.0
    journal = writer.journal
    if not memory.complete:
        before = journal.begun.get("content", writer.source.head["content"])
        if content["sha256"] is not None and content == before:
            first, shift = journal.first, journal.begun.get("shift", 0.0)
        elif before["sha256"] is not None:
            wrong = "; ".join(describe_differences(before, content))
            raise MemoryFileError(f"'{writer.place}' waits for the rest of another source ({wrong}): end that first")
    if first == len(memory.chunks) and journal.first != first:
        writer.begin(content, shift)
    return first, shift


def check_finite(values: Tensor, what: str) -> None:
    """Raise ModelError where `values` (layers, ...) hold NaN or Inf; it names the first layer, if there are several."""
    finite = values.isfinite().flatten(1).all(1)
    if bool(finite.all()):
        return
    layer = "" if len(finite) == 1 else f"in layer {int((~finite).int().argmax())} "
    raise ModelError(
        f"{layer}{what} are not finite: numbers overflow in {str(values.dtype).removeprefix('torch.')}, or the weights "
        "are damaged; load the model with dtype 'bfloat16' or 'float32'"
    )


def check_level_finite(level: LevelKV, where: str) -> None:
    """Raise ModelError where the KVs of a level hold NaN or Inf."""
    largest = [part.flatten(1).abs().amax(1) for part in (level.keys, level.values)]  # NaN and Inf win over numbers
    check_finite(torch.stack(largest, 1), f"the KVs of {where}")


def check_chunk_frames(settings: IngestSettings, backbone: BackboneFacts) -> None:
    """Raise SettingsError where chunks of this length cannot be encoded."""
    if settings.chunk_frames % backbone.group_frames or settings.chunk_frames < 1:
        raise SettingsError(
            f"chunk_frames must be a multiple of {backbone.group_frames} for {backbone.name}, "
            f"got {settings.chunk_frames}"
        )


def facts_of(source: FrameSource) -> dict[str, Any]:
    """Return what is known of a source now, as plain JSON values."""
    facts: dict[str, Any] = json.loads(source.manifest.to_json())
    return facts


def info_of(source: FrameSource) -> VideoInfo:
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
