"""The package's own ingest and question, on shapes: a chunk at the end of the video, where the context is longest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from videox2l.compress import ChunkEncoder, RankedCompressor, compressor_by_name
from videox2l.engine.backbone import Backbone
from videox2l.engine.cache import BufferCache
from videox2l.flops import kept_tokens
from videox2l.ingest import IngestSettings
from videox2l.memory.features import KeyTap, chunk_features
from videox2l.memory.levels import LevelKV
from videox2l.sizing.shadow import Shadow
from videox2l.sizing.sketch import models_of
from videox2l.types import VideoCursor, VideoInfo, VisualTokens


@dataclass(frozen=True)
class ChunkRun:
    """What a chunk needs: `tokens` (of visual tokens and words between them), each of `width` values.

    `sizes`: tokens kept at each ratio; `ranked`: coarser levels are part of the finest; `vision_flops`; `context` bytes
    of the caches behind which it runs; `peak` bytes above the weights, these caches included; `prefix` tokens;
    `features` bytes of what selectors compare with a question; `echo`: the compressor feeds each chunk twice.
    """

    tokens: int
    width: int
    sizes: dict[float, int]
    ranked: bool
    compact: bool
    vision_flops: int
    context: int
    peak: int
    prefix: int
    next_position: int
    features: int
    echo: bool


@dataclass(frozen=True)
class VisionRun:
    """The tokens of a chunk, without values; the FLOPs they took, and the peak bytes above the weights."""

    tokens: VisualTokens
    prefix: int
    flops: int
    peak: int


@torch.no_grad()
def run_vision(backbone: Backbone, size: tuple[int, int], frames: int, facts: VideoInfo, one_memory: bool) -> VisionRun:
    """Run the vision tower on `frames` pictures of `size` (height, width): the first chunk of a video."""
    pictures = [np.broadcast_to(np.zeros(1, np.uint8), (*size, 3))] * frames
    rate = (facts.frames or 1) / (facts.duration or facts.frames or 1)
    with Shadow(one_memory) as shadow:
        weights = shadow.hold(tensors_of(backbone))
        start = len(backbone.prefix(facts))
        flops = shadow.flops
        shadow.lap()
        cursor = VideoCursor(start, 0.0, 0, start, 0, facts)
        tokens = backbone.visual_tokens(pictures, [i / rate for i in range(frames)], cursor)
        return VisionRun(tokens, start, shadow.flops - flops, shadow.lap() - weights)


@torch.no_grad()
def run_chunk(backbone: Backbone, settings: IngestSettings, vision: VisionRun, before: int) -> ChunkRun:
    """Run a chunk, seen already, behind `before` others that are as long."""
    compressor, tokens, n = compressor_by_name(settings.compressor), vision.tokens, len(vision.tokens)
    tokens = replace(tokens, positions=tokens.positions + before * _step(vision, backbone))
    with Shadow() as shadow:
        weights = shadow.hold(tensors_of(backbone))
        shadow.hold([tokens.embeds])
        encoder = settings.encoder(backbone, compressor)
        encoder.prefix(backbone.prefix(VideoInfo(system=settings.system)))
        _fill(encoder, vision.prefix, n, before)
        shadow.lap()
        context = sum(_allocated(stream.context) for stream in encoder.streams)
        tap = KeyTap(tokens, backbone, settings.index)
        levels = encoder.make(tokens, on_keys=tap)
        features = chunk_features(levels, tokens, backbone, tap)
        encoder.extend(levels, tokens.positions)
        peak = max(shadow.lap() - weights, context + vision.peak)
    finest = levels[min(levels)]
    return ChunkRun(
        tokens=n,
        width=tokens.embeds.shape[1],
        sizes={ratio: len(level) for ratio, level in levels.items()},
        ranked=finest.ranked and settings.history != "own",
        compact=compressor.compact,
        vision_flops=vision.flops,
        context=context,
        peak=peak,
        prefix=vision.prefix,
        next_position=int(tokens.positions.max()) + 1,
        features=sum(feature.nbytes for feature in features.values()),
        echo=isinstance(compressor, RankedCompressor) and compressor.scorer.echo,
    )


@torch.no_grad()
def run_question(backbone: Backbone, columns: int, question: int, room: int) -> int:
    """Return the peak bytes above the weights of a question behind a cache of `columns` tokens."""
    with Shadow() as shadow:
        weights = shadow.hold(tensors_of(backbone))
        cache = backbone.new_cache(columns + room)
        cache.append(*_levels(backbone, columns))
        shadow.lap()
        ids = torch.zeros(question, dtype=torch.long)
        hidden = backbone.forward(backbone.embed(ids), backbone.text_positions(columns, question), cache)
        backbone.logits(hidden[-1:])
        return shadow.lap() - weights


def tensors_of(backbone: Backbone) -> list[Tensor]:
    """Return all weights and buffers of a backbone's models."""
    return [x for model in models_of(backbone) for x in (*model.parameters(), *model.buffers())]


def _step(vision: VisionRun, backbone: Backbone) -> int:
    """Return by how much positions grow from chunk to chunk: with several axes, as the first, the time, does."""
    at, groups = vision.tokens.positions, vision.tokens.grid[0]
    if backbone.axes == 1:
        return len(vision.tokens)
    if groups == 1:
        return int(at.max()) + 1 - vision.prefix
    return int((at[0].max() - at[0].min()) * groups / (groups - 1))


def _level(backbone: Backbone, n: int) -> LevelKV:
    keys, values = _levels(backbone, n)
    return LevelKV(keys, values, torch.empty(keys.shape[:3], dtype=torch.int32, device="meta"))


def _levels(backbone: Backbone, columns: int) -> tuple[Tensor, Tensor]:
    shape = backbone.shape
    size = (shape.layers, shape.heads, columns, shape.head_dim)
    return torch.empty(size, dtype=shape.dtype, device="meta"), torch.empty(size, dtype=shape.dtype, device="meta")


def _fill(encoder: ChunkEncoder, prefix: int, tokens: int, before: int) -> None:
    """Bring every context of an encoder to where it stands behind `before` chunks, as large as it has grown."""
    for stream in encoder.streams:
        fine, coarse = (kept_tokens(tokens, pick(stream.ratios)) for pick in (min, max))
        recent = min(encoder.history.recent, before)
        kept = fine if encoder.history.kind == "L" else coarse
        columns, capacity = prefix, prefix
        for _ in range(before):
            if columns + tokens > capacity:
                capacity = max(columns + tokens, 2 * capacity)
            columns += kept
        columns += recent * (fine - coarse)
        stream.context = encoder.backbone.new_cache(max(capacity, columns))
        stream.context.append(*_levels(encoder.backbone, columns))
        stream.settled = columns - recent * fine
        for _ in range(recent):
            levels = [_level(encoder.backbone, n) for n in (fine, coarse)]
            stream.pending.append((levels[0], levels[1], torch.zeros(encoder.backbone.axes, tokens, dtype=torch.long)))
    encoder.sizes = (tokens,) * before


def _allocated(cache: BufferCache) -> int:
    return sum(store.keys.nbytes + store.values.nbytes for store in cache.stores if store.is_initialized)


def counts(total: int, length: int) -> Sequence[int]:
    """Return the frames of each chunk of a video of `total` frames."""
    return [length] * (total // length) + [total % length] * (total % length > 0)
