"""Running the question to see what it asks for: a pass that ends as soon as enough was seen."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

from torch import Tensor

from videox2l.backbones.attention import Probe
from videox2l.backbones.base import Backbone, TextTokens
from videox2l.backbones.cache import BufferCache
from videox2l.errors import SettingsError

TOKENS = ("last", "mean", "max", "max+last")


class EnoughSeen(Exception):  # noqa: N818
    """Raised by a probe to end the pass that it looks at; `look` catches it."""


def look(question: TextTokens, first: int, cache: BufferCache, backbone: Backbone, probe: Probe) -> None:
    """Run the question behind `cache`, its first token at position `first`, for the sake of `probe` alone.

    The pass ends early where the probe raises EnoughSeen: layers behind it cost nothing. The cache is spent after that.
    """
    with contextlib.suppress(EnoughSeen):
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
            raise EnoughSeen


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
