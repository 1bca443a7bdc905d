"""Selectors that need no model: baselines, the user's own choice, and the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videox2l.backbones.base import Backbone, TextTokens
from videox2l.memory import Memory


@dataclass(frozen=True)
class RandomSelector:
    """Scores drawn from a seed, the same for every question: what selection must beat."""

    seed: int = 0

    def score(self, question: TextTokens, memory: Memory, backbone: Backbone) -> Tensor:
        """Return uniform random scores (n_chunks,)."""
        del question, backbone
        return torch.rand(len(memory), generator=torch.Generator().manual_seed(self.seed))


@dataclass(frozen=True)
class UniformSelector:
    """Evenly spaced chunks, whatever is asked: the best n are spread over the video for any n.

    Chunks are ranked in the order in which the sequence 1/2, 1/4, 3/4, 1/8, ... (van der Corput's) meets them.
    """

    def score(self, question: TextTokens, memory: Memory, backbone: Backbone) -> Tensor:
        """Return 1, 1/2, 1/3, ... (n_chunks,) by rank."""
        del question, backbone
        n, order, number = len(memory), dict[int, None](), 1
        while len(order) < n:
            order.setdefault(int(_mirrored(number) * n))
            number += 1
        scores = torch.zeros(n)
        scores[list(order)] = 1 / torch.arange(1, n + 1)
        return scores


def _mirrored(number: int) -> float:
    """Return the number whose binary digits after the point are those of `number`, last one first."""
    digits = f"{number:b}"[::-1]
    return int(digits, 2) / float(1 << len(digits))


@dataclass(frozen=True)
class ManualSelector:
    """Scores given by the caller: 1 for the chunks that overlap `moments` (seconds, start and end), 0 for others."""

    moments: Sequence[tuple[float, float]]

    def score(self, question: TextTokens, memory: Memory, backbone: Backbone) -> Tensor:
        """Return 0 or 1 per chunk (n_chunks,)."""
        del question, backbone
        scores = torch.zeros(len(memory))
        for start, end in self.moments:
            scores[memory.chunks_within(start, end)] = 1.0
        return scores


@dataclass(frozen=True)
class OracleSelector(ManualSelector):
    """Scores by the ground truth: `moments` are those that a question needs. For evaluation only."""
