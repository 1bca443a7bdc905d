"""What a selector and a budget promise."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from videox2l.backbones.base import Backbone, TextTokens
from videox2l.memory import Memory, Plan


class Selector(Protocol):
    """The paper's relevance oracle: says how much each chunk matters for a question."""

    def score(self, question: TextTokens, memory: Memory, backbone: Backbone) -> Tensor:
        """Return scores (n_chunks,) float32, higher = more relevant. Changes nothing."""


class Budget(Protocol):
    """Turns scores into a plan."""

    def plan(self, scores: Tensor | None, memory: Memory) -> Plan:
        """Return the level of each chunk. `scores` (n_chunks,) is None for budgets with `needs_scores = False`."""

    @property
    def needs_scores(self) -> bool:
        """Whether `plan` looks at scores at all; if not, no selector is run."""
