"""What a selector can say of the score of one chunk: which words and which heads looked at it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from videox2l.backbones.base import Backbone, TextTokens
from videox2l.memory import Memory

MOST = 5


@dataclass(frozen=True)
class Looked:
    """How much of a look over all chunks went to one of them, as a multiple of an even share.

    `words`: tokens of the prompt, those that looked at it most first; `heads`: (layer, head, multiple) alike.
    """

    words: tuple[tuple[str, float], ...]
    heads: tuple[tuple[int, int, float], ...]


@runtime_checkable
class Explaining(Protocol):
    """A selector that can explain its scores."""

    def explain(self, question: TextTokens, memory: Memory, backbone: Backbone, chunk: int) -> Looked:
        """Return what looked at a chunk, given by its number in `memory`. Costs as much as scoring."""


def looked(shares: Tensor, chunk: int, layers: Sequence[int], question: TextTokens, backbone: Backbone) -> Looked:
    """Sum up shares (layers, heads, rows, n_chunks) that sum to 1 over the chunks; rows are the prompt's tokens.

    Of heads, the word that looks at the chunk most counts; of words, the mean over all heads. Control tokens are left
    out of the words.
    """
    multiples = shares[..., chunk].float().cpu() * shares.shape[-1]  # (layers, heads, rows)
    ids = question.ids.tolist()[-multiples.shape[2] :]
    named = [(backbone.decode([token]).strip() if token >= 0 else "") for token in ids]
    by_word: dict[str, float] = {}
    for word, value in zip(named, multiples.mean((0, 1)).tolist(), strict=True):
        if word:
            by_word[word] = max(value, by_word.get(word, 0.0))
    words = sorted(by_word.items(), key=lambda item: -item[1])[:MOST]
    best = multiples.amax(-1)
    heads = [(layer, head, float(best[i, head])) for i, layer in enumerate(layers) for head in range(best.shape[1])]
    heads.sort(key=lambda item: -item[2])
    return Looked(tuple(words), tuple(heads[:MOST]))
