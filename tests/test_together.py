"""Questions that decode together: each answer is the one that it gets alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import make_qwen25
from tests.families.models import MAKERS
from videox2l import ArraySource, Memory, SettingsError, VideoX2L
from videox2l.ask import run as run_module
from videox2l.engine import decode
from videox2l.engine.cache import BufferCache, RaggedLayer

QUESTIONS = ("What happens?", "Is there a red star in the video, or a blue circle?", "0123 ?")


def clip(seed: int, frames: int, side: int = 96) -> ArraySource:
    rng = np.random.default_rng(seed)
    return ArraySource(rng.integers(0, 255, (frames, side, side, 3), np.uint8), fps=2.0)


def pairs(x2l: VideoX2L) -> list[tuple[Memory, str]]:
    """Questions of several lengths about two memories of different lengths."""
    memories = [x2l.ingest(clip(seed, frames), ratios=(2, 8)) for seed, frames in ((0, 8), (1, 16))]
    return [(memory, question) for question in QUESTIONS for memory in memories]


@pytest.mark.parametrize("family", sorted(MAKERS))
def test_every_family_answers_together_as_alone(family: str) -> None:
    x2l = VideoX2L.from_model(*MAKERS[family]())
    asked = pairs(x2l)
    alone = [x2l.ask(memory, question, reload=1, max_new_tokens=6).ids for memory, question in asked]
    for batch in (1, 4, 6):
        answers = x2l.ask_many(asked, reload=1, max_new_tokens=6, batch=batch)
        assert [answer.ids for answer in answers] == alone
        assert [answer.question for answer in answers] == [question for _, question in asked]
    assert len(set(alone)) > 2


@pytest.fixture(scope="module")
def x2l() -> VideoX2L:
    return VideoX2L.from_model(*make_qwen25())


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0, "seed": 3},
        {"reselect_every": 2},
        {"escalate": True},
        {"repetition_penalty": 1.4},
        {"stop": ("e",)},
    ],
)
def test_options_mean_what_they_mean_alone(x2l: VideoX2L, options: dict[str, Any]) -> None:
    asked = pairs(x2l)
    alone = [x2l.ask(memory, question, max_new_tokens=7, **options) for memory, question in asked]
    together = x2l.ask_many(asked, max_new_tokens=7, batch=3, **options)
    told = [(answer.ids, answer.text, answer.finish, len(answer.steps)) for answer in together]
    assert told == [(answer.ids, answer.text, answer.finish, len(answer.steps)) for answer in alone]


def test_logits_are_those_of_each_alone_and_of_no_other_row(x2l: VideoX2L, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control hands each row the cache of its neighbour."""
    asked = pairs(x2l)[:3]

    def last_logits(together: bool) -> list[torch.Tensor]:
        steps = [
            x2l.answering(memory, question, run_module.AskOptions(max_new_tokens=4, reload=1))
            for memory, question in asked
        ]
        generators = [next(one) for one in steps]
        for group in [generators] if together else [[one] for one in generators]:
            decode.advance(group)
        return [one._logits for one in generators]

    alone, together = last_logits(False), last_logits(True)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    own = RaggedLayer.update

    def shifted(self: RaggedLayer, *args: Any, **more: Any) -> Any:
        keys, values = own(self, *args, **more)
        return [*keys[1:], keys[0]], [*values[1:], values[0]]

    monkeypatch.setattr(RaggedLayer, "update", shifted)
    wrong = last_logits(True)
    assert any((one - other).abs().max() > 0.01 for one, other in zip(alone, wrong, strict=True))


def test_a_pass_that_fails_changes_no_cache(x2l: VideoX2L, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = pairs(x2l)[0][0]
    steps = [x2l.answering(memory, question, run_module.AskOptions(max_new_tokens=4)) for question in QUESTIONS]
    generators = [next(one) for one in steps]
    lengths = [len(one._cache) for one in generators]

    def fail(_: Any, __: Any) -> Any:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(type(x2l.backbone), "logits", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            decode.advance(generators)
    assert [len(one._cache) for one in generators] == lengths
    decode.advance(generators)
    assert [len(one._cache) for one in generators] == [length + 1 for length in lengths]


def test_the_model_is_called_once_for_a_token_of_each(x2l: VideoX2L, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[int]()
    own = type(x2l.backbone).forward

    def counted(self: Any, embeds: torch.Tensor, positions: torch.Tensor, cache: Any, probe: Any = None) -> Any:
        calls.append(len(embeds) if not isinstance(cache, BufferCache) or len(embeds) == 1 else 0)
        return own(self, embeds, positions, cache, probe)

    asked = pairs(x2l)
    monkeypatch.setattr(type(x2l.backbone), "forward", counted)
    x2l.ask_many(asked, reload="none", max_new_tokens=5, batch=6)
    assert [n for n in calls if n] == [6] * 4  # the first of five tokens comes from the prefill


@pytest.mark.parametrize("batch", [0, True, "4"])
def test_a_wrong_batch_is_refused(x2l: VideoX2L, batch: Any) -> None:
    with pytest.raises(SettingsError, match="batch="):
        x2l.ask_many([], batch=batch)
