"""Probes of a partial prefill of the question, and the attribution of a score to words and heads."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from videox2l.engine.attention import Probe
from videox2l.engine.backbone import Backbone
from videox2l.engine.cache import BufferCache
from videox2l.errors import SettingsError
from videox2l.memory import Memory
from videox2l.types import TextTokens

MOST = 5


@dataclass(frozen=True)
class Attribution:
    """How much of a look over all chunks went to one of them, as a multiple of an even share.

    `words`: tokens of the prompt, those that looked at it most first; `heads`: (layer, head, multiple) alike.
    """

    words: tuple[tuple[str, float], ...]
    heads: tuple[tuple[int, int, float], ...]


@runtime_checkable
class Explainer(Protocol):
    """A selector that can explain its scores."""

    def explain(self, question: TextTokens, memory: Memory, backbone: Backbone, chunk: int) -> Attribution:
        """Return what looked at a chunk, given by its number in `memory`. Costs as much as scoring."""


def attribution(
    shares: Tensor, chunk: int, layers: Sequence[int], question: TextTokens, backbone: Backbone
) -> Attribution:
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
    return Attribution(tuple(words), tuple(heads[:MOST]))


TOKENS = ("last", "mean", "max", "max+last")


class StopForward(Exception):  # noqa: N818
    """Raised by a probe to end the pass that it looks at; `look` catches it."""


def partial_prefill(question: TextTokens, first: int, cache: BufferCache, backbone: Backbone, probe: Probe) -> None:
    """Run the question behind `cache`, its first token at position `first`, for the sake of `probe` alone.

    The pass ends early where the probe raises EnoughSeen: layers behind it cost nothing. The cache is spent after that.
    """
    with contextlib.suppress(StopForward):
        backbone.forward(question.embeds, backbone.text_positions(first, len(question)), cache, probe)


@dataclass
class QueryProbe:
    """A probe that keeps the queries of some layers, (query_heads, n, head_dim) each, and ends the pass after them."""

    layers: tuple[int, ...]
    queries: dict[int, Tensor] = field(default_factory=dict)
    scaling: float = 1.0

    def __call__(self, layer: int, query: Tensor, key: Tensor, scaling: float) -> None:
        """Take the queries of one layer."""
        del key
        self.scaling = scaling
        if layer in self.layers:
            self.queries[layer] = query[0]
        if layer >= max(self.layers):
            raise StopForward


def over_tokens(mass: Tensor, tokens: str) -> Tensor:
    """Reduce mass (..., rows, n_chunks) over the prompt tokens, its rows, to (..., n_chunks)."""
    if tokens == "mean":
        return mass.mean(-2)
    last = mass[..., -1, :]
    if tokens == "last":
        return last
    best = mass.amax(-2)
    return best if tokens == "max" else (best + last) / 2


def check_tokens(tokens: str) -> None:
    """Raise SettingsError for a value of `tokens` that is not known."""
    if tokens not in TOKENS:
        raise SettingsError(f"tokens='{tokens}' is not known: use {', '.join(TOKENS)}")
