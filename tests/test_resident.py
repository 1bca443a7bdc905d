"""H on the device in one buffer: what a question costs, and that it is what the chunks hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.cpu_cost import Operations
from tests.conftest import make_qwen25
from videox2l import ArraySource, Memory, SettingsError, VideoX2L
from videox2l.memory import Plan, build_cache, resident

QUESTION = "What happens?"


def operations(call: Callable[[], object]) -> int:
    with Operations() as counted:
        call()
    return counted.count


@pytest.fixture(scope="module")
def x2l() -> VideoX2L:
    return VideoX2L.from_model(*make_qwen25())


@pytest.fixture
def limit() -> Iterator[None]:
    yield
    resident.set_device_kv(8 << 30)


def ingest(x2l: VideoX2L, frames: int, seed: int = 0, **options: Any) -> Memory:
    rng = np.random.default_rng(seed)
    source = ArraySource(rng.integers(0, 255, (frames, 56, 56, 3), np.uint8), fps=2.0)
    return x2l.ingest(source, ratios=(2, 8), chunk_frames=2, **options)


def test_a_question_costs_as_many_operations_whatever_the_video_s_length(x2l: VideoX2L) -> None:
    short, long = ingest(x2l, 12), ingest(x2l, 96)
    assert (len(short), len(long)) == (6, 48)
    counts = []
    for memory in (short, long):
        ask = {"pinned": [(0.0, 0.5), (3.0, 3.5)], "reload": 0, "max_new_tokens": 2}
        x2l.ask(memory, QUESTION, **ask)  # what all questions share is made now
        counts.append(operations(lambda memory=memory, ask=ask: x2l.ask(memory, QUESTION, **ask)))
        counts.append(operations(lambda memory=memory: build_cache(memory, plan(memory, {1, 4}), x2l.backbone)))
    assert counts[0] == counts[2]
    assert counts[1] == counts[3]
    # negative control: what is not resident is copied chunk by chunk
    long.resident.clear()
    assert operations(lambda: build_cache(long, plan(long, {1, 4}), x2l.backbone)) > 2 * counts[3]


def test_the_selector_s_look_costs_as_many_operations_too(x2l: VideoX2L) -> None:
    counts = []
    for memory in (ingest(x2l, 12), ingest(x2l, 96)):
        x2l.ask(memory, QUESTION, selector="exact", reload=1, max_new_tokens=1)
        counts.append(
            operations(lambda memory=memory: x2l.ask(memory, QUESTION, selector="exact", reload=1, max_new_tokens=1))
        )
    assert abs(counts[0] - counts[1]) < 42  # one per chunk; a re-loaded chunk at an end parts H once less


def plan(memory: Memory, fine: set[int]) -> Plan:
    return Plan.at([memory.finest if i in fine else memory.coarsest for i in range(len(memory))])


def laid_out(memory: Memory, wanted: Plan, x2l: VideoX2L) -> None:
    """The cache holds each chunk's planned level, bit for bit, in order of time."""
    layout = build_cache(memory, wanted, x2l.backbone)
    keys, values = layout.cache.columns(0)
    for chunk, ratio, (start, stop) in zip(memory.chunks, wanted.ratios, layout.spans, strict=True):
        assert torch.equal(keys[:, :, start:stop], chunk.level(ratio).keys)
        assert torch.equal(values[:, :, start:stop], chunk.level(ratio).values)
    assert layout.spans[-1][1] == keys.shape[2]


def test_every_plan_and_part_of_a_growing_memory_is_what_the_chunks_hold(x2l: VideoX2L) -> None:
    memory = ingest(x2l, 12)
    for fine in (set(), {0}, {5}, {0, 1, 4}, set(range(6))):
        laid_out(memory, plan(memory, fine), x2l)
    for seen in ([2, 3], [0, 5], [1, 2, 4]):
        part = memory.only(seen)
        laid_out(part, plan(part, {1}), x2l)
    before = memory.snapshot()
    held = memory.resident.nbytes()
    x2l.append(memory, ArraySource(np.full((6, 56, 56, 3), 90, np.uint8), fps=2.0))
    assert len(memory) == 9
    laid_out(memory, plan(memory, {7}), x2l)
    assert held < memory.resident.nbytes()
    laid_out(before, plan(before, {2}), x2l)
    fresh = ingest(x2l, 12)
    laid_out(fresh.only([3, 4]), plan(fresh.only([3, 4]), set()), x2l)
    laid_out(fresh, plan(fresh, {0}), x2l)  # begun with a part, then all of it


def test_levels_that_are_made_for_a_question_do_not_become_resident(x2l: VideoX2L) -> None:
    lazy, stored = (ingest(x2l, 12, l_tier=tier, history="H") for tier in ("lazy", "stored"))
    for selector in ("manual:0-1", "manual:4-6", "manual:0-9"):
        answers = [
            x2l.ask(memory, QUESTION, reload="all", selector=selector, max_new_tokens=4).ids
            for memory in (lazy, stored)
        ]
        assert answers[0] == answers[1]
    assert lazy.resident.nbytes() == stored.resident.nbytes()


def test_the_memory_that_was_asked_longest_ago_makes_room(x2l: VideoX2L, limit: None) -> None:
    memories = [ingest(x2l, 12, seed) for seed in range(3)]
    expected = [x2l.ask(memory, QUESTION, reload=1, max_new_tokens=4).ids for memory in memories]
    size = memories[0].resident.nbytes()
    assert size == sum(chunk.size(8) for chunk in memories[0].chunks) * memories[0].shape.token_bytes
    resident.set_device_kv(2 * size)
    for number in (1, 0, 2):
        assert x2l.ask(memories[number], QUESTION, reload=1, max_new_tokens=4).ids == expected[number]
    assert [memory.resident.nbytes() for memory in memories] == [size, 0, size]
    resident.set_device_kv(0)  # the one that is asked stays for its question
    assert x2l.ask(memories[1], QUESTION, reload=1, max_new_tokens=4).ids == expected[1]
    assert [memory.resident.nbytes() for memory in memories] == [0, size, 0]
    for wrong in (-1, True, "1G"):
        with pytest.raises(SettingsError, match="device_kv="):
            resident.set_device_kv(wrong)  # type: ignore[arg-type]
