"""What an ingest and a question cost, from shapes alone: FLOPs and bytes.

A multiply-add is two FLOPs; norms, RoPE, softmax and activations are left out, as is usual. Attention is counted by the
pairs of query and key that are seen; with `kernel=True` by whole rectangles, which is what attention under a
written-out mask computes and what torch's FLOP counter sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate


def kept_tokens(tokens: int, ratio: float) -> int:
    """Return how many of `tokens` raw tokens a level at `ratio` keeps: the whole part, at least one; at inf none."""
    return 0 if ratio == math.inf else max(1, int(tokens / ratio))


@dataclass(frozen=True)
class DecoderShape:
    """The sizes of a language model. Of `experts`, `mlp` are those that a token runs through."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    bytes_per_value: int = 2
    experts: int = 0

    @property
    def projection(self) -> dict[str, int]:
        """FLOPs per row of each projection in one layer."""
        query, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {name: 2 * self.hidden * width for name, width in (("q", query), ("k", kv), ("v", kv), ("o", query))}

    @property
    def mlp_row(self) -> int:
        """FLOPs per row of the MLP in one layer."""
        return self.hidden * (6 * self.mlp + 2 * self.experts)

    @property
    def row(self) -> int:
        """FLOPs per row of everything but attention, all layers."""
        return self.layers * (sum(self.projection.values()) + self.mlp_row)

    @property
    def pair(self) -> int:
        """FLOPs per query-key pair in one layer."""
        return 4 * self.heads * self.head_dim

    @property
    def token_bytes(self) -> int:
        """Bytes of the KVs of one token, all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.bytes_per_value

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that a decoded token reads: all layers and the head."""
        return (self.row // 2 + self.hidden * self.vocabulary) * self.bytes_per_value


QWEN2_7B = DecoderShape(28, 3584, 28, 4, 128, 18944, 152064)


@dataclass(frozen=True)
class Flops:
    """FLOPs by kind: `linear` (projections and MLP), `attention`, `head` (logits)."""

    linear: int = 0
    attention: int = 0
    head: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.linear + self.attention + self.head

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.linear + other.linear, self.attention + other.attention, self.head + other.head)


def causal_pairs(rows: int, past: int, kernel: bool = False) -> int:
    """Return the pairs of `rows` causal queries behind `past` keys."""
    return rows * (past + rows) if kernel else rows * past + rows * (rows + 1) // 2


def text(shape: DecoderShape, rows: int, past: int, logits: int = 1, kernel: bool = False) -> Flops:
    """Return the cost of `rows` ordinary tokens behind `past` cached ones, with logits of `logits` rows."""
    return Flops(
        linear=rows * shape.row,
        attention=shape.layers * shape.pair * causal_pairs(rows, past, kernel),
        head=2 * logits * shape.hidden * shape.vocabulary,
    )


def early_look(shape: DecoderShape, rows: int, past: int, last: int, kernel: bool = False) -> Flops:
    """Return the cost of a pass of `rows` tokens behind `past` that ends at the queries and keys of layer `last`."""
    before = replace(shape, layers=last)
    projections = sum(shape.projection[name] for name in "qkv")
    linear = rows * (before.row + projections)
    return Flops(linear=linear, attention=last * shape.pair * causal_pairs(rows, past, kernel))


def key_lookup(
    shape: DecoderShape, rows: int, past: int, keys: int, *, last: int, heads: int, kernel: bool = False
) -> Flops:
    """Return the cost of comparing a question with every key: `rows` tokens behind `past` as far as layer `last`, whose
    queries of `heads` heads, over all layers, then meet `keys` tokens (`videox2l.select.exact`)."""
    products = 2 * rows * heads * shape.head_dim * keys
    return early_look(shape, rows, past, last, kernel) + Flops(attention=products)


def summary_pass(shape: DecoderShape, visual: int, counts: Sequence[int], past: int, kernel: bool = False) -> Flops:
    """Return the cost of a chunk with summary tokens: `counts` of them in one sequence with the visual tokens, and
    beside it.

    Only the summary tokens' keys and values are wanted of the last layer, and only their outputs of the one before.
    """
    summaries, main, layers = sum(counts), visual + counts[0], shape.layers
    rows, projection = visual + summaries, shape.projection
    kv = projection["k"] + projection["v"]
    asked = projection["q"] + projection["o"] + shape.mlp_row
    linear = summaries * kv  # the last layer
    attention = 0
    for layer in range(layers - 1):
        whole = layer < layers - 2
        linear += rows * kv + (rows if whole else summaries) * asked
        if whole:
            pairs = causal_pairs(main, past, kernel)
        else:
            pairs = counts[0] * (past + main) if kernel else _stairs(counts[0], past, main)
        for count in counts[1:]:
            pairs += count * (past + main + count) if kernel else _stairs(count, past, main) + count * (count + 1) // 2
        attention += shape.pair * pairs
    return Flops(linear, attention)


def _stairs(count: int, past: int, main: int) -> int:
    """Pairs of summary tokens, evenly spread over a causal sequence, with it and what lies before it."""
    return count * past + count * (main + main // max(count, 1)) // 2


@dataclass(frozen=True)
class SummaryPlan:
    """An ingest by summary tokens: visual tokens per chunk and the ratios, with the ends at `end_ratio`."""

    chunks: Sequence[int]
    ratios: tuple[int, ...] = (2, 32)
    prefix: int = 14
    end_ratio: int | None = 2
    layouts: dict[int, list[tuple[int, int]]] = field(init=False)
    kept: dict[int, list[int]] = field(init=False)

    def __post_init__(self) -> None:
        layouts = {ratio: self._layouts(ratio) for ratio in self.ratios}
        kept = {
            ratio: [(size + rest) // step for size, (step, rest) in zip(self.chunks, found, strict=True)]
            for ratio, found in layouts.items()
        }
        object.__setattr__(self, "layouts", layouts)
        object.__setattr__(self, "kept", kept)

    def _layouts(self, ratio: int) -> list[tuple[int, int]]:
        """Return of each chunk the visual tokens per summary token, and those that the chunk before left over."""
        found, rest, last = [], 0, len(self.chunks) - 1
        for i, size in enumerate(self.chunks):
            step = self.end_ratio if self.end_ratio is not None and i in (0, last) else ratio
            rest %= step
            found.append((step, rest))
            rest = (size + rest) % step
        return found

    def at_end(self, chunk: int) -> bool:
        """Return whether a chunk has the ends' ratio at every level."""
        return self.end_ratio is not None and chunk in (0, len(self.chunks) - 1)

    def before(self, ratio: int, chunk: int) -> int:
        """Return the cached tokens before a chunk in a history at `ratio`."""
        return self.prefix + sum(self.kept[ratio][:chunk])


@dataclass(frozen=True)
class IngestCost:
    """The language model's cost of an ingest: `flops`, and the bytes that a memory of it keeps."""

    flops: Flops
    kept_bytes: int
    reload_flops: Flops = Flops()


MODES = ("own", "H", "fused", "lazy")


def ingest_cost(
    shape: DecoderShape, plan: SummaryPlan, mode: str, reloaded: Sequence[int] = (), kernel: bool = False
) -> IngestCost:
    """Return the cost of an ingest with summary tokens in one of the modes.

    For "lazy", `reload_flops` are those of making the finer levels for the chunks in `reloaded`, once. Levels that
    have one layout behind one history are made and kept once.
    """
    coarse, fine = plan.ratios[-1], plan.ratios[:-1]
    flops, later = text(shape, plan.prefix, 0, logits=0, kernel=kernel), Flops()
    tokens, raw = plan.prefix, 0
    for i, visual in enumerate(plan.chunks):
        same = plan.at_end(i) and (mode != "own" or i == 0)
        apart = () if same and mode != "lazy" else fine

        def alone(ratio: int, history: int, i: int = i, visual: int = visual) -> Flops:
            return summary_pass(shape, visual, [plan.kept[ratio][i]], plan.before(history, i), kernel)

        tokens += plan.kept[coarse][i]
        if mode == "fused":
            counts = [plan.kept[coarse][i], *(plan.kept[ratio][i] for ratio in apart)]
            flops += summary_pass(shape, visual, counts, plan.before(coarse, i), kernel)
        else:
            flops += alone(coarse, coarse)
        if mode == "lazy":
            raw += visual
            later = sum((alone(ratio, coarse) for ratio in fine if i in reloaded), later)
            continue
        tokens += sum(plan.kept[ratio][i] for ratio in apart)
        if mode != "fused":
            flops = sum((alone(ratio, ratio if mode == "own" else coarse) for ratio in apart), flops)
    kept = tokens * shape.token_bytes + raw * shape.hidden * shape.bytes_per_value
    return IngestCost(flops, kept, later)


def ranked_ingest_cost(
    shape: DecoderShape,
    chunks: Sequence[int],
    ratios: Sequence[float],
    history: str = "H",
    prefix: int = 14,
    echo: bool = False,
    kept: Callable[[int, float], int] = kept_tokens,
    windows: Sequence[int] = (),
) -> IngestCost:
    """Return the cost of an ingest that ranks tokens: one plain forward per window, or one per level with "own".

    `echo`: each chunk once more, behind itself. `kept`: how many of so many tokens a level at a ratio keeps.
    `windows`: chunks of each window, by default one.
    """
    flops = text(shape, prefix, 0, logits=0)
    recent = len(chunks) if history == "L" else int(history.partition(":")[2] or 0)
    for number, levels in enumerate([(ratio,) for ratio in ratios] if history == "own" else [tuple(ratios)]):
        fine, coarse = ([kept(visual, pick(levels)) for visual in chunks] for pick in (min, max))
        past = prefix
        first = 0
        for size in windows or [1] * len(chunks):
            together, stop = chunks[first : first + size], first + size
            if first or not number:
                flops += text(shape, sum(together), past, logits=0)
                ends = accumulate(together, initial=past)
                for visual, before in zip(together, ends, strict=False) if echo else ():
                    flops += text(shape, visual, before + visual, logits=0)
            for i in range(first, stop):
                past += fine[i] if recent else coarse[i]
                past -= fine[i - recent] - coarse[i - recent] if recent and i >= recent else 0
            first = stop
    stored = ratios if history == "own" else ratios[:1]
    tokens = prefix + sum(kept(visual, ratio) for visual in chunks for ratio in stored)
    return IngestCost(flops, tokens * shape.token_bytes)


def published_cost(shape: DecoderShape, plan: SummaryPlan) -> Flops:
    """Return the cost of the published code's two passes: all layers in full, masks written out, logits of all rows."""
    flops = Flops()
    for ratio in plan.ratios:
        flops += text(shape, plan.prefix, 0, logits=plan.prefix, kernel=True)
        for i, visual in enumerate(plan.chunks):
            rows = visual + plan.kept[ratio][i]
            flops += text(shape, rows, plan.before(ratio, i), logits=rows, kernel=True)
    return flops


@dataclass(frozen=True)
class QuestionCost:
    """A question on a mixed cache of `tokens`: its prefill, one decoded token (FLOPs, bytes read), reloaded bytes."""

    tokens: int
    prefill: Flops
    decode: Flops
    decode_bytes: int
    reloaded_bytes: int


def question_cost(shape: DecoderShape, plan: SummaryPlan, reloaded: Sequence[int], question: int = 32) -> QuestionCost:
    """Return the cost of a question with the chunks in `reloaded` at the finest level, all others at the coarsest."""
    fine, coarse = plan.kept[plan.ratios[0]], plan.kept[plan.ratios[-1]]
    picked = set(reloaded)
    tokens = plan.prefix + sum(fine[i] if i in picked else coarse[i] for i in range(len(plan.chunks)))
    return QuestionCost(
        tokens=tokens,
        prefill=text(shape, question, tokens),
        decode=text(shape, 1, tokens + question),
        decode_bytes=shape.weight_bytes + (tokens + question) * shape.token_bytes,
        reloaded_bytes=sum(fine[i] for i in picked) * shape.token_bytes,
    )


def even_chunks(frames: int, tokens_per_frame: int = 144, chunk_frames: int = 10) -> list[int]:
    """Return the visual tokens of each chunk of a video; the last may be shorter."""
    sizes = [chunk_frames] * (frames // chunk_frames) + [frames % chunk_frames] * (frames % chunk_frames > 0)
    return [size * tokens_per_frame for size in sizes]


@dataclass(frozen=True)
class VisionShape:
    """The sizes of a vision tower and of what brings its patches to the language model.

    `mlp`: width of the MLP, once for each of its matrices; `patch` values of a patch; `maps`: linear maps of the
    projector, as rows per patch and weights; `side`: patches in a row of a frame, where all are squares of one size;
    `merge` x `merge` patches become one token elsewhere; `summary_rows`: rows per picture that are no patches (CLS).
    `window`: patches in a row of the windows to which attention keeps, but for `full` layers. `rows_per_token`: how
    often a token's features enter the language model.
    """

    layers: int
    width: int
    mlp: int
    patch: int
    maps: tuple[tuple[float, int], ...]
    side: int = 0
    merge: int = 1
    summary_rows: int = 0
    window: int = 0
    full: int = 0
    rows_per_token: int = 1

    @property
    def linear(self) -> int:
        """Weights of the layers' linear maps."""
        return self.layers * self.width * (4 * self.width + self.mlp)

    @property
    def weights(self) -> int:
        """Weights of all linear maps."""
        mergers = self.rows_per_token  # each has weights of its own
        return self.linear + self.patch * self.width + mergers * sum(weights for _, weights in self.maps)

    def patches(self, grid: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return pictures, rows and columns of the patches that become a grid (t, h, w) of tokens."""
        high, wide = (self.side, self.side) if self.side else (grid[1] * self.merge, grid[2] * self.merge)
        return grid[0], high, wide

    def flops(self, grid: tuple[int, int, int]) -> int:
        """Return the FLOPs of the pictures that become a grid (t, h, w) of tokens."""
        pictures, high, wide = self.patches(grid)
        rows, windowed = high * wide + self.summary_rows, self.layers - self.full if self.window else 0
        seen = (self.layers - windowed) * rows**2 + windowed * _squares(high, self.window) * _squares(wide, self.window)
        projector = sum(int(high * wide * share) * weights for share, weights in self.maps)
        linear = rows * self.linear + high * wide * self.patch * self.width + projector
        return pictures * (2 * linear + 4 * self.width * seen)


def _squares(length: int, step: int) -> int:
    """Sum of the squares of the parts of `length`, all but the last `step` long."""
    return length // step * step**2 + (length % step) ** 2 if step else length**2


CLIP_L_336 = VisionShape(23, 1024, 2 * 4096, 3 * 14 * 14, ((1, 1024 * 3584), (1 / 4, 3584**2)), side=24, summary_rows=1)
"""The layers of CLIP ViT-L/14 at 336 pixels that Video-XL runs, and its projector to 3,584, pooled in its middle."""
