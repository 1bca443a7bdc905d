"""The decode loop: one token after the other on a preallocated cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from videox2l.backbones.base import Backbone
from videox2l.backbones.cache import BufferCache
from videox2l.errors import SettingsError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. `temperature=0` is greedy; otherwise nucleus sampling (`top_p`) from `seed`."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise SettingsError(f"max_new_tokens={self.max_new_tokens} is not possible: use 1 or more")
        if self.temperature < 0:
            raise SettingsError(f"temperature={self.temperature:g} is not possible: use 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise SettingsError(f"top_p={self.top_p:g} is not possible: use more than 0 and at most 1")

    def chooser(self) -> Callable[[Tensor], int]:
        """Return a function from logits (vocabulary,) to a token id; it draws from a generator of its own."""
        if self.temperature == 0:
            return lambda logits: int(logits.argmax())
        generator = torch.Generator().manual_seed(self.seed)

        def draw(logits: Tensor) -> int:
            chances = (logits.float().cpu() / self.temperature).softmax(-1)
            ordered, ids = chances.sort(descending=True)
            before = ordered.cumsum(0) - ordered
            ordered = ordered.masked_fill(before >= self.top_p, 0)  # the first always stays
            return int(ids[torch.multinomial(ordered, 1, generator=generator)])

        return draw


def decode(backbone: Backbone, cache: BufferCache, logits: Tensor, position: int, sampling: Sampling) -> Iterator[int]:
    """Yield generated token ids until a stop id (which is not yielded) or `max_new_tokens`.

    `logits` (vocabulary,) of the last prompt token; `position` of the first generated token. Appends to `cache`.
    """
    choose = sampling.chooser()
    stop = backbone.stop_ids
    for step in range(sampling.max_new_tokens):
        token = choose(logits)
        if token in stop:
            return
        yield token
        if step + 1 == sampling.max_new_tokens:
            return
        embeds = backbone.embed(torch.tensor([token]))
        hidden = backbone.forward(embeds, backbone.text_positions(position + step, 1), cache)
        logits = backbone.logits(hidden[-1:])[0]


class TextStream:
    """Turns token ids into pieces of text; holds back bytes of characters that are not complete yet."""

    def __init__(self, decode_ids: Callable[[list[int]], str]) -> None:
        self._decode = decode_ids
        self._ids: list[int] = []
        self._shown = ""

    def push(self, token: int) -> str:
        """Add a token; return the text that is new, possibly none."""
        self._ids.append(token)
        return self._advance(hold=True)

    def end(self) -> str:
        """Return whatever was held back."""
        return self._advance(hold=False)

    def _advance(self, hold: bool) -> str:
        text = self._decode(self._ids)
        if hold and text.endswith("\ufffd"):
            return ""
        new = text[len(self._shown) :]
        self._shown = text
        return new
