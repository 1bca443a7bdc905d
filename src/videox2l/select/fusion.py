"""Several selectors as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videox2l.engine.backbone import Backbone
from videox2l.errors import SettingsError
from videox2l.memory import Memory
from videox2l.select.base import Selector, compared_features
from videox2l.types import TextTokens

HOWS = ("rank", "zscore", "share")


@dataclass(frozen=True)
class FusionSelector:
    """The weighted sum of what `parts` say of a chunk.

    `how="rank"`: reciprocal rank fusion, 1 / (k + rank) (Cormack et al., SIGIR 2009), which needs no calibration and
    leaves little between two chunks, so that it fits budgets that count chunks. `"zscore"`: scores less their mean,
    by their standard deviation, shifted to begin at 0. `"share"`: scores by their sum, negative ones taken as 0.
    Equal scores share their mean rank; where a part says so (`unranked_at_0`, as `TextSelector` does for chunks without
    a word of the question), a score of 0 is no rank and adds nothing. `weights`, one per part, are all 1 by default.
    """

    parts: Sequence[Selector]
    weights: Sequence[float] = ()
    how: str = "rank"
    k: float = 60.0

    def __post_init__(self) -> None:
        if len(self.parts) < 2:
            raise SettingsError("a fusion needs two selectors or more, such as fuse:keys+text")
        if self.how not in HOWS:
            raise SettingsError(f"fusion '{self.how}' is not known: use {', '.join(HOWS)}")
        if self.weights and (len(self.weights) != len(self.parts) or min(self.weights) <= 0):
            raise SettingsError(f"weights={list(self.weights)} is not possible: use {len(self.parts)} numbers above 0")

    @property
    def features(self) -> tuple[str, ...]:
        """What the parts compare. Raises SettingsError where one reads levels."""
        return tuple(dict.fromkeys(name for part in self.parts for name in compared_features(part)))

    def score(self, question: TextTokens, memory: Memory, backbone: Backbone) -> Tensor:
        """Return the fused scores (n_chunks,), 0 or more. Raises what the parts raise."""
        weights = self.weights or (1.0,) * len(self.parts)
        total = torch.zeros(len(memory))
        for part, weight in zip(self.parts, weights, strict=True):
            scores = part.score(question, memory, backbone).float()
            calibrated = self._calibrated(scores)
            if self.how == "rank" and getattr(part, "unranked_at_0", False):
                calibrated = calibrated.where(scores != 0, 0.0)
            total += weight * calibrated
        return total - total.min() if self.how == "zscore" else total

    def _calibrated(self, scores: Tensor) -> Tensor:
        if self.how == "rank":
            return 1 / (self.k + mean_ranks(scores))
        if self.how == "share":
            positive = scores.clamp_min(0)
            return positive / positive.sum().clamp_min(torch.finfo(scores.dtype).tiny)
        spread = scores.std(correction=0)
        return (scores - scores.mean()) / spread if spread > 0 else torch.zeros_like(scores)


def mean_ranks(scores: Tensor) -> Tensor:
    """Return ranks (n,) from 1 for the highest score; equal scores get the mean of their ranks."""
    above = (scores[None] > scores[:, None]).sum(1)
    equal = (scores[None] == scores[:, None]).sum(1)
    return above + (equal + 1) / 2
