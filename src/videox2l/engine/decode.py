"""Writing an answer: one token after the other on a preallocated cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from videox2l.engine.backbone import Backbone
from videox2l.engine.cache import BufferCache
from videox2l.options import SamplingParams


def chooser(sampling: SamplingParams) -> Callable[[Tensor], int]:
    """Return a function from logits (vocabulary,) to a token id; it draws from a generator of its own."""
    if sampling.temperature == 0:
        return lambda logits: int(logits.argmax())
    generator = torch.Generator().manual_seed(sampling.seed)

    def draw(logits: Tensor) -> int:
        chances = (logits.float().cpu() / sampling.temperature).softmax(-1)
        ordered, ids = chances.sort(descending=True)
        before = ordered.cumsum(0) - ordered
        ordered = ordered.masked_fill(before >= sampling.top_p, 0)  # the first always stays
        return int(ids[torch.multinomial(ordered, 1, generator=generator)])

    return draw


class TokenGenerator:
    """Writes an answer token by token; on its way it may be put behind another cache.

    `ids` are the tokens so far; `finish` is None until the answer is over: "stop" when the model ended it, "length"
    when `max_new_tokens` did. `entropies` (nats) are those of the first `watch` of the model's distributions, the one
    that ended the answer not counted; temperature has no part in them. `unread` is the last token while the cache does
    not hold it yet.
    """

    def __init__(self, backbone: Backbone, sampling: SamplingParams, watch: int = 0) -> None:
        self.ids: list[int] = []
        self.entropies: list[float] = []
        self.finish: str | None = None
        self.unread: int | None = None
        self._backbone = backbone
        self._most = sampling.max_new_tokens
        self._watch = watch
        self._choose = chooser(sampling)

    def begin(self, cache: BufferCache, logits: Tensor, position: int) -> None:
        """Go on behind a cache that holds the prompt and all of `ids`.

        `logits` (vocabulary,) of the last token in it; `position` of the next one. Tokens are appended to `cache`.
        """
        self._cache, self._logits, self._position = cache, logits, position
        self.unread = None

    def step(self) -> int | None:
        """Return one more token id, or None when the answer is over."""
        if self.finish is not None:
            return None
        if self.unread is not None:
            embeds = self._backbone.embed(torch.tensor([self.unread]))
            hidden = self._backbone.forward(embeds, self._backbone.text_positions(self._position, 1), self._cache)
            self._logits, self.unread = self._backbone.logits(hidden[-1:])[0], None
            self._position += 1
        token = self._choose(self._logits)
        if token in self._backbone.stop_ids:
            self.finish = "stop"
            return None
        if len(self.entropies) < self._watch:
            self.entropies.append(entropy(self._logits))
        self.ids.append(token)
        self.unread = token
        if len(self.ids) == self._most:
            self.finish = "length"
        return token


def generate(
    backbone: Backbone, cache: BufferCache, logits: Tensor, position: int, sampling: SamplingParams
) -> Iterator[int]:
    """Yield generated token ids until a stop id (which is not yielded) or `max_new_tokens`.

    `logits` (vocabulary,) of the last prompt token; `position` of the first generated token. Appends to `cache`.
    """
    writer = TokenGenerator(backbone, sampling)
    writer.begin(cache, logits, position)
    while (token := writer.step()) is not None:
        yield token


def entropy(logits: Tensor) -> float:
    """Return the entropy (nats) of the distribution that logits (vocabulary,) stand for."""
    return float(torch.special.entr(logits.float().softmax(-1)).sum())


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
