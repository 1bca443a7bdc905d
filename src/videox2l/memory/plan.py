"""Which level every chunk of a memory gets for one question, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Chunk -> level: for each chunk, in order of time, its `ratios`, the `scores` it was given, and `reasons`.

    A chunk with an empty reason was left at its coarsest level. Scores are None where nothing was scored.
    """

    ratios: tuple[float, ...]
    scores: tuple[float | None, ...]
    reasons: tuple[str, ...]

    def __post_init__(self) -> None:
        if not len(self.ratios) == len(self.scores) == len(self.reasons):
            raise ValueError("a plan needs one ratio, one score and one reason per chunk")

    def __len__(self) -> int:
        return len(self.ratios)

    @classmethod
    def at(cls, ratios: Sequence[float], reason: str = "") -> Plan:
        """Return a plan made without scores."""
        n = len(ratios)
        return cls(tuple(ratios), (None,) * n, (reason,) * n)
