"""Intervals and paired tests for accuracies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its confidence interval."""

    mean: float
    low: float
    high: float


def cluster_bootstrap(
    groups: Sequence[Sequence[float]], *, level: float = 0.95, resamples: int = 4000, seed: int = 0
) -> Interval:
    """Return the mean of all outcomes and a percentile bootstrap interval that resamples whole groups.

    Questions about one video share its luck, so videos, not questions, are drawn with replacement. `groups` holds the
    outcomes (0 to 1) of each video's questions; groups without outcomes are left out.
    """
    sums = np.array([sum(group) for group in groups if len(group)], dtype=float)
    counts = np.array([len(group) for group in groups if len(group)], dtype=float)
    if not len(sums):
        return Interval(math.nan, math.nan, math.nan)
    draws = np.random.default_rng(seed).integers(0, len(sums), (resamples, len(sums)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    tail = 50 * (1 - level)
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high))


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Return the exact two-sided p-value of McNemar's test on paired outcomes.

    Only the pairs that differ count: under the null hypothesis each falls either way with chance one half.
    """
    if len(first) != len(second):
        raise ValueError(f"outcomes must be paired, got {len(first)} and {len(second)}")
    wins = sum(a and not b for a, b in zip(first, second, strict=True))
    losses = sum(b and not a for a, b in zip(first, second, strict=True))
    n = wins + losses
    ways = sum(math.comb(n, k) for k in range(min(wins, losses) + 1))
    return float(min(1.0, 2 * ways / 2**n))


def sign_flip(totals: Sequence[float], *, draws: int = 20_000, seed: int = 0) -> float:
    """Return the two-sided p-value of a permutation test that flips the sign of each cluster's total difference.

    Under the null hypothesis two methods are exchangeable within a cluster (a video), whatever its questions share.
    Exact for up to 14 clusters that differ; from there on by `draws` random flips, with the observed one counted in.
    """
    known = np.array([total for total in totals if total], dtype=float)
    if not len(known):
        return 1.0
    seen = abs(known.sum()) - 1e-9
    if len(known) <= 14:
        signs = 1 - 2 * ((np.arange(2 ** len(known))[:, None] >> np.arange(len(known))) & 1)
        return float((np.abs(signs @ known) >= seen).mean())
    rng = np.random.default_rng(seed)
    hits = 0
    for size in np.diff(np.linspace(0, draws, 11).astype(int)):  # in parts, to bound memory
        signs = 1 - 2 * rng.integers(0, 2, (size, len(known)), dtype=np.int8)
        hits += int((np.abs(signs @ known) >= seen).sum())
    return (hits + 1) / (draws + 1)


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number after Holm (1979), in the order given."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    found, worst = [1.0] * len(values), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, values[i] * (len(values) - rank)))
        found[i] = worst
    return found
