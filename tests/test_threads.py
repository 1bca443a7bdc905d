"""One model, many threads: everything equals the sequential run. X2L_THREADS_SECONDS=60 makes it a minute."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.conftest import make_qwen25
from tests.families.models import MAKERS
from videox2l import ArraySource, Memory, VideoX2L

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("X2L_THREADS_SECONDS", "6"))
QUESTION = "What happens?"


def clip(seed: int, frames: int = 20, side: int = 56) -> ArraySource:
    rng = np.random.default_rng(seed)
    return ArraySource(rng.integers(0, 255, (frames, side, side, 3), np.uint8), fps=2.0)


def digest(memory: Memory) -> str:
    found = hashlib.sha256()
    for chunk in memory.chunks:
        level = chunk.level(memory.finest)
        for part in (level.keys, level.values):
            found.update(part.contiguous().view(-1).view(dtype=part.dtype).float().numpy().tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("family", sorted(MAKERS))
def test_ingests_of_every_family_are_those_of_one_thread(family: str) -> None:
    x2l = VideoX2L.from_model(*MAKERS[family]())
    alone = [digest(x2l.ingest(clip(seed, 8, 96), ratios=(2, 8))) for seed in range(2)]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda seed: digest(x2l.ingest(clip(seed, 8, 96), ratios=(2, 8))), [0, 1] * 3))
    assert made == alone * 3


def test_everything_at_once_equals_the_sequential_run() -> None:
    x2l = VideoX2L.from_model(*make_qwen25())
    options: dict[str, Any] = {"ratios": (2, 8), "chunk_frames": 4}
    alone = {seed: digest(x2l.ingest(clip(seed), **options)) for seed in range(4)}
    memory = x2l.ingest(clip(0), **options)
    asks = [
        {"reload": "all"},
        {"reload": 1, "selector": "attention"},
        {"reload": 2, "temperature": 1.0, "seed": 3},
        {"reload": 2, "reselect_every": 2},
    ]
    answers = [x2l.ask(memory, QUESTION, max_new_tokens=6, **ask).ids for ask in asks]
    grown, expected = x2l.ingest(clip(9), **options), x2l.ingest(clip(9), **options)
    begun = {x2l.ask(expected, QUESTION, max_new_tokens=4).ids}
    for seed in range(3):
        source = clip(seed)
        x2l.append(expected, source)
    for until in [chunk.end for chunk in expected.chunks]:
        begun.add(x2l.ask(expected, QUESTION, as_of=until, max_new_tokens=4).ids)
    end, wrong, counts = time.monotonic() + SECONDS, [], {"ingest": 0, "ask": 0, "grown": 0}

    def repeat(name: str, check: Any) -> None:
        number = 0
        while (time.monotonic() < end or number == 0) and not wrong:
            try:
                if not check(number):
                    wrong.append(f"{name} {number} differs")
            except BaseException as error:
                wrong.append(f"{name} {number}: {type(error).__name__}: {error}")
            counts[name] += 1
            number += 1

    def append() -> None:
        for seed in range(3):
            x2l.append(grown, clip(seed))

    works = [
        ("ingest", lambda n, i=i: digest(x2l.ingest(clip((n + i) % 4), **options)) == alone[(n + i) % 4])
        for i in range(4)
    ]
    works += [
        ("ask", lambda n, i=i: x2l.ask(memory, QUESTION, max_new_tokens=6, **asks[i]).ids == answers[i])
        for i in range(4)
    ]
    works += [("grown", lambda _: x2l.ask(grown, QUESTION, max_new_tokens=4).ids in begun)]
    threads = [threading.Thread(target=repeat, args=work) for work in works] + [threading.Thread(target=append)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert min(counts.values()) > 0
    assert digest(grown) == digest(expected)
