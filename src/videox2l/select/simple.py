"""Selectors that need no model: baselines, words of subtitles, the user's own choice, and the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from videox2l.engine.backbone import Backbone
from videox2l.errors import SettingsError
from videox2l.memory import Memory
from videox2l.types import TextTokens
from videox2l.units import format_range


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
    must_exist: ClassVar[bool] = True

    def score(self, question: TextTokens, memory: Memory, backbone: Backbone) -> Tensor:
        """Return 0 or 1 per chunk (n_chunks,). Raises SettingsError for a moment at which the memory has no chunk."""
        del question, backbone
        scores = torch.zeros(len(memory))
        for start, end in self.moments:
            found = memory.chunks_within(start, end)
            if self.must_exist and not found:
                covers = format_range(memory.chunks[0].start, memory.chunks[-1].end)
                raise SettingsError(
                    f"selector 'manual': {format_range(start, end)} is nowhere in what the question sees, {covers}"
                )
            scores[found] = 1.0
        return scores


@dataclass(frozen=True)
class OracleSelector(ManualSelector):
    """Scores by the ground truth: `moments` are those that a question needs. For evaluation only."""

    must_exist: ClassVar[bool] = False


@dataclass(frozen=True)
class TextSelector:
    """BM25 between the question and the subtitles that are shown during each chunk (library: bm25s).

    Words are compared as they are written, without stop words of `language` (None keeps all). Chunks that share no
    word with the question get 0, and are not ranked in a fusion (`unranked_at_0`).
    """

    unranked_at_0: ClassVar[bool] = True
    language: str | None = "en"

    @property
    def features(self) -> tuple[str, ...]:
        """None: subtitles are compared."""
        return ()

    def score(self, question: TextTokens, memory: Memory, backbone: Backbone) -> Tensor:
        """Return the BM25 score of each chunk (n_chunks,). Raises SettingsError if the memory has no subtitles."""
        try:
            import bm25s
        except ImportError:
            raise SettingsError("selector 'text' needs bm25s: pip install 'videox2l[subtitles]'") from None
        if not memory.subtitles:
            raise SettingsError(
                "selector 'text' needs subtitles, and this memory has none: ingest with --subtitles, "
                "or add them (x2l memory subtitles add, x2l memory transcribe)"
            )
        asked = question.text or backbone.decode(question.ids.tolist())
        texts = [" ".join(line.text for line in memory.lines(i)) for i in range(len(memory))]
        corpus = bm25s.tokenize(texts, stopwords=self.language, return_ids=False, show_progress=False)
        (words,) = bm25s.tokenize([asked], stopwords=self.language, return_ids=False, show_progress=False)
        known = {word for text in corpus for word in text}
        wanted = [word for word in words if word in known]
        if not wanted:
            return torch.zeros(len(memory))
        index = bm25s.BM25()
        index.index(corpus, show_progress=False)
        return torch.from_numpy(index.get_scores(wanted)).float()
