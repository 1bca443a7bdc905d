"""Selectors without a model, and fusion."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.test_select import bare_memory
from videox2l import SettingsError
from videox2l.select import FusionSelector, ManualSelector, OracleSelector, UniformSelector
from videox2l.select.fusion import mean_ranks
from videox2l.select.simple import TextSelector

NOTHING: Any = SimpleNamespace()


class Given:
    def __init__(self, *scores: float) -> None:
        self.scores = torch.tensor(scores)

    def score(self, *_: Any) -> torch.Tensor:
        return self.scores


def best(scores: torch.Tensor, k: int) -> list[int]:
    return sorted(scores.argsort(descending=True, stable=True)[:k].tolist())


def test_uniform_chunks_are_spread_for_any_number() -> None:
    scores = UniformSelector().score(NOTHING, bare_memory(16), NOTHING)
    assert best(scores, 1) == [8]
    assert best(scores, 3) == [4, 8, 12]
    assert best(scores, 7) == [2, 4, 6, 8, 10, 12, 14]
    for n in (1, 2, 5, 13, 100):
        scores = UniformSelector().score(NOTHING, bare_memory(n), NOTHING)
        assert scores.unique().numel() == n  # every chunk has a rank
        k = (n + 3) // 4
        gaps = torch.tensor([-1, *best(scores, k), n]).diff()
        assert gaps.max() <= 2 * n / (k + 1) + 2


def test_the_truth_is_scored_one() -> None:
    memory: Any = bare_memory()
    found = OracleSelector([(25, 31)]).score(NOTHING, memory, NOTHING)
    assert torch.equal(found, ManualSelector([(25, 31)]).score(NOTHING, memory, NOTHING))
    assert found.tolist() == [0, 0, 1, 1, 0, 0]


def test_reciprocal_ranks_are_summed() -> None:
    one, two = Given(0.9, 0.5, 0.1), Given(1.0, 0.0, 3.0)
    found = FusionSelector((one, two)).score(NOTHING, bare_memory(3), NOTHING)
    torch.testing.assert_close(found, torch.tensor([1 / 61 + 1 / 62, 1 / 62 + 1 / 63, 1 / 63 + 1 / 61]))
    heavy = FusionSelector((one, two), (1.0, 2.0)).score(NOTHING, bare_memory(3), NOTHING)
    assert best(heavy, 1) == [2]
    torch.testing.assert_close(mean_ranks(torch.tensor([0.0, 2, 0, 1, 0])), torch.tensor([4.0, 1, 4, 2, 4]))


def test_calibrated_scores_are_summed() -> None:
    one, two = Given(0.0, 1.0, 2.0), Given(10.0, 10.0, 40.0)
    shares = FusionSelector((one, two), how="share").score(NOTHING, bare_memory(3), NOTHING)
    torch.testing.assert_close(shares, torch.tensor([1 / 6, 1 / 3 + 1 / 6, 2 / 3 + 4 / 6]))
    z = FusionSelector((one, two), how="zscore").score(NOTHING, bare_memory(3), NOTHING)
    torch.testing.assert_close(z, torch.tensor([0.0, 1.5**0.5, 2 * 1.5**0.5 + 4.5**0.5]))
    flat = FusionSelector((Given(1.0, 1.0), Given(0.0, 1.0)), how="zscore").score(NOTHING, bare_memory(2), NOTHING)
    assert torch.equal(flat, torch.tensor([0.0, 2.0]))  # what says nothing has no say
    for wrong, why in (
        ({"parts": (one,)}, "two selectors"),
        ({"parts": (one, two), "weights": (1.0,)}, "weights="),
        ({"parts": (one, two), "how": "vote"}, "fusion 'vote'"),
    ):
        with pytest.raises(SettingsError, match=why):
            FusionSelector(**wrong)  # type: ignore[arg-type]


class GivenWords(Given):
    unranked_at_0 = True


def test_a_chunk_without_a_word_of_the_question_is_not_ranked_by_words() -> None:
    assert TextSelector.unranked_at_0
    looks, words = Given(0.9, 0.8, 0.7, 0.1), GivenWords(0.0, 0.0, 0.0, 2.0)
    fused = FusionSelector((looks, words)).score(None, range(4), None)  # type: ignore[arg-type]
    assert fused.argmax() == 3  # the one chunk that the words name, though it looks least like it
    assert fused[:3].tolist() == pytest.approx([1 / 61, 1 / 62, 1 / 63])
