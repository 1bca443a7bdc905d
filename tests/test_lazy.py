"""Levels made when they are wanted equal those of an ingest that stores them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import make_qwen25, make_video_xl
from videox2l import ArraySource, Memory, SettingsError, VideoX2L
from videox2l.compress import RankedCompressor, UniformScorer, compressor_by_name
from videox2l.compress.lazy import with_planned_levels
from videox2l.memory import LevelCache, Plan
from videox2l.select import AttentionSelector

QUESTIONS = ["What happens?", "Who rings the bell?", "What is on the board?"]
AT_H = AttentionSelector(shortlist=0)  # the default looks at L too, where it is stored
MAKERS = {"video_xl": make_video_xl, "qwen2_5_vl": make_qwen25}


@pytest.fixture(scope="module", params=[("video_xl", "summary"), ("qwen2_5_vl", "keydiff"), ("qwen2_5_vl", "pool")])
def pair(request: pytest.FixtureRequest) -> tuple[VideoX2L, Memory, Memory]:
    """A model with two memories of one video: levels stored, and the fine one left for later."""
    family, compressor = request.param
    x2l = VideoX2L.from_model(*MAKERS[family]())
    frames = np.random.default_rng(4).integers(0, 255, (22, 32, 32, 3), np.uint8)
    stored, lazy = (
        x2l.ingest(ArraySource(frames), ratios=(2, 8), compressor=compressor, chunk_frames=4, l_tier=tier)
        for tier in ("stored", "lazy")
    )
    return x2l, stored, lazy


def test_answers_and_levels_are_those_of_stored_levels(pair: Any) -> None:
    x2l, stored, lazy = pair
    for question in QUESTIONS:
        for reload in (2, "all", "none"):
            one, two = (
                x2l.ask(memory, question, reload=reload, selector=AT_H, max_new_tokens=6) for memory in (stored, lazy)
            )
            assert one.ids == two.ids
            assert [e.level for e in one.evidence] == [e.level for e in two.evidence]
            assert one.cost.tokens == two.cost.tokens
            assert one.cost.reloaded_bytes == two.cost.reloaded_bytes
    plan = Plan.at([2.0] * len(lazy))
    full = with_planned_levels(lazy, plan, x2l.backbone, compressor_by_name(lazy.settings["compressor"]))
    for a, b in zip(full.chunks, stored.chunks, strict=True):
        torch.testing.assert_close(a.level(2).keys, b.level(2).keys, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(a.level(2).values, b.level(2).values, atol=1e-5, rtol=1e-5)
        assert torch.equal(a.level(2).index, b.level(2).index)


def test_the_memory_keeps_no_fine_level_and_the_cache_is_bounded(pair: Any) -> None:
    x2l, stored, lazy = pair
    before = lazy.summary()
    lazy.level_cache.clear()
    answer = x2l.ask(lazy, QUESTIONS[0], reload=3, max_new_tokens=6)
    assert len(lazy.level_cache) == 3
    assert lazy.summary() == before
    assert "L" not in before["tokens"]
    assert all(list(chunk.levels) == [8.0] for chunk in lazy.chunks)
    one = max(level.nbytes() for level in (chunk.level(2) for chunk in stored.chunks))
    for capacity in (0, one, 2 * one):
        lazy.level_cache = LevelCache(capacity)
        again = x2l.ask(lazy, QUESTIONS[0], reload=3, max_new_tokens=6)
        assert (again.ids, again.evidence) == (answer.ids, answer.evidence)
        assert lazy.level_cache.nbytes() <= capacity


def test_a_saved_memory_makes_them_too(pair: Any, tmp_path: Path) -> None:
    x2l, _, lazy = pair
    lazy.save(tmp_path / "lazy.x2l")
    loaded = Memory.load(tmp_path / "lazy.x2l")
    assert loaded.fingerprint() == lazy.fingerprint()
    one, two = (x2l.ask(memory, QUESTIONS[1], reload=2, max_new_tokens=6) for memory in (lazy, loaded))
    assert one.ids == two.ids


def test_what_cannot_be_lazy_is_refused(pair: Any) -> None:
    x2l, _, _ = pair
    source = ArraySource(np.zeros((4, 32, 32, 3), np.uint8))
    with pytest.raises(SettingsError, match="l_tier must be one of stored, lazy, none, got 'never'"):
        x2l.ingest(source, l_tier="never")
    with pytest.raises(SettingsError, match="history='own': use history='H'"):
        x2l.ingest(source, l_tier="lazy", history="own")
    with pytest.raises(SettingsError, match="two ratios"):
        x2l.ingest(source, l_tier="lazy", ratios=(8,))
    with pytest.raises(SettingsError, match="a compressor by name"):
        x2l.ingest(source, l_tier="lazy", compressor=RankedCompressor(UniformScorer()))


def test_the_level_used_longest_ago_goes_first(pair: Any) -> None:
    _, stored, _ = pair
    levels = [chunk.level(2) for chunk in stored.chunks[:3]]
    cache = LevelCache(2 * max(level.nbytes() for level in levels))
    cache.put(0, 2.0, levels[0])
    cache.put(1, 2.0, levels[1])
    assert cache.get(0, 2.0) is not None
    cache.put(2, 2.0, levels[2])
    assert cache.get(1, 2.0) is None
    assert len(cache) == 2


def test_a_part_of_a_memory_has_a_cache_of_its_own(pair: Any) -> None:
    """Levels depend on the chunks before, so those of a memory must not be taken for those of a part of it."""
    x2l, _, lazy = pair
    x2l.ask(lazy, QUESTIONS[0], reload="all", max_new_tokens=1)
    part = dataclasses.replace(lazy, chunks=lazy.chunks[2:])
    assert len(part.level_cache) == 0
    assert len(lazy.level_cache) > 0
