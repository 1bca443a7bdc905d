"""The cost model against torch's FLOP counter on real passes, and against figures worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import make_qwen25, make_video_xl
from videox2l import ArraySource, VideoX2L
from videox2l.compress import ChunkContext, ChunkEncoder, History, SummaryTokenCompressor
from videox2l.flops import (
    CLIP_L_336,
    MODES,
    QWEN2_7B,
    DecoderShape,
    Flops,
    SummaryPlan,
    early_look,
    even_chunks,
    ingest_cost,
    key_lookup,
    published_cost,
    question_cost,
    ranked_ingest_cost,
    summary_pass,
    text,
)
from videox2l.memory.votes import Votes, voting_heads
from videox2l.select.exact import ExactSelector
from videox2l.select.probes import QueryProbe, partial_prefill
from videox2l.types import TextTokens, VisualTokens


def counted(work: Callable[[], Any]) -> int:
    """FLOPs as torch counts them; the plain attention kernel, since its fused one on the CPU is not counted."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def exactly(flops: int) -> Any:
    """Equal; on transformers 4 but for RoPE's angles, half a percent of such a short pass."""
    return pytest.approx(flops, rel=0 if transformers.__version__ >= "5" else 6e-3)


def same(flops: int) -> Any:
    """Equal but for RoPE's angles, which some versions of transformers compute by a (counted) matrix product."""
    return pytest.approx(flops, rel=3e-4)


@pytest.fixture(scope="module")
def backbone() -> Any:
    return VideoX2L.from_model(*make_video_xl(layers=4)).backbone


@pytest.fixture(scope="module")
def shape(backbone: Any) -> DecoderShape:
    c = backbone.model.config
    return DecoderShape(c.num_hidden_layers, 64, 4, 2, 16, c.intermediate_size, c.vocab_size, bytes_per_value=4)


SIZES = [36, 36, 36, 27]


@pytest.mark.parametrize("ratios", [(2, 8), (2, 5), (1, 3, 9)])
@pytest.mark.parametrize("mode", MODES)
def test_an_ingest_costs_what_torch_counts(mode: str, ratios: tuple[int, ...], backbone: Any, shape: Any) -> None:
    ids = torch.arange(7)
    chunks = [VisualTokens(torch.randn(n, 64), torch.arange(n)[None], (n // 9, 3, 3)) for n in SIZES]
    levels: list[Any] = []

    def run() -> None:
        wanted = ratios[-1:] if mode == "lazy" else ratios
        encoder = ChunkEncoder(
            backbone, SummaryTokenCompressor(), wanted, History.parse("H" if mode == "lazy" else mode)
        )
        encoder.prefix(TextTokens(ids, backbone.embed(ids)))
        levels.extend(encoder.add(chunk, last=i == 3) for i, chunk in enumerate(chunks))

    plan = SummaryPlan(SIZES, ratios, prefix=7)
    cost = ingest_cost(shape, plan, mode, kernel=True)
    assert cost.flops.total == same(counted(run))
    for i, found in enumerate(levels):
        assert {ratio: len(level) for ratio, level in found.items()} == {ratio: plan.kept[ratio][i] for ratio in found}
    distinct = {id(level): level.nbytes() for found in levels for level in found.values()}
    kept = 7 * shape.token_bytes + sum(distinct.values()) + (sum(SIZES) * 64 * 4 if mode == "lazy" else 0)
    assert cost.kept_bytes == kept


def test_a_level_made_later_costs_its_pass(backbone: Any, shape: Any) -> None:
    plan = SummaryPlan(SIZES, (2, 8), prefix=7)
    cost = ingest_cost(shape, plan, "lazy", reloaded=[1, 2], kernel=True)
    cache = backbone.new_cache()
    total = 0
    for i in (1, 2):
        past = plan.before(8, i)
        cache.crop(min(len(cache), past))
        missing = past - len(cache)
        cache.append(*torch.randn(2, shape.layers, 2, missing, 16))
        tokens = VisualTokens(torch.randn(36, 64), torch.arange(36)[None], (4, 3, 3))
        task = ChunkContext(tuple(SIZES[:i]))
        total += counted(
            lambda tokens=tokens, task=task: SummaryTokenCompressor().compress(tokens, cache, backbone, (2,), task)
        )
    assert cost.reload_flops.total == same(total)


def test_questions_cost_what_torch_counts(backbone: Any, shape: Any) -> None:
    cache = backbone.new_cache()
    cache.append(*torch.randn(2, shape.layers, 2, 50, 16))
    plan = SummaryPlan(SIZES, (2, 8), prefix=7)
    embeds = torch.randn(9, 64)

    def ask() -> None:
        backbone.logits(backbone.forward(embeds, backbone.text_positions(50, 9), cache)[-1:])

    assert text(shape, 9, 50, kernel=True).total == same(counted(ask))
    cost = question_cost(shape, plan, reloaded=[1], question=9)
    assert cost.tokens == 7 + 18 + 18 + plan.kept[8][2] + plan.kept[8][3]
    assert cost.reloaded_bytes == 18 * shape.token_bytes
    assert cost.decode.linear == shape.row


def test_pairs_that_are_seen_are_counted_one_by_one() -> None:
    shape = DecoderShape(3, 8, 2, 1, 4, 16, 10)
    visual, count, side, past = 24, 3, 12, 5
    main = visual + count
    whole = sum(past + i + 1 for i in range(main))
    stairs = sum(past + 9 * j + 9 for j in range(count))
    beside = sum(past + (j + 1) * 2 + (2 * j + 1) // 8 for j in range(side)) + sum(range(side + 1))
    expect = shape.pair * (whole + stairs + 2 * beside)
    found = summary_pass(shape, visual, [count, side], past).attention
    assert abs(found - expect) / expect < 0.02  # the stairs of the side are taken as even


def test_known_figures_at_the_size_of_qwen2_7b() -> None:
    """Formulas of the Video-X2L fact sheet, worked out independently."""
    assert QWEN2_7B.token_bytes == 57344
    assert QWEN2_7B.row == pytest.approx(13.05e9, rel=1e-3)
    assert QWEN2_7B.layers * QWEN2_7B.pair == 401408
    assert QWEN2_7B.weight_bytes == pytest.approx(14.14e9, rel=2e-3)
    plan = SummaryPlan([1440] * 26)
    assert plan.before(2, 26) - 14 == 720 * 26
    assert plan.before(32, 26) - 14 == 720 * 2 + 45 * 24
    passes = {ratio: published_cost(QWEN2_7B, SummaryPlan([1440] * 26, (ratio,))) for ratio in (2, 32)}
    assert passes[2].linear == pytest.approx(0.73e15, rel=0.02)
    assert passes[32].linear == pytest.approx(0.52e15, rel=0.02)
    assert passes[2].attention == pytest.approx(0.25e15, rel=0.1)
    assert passes[2].head + passes[32].head == pytest.approx(0.10e15, rel=0.1)
    assert CLIP_L_336.flops((1, 12, 12)) == pytest.approx(0.37e12, rel=0.02)


def test_modes_stand_in_the_expected_order() -> None:
    plan = SummaryPlan(even_chunks(256))
    assert plan.chunks[-1] == 6 * 144
    assert len(plan.chunks) == 26
    total = {mode: ingest_cost(QWEN2_7B, plan, mode).flops.total for mode in MODES}
    assert published_cost(QWEN2_7B, plan).total > total["own"] > total["H"] > total["fused"] > total["lazy"]
    kept = {mode: ingest_cost(QWEN2_7B, plan, mode).kept_bytes for mode in MODES}
    assert kept["lazy"] < 0.4 * kept["own"]


def test_ranking_costs_one_forward_or_one_per_level() -> None:
    once = ranked_ingest_cost(QWEN2_7B, [1000, 1000], (2, 32))
    assert once.flops == text(QWEN2_7B, 14, 0, 0) + text(QWEN2_7B, 1000, 14, 0) + text(QWEN2_7B, 1000, 14 + 31, 0)
    assert once.kept_bytes == (14 + 1000) * QWEN2_7B.token_bytes
    twice = ranked_ingest_cost(QWEN2_7B, [1000, 1000], (2, 32), "own")
    assert twice.flops == once.flops + text(QWEN2_7B, 1000, 514, 0)
    assert ranked_ingest_cost(QWEN2_7B, [1000, 1000], (2, 32), "L").flops.attention > once.flops.attention
    whole = ranked_ingest_cost(QWEN2_7B, [1000, 1000, 500], (2, 32), windows=[2, 1], echo=True)
    window = text(QWEN2_7B, 2000, 14, 0) + text(QWEN2_7B, 1000, 1014, 0) + text(QWEN2_7B, 1000, 2014, 0)
    rest = text(QWEN2_7B, 500, 14 + 62, 0) + text(QWEN2_7B, 500, 576, 0)
    assert whole.flops == text(QWEN2_7B, 14, 0, 0) + window + rest
    assert Flops(1, 2, 3).total == 6


def test_an_early_look_costs_the_layers_before_its_last_and_three_projections() -> None:
    model, processor = make_qwen25()
    x2l = VideoX2L.from_model(model, processor)
    config = model.config.get_text_config()
    shape = DecoderShape(3, 64, 4, 2, 16, config.intermediate_size, config.vocab_size)
    prompt, cache = x2l.backbone.suffix("What happens?"), x2l.backbone.new_cache()
    prefix = x2l.backbone.prefix()
    for last in (0, 1, 2):
        cache = x2l.backbone.new_cache()
        x2l.backbone.forward(prefix.embeds, x2l.backbone.text_positions(0, len(prefix)), cache)
        probe = QueryProbe((last,))
        seen = counted(
            lambda probe=probe, cache=cache: partial_prefill(prompt, len(prefix), cache, x2l.backbone, probe)
        )
        assert seen == exactly(early_look(shape, len(prompt), len(prefix), last, kernel=True).total)


@pytest.mark.parametrize("votes", [((1, "head 0.1"), (2, "head 1.0")), ((1, "confident"),)])
def test_a_lookup_costs_the_look_and_the_products_of_the_heads_that_vote(votes: Votes, video: np.ndarray) -> None:
    model, processor = make_qwen25()
    x2l = VideoX2L.from_model(model, processor)
    config = model.config.get_text_config()
    shape = DecoderShape(3, 64, 4, 2, 16, config.intermediate_size, config.vocab_size)
    x2l.backbone.index_votes = votes  # type: ignore[attr-defined]
    memory = x2l.ingest(ArraySource(video), ratios=(2, 8), chunk_frames=4)
    prompt, selector = x2l.backbone.suffix("What happens?"), ExactSelector(votes=votes)
    selector.prepare(memory, x2l.backbone)
    seen = counted(lambda: selector.score(prompt, memory, x2l.backbone))
    raw = sum(chunk.positions.shape[1] for chunk in memory.chunks)
    past = memory.prefix[0].shape[2] + sum(chunk.level(8).keys.shape[2] for chunk in memory.chunks)
    heads, last = voting_heads(votes, shape.heads), max(layer for layer, _ in votes)
    assert seen == exactly(key_lookup(shape, len(prompt), past, raw, last=last, heads=heads, kernel=True).total)
    assert seen != exactly(key_lookup(shape, len(prompt), past, raw, last=last, heads=heads + 1, kernel=True).total)


def test_a_lookup_costs_a_quarter_of_an_hours_question_at_7b() -> None:
    """Eight heads up to layer 11 of 28, an hour of 415,800 tokens read at 1/8 of full KV, H at 1/32."""
    tokens = 415_800
    own = text(QWEN2_7B, 32, tokens // 8)
    assert key_lookup(QWEN2_7B, 32, tokens // 32, tokens, last=11, heads=8).total < 0.25 * own.total
    assert key_lookup(QWEN2_7B, 32, tokens // 32, tokens, last=11, heads=56).total > 0.25 * own.total
