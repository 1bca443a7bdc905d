"""A video as all methods share it: visual tokens made once, prefills made once per history."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from videox2l.backbones.base import Backbone, VideoCursor, VisualTokens
from videox2l.compress import ChunkEncoder, Compressor, History
from videox2l.errors import VideoError
from videox2l.evaluate.meter import Meter
from videox2l.ingest import IngestSettings, check_chunk_frames, facts_of, runs
from videox2l.memory import Memory
from videox2l.times import Line

if TYPE_CHECKING:
    from videox2l.pipeline import VideoX2L
    from videox2l.video import FrameSource


@dataclass(frozen=True)
class EncodedChunk:
    """The visual tokens of one chunk, in host memory; `start`, `end` in seconds."""

    start: float
    end: float
    frames: int
    tokens: VisualTokens


@dataclass(frozen=True)
class FullKV:
    """Full KV of a video: the model's own causal prefill of prefix and visual tokens.

    `keys`, `values` (layers, heads, n, head_dim) in host memory, the prefix being the first `prefix` columns;
    `positions` (axes, n - prefix) of the visual tokens; `flops` of the prefill.
    """

    keys: Tensor
    values: Tensor
    prefix: int
    positions: Tensor
    flops: int | None


class EncodedVideo:
    """One video, read once: the vision tower runs once, whatever the number of methods.

    Memories and the full prefill are made when first asked for and kept until the object goes; methods with equal
    settings share them. Nothing depends on the order in which they are asked for.
    """

    def __init__(
        self, x2l: VideoX2L, source: FrameSource, chunk_frames: int | None = None, subtitles: Sequence[Line] = ()
    ) -> None:
        self.x2l = x2l
        self.chunk_frames = x2l.backbone.default_chunk_frames if chunk_frames is None else chunk_frames
        self.lines = tuple(subtitles)
        self.meter = Meter(x2l.backbone)
        self._memories: dict[str, tuple[Memory, int | None]] = {}
        self.chunks: list[EncodedChunk] = []
        start = len(self.backbone.prefix())
        cursor: VideoCursor | None = None
        for run in runs(source, self.chunk_frames):
            pts = [frame.pts for frame in run.frames]
            cursor = cursor or VideoCursor(start, pts[0], 0, start)
            tokens = self.backbone.visual_tokens([frame.image for frame in run.frames], pts, cursor)
            self.chunks.append(EncodedChunk(pts[0], run.end, len(pts), tokens.to("cpu")))
            cursor = cursor.after(tokens)
        if cursor is None:
            raise VideoError("the video has no frames in the range that was asked for")
        self.next_position = cursor.next_position
        self.manifest = facts_of(source)
        text = json.dumps({k: v for k, v in self.manifest.items() if k not in ("warnings", "source")}, sort_keys=True)
        self.manifest_hash = hashlib.sha256(text.encode()).hexdigest()

    @property
    def backbone(self) -> Backbone:
        """The model."""
        return self.x2l.backbone

    @cached_property
    def prefix_tokens(self) -> int:
        """Tokens of the text before the video."""
        return len(self.backbone.prefix())

    @property
    def visual(self) -> int:
        """Visual tokens of the video."""
        return sum(len(chunk.tokens) for chunk in self.chunks)

    @property
    def full_bytes(self) -> int:
        """Bytes of full KV, prefix included."""
        return (self.prefix_tokens + self.visual) * self.backbone.shape.token_bytes

    def allowance(self, budget: float) -> int:
        """Return how many visual tokens fit beside the prefix into a share of full KV; at least one per chunk level."""
        return max(1, round(budget * (self.prefix_tokens + self.visual)) - self.prefix_tokens)

    def memory(
        self, compressor: Compressor, ratios: Sequence[float], history: str, name: str | None = None
    ) -> tuple[Memory, int | None]:
        """Return the memory that an ingest with these settings makes, and the FLOPs of its language model.

        `name`: what the compressor is called, if it has a name.
        """
        settings = IngestSettings(
            ratios=tuple(float(ratio) for ratio in ratios),
            history=history,
            compressor=name or repr(compressor),
            chunk_frames=self.chunk_frames,
        )
        check_chunk_frames(settings, self.backbone)
        key = repr(settings)
        if key not in self._memories:
            with self.meter.counting() as count:
                memory = self._encode(compressor, settings)
            self._memories[key] = memory, count.flops
        return self._memories[key]

    def _encode(self, compressor: Compressor, settings: IngestSettings) -> Memory:
        encoder = ChunkEncoder(self.backbone, compressor, settings.ratios, History.parse(settings.history))
        prefix = encoder.prefix(self.backbone.prefix())
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
        for number, chunk in enumerate(self.chunks, 1):
            last = number == len(self.chunks)
            levels = encoder.add(chunk.tokens.to(self.backbone.device), last)
            memory.add(chunk.start, chunk.end, chunk.frames, chunk.tokens.positions, levels, last=last)
        return memory

    @cached_property
    def full(self) -> FullKV:
        """The model's own prefill of the whole video, from which methods evict that need it first."""
        backbone, cache = self.backbone, self.backbone.new_cache(self.prefix_tokens + self.visual)
        prefix = backbone.prefix()
        with self.meter.counting() as count:
            backbone.forward(prefix.embeds, backbone.text_positions(0, len(prefix)), cache)
            for chunk in self.chunks:
                tokens = chunk.tokens.to(backbone.device)
                backbone.forward(tokens.embeds, tokens.positions, cache)
        keys, values = cache.columns(0)
        positions = torch.cat([chunk.tokens.positions for chunk in self.chunks], dim=1)
        return FullKV(keys.cpu(), values.cpu(), self.prefix_tokens, positions, count.flops)

    def every(self, step: int) -> list[VisualTokens]:
        """Return the visual tokens cut into pieces of `step` groups of frames, in order."""
        pieces = []
        for chunk in self.chunks:
            t, h, w = chunk.tokens.grid
            for first in range(0, t, step):
                last = min(first + step, t)
                columns = slice(first * h * w, last * h * w)
                pieces.append(
                    replace(
                        chunk.tokens,
                        embeds=chunk.tokens.embeds[columns],
                        positions=chunk.tokens.positions[:, columns],
                        grid=(last - first, h, w),
                    )
                )
        return pieces
