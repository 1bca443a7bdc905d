"""Budgets, and how selectors and budgets are written."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import FAMILIES
from tests.test_select import bare_memory
from videox2l import ArraySource, Memory, SettingsError, VideoX2L
from videox2l.memory import JointMemory, LevelKV
from videox2l.select import (
    AttentionSelector,
    ByteBudget,
    FusionSelector,
    KeysSelector,
    LatencyBudget,
    ManualSelector,
    MassBudget,
    TextSelector,
    TokenBudget,
    TopK,
    bound,
    budget_for,
    selector_by_name,
)
from videox2l.select.base import best_first
from videox2l.select.latency import Calibration

SCORES = torch.tensor([0.05, 0.3, 0.1, 0.3, 0.05, 0.2])


def sized_memory(n: int = 6) -> Memory:
    """`n` chunks of ten seconds with 18 tokens at L and one at H, of 32 bytes each."""
    memory = bare_memory(n)
    x = torch.zeros(1, 1, 18, 4)
    level = LevelKV(x, x, torch.zeros(1, 1, 18, dtype=torch.int32), ranked=True)
    levels = {2.0: level, 32.0: level.first(1)}
    memory.chunks = [dataclasses.replace(chunk, levels=levels) for chunk in memory.chunks]
    return memory


def test_ends_and_neighbours_say_why() -> None:
    plan = TopK(1, ends=True, neighbours=1).plan(SCORES, bare_memory())
    assert plan.reasons == ("first chunk", "score rank 1", "next to rank 1", "", "", "last chunk")
    plan = TopK(2, neighbours=1).plan(SCORES, bare_memory())  # a neighbour of both is the first one's
    assert plan.reasons == ("next to rank 1", "score rank 1", "next to rank 1", "score rank 2", "next to rank 2", "")
    plan = TopK(1, ends=True, neighbours=9, pinned=[(31, 32)], excluded=[(0, 5), (41, 42)]).plan(SCORES, bare_memory())
    assert plan.reasons == ("", "score rank 1", "next to rank 1", "pinned", "", "last chunk")
    assert TopK(0, ends=True).plan(None, bare_memory()).reasons[::5] == ("first chunk", "last chunk")
    assert TopK(1, ends=True).plan(torch.ones(1), bare_memory(1)).reasons == ("first chunk",)
    with pytest.raises(SettingsError, match="neighbours=-1"):
        TopK(1, neighbours=-1)


def test_bytes_are_those_of_the_chunks_at_l() -> None:
    memory = sized_memory()
    each = 18 * memory.shape.token_bytes
    for limit, chosen in ((each - 1, 0), (each, 1), (3 * each - 1, 2), (3 * each, 3), (99 * each, 6)):
        plan = ByteBudget(limit).plan(SCORES, memory)
        assert sum(ratio == 2 for ratio in plan.ratios) == chosen
    plan = ByteBudget(3 * each, pinned=[(0, 5)], neighbours=1).plan(SCORES, memory)
    assert plan.reasons == ("pinned", "score rank 1", "next to rank 1", "", "", "")
    x2l = VideoX2L.from_model(*FAMILIES["qwen2_5_vl"]())
    frames = np.random.default_rng(3).integers(0, 255, (40, 32, 32, 3), np.uint8)
    real = x2l.ingest(ArraySource(frames), ratios=(2, 8), chunk_frames=4)
    limit = int(2.5 * real.chunks[0].level(2).nbytes())
    assert x2l.ask(real, "What?", reload=f"bytes:{limit}", max_new_tokens=1).cost.reloaded_bytes == limit // 5 * 4


def test_mass_takes_as_many_as_hold_the_share() -> None:
    for share, chosen in ((0.3, [1]), (0.6, [1, 3]), (0.61, [1, 3, 5]), (1.0, [0, 1, 2, 3, 4, 5])):
        plan = MassBudget(share).plan(SCORES, bare_memory())
        assert [i for i, ratio in enumerate(plan.ratios) if ratio == 2] == chosen
    assert sum(map(bool, MassBudget(1, most=4).plan(SCORES, bare_memory()).reasons)) == 4
    assert not any(MassBudget(0.9).plan(torch.zeros(6), bare_memory()).reasons)
    negative = torch.tensor([-5.0, 1, 1, 0, 0, 0])
    assert sum(map(bool, MassBudget(1).plan(negative, bare_memory()).reasons)) == 2
    pinned = MassBudget(0.5, pinned=[(11, 12)]).plan(SCORES, bare_memory())
    assert pinned.reasons == ("", "pinned", "", "score rank 1", "", "")
    for wrong in (0, 1.1, -1):
        with pytest.raises(SettingsError, match="share of"):
            MassBudget(wrong)


def test_latency_fills_the_time() -> None:
    """One second for H, then 17 tokens more per chunk at 0.1 s a token."""
    memory = sized_memory()
    speed = Calibration(row=0.0, least=1.0, flops=1e30, bytes=memory.shape.token_bytes / 0.1, chunk=0.0, heads=1)
    begin = 1 + 0.1 * 6
    for seconds, chosen in ((0.5, 0), (begin + 1.69, 0), (begin + 1.71, 1), (begin + 5.2, 3), (99, 6)):
        plan = LatencyBudget(seconds, calibration=speed, prompt=8).plan(SCORES, memory)
        assert sum(map(bool, plan.reasons)) == chosen
    assert sum(map(bool, LatencyBudget(99, most=2, calibration=speed).plan(SCORES, memory).reasons)) == 2
    slow = dataclasses.replace(speed, bytes=1e30, flops=4 * 4 * 8 * 100.0)  # a hundred columns a second
    assert slow.seconds(memory, 500, 8) == pytest.approx(1 + 5, abs=0.1)
    with pytest.raises(SettingsError, match="must be bound to a model"):
        LatencyBudget(1).plan(SCORES, memory)


def test_latency_is_measured_on_the_model(video: np.ndarray) -> None:
    x2l = VideoX2L.from_model(*FAMILIES["qwen2_5_vl"]())
    memory = x2l.ingest(ArraySource(video), ratios=(2, 8), chunk_frames=4)
    prompt = x2l.backbone.suffix("What happens?")
    budget: Any = bound(LatencyBudget(60), prompt, x2l.backbone)
    assert budget.prompt == len(prompt)
    assert budget.calibration.heads == 4
    assert all(getattr(budget.calibration, name) > 0 for name in ("row", "least", "flops", "bytes", "chunk"))
    again: Any = bound(LatencyBudget(1), prompt, x2l.backbone)
    assert again.calibration is budget.calibration  # measured once
    assert bound(TopK(3), prompt, x2l.backbone) == TopK(3)
    assert len(x2l.ask(memory, "What happens?", reload="latency:60s", max_new_tokens=1).reloaded) == len(memory)
    assert not x2l.ask(memory, "What happens?", reload="latency:0.0001ms", max_new_tokens=1).reloaded


def test_how_budgets_are_written() -> None:
    assert budget_for("3,ends,neighbours:2") == TopK(3, ends=True, neighbours=2)
    assert budget_for("2", ends=True) == TopK(2, ends=True)
    assert budget_for("tokens:90") == TokenBudget(90)
    for text, size in (("200", 200), ("1.5K", 1500), ("200M", 200_000_000), ("2GB", 2 * 10**9), ("1MiB", 1 << 20)):
        assert budget_for(f"bytes:{text}") == ByteBudget(size)
    assert budget_for("mass:0.9") == budget_for("mass:90%") == MassBudget(0.9)
    assert budget_for("mass:.5, max:4", [(0, 1)]) == MassBudget(0.5, most=4, pinned=[(0, 1)])
    assert budget_for("latency:0.5s") == budget_for("latency:500ms") == LatencyBudget(0.5)
    for wrong in (
        "3,max:2",
        "all,ends",
        "bytes:many",
        "bytes:3T",
        "mass:x",
        "latency:5",
        "3,near",
        "tokens:",
        "",
        "1.5",
    ):
        with pytest.raises(SettingsError, match="reload="):
            budget_for(wrong)
    for wrong, why in (("mass:1.5", "share of 1.5"), ("latency:0s", "latency of 0"), ("bytes:0", "0 bytes")):
        with pytest.raises(SettingsError, match=why):
            budget_for(wrong)
    with pytest.raises(SettingsError, match="neighbours do not go with"):
        budget_for("tokens:9,neighbours:1")


def test_how_selectors_are_written() -> None:
    assert selector_by_name("keys") == KeysSelector()
    assert selector_by_name("attention:H") == AttentionSelector(shortlist=0)
    assert selector_by_name("manual:0:10-0:20,1:00-2:00") == ManualSelector([(10, 20), (60, 120)])
    fused = selector_by_name("fuse-zscore:keys*2+text")
    assert fused == FusionSelector((KeysSelector(), TextSelector()), (2.0, 1.0), "zscore")
    assert selector_by_name("fuse:keys+text").how == "rank"  # type: ignore[attr-defined]
    for wrong, why in (
        ("oracle", "for evaluation"),
        ("fuse:keys", "two selectors or more"),
        ("fuse:keys+best", "'best' is not known"),
        ("fuse:keys*x+text", "weight 'x'"),
        ("fuse:keys*0+text", "numbers above 0"),
        ("manual", "'manual' is not known"),
        ("manual:ten", "no time range"),
    ):
        with pytest.raises(SettingsError, match=why):
            selector_by_name(wrong)


def test_what_comes_after_a_named_chunk_is_worth_a_quarter_of_it() -> None:
    """Questions such as "what is after k" name one chunk and are about the next one."""
    memory, n = bare_memory(), 6
    scores = torch.full((n,), 0.02)
    scores[1], scores[4] = 0.8, 0.1
    assert best_first(scores, memory)[:3] == [1, 2, 4]
    plan = TopK(2).plan(scores, memory)
    assert plan.reasons == ("", "score rank 1", "after rank 1", *[""] * (n - 3))
    scores[4] = 0.3  # more than a quarter of 0.8: named by itself
    assert best_first(scores, memory)[:3] == [1, 4, 2]
    low = torch.arange(n) * -1.0 - 1  # of scores below zero no share is made
    assert best_first(low, memory) == list(range(n))
    ends = torch.zeros(n)
    ends[-1] = 1.0
    assert best_first(ends, memory)[0] == n - 1


def test_the_first_chunk_of_a_video_does_not_come_after_another_video() -> None:
    memory = bare_memory()
    joint = JointMemory.told_of([memory, memory], ["a", "b"])
    joint.chunks = [*memory.chunks, *memory.chunks]
    scores = torch.full((12,), 0.01)
    scores[5], scores[6], scores[1], scores[0] = 0.8, 0.1, 0.05, 0.04
    assert best_first(scores, joint)[:3] == [5, 6, 1]
    reasons = TopK(2).plan(scores, joint).reasons
    assert (reasons[5], reasons[6]) == ("score rank 1", "score rank 2")
    scores[6] = 0.03  # the other video's last chunk gives it nothing
    assert best_first(scores, joint)[:3] == [5, 1, 0]
