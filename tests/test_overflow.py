"""KVs of a memory that hold NaN, Inf or numbers near it: an error that says where, never an empty answer."""

from __future__ import annotations

import pytest

from tests.disk.helpers import QUESTION, ingest, small_model
from videox2l import MemoryFileError, VideoX2L


@pytest.fixture(scope="module")
def x2l() -> VideoX2L:
    return small_model()


@pytest.mark.parametrize("reload", [0, 3, "all"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("place", ["chunk", "prefix"])
def test_kvs_that_overflow_are_named(x2l: VideoX2L, place: str, bad: float, reload: int | str) -> None:
    assert len(x2l.ask(ingest(x2l, n=12), QUESTION, reload=reload, max_new_tokens=2).ids) == 2  # control
    memory = ingest(x2l, n=12)
    for ratio in (2.0, 8.0):
        level = memory.chunks[1].levels[ratio]
        keys, values = memory.prefix if place == "prefix" else (level.keys, level.values)
        (values if bad == 3e38 else keys)[1, 0, 0, 3] = bad
    told = {"chunk": r"layer 1 of chunk 1 \(00:02-00:04\) hold NaN", "prefix": "layer 1 of the text before the video"}
    with pytest.raises(MemoryFileError, match=told[place]):
        x2l.ask(memory, QUESTION, reload=reload, max_new_tokens=2)
