"""Intervals and tests against figures worked out by hand, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from videox2l.evaluate.statistics import cluster_bootstrap, holm, mcnemar, sign_flip


def test_mcnemar_by_hand() -> None:
    def pairs(wins: int, losses: int, ties: int) -> tuple[list[bool], list[bool]]:
        first = [True] * wins + [False] * losses + [True] * ties
        return first, [False] * wins + [True] * losses + [True] * ties

    assert mcnemar(*pairs(0, 0, 9)) == 1.0
    assert mcnemar(*pairs(5, 5, 0)) == 1.0
    assert mcnemar(*pairs(6, 0, 3)) == pytest.approx(2 / 64)
    assert mcnemar(*pairs(1, 7, 0)) == pytest.approx(2 * (1 + 8) / 256)
    assert mcnemar(*pairs(7, 1, 50)) == mcnemar(*pairs(1, 7, 0))
    with pytest.raises(ValueError, match="paired"):
        mcnemar([True], [])


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    """Clustered outcomes: groups covers the mean near 95 %; ignoring the groups would not."""
    rng = np.random.default_rng(0)
    covered = naive = 0
    for trial in range(200):
        chances = rng.beta(1, 1, 40)  # mean one half, strongly clustered
        groups = [list(rng.random(8) < chance) for chance in chances]
        found = cluster_bootstrap(groups, resamples=400, seed=trial)
        covered += found.low <= 0.5 <= found.high
        flat = cluster_bootstrap([[x] for group in groups for x in group], resamples=400, seed=trial)
        naive += flat.low <= 0.5 <= flat.high
    assert 180 <= covered <= 198
    assert naive < 170


def test_bootstrap_edges() -> None:
    assert cluster_bootstrap([[1, 1], [], [1]]) == cluster_bootstrap([[1], [1, 1]])
    assert cluster_bootstrap([[0, 1]]).mean == 0.5
    assert math.isnan(cluster_bootstrap([]).mean)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_sign_flips() -> None:
    """Exact for few clusters; drawn for many, close to the exact one; honest where McNemar is not."""
    assert sign_flip([]) == 1.0
    assert sign_flip([0.0, 0.0]) == 1.0
    assert sign_flip([1.0, 2.0, 1.0]) == pytest.approx(2 / 8)
    assert sign_flip([3.0, -1.0]) == pytest.approx(4 / 4)  # no flip of the small one matters to |sum| >= 2
    many = [1.0] * 12 + [-1.0] * 4
    tail = sum(math.comb(16, k) for k in range(5))
    assert sign_flip(many) == pytest.approx(2 * tail / 2**16, rel=0.15)
    # Twenty questions each of two videos, all won: McNemar sees 40 wins, the videos are two.
    assert mcnemar([True] * 40, [False] * 40) < 1e-9
    assert sign_flip([20.0, 20.0]) == 0.5
