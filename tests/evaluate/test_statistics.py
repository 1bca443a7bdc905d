"""Intervals and tests against figures worked out by hand, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from videox2l.evaluate.statistics import cluster_bootstrap, mcnemar


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
