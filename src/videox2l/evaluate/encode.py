"""A video as all methods share it: visual tokens made once, prefills made once per history."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from videox2l.compress import Compressor
from videox2l.engine.attention import Probe
from videox2l.engine.backbone import Backbone
from videox2l.engine.cache import BufferCache
from videox2l.errors import SettingsError, VideoError
from videox2l.evaluate.flop_counter import FlopCounter
from videox2l.ingest import IngestSettings, check_chunk_frames, facts_of, info_of, runs
from videox2l.memory import Chunk, Memory
from videox2l.memory.features import KeyTap, chunk_features, votes_of
from videox2l.types import VideoCursor, VisualTokens
from videox2l.units import Cue

if TYPE_CHECKING:
    from videox2l.pipeline import VideoX2L
    from videox2l.video import FrameSource

T = TypeVar("T")


@dataclass(frozen=True)
class EncodedChunk:
    """The visual tokens of a run of frames, in host memory; `start`, `end` in seconds."""

    start: float
    end: float
    frames: int
    tokens: VisualTokens


@dataclass(frozen=True)
class FullKV:
    """Full KV of a video: the model's own causal prefill of prefix and visual tokens.

    `cache` holds `prefix` columns of text, then those of the visual tokens, on the device; who appends to it crops it
    back to `len(self)`. `positions` (axes, n) and `embeds` (n, hidden) of the n visual tokens; `flops` of the prefill.
    """

    cache: BufferCache
    prefix: int
    positions: Tensor
    embeds: Tensor
    flops: int | None

    def __len__(self) -> int:
        return self.prefix + self.positions.shape[1]

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.cache.layers)

    def keys(self, layer: int) -> Tensor:
        """Return the rotated keys (heads, n, head_dim) of the visual tokens in one layer, as a view."""
        return self.cache.layers[layer].keys[0, :, self.prefix : len(self)]  # type: ignore[no-any-return]

    def values(self, layer: int) -> Tensor:
        """Return the values (heads, n, head_dim) of the visual tokens in one layer, as a view."""
        return self.cache.layers[layer].values[0, :, self.prefix : len(self)]  # type: ignore[no-any-return]


class EncodedVideo:
    """One video, read once: the vision tower runs once, whatever the number of methods.

    Memories, the full prefill and what methods derive from it are made when first asked for and kept until the object
    goes; methods with equal settings share them. Nothing depends on the order in which they are asked for.
    """

    def __init__(
        self, x2l: VideoX2L, source: FrameSource, chunk_frames: int | None = None, subtitles: Sequence[Cue] = ()
    ) -> None:
        self.x2l = x2l
        self.chunk_frames = x2l.backbone.default_chunk_frames if chunk_frames is None else chunk_frames
        self.lines = tuple(subtitles)
        self.meter = FlopCounter(x2l.backbone)
        self._made: dict[str, Any] = {}
        self.before = self.backbone.prefix(info_of(source))
        self.prefix_tokens = len(self.before)
        self.chunks: list[EncodedChunk] = []
        cursor = VideoCursor(self.prefix_tokens, 0.0, 0, self.prefix_tokens, facts=info_of(source))
        for frames, end in runs(source, self.chunk_frames):
            pts = [frame.pts for frame in frames]
            cursor = cursor if self.chunks else replace(cursor, origin=pts[0])
            tokens = self.backbone.visual_tokens([frame.image for frame in frames], pts, cursor)
            self.chunks.append(EncodedChunk(pts[0], end, len(pts), tokens.to("cpu")))
            cursor = cursor.after(tokens, len(pts))
        if not self.chunks:
            raise VideoError("the video has no frames in the range that was asked for")
        self.next_position = cursor.next_position
        self.visual = cursor.tokens
        self.manifest = facts_of(source)
        text = json.dumps({k: v for k, v in self.manifest.items() if k not in ("warnings", "source")}, sort_keys=True)
        self.manifest_hash = hashlib.sha256(text.encode()).hexdigest()

    @property
    def backbone(self) -> Backbone:
        """The model."""
        return self.x2l.backbone

    @property
    def full_bytes(self) -> int:
        """Bytes of full KV, prefix included."""
        return (self.prefix_tokens + self.visual) * self.backbone.shape.token_bytes

    def allowance(self, budget: float) -> int:
        """Return how many visual tokens fit beside the prefix into a share of full KV; at least one."""
        return max(1, min(self.visual, round(budget * (self.prefix_tokens + self.visual)) - self.prefix_tokens))

    def made_once(self, key: str, make: Callable[[], T]) -> T:
        """Return what `make` returned when something was first asked for under this key."""
        if key not in self._made:
            self._made[key] = make()
        found: T = self._made[key]
        return found

    def memory(
        self,
        compressor: Compressor,
        ratios: Sequence[float],
        history: str,
        name: str | None = None,
        chunk_frames: int | None = None,
    ) -> tuple[Memory, int | None]:
        """Return the memory that an ingest with these settings makes, and the FLOPs of its language model.

        `name`: what the compressor is called, if it has a name.
        """
        settings = IngestSettings(
            ratios=tuple(float(ratio) for ratio in ratios),
            history=history,
            compressor=name or repr(compressor),
            chunk_frames=self.chunk_frames if chunk_frames is None else chunk_frames,
            index=votes_of(self.backbone),
        )
        check_chunk_frames(settings, self.backbone)
        return self.made_once(f"memory {settings}", lambda: self._encode(compressor, settings))

    def _encode(self, compressor: Compressor, settings: IngestSettings) -> tuple[Memory, int | None]:
        with self.meter.counting() as count:
            encoder = settings.encoder(self.backbone, compressor)
            prefix = encoder.prefix(self.before)
            memory = Memory(
                identity=self.x2l.identity,
                settings=settings.to_dict(),
                manifest=self.manifest,
                shape=self.backbone.shape,
                ratios=settings.ratios,
                prefix=(prefix[0].cpu(), prefix[1].cpu()),
                next_position=self.next_position,
                reposition="compact" if compressor.compact else "keep",
                subtitles=self.lines,
            )
            chunks = self.chunked(settings.chunk_frames)
            for number, chunk in enumerate(chunks, 1):
                last = number == len(chunks)
                tokens = chunk.tokens.to(self.backbone.device)
                tap = KeyTap(tokens, self.backbone, settings.index)
                levels = encoder.make(tokens, last, tap)
                encoder.extend(levels, tokens.positions)
                features = chunk_features(levels, tokens, self.backbone, tap)
                memory.add(
                    Chunk(
                        start=chunk.start,
                        end=chunk.end,
                        frames=chunk.frames,
                        positions=tokens.positions,
                        levels=levels,  # type: ignore[arg-type]  # any mapping is taken
                        last=last,
                        features=features,
                    )
                )
        return memory, count.flops

    @cached_property
    def full(self) -> FullKV:
        """The model's own prefill of the whole video, from which methods evict that need it first."""
        cache = self.backbone.new_cache(self.prefix_tokens + self.visual)
        with self.meter.counting() as count:
            self.prefill(cache, self.chunks)
        positions = torch.cat([chunk.tokens.positions for chunk in self.chunks], dim=1)
        embeds = torch.cat([chunk.tokens.embeds for chunk in self.chunks])
        return FullKV(cache, self.prefix_tokens, positions, embeds, count.flops)

    def prefill(self, cache: BufferCache, pieces: Sequence[EncodedChunk], probe: Probe | None = None) -> None:
        """Run prefix and pieces of the video into an empty cache, each piece seeing all before it."""
        first = self.backbone.text_positions(0, self.prefix_tokens)
        self.backbone.forward(self.before.embeds, first, cache)
        for piece in pieces:
            tokens = piece.tokens.to(self.backbone.device)
            self.backbone.forward(tokens.embeds, tokens.positions, cache, probe)

    def split(self, pieces: int) -> int:
        """Return the frames of a chunk when each is cut into `pieces`; of a whole one where that is not possible."""
        frames, rest = divmod(self.chunk_frames, pieces)
        alone = any(piece.frames > self.backbone.group_frames for piece in self.groups)
        return self.chunk_frames if rest or alone or frames % self.backbone.group_frames else frames

    def chunked(self, frames: int) -> list[EncodedChunk]:
        """Return the video in chunks of `frames` frames. Smaller ones than the run's end where those do, as at a hole.

        Raises SettingsError where its tokens cannot be cut there.
        """
        if frames == self.chunk_frames:
            return self.chunks
        found: list[list[EncodedChunk]] = []
        smaller = frames < self.chunk_frames
        for pieces in self._cut:
            for i, piece in enumerate(pieces):
                if not found or (smaller and not i) or sum(each.frames for each in found[-1]) >= frames:
                    found.append([])
                found[-1].append(piece)
        sizes = [sum(piece.frames for piece in pieces) for pieces in found]
        wrong = self.chunk_frames % frames or max(sizes) > frames if smaller else set(sizes[:-1]) - {frames}
        if wrong:
            raise SettingsError(f"chunks of {frames} frames are not possible here: use {self.chunk_frames}")
        return [_joined(pieces) for pieces in found]

    @property
    def groups(self) -> list[EncodedChunk]:
        """The video cut as finely as its tokens allow: by groups of frames, or by chunks where words stand between."""
        return [piece for pieces in self._cut for piece in pieces]

    @cached_property
    def _cut(self) -> list[list[EncodedChunk]]:
        """The groups of each chunk."""
        cut, first = [], 0
        pts, size = self.manifest["pts"], self.backbone.group_frames
        for chunk in self.chunks:
            pieces: list[EncodedChunk] = []
            cut.append(pieces)
            t, h, w = chunk.tokens.grid
            if t * size < chunk.frames:
                pieces.append(chunk)
                first += chunk.frames
                continue
            for i in range(t):
                columns = slice(i * h * w, (i + 1) * h * w)
                tokens = replace(
                    chunk.tokens,
                    embeds=chunk.tokens.embeds[columns],
                    positions=chunk.tokens.positions[:, columns],
                    grid=(1, h, w),
                )
                frames = min(size, chunk.frames - i * size)
                end = chunk.end if i + 1 == t else pts[first + (i + 1) * size]
                pieces.append(EncodedChunk(pts[first + i * size], end, frames, tokens))
            first += chunk.frames
        return cut


def _joined(pieces: Sequence[EncodedChunk]) -> EncodedChunk:
    """Return pieces that follow one another as one."""
    _, height, width = pieces[0].tokens.grid
    tokens = replace(
        pieces[0].tokens,
        embeds=torch.cat([piece.tokens.embeds for piece in pieces]),
        positions=torch.cat([piece.tokens.positions for piece in pieces], dim=1),
        grid=(sum(piece.tokens.grid[0] for piece in pieces), height, width),
    )
    return EncodedChunk(pieces[0].start, pieces[-1].end, sum(piece.frames for piece in pieces), tokens)
