"""Selectors that need no model: baselines and the user's own choice."""

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
