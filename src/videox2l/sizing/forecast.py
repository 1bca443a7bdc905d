"""What an ingest and a question will need: tokens, FLOPs, memory, disk, seconds. From config and header alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from videox2l.engine.backbone import Backbone
from videox2l.flops import DecoderShape, SummaryPlan, ingest_cost, kept_tokens, key_lookup, ranked_ingest_cost, text
from videox2l.ingest import check_chunk_frames
from videox2l.memory.disk.objects import StoredShape, coarse_fields, level_fields
from videox2l.memory.features import votes_of
from videox2l.memory.votes import index_rows, voting_heads
from videox2l.select.exact import BLOCK_VALUES
from videox2l.sizing.devices import USED_BANDWIDTH, USED_COMPUTE, Device
from videox2l.sizing.dryrun import ChunkRun, VisionRun, counts, run_chunk, run_question, run_vision
from videox2l.sizing.footage import Footage
from videox2l.sizing.sketch import Sketch
from videox2l.sizing.wish import EstimateRequest
from videox2l.types import VideoInfo


@dataclass(frozen=True)
class Peak:
    """The most bytes that a device holds at once, by what they are for.

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
class Question:
    """What a question needs: `tokens` attended, of `full` without compression; bytes brought to the device for it.

    `reloaded` bytes are the levels that were chosen; `copied` all that goes to the device, looks of the selector
    included. `first_token` and `next_token` in seconds.
    """

    tokens: int
    full: int
    reloaded: int
    copied: int
    flops: int
    peak: Peak
    first_token: float
    next_token: float


@dataclass(frozen=True)
class Forecast:
    """The needs of one video, one model and one set of settings on one class of device."""

    video: str
    model: str
    device: str
    memory: int
    settings: dict[str, Any]
    frames: int
    chunks: int
    tokens: int
    tokens_per_chunk: int
    token_bytes: int
    vision_flops: int
    language_flops: int
    ingest: Peak
    question: Question
    host: int
    disk: dict[str, int]
    seconds: dict[str, float]
    notes: list[str] = field(default_factory=list)

    @property
    def peak(self) -> int:
        """Bytes of the device that are needed."""
        return max(self.ingest.total, self.question.peak.total)

    @property
    def fits(self) -> bool:
        """Whether that is no more than the device has."""
        return self.peak <= self.memory

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        found = asdict(self)
        found["ingest"]["total"], found["question"]["peak"]["total"] = self.ingest.total, self.question.peak.total
        return {**found, "peak": self.peak, "fits": self.fits}


def forecast(
    sketch: Sketch,
    footage: Footage,
    device: Device,
    wish: EstimateRequest,
    model: str = "",
    seen: dict[tuple[object, ...], VisionRun] | None = None,
) -> Forecast:
    """Return what a video needs. Raises SettingsError for settings that cannot work.

    `seen`: passes of the vision tower to take from and to add to.
    """
    backbone, settings = sketch.backbone, wish.settings(sketch.backbone)
    frames = footage.samples(wish.fps, wish.max_frames, wish.start, wish.end)
    lengths = counts(frames, settings.chunk_frames)
    facts, size = VideoInfo(frames, footage.duration, settings.system), (footage.height, footage.width)
    cpu = device.name.startswith("cpu")
    before = max(0, len(lengths) - 1 - (lengths[-1] < lengths[0]))
    check_chunk_frames(settings, backbone)
    seen, key = {} if seen is None else seen, (id(sketch), lengths[0])
    if key not in seen:
        seen[key] = run_vision(backbone, size, lengths[0], facts, cpu)
    run = run_chunk(backbone, settings, seen[key], before)
    each = [kept_tokens(run.tokens * length, lengths[0]) for length in lengths]
    levels = _kept(run, settings.ratios, each)

    shape = decoder_shape(backbone)
    if run.compact:
        plan = SummaryPlan(each, tuple(int(ratio) for ratio in settings.ratios), run.prefix)
        language = ingest_cost(shape, plan, "lazy" if settings.l_tier == "lazy" else settings.history).flops.total
    else:
        cost = ranked_ingest_cost(shape, each, settings.ratios, settings.history, run.prefix, run.echo)
        language = cost.flops.total
    vision = run.vision_flops * sum(each) // run.tokens
    host = _host(backbone, settings, run, each, levels)
    kept = host * before // len(lengths) if cpu else 0
    overhead = int(device.overhead)
    ingest = Peak(sketch.weights, run.context, run.peak - run.context, kept, overhead)
    question = _question(sketch, shape, device, wish, run, each, levels, host if cpu else 0)
    busy = device.flops * USED_COMPUTE
    return Forecast(
        video=footage.name,
        model=model or backbone.name,
        device=device.name,
        memory=int(device.memory),
        settings={**asdict(wish), "chunk_frames": settings.chunk_frames, "compressor": settings.compressor},
        frames=frames,
        chunks=len(lengths),
        tokens=sum(each),
        tokens_per_chunk=run.tokens,
        token_bytes=shape.token_bytes,
        vision_flops=vision,
        language_flops=language,
        ingest=ingest,
        question=question,
        host=host,
        disk=_disk(backbone, settings, run, each, levels),
        seconds={
            "video": min(wish.end or footage.duration, footage.duration) - wish.start,
            "vision": vision / busy,
            "language": max(language / busy, len(lengths) * sketch.weights / device.bandwidth / USED_BANDWIDTH),
        },
        notes=[*sketch.notes, *_positions(backbone, run)],
    )


def decoder_shape(backbone: Backbone) -> DecoderShape:
    """Return the sizes of a backbone's language model; of experts, those that a token runs through."""
    config: Any = backbone.text_config  # type: ignore[attr-defined]
    mlp = config.intermediate_size
    if getattr(config, "num_experts_per_tok", None):
        mlp = config.num_experts_per_tok * config.moe_intermediate_size
    shape = backbone.shape
    return DecoderShape(
        layers=shape.layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=shape.heads,
        head_dim=shape.head_dim,
        mlp=mlp,
        vocabulary=config.vocab_size,
        bytes_per_value=shape.dtype.itemsize,
    )


def _kept(run: ChunkRun, ratios: tuple[float, ...], each: list[int]) -> dict[float, list[int]]:
    """Return the tokens of each chunk at each ratio."""
    if run.compact:
        return {float(r): SummaryPlan(each, tuple(int(x) for x in ratios), run.prefix).kept[int(r)] for r in ratios}
    return {ratio: [kept_tokens(n, ratio) for n in each] for ratio in ratios}


def _stored(run: ChunkRun, ratios: tuple[float, ...], lazy: bool) -> tuple[float, ...]:
    """Return the ratios of the levels that are kept each: a ranked finest level holds the others."""
    return ratios[-1:] if lazy else ratios[:1] if run.ranked else ratios


def _host(backbone: Backbone, settings: Any, run: ChunkRun, each: list[int], levels: dict[float, list[int]]) -> int:
    """Return the bytes of host memory that all levels take when they are not on disk."""
    lazy = settings.l_tier == "lazy"
    own = backbone.axes if run.compact else 0
    found, stored = 0, StoredShape.of(backbone.shape)
    for ratio in _stored(run, settings.ratios, lazy):
        found += sum(f.nbytes for n in levels[ratio] for f in level_fields(stored, n, None, own))
    found += sum(each) * 8 * backbone.axes + run.features * sum(each) // run.tokens
    return found + (sum(each) * run.width * backbone.shape.dtype.itemsize if lazy else 0)


def _disk(
    backbone: Backbone, settings: Any, run: ChunkRun, each: list[int], levels: dict[float, list[int]]
) -> dict[str, int]:
    """Return the bytes on disk per level; thumbnails and the journal (some kB per chunk) are left out."""
    shape, stored, coarsest = backbone.shape, StoredShape.of(backbone.shape), settings.ratios[-1]
    own = backbone.axes if run.compact else 0
    found: dict[str, int] = {}
    if settings.l_tier == "lazy":
        found["visual tokens"] = sum(each) * run.width * shape.dtype.itemsize
    else:
        for ratio in _stored(run, settings.ratios, False):
            if ratio != coarsest:
                name = "L" if ratio == settings.ratios[0] else f"1/{ratio:g}"
                found[name] = sum(
                    f.nbytes for n in levels[ratio] for f in level_fields(stored, n, settings.l_bits, own)
                )
    pairs = zip(each, levels[coarsest], strict=True)
    found["H"] = sum(
        f.nbytes for n, m in pairs for f in coarse_fields(stored, backbone.axes, n, m, settings.h_bits, own)
    )
    found["H"] += run.features * sum(each) // run.tokens  # what selectors compare lies beside it
    return found


def _question(
    sketch: Sketch,
    shape: DecoderShape,
    device: Device,
    wish: EstimateRequest,
    run: ChunkRun,
    each: list[int],
    levels: dict[float, list[int]],
    kept: int,
) -> Question:
    """Return the cost of a question whose best chunks are spread evenly, chosen as `select/exact.py` does.

    The question runs behind H up to the last layer that is indexed, and meets each key of the index there.
    """
    backbone = sketch.backbone
    fine, coarse = levels[min(levels)], levels[max(levels)]

    def tokens(chosen: int) -> int:
        picked = {len(each) * i // max(chosen, 1) for i in range(min(chosen, len(each)))}
        return run.prefix + sum(fine[i] if i in picked else coarse[i] for i in range(len(each)))

    attended = tokens(wish.reload)
    work = [text(shape, wish.question, attended).total]
    copied, index = attended * shape.token_bytes, 0
    if len(levels) > 1 and wish.reload:
        rows = index_rows(votes_of(backbone), shape.kv_heads)
        values = len(rows) * shape.head_dim * sum(each)
        heads = voting_heads(votes_of(backbone), shape.heads)
        look = key_lookup(shape, wish.question, tokens(0), sum(each), last=max(rows)[0], heads=heads)
        work.append(look.total)
        copied += tokens(0) * shape.token_bytes
        index = 4 * values if values <= BLOCK_VALUES else values // 2 + 4 * BLOCK_VALUES  # and a block in float32
        index += 4 * min(BLOCK_VALUES, wish.question * shape.heads // shape.kv_heads * values // shape.head_dim)
    widest = max(attended, tokens(0))
    peak = run_question(backbone, widest, wish.question, wish.new_tokens)
    caches = (widest + wish.question + wish.new_tokens) * shape.token_bytes
    reading = device.bandwidth * USED_BANDWIDTH
    active = shape.weight_bytes * sketch.weights / max(1, sketch.whole)
    compute = sum(max(flops / (device.flops * USED_COMPUTE), active / reading) for flops in work)
    return Question(
        tokens=attended,
        full=run.prefix + sum(each),
        reloaded=sum(sorted(fine)[-wish.reload :]) * shape.token_bytes if wish.reload and len(levels) > 1 else 0,
        copied=copied,
        flops=sum(work),
        peak=Peak(sketch.weights, caches + index, max(0, peak - caches), kept, int(device.overhead)),
        first_token=copied / device.link + compute,
        next_token=(active + (attended + wish.question) * shape.token_bytes) / reading,
    )


def _positions(backbone: Backbone, run: ChunkRun) -> list[str]:
    """Say where positions leave the range that the config names."""
    limit = getattr(backbone.text_config, "max_position_embeddings", None)  # type: ignore[attr-defined]
    if limit is None or run.compact or run.next_position <= limit:
        return []
    return [
        f"positions reach {run.next_position:,}, the model's config names {limit:,}: answers about the end may suffer"
    ]
