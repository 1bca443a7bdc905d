"""Selection by the words of subtitles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videox2l.backbones.base import Backbone, TextTokens
from videox2l.errors import SettingsError
from videox2l.memory import Memory
from videox2l.times import lines_within


@dataclass(frozen=True)
class TextSelector:
    """BM25 between the question and the subtitles that are shown during each chunk (library: bm25s).

    Words are compared as they are written, without stop words of `language` (None keeps all). Chunks that share no
    word with the question get 0.
    """

    language: str | None = "en"

    def score(self, question: TextTokens, memory: Memory, backbone: Backbone) -> Tensor:
        """Return the BM25 score of each chunk (n_chunks,). Raises SettingsError if the memory has no subtitles."""
        try:
            import bm25s
        except ImportError:
            raise SettingsError("selector 'text' needs bm25s: pip install 'videox2l[subtitles]'") from None
        if not memory.subtitles:
            raise SettingsError("selector 'text' needs subtitles, and this memory has none: ingest with --subtitles")
        asked = question.text or backbone.decode(question.ids.tolist())
        texts = [
            " ".join(line.text for line in lines_within(memory.subtitles, chunk.start, chunk.end))
            for chunk in memory.chunks
        ]
        corpus = bm25s.tokenize(texts, stopwords=self.language, return_ids=False, show_progress=False)
        (words,) = bm25s.tokenize([asked], stopwords=self.language, return_ids=False, show_progress=False)
        known = {word for text in corpus for word in text}
        wanted = [word for word in words if word in known]
        if not wanted:
            return torch.zeros(len(memory))
        index = bm25s.BM25()
        index.index(corpus, show_progress=False)
        return torch.from_numpy(index.get_scores(wanted)).float()
