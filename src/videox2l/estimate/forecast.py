"""What an ingest and a question will need: tokens, FLOPs, memory, disk and seconds, in closed form.

Tokens, FLOPs, bytes of weights, KVs and disk are exact for a video without holes. Memory is an estimate: weights, the
caches, and the largest activations of one window. Seconds are told only where a device was measured (`devices`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from videox2l.compress import Compressor, PoolCompressor, RankedCompressor, compressor_by_name
from videox2l.compress.pool import block_shape
from videox2l.estimate.devices import Device
from videox2l.estimate.header import VideoHeader
from videox2l.estimate.model import ModelShape
from videox2l.flops import SummaryPlan, ingest_cost, kept_tokens, key_lookup, ranked_ingest_cost, text
from videox2l.ingest import IngestSettings
from videox2l.memory.disk.layout import cuts, header_of
from videox2l.memory.disk.objects import HEADER, NAMES, StoredShape, TensorSpec, coarse_fields, level_fields
from videox2l.memory.features import INDEX, KEYS, VISUAL, feature_layers
from videox2l.memory.votes import index_rows, voting_heads
from videox2l.options import IngestOptions, LoadOptions
from videox2l.select.exact import BLOCK_VALUES
from videox2l.types import VideoInfo


@dataclass(frozen=True)
class EstimateRequest:
    """Settings of an ingest, of the model, and of a question of `question` tokens that re-loads `reload` chunks."""

    ingest: IngestOptions = field(default_factory=IngestOptions)
    load: LoadOptions = field(default_factory=LoadOptions)
    reload: int = 3
    question: int = 32
    new_tokens: int = 128

    def but(self, **changes: Any) -> EstimateRequest:
        """Return the request with some options of ingest or model changed."""
        load = {name: changes.pop(name) for name in ("max_pixels", "quantize") if name in changes}
        return replace(self, ingest=replace(self.ingest, **changes), load=replace(self.load, **load))


@dataclass(frozen=True)
class Peak:
    """About the most bytes that a device holds at once, by what they are for.

    `levels`: kept levels, where the device is the CPU; elsewhere they lie in host memory.
    """

    weights: int
    caches: int
    activations: int
    levels: int
    overhead: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.caches + self.activations + self.levels + self.overhead


@dataclass(frozen=True)
class QuestionNeeds:
    """What a question needs: `tokens` attended, of `full` without compression; bytes brought to the device for it.

    `reloaded` bytes are the levels that were chosen; `copied` all that goes to the device, looks of the selector
    included. `flops` of selection and prefill, `decode_flops` of a token. Seconds are None where none were measured.
    """

    tokens: int
    full: int
    reloaded: int
    copied: int
    flops: int
    selection_flops: int
    decode_flops: int
    peak: Peak
    first_token: float | None
    next_token: float | None


@dataclass(frozen=True)
class Forecast:
    """The needs of one video, one model and one set of settings on one class of device."""

    video: str
    model: str
    device: str
    memory: int
    settings: dict[str, Any]
    frames: int
    pixels: int | None
    chunks: int
    tokens: int
    tokens_per_chunk: int
    token_bytes: int
    vision_flops: int
    language_flops: int
    ingest: Peak
    question: QuestionNeeds
    host: int
    disk: dict[str, int]
    seconds: dict[str, float | None]
    calibration: str
    notes: list[str] = field(default_factory=list)

    @property
    def peak(self) -> int:
        """Bytes of the device that are needed, about."""
        return max(self.ingest.total, self.question.peak.total)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        found = asdict(self)
        found["ingest"]["total"], found["question"]["peak"]["total"] = self.ingest.total, self.question.peak.total
        return {**found, "peak": self.peak, "fits": self.peak <= self.memory}


def forecast(
    model: ModelShape, video: VideoHeader, device: Device, request: EstimateRequest, name: str = ""
) -> Forecast:
    """Return what a video needs of a model. Raises SettingsError for settings that cannot work."""
    cpu = device.name.startswith("cpu")
    plan = _Plan(model, video, request, "cpu" if cpu else "cuda")
    settings, decoder, pace = plan.settings, model.decoder, device.pace
    vision, language = plan.vision_flops, plan.language_flops
    seconds = None
    if pace is not None:
        layers = len(plan.each) * model.tower.layers + len(plan.windows) * decoder.layers
        seconds = max(layers * pace.layer, (vision + language) / pace.flops)
    host = plan.host
    levels = host * (len(plan.each) - 1) // len(plan.each) if cpu else 0
    return Forecast(
        video=video.name,
        model=name or model.name,
        device=device.name,
        memory=device.memory,
        settings={
            **asdict(request),
            "chunk_frames": settings.chunk_frames,
            "window_chunks": max(plan.windows),
            "compressor": settings.compressor,
        },
        frames=plan.frames,
        pixels=plan.pixels,
        chunks=len(plan.each),
        tokens=sum(plan.each),
        tokens_per_chunk=plan.each[0],
        token_bytes=decoder.token_bytes,
        vision_flops=vision,
        language_flops=language,
        ingest=Peak(model.weights, plan.context_bytes, plan.activations, levels, device.overhead),
        question=_question(plan, device, host if cpu else 0),
        host=host,
        disk=plan.disk,
        seconds={"video": plan.seconds, "ingest": seconds},
        calibration="none: no seconds are told for this device" if pace is None else pace.source,
        notes=[*model.notes, *plan.notes()],
    )


class _Plan:
    """The chunks of a video: tokens of each, and what follows from them."""

    def __init__(self, model: ModelShape, video: VideoHeader, request: EstimateRequest, device: str) -> None:
        options = request.ingest
        self.model, self.request, self.video = model, request, video
        self.settings = settings = IngestSettings.of(options, model, device=device)
        start = options.start or 0.0
        self.frames = video.samples(options.fps, options.max_frames, start, options.end, options.at)
        self.seconds = min(options.end or video.duration, video.duration) - start
        facts = VideoInfo(self.frames, video.duration, settings.system)
        self.prefix = model.prefix(facts)
        self.grid = model.vision.grid(settings.chunk_frames, video.height, video.width, self.frames)
        full, rest = divmod(self.frames, settings.chunk_frames)
        group = model.group_frames
        self.groups = [settings.chunk_frames // group] * full + [-(-rest // group)] * (rest > 0)
        even = options.fps is None or options.max_frames is not None or options.fps > (video.rate or options.fps)
        step = self.seconds / self.frames if even else 1 / (options.fps or 1)
        pts = list(options.at) if options.at is not None else [start + i * step for i in range(self.frames)]
        pts += pts[-1:] * (-len(pts) % group)  # the last frame fills up its group
        words = iter(model.words([pts[i : i + group] for i in range(0, len(pts), group)], facts))
        self.words = [sum(itertools.islice(words, count)) for count in self.groups]
        area = self.grid[1] * self.grid[2]
        self.each = [count * area + said for count, said in zip(self.groups, self.words, strict=True)]
        self.windows, window = list[int](), list[int]()  # chunks of each window
        for tokens in self.each:
            window.append(tokens)
            if settings.window_full(window):
                self.windows.append(len(window))
                window = []
        self.windows += [len(window)] * bool(window)
        self.compressor: Compressor = compressor_by_name(settings.compressor)
        self.ranked = isinstance(self.compressor, RankedCompressor)
        self.summary: SummaryPlan | None = None
        if self.compressor.compact:
            self.summary = SummaryPlan(self.each, tuple(int(ratio) for ratio in settings.ratios), self.prefix)
        self.levels = {ratio: self._sizes(ratio) for ratio in settings.ratios}
        self.shape, self.dtype = StoredShape.of(model.shape), NAMES[str(model.shape.dtype).removeprefix("torch.")]
        self.own_axes = model.axes if self.summary is not None else 0

    def _sizes(self, ratio: float) -> list[int]:
        """Return the tokens of each chunk's level at a ratio."""
        return [self.kept(n, ratio) for n in self.each] if self.summary is None else self.summary.kept[int(ratio)]

    def kept(self, tokens: int, ratio: float) -> int:
        """Return the tokens of a level of a chunk of `tokens`, but of summary tokens."""
        if not isinstance(self.compressor, PoolCompressor):
            return kept_tokens(tokens, ratio)
        _, high, wide = self.grid
        grid = (1, 1, tokens) if any(self.words) else (tokens // (high * wide), high, wide)
        return math.prod(-(-side // step) for side, step in zip(grid, block_shape(grid, ratio), strict=True))

    @property
    def pixels(self) -> int | None:
        """Pixels of a frame as the model sees it, None for families of one fixed size."""
        tower = self.model.tower
        _, high, wide = tower.patches(self.grid)
        return None if tower.side else high * wide * tower.patch // (3 * self.model.group_frames)

    @property
    def vision_flops(self) -> int:
        """FLOPs of the vision tower and projector."""
        return self.model.tower.flops((sum(self.groups), *self.grid[1:]))

    @property
    def language_flops(self) -> int:
        """FLOPs of the decoder over prefix and chunks."""
        settings, decoder = self.settings, self.model.decoder
        if self.summary is not None:
            mode = "lazy" if settings.l_tier == "lazy" else settings.history
            return ingest_cost(decoder, self.summary, mode).flops.total
        ratios = settings.ratios[-1:] if settings.l_tier == "lazy" else settings.ratios
        echo = bool(getattr(getattr(self.compressor, "scorer", None), "echo", False))
        cost = ranked_ingest_cost(
            decoder, self.each, ratios, settings.history, self.prefix, echo, self.kept, self.windows
        )
        return cost.flops.total

    @property
    def _spans(self) -> list[range]:
        """The numbers of the chunks of each window."""
        ends = itertools.accumulate(self.windows)
        return [range(end - size, end) for size, end in zip(self.windows, ends, strict=True)]

    # --- device memory: an estimate --------------------------------------------------------------------------------

    @property
    def context_bytes(self) -> int:
        """Bytes of the caches behind which the last window runs, with room for it, as they have grown by doubling."""
        settings, total = self.settings, 0
        recent = int(settings.history.partition(":")[2] or 0)
        streams = [(ratio,) for ratio in settings.ratios] if settings.history == "own" else [settings.ratios]
        for ratios in streams:
            fine, coarse = self.levels[min(ratios)], self.levels[max(ratios)]
            columns, capacity = self.prefix, self.prefix
            for window in self._spans:
                needed = columns + sum(self.each[i] for i in window)
                if needed > capacity:
                    capacity = max(needed, 2 * capacity)
                columns += sum((fine if settings.history == "L" or i < recent else coarse)[i] for i in window)
            total += capacity
        return total * self.model.decoder.token_bytes

    @property
    def activations(self) -> int:
        """Bytes of one window beside the caches: those of a chunk's vision pass, a decoder layer or its levels."""
        model, decoder = self.model, self.model.decoder
        tokens, most = max(sum(self.each[i] for i in window) for window in self._spans), max(self.windows)
        tower, size = model.tower, decoder.bytes_per_value
        pictures, high, wide = tower.patches((max(self.groups), *self.grid[1:]))
        rows = pictures * (high * wide + tower.summary_rows)
        vision = rows * size * (tower.mlp + 3 * tower.width) + pictures * high * wide * tower.patch * (4 + size)
        embeds = tokens * decoder.hidden * tower.rows_per_token * size
        vision += embeds - embeds // most  # of the chunks before it in the window
        layer = tokens * size * (3 * decoder.hidden + 3 * decoder.mlp)
        kept = sum(self.levels[ratio][0] for ratio in self._stored) * most
        levels = (tokens + 2 * kept) * decoder.token_bytes
        return max(vision, embeds + layer, embeds + levels)

    # --- bytes that are kept ---------------------------------------------------------------------------------------

    @property
    def _stored(self) -> Sequence[float]:
        """The ratios of the levels that are kept each: a ranked finest level holds the others."""
        settings = self.settings
        if settings.l_tier == "lazy":
            return settings.ratios[-1:]
        return settings.ratios[:1] if self.ranked and settings.history != "own" else settings.ratios

    def _visual(self, tokens: int) -> TensorSpec:
        width = self.model.decoder.hidden * self.model.tower.rows_per_token
        return TensorSpec("visual.embeds", self.dtype, (tokens, width))

    def _features(self, chunk: int) -> list[TensorSpec]:
        """Return what selectors compare with a question, of one chunk."""
        shape, rows = self.shape, len(index_rows(self.settings.index, self.shape.heads))
        keys = self.each if self.summary is None else self.levels[self._stored[0]]
        layers = feature_layers(shape.layers)
        return [
            TensorSpec(f"features.{KEYS}", self.dtype, (3, layers, shape.heads, shape.head_dim)),
            TensorSpec(f"features.{INDEX}", "U8", (rows, HEADER + keys[chunk], shape.head_dim // 2)),
            TensorSpec(f"features.{VISUAL}", self.dtype, (self.groups[chunk], self.model.decoder.hidden)),
        ]

    @property
    def host(self) -> int:
        """Bytes of host memory that all levels take when they are not on disk."""
        lazy = self.settings.l_tier == "lazy"
        total = sum(self.each) * 8 * self.model.axes
        for chunk, tokens in enumerate(self.each):
            specs = [*self._features(chunk), *[self._visual(tokens)] * lazy]
            for ratio in self._stored:
                specs += level_fields(self.shape, self.levels[ratio][chunk], None, self.own_axes)
            total += sum(spec.nbytes for spec in specs)
        return total

    @property
    def disk(self) -> dict[str, int]:
        """Bytes on disk per level, headers included; thumbnails and the journal (some kB per chunk) are left out."""
        settings, found = self.settings, {"visual tokens" if self.settings.l_tier == "lazy" else "L": 0, "H": 0}
        for chunk, tokens in enumerate(self.each):
            sizes = [self.levels[ratio][chunk] for ratio in settings.ratios]
            coarse = coarse_fields(self.shape, self.model.axes, tokens, sizes[-1], settings.h_bits, self.own_axes)
            found["H"] += _object([*_named("coarse", coarse), *self._features(chunk)])
            if settings.l_tier == "lazy":
                found["visual tokens"] += _object([self._visual(tokens)])
            elif len(sizes) > 1:
                found["L"] += _object([spec for part in self._fine(chunk, sizes) for spec in part])
        return {name: count for name, count in found.items() if count}

    def _fine(self, chunk: int, sizes: list[int]) -> Iterator[list[TensorSpec]]:
        """Yield the parts of a chunk's object: its levels but the coarsest, as `memory.disk.writer` cuts them."""
        bits, ratios = self.settings.l_bits, self.settings.ratios
        for ratio, size in zip(ratios[:-1], sizes, strict=False):
            part = self.ranked
            if self.summary is not None:  # at the ends of a video levels may be one
                part = self.summary.layouts[int(ratio)][chunk] == self.summary.layouts[int(ratios[0])][chunk]
            if ratio == ratios[0] and self.ranked:
                for first, stop in cuts(size, sizes, bits):
                    yield _named(f"{ratio:g}:{first}-{stop}", level_fields(self.shape, stop - first, bits))
            elif ratio == ratios[0] or not part or (self.settings.history == "own" and chunk):
                yield _named(f"{ratio:g}", level_fields(self.shape, size, bits, self.own_axes))

    def notes(self) -> Iterator[str]:
        """Say where positions, if they count tokens, leave the range that the config names."""
        limit, reached = self.model.max_positions, self.prefix + sum(self.each)
        if limit is not None and self.model.axes == 1 and self.summary is None and reached > limit:
            yield f"positions reach {reached:,}, the config names {limit:,}: answers about the end may suffer"


def _named(label: str, specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    return [replace(spec, name=f"{label}.{spec.name}") for spec in specs]


def _object(specs: Sequence[TensorSpec]) -> int:
    return len(header_of(specs)) + sum(spec.nbytes for spec in specs)


def _question(plan: _Plan, device: Device, kept: int) -> QuestionNeeds:
    """Return the needs of a question whose best chunks are spread evenly, chosen as `select/exact.py` does.

    The question runs behind H up to the last layer that is indexed, and meets each key of the index there.
    """
    model, request, shape = plan.model, plan.request, plan.model.decoder
    fine, coarse = plan.levels[plan.settings.ratios[0]], plan.levels[plan.settings.ratios[-1]]
    finer = [i for i in range(len(fine)) if fine[i] > coarse[i]]
    rows, chosen = request.question, min(request.reload, len(finer))
    picked = {finer[len(finer) * i // chosen] for i in range(chosen)}
    behind = plan.prefix + sum(coarse)
    attended = behind + sum(fine[i] - coarse[i] for i in picked)
    selection, copied, index = 0, attended * shape.token_bytes, 0
    if chosen:
        indexed = index_rows(plan.settings.index, shape.kv_heads)
        group, keys = shape.heads // shape.kv_heads, len(indexed) * sum(plan.each)
        values, heads = keys * shape.head_dim, voting_heads(plan.settings.index, shape.heads)
        selection = key_lookup(shape, rows, behind, sum(plan.each), last=max(indexed)[0], heads=heads).total
        copied += behind * shape.token_bytes
        index = 4 * values if values <= BLOCK_VALUES else values // 2 + 4 * BLOCK_VALUES  # and a block in float32
        index += 4 * min(BLOCK_VALUES, rows * group * keys)
    widest = max(attended, behind)
    caches = (widest + rows + request.new_tokens) * shape.token_bytes + index
    layer = rows * shape.bytes_per_value * (3 * shape.hidden + 3 * shape.mlp)
    logits = shape.vocabulary * (shape.bytes_per_value + 4)
    return QuestionNeeds(
        tokens=attended,
        full=plan.prefix + sum(plan.each),
        reloaded=sum(fine[i] for i in picked) * shape.token_bytes,
        copied=copied,
        flops=selection + text(shape, rows, attended).total,
        selection_flops=selection,
        decode_flops=text(shape, 1, attended + rows).total,
        peak=Peak(model.weights, caches, max(layer, logits), kept, device.overhead),
        first_token=None if device.pace is None else device.pace.first * shape.layers,
        next_token=None if device.pace is None else device.pace.next * shape.layers,
    )
