"""Selectors and budgets."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import FAMILIES
from videox2l import ArraySource, Memory, SettingsError, VideoX2L
from videox2l.memory import Chunk
from videox2l.select import (
    AttentionSelector,
    EverythingAt,
    ManualSelector,
    RandomSelector,
    TokenBudget,
    TopK,
    budget_for,
    selector_by_name,
)
from videox2l.types import KVShape


def bare_memory(n: int = 6) -> Memory:
    """A memory of `n` ten-second chunks, without KVs."""
    shape = KVShape(1, 1, 4, torch.float32)
    empty = torch.zeros(1, 1, 0, 4)
    memory = Memory({}, {}, {}, shape, (2.0, 32.0), (empty, empty), 0)
    memory.chunks = [Chunk(10.0 * i, 10.0 * i + 10, 8, torch.zeros(1, 36).long(), {}) for i in range(n)]
    return memory


@torch.no_grad()
def test_attention_scores_are_the_stock_models_attention_summed_by_chunk(family: str, video: np.ndarray) -> None:
    """With everything kept: the eager attention weights that the stock decoder reports for the whole sequence."""
    model, processor = FAMILIES[family]()
    x2l = VideoX2L.from_model(model, processor)
    memory = x2l.ingest(ArraySource(video), ratios=(1,), chunk_frames=4)
    prompt = x2l.backbone.suffix("What happens?")

    def scores(tokens: str, **options: Any) -> torch.Tensor:
        return AttentionSelector(tokens, **options).score(prompt, memory, x2l.backbone)

    cursor_start = memory.prefix[0].shape[2]
    embeds, positions = [x2l.backbone.prefix().embeds], [x2l.backbone.text_positions(0, cursor_start)]
    from videox2l.types import VideoCursor

    cursor = VideoCursor(cursor_start, 0.0, 0, cursor_start)
    for i in range(0, len(video), 4):
        frames = list(video[i : i + 4])
        tokens = x2l.backbone.visual_tokens(frames, [float(i + j) for j in range(len(frames))], cursor)
        cursor = cursor.after(tokens)
        embeds.append(tokens.embeds)
        positions.append(tokens.positions)
    embeds.append(prompt.embeds)
    positions.append(x2l.backbone.text_positions(memory.next_position, len(prompt)))
    stock, _ = FAMILIES[family]()
    stock.set_attn_implementation("eager")
    ids = torch.cat(positions, 1)
    out = stock.get_decoder()(
        inputs_embeds=torch.cat(embeds)[None],
        position_ids=ids if len(ids) == 1 else ids[:, None],
        output_attentions=True,
    )
    rows = torch.stack([weights[0, :, -len(prompt) :] for weights in out.attentions])
    edges = np.cumsum([cursor_start, *(chunk.tokens for chunk in memory.chunks)])
    mass = torch.stack([rows[..., a:b].sum(-1) for a, b in pairwise(edges)], -1)  # (layers, heads, rows, chunks)
    shares = mass / mass.sum(-1, keepdim=True)
    last, best = mass[:, :, -1], mass.max(2).values
    near = {"atol": 1e-5, "rtol": 1e-3}
    torch.testing.assert_close(scores("last"), shares[:, :, -1].mean((0, 1)), **near)
    torch.testing.assert_close(scores("last", per_head=False), last.mean((0, 1)), **near)
    torch.testing.assert_close(scores("last", per_head=False, layers=(1, 2)), last[1:].mean((0, 1)), **near)
    torch.testing.assert_close(scores("mean", per_head=False), mass.mean((0, 1, 2)), **near)
    torch.testing.assert_close(scores("max", per_head=False), best.mean((0, 1)), **near)
    torch.testing.assert_close(scores("max+last", per_head=False), ((best + last) / 2).mean((0, 1)), **near)
    assert (scores("last") - scores("last", layers=(1, 2))).abs().max() > 1e-3  # leaving a layer out matters here


def test_the_second_look_is_over_the_shortlist_at_l() -> None:
    """Its scores are those of a memory in which the best chunks of the first look stand at L and all others at H."""
    x2l = VideoX2L.from_model(*FAMILIES["qwen2_5_vl"]())
    frames = np.random.default_rng(3).integers(0, 255, (40, 32, 32, 3), np.uint8)
    memory = x2l.ingest(ArraySource(frames), ratios=(2, 8), chunk_frames=4)
    prompt = x2l.backbone.suffix("What happens?")
    first = AttentionSelector(shortlist=0).score(prompt, memory, x2l.backbone)
    best = first.argsort(descending=True)[:3].tolist()
    chunks = [
        dataclasses.replace(chunk, levels={8.0: chunk.level(2 if i in best else 8)})
        for i, chunk in enumerate(memory.chunks)
    ]
    shortlisted = dataclasses.replace(memory, chunks=chunks, ratios=(8.0,))
    expect = AttentionSelector(shortlist=0).score(prompt, shortlisted, x2l.backbone)
    second = AttentionSelector(shortlist=3).score(prompt, memory, x2l.backbone)
    torch.testing.assert_close(second, expect)
    assert (second - first).abs().max() > 1e-3
    scouted = AttentionSelector(shortlist=3, scout=ManualSelector([(16, 17), (20, 30)]))
    chunks = [
        dataclasses.replace(chunk, levels={8.0: chunk.level(2 if i in (4, 5, 6) else 8)})
        for i, chunk in enumerate(memory.chunks)
    ]
    shortlisted = dataclasses.replace(memory, chunks=chunks, ratios=(8.0,))
    expect = AttentionSelector(shortlist=0).score(prompt, shortlisted, x2l.backbone)
    torch.testing.assert_close(scouted.score(prompt, memory, x2l.backbone), expect)
    lazy = x2l.ingest(ArraySource(frames), ratios=(2, 8), chunk_frames=4, l_tier="lazy")
    torch.testing.assert_close(AttentionSelector(shortlist=3).score(prompt, lazy, x2l.backbone), first)


def test_top_k_reloads_the_best_and_says_why() -> None:
    plan = TopK(2).plan(torch.tensor([0.1, 0.5, 0.2, 0.5, 0.0, 0.3]), bare_memory())
    assert plan.ratios == (32, 2, 32, 2, 32, 32)
    assert plan.reasons == ("", "score rank 1", "", "score rank 2", "", "")  # a tie goes to the earlier chunk
    assert plan.scores[1] == pytest.approx(0.5)


def test_pinned_and_excluded_ranges() -> None:
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    plan = TopK(1, pinned=[(41, 45)], excluded=[(0, 15)]).plan(scores, bare_memory())
    assert plan.reasons == ("", "", "score rank 1", "", "pinned", "")
    both = TopK(0, pinned=[(0, 5)], excluded=[(0, 25)]).plan(None, bare_memory())
    assert both.reasons == ("pinned", "", "", "", "", "")
    assert both.ratios[0] == 2


def test_more_than_there_is_reloads_all() -> None:
    plan = TopK(99).plan(torch.zeros(6), bare_memory())
    assert set(plan.ratios) == {2}


def test_budget_settings() -> None:
    assert budget_for("all") == EverythingAt("L")
    assert budget_for("none") == TopK(0)
    assert budget_for("5") == budget_for(5) == TopK(5)
    own = TopK(1)
    assert budget_for(own) is own
    assert EverythingAt("L").plan(None, bare_memory()).ratios == (2,) * 6
    assert EverythingAt("H").plan(None, bare_memory()).reasons == ("",) * 6
    for wrong in ("some", "-1", -1, 1.5, True, None):
        with pytest.raises(SettingsError, match="reload="):
            budget_for(wrong)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="level 'M'"):
        EverythingAt("M")


def test_simple_selectors() -> None:
    memory: Any = bare_memory()
    nothing: Any = SimpleNamespace()
    one = RandomSelector(seed=1).score(nothing, memory, nothing)
    assert torch.equal(one, RandomSelector(seed=1).score(nothing, memory, nothing))
    assert not torch.equal(one, RandomSelector(seed=2).score(nothing, memory, nothing))
    marked = ManualSelector([(25, 31), (50, 51)]).score(nothing, memory, nothing)
    assert marked.tolist() == [0, 0, 1, 1, 0, 1]
    with pytest.raises(
        SettingsError, match=r"'best' is not known: use keys, exact, exact:nothing, attention, .*, random, manual"
    ):
        selector_by_name("best")
    with pytest.raises(SettingsError, match="tokens='first'"):
        AttentionSelector(tokens="first")
    with pytest.raises(SettingsError, match="shortlist=-1"):
        AttentionSelector(shortlist=-1)


def ranked_memory() -> tuple[VideoX2L, Memory]:
    x2l = VideoX2L.from_model(*FAMILIES["qwen2_5_vl"]())
    frames = np.random.default_rng(3).integers(0, 255, (40, 32, 32, 3), np.uint8)
    return x2l, x2l.ingest(ArraySource(frames), ratios=(2, 8), chunk_frames=4)


def test_a_token_budget_is_split_by_score_and_spent() -> None:
    x2l, memory = ranked_memory()  # 10 chunks of 32 raw tokens: 16 at L, 4 at H
    scores = torch.tensor([0.0, 0.1, 0.2, 0.0, 0.4, 0.0, 0.1, 0.0, 0.2, 0.0])
    plan = TokenBudget(64).plan(scores, memory)
    sizes = [chunk.size(ratio) for chunk, ratio in zip(memory.chunks, plan.ratios, strict=True)]
    assert sizes == [4, 6, 8, 4, 13, 4, 6, 4, 8, 4]  # 24 more than H: 0.1 of the score gets 2.4, 0.2 4.8, 0.4 9.6
    assert all(bool(reason) == (size > 4) for reason, size in zip(plan.reasons, sizes, strict=True))
    full = TokenBudget(80).plan(scores, memory)  # the best chunk is full at 16; what it cannot take goes to others
    sizes = [chunk.size(ratio) for chunk, ratio in zip(memory.chunks, full.ratios, strict=True)]
    assert sizes[4] == 16
    assert 76 <= sum(sizes) <= 80
    assert set(TokenBudget(9).plan(scores, memory).ratios) == {8}
    assert set(TokenBudget(10**6).plan(torch.ones(10), memory).ratios) == {2}
    ranges = TokenBudget(60, pinned=[(0, 1)], excluded=[(16, 17)]).plan(scores, memory)
    assert ranges.ratios[0] == 2
    assert ranges.ratios[4] == 8
    answer = x2l.ask(memory, "What happens?", reload="tokens:64", max_new_tokens=2)
    prefix = memory.prefix[0].shape[2]
    assert 55 <= answer.cost.tokens - prefix <= 64
    assert len({moment.level for moment in answer.reloaded}) > 1


def test_a_token_budget_on_levels_that_are_not_ranked_takes_stored_ones() -> None:
    x2l = VideoX2L.from_model(*FAMILIES["qwen2_5_vl"]())
    frames = np.random.default_rng(3).integers(0, 255, (16, 32, 32, 3), np.uint8)
    memory = x2l.ingest(ArraySource(frames), ratios=(2, 4, 8), compressor="pool", chunk_frames=4)
    plan = TokenBudget(30).plan(torch.tensor([0.6, 0.3, 0.1, 0.0]), memory)
    assert set(plan.ratios) <= {2, 4, 8}
    assert plan.ratios[0] < 8
    with pytest.raises(SettingsError, match="budget of 0 tokens"):
        TokenBudget(0)
    lazy = x2l.ingest(ArraySource(frames), ratios=(2, 8), chunk_frames=4, l_tier="lazy")
    with pytest.raises(SettingsError, match="needs stored L-KVs"):
        TokenBudget(30).plan(torch.ones(4), lazy)
