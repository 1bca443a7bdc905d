"""Selection by keys: what the question's first layers look for, against a summary of each chunk's keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videox2l.engine.attention import grouped
from videox2l.engine.backbone import Backbone
from videox2l.engine.rope import unrotate
from videox2l.errors import SettingsError
from videox2l.memory import Chunk, Memory
from videox2l.memory.features import KEYS, feature_layers, key_features
from videox2l.select.probes import Attribution, QueryProbe, attribution, check_tokens, partial_prefill
from videox2l.types import TextTokens

SUMMARIES = ("bounds", "mean")
_ROWS = 512


@dataclass(frozen=True)
class KeysSelector:
    """Compares the question's queries with a summary of each chunk's keys, in a few early layers.

    The question runs behind the text before the video alone, and no further than the last of `layers`: no chunk is
    laid out or read. `summary="bounds"` scores a chunk by the largest product that its keys can have with a query,
    from their least and greatest value per channel (Quest, arXiv 2406.10774); `"mean"` by the product with their mean
    (ReKV, arXiv 2503.00540). Queries and keys are compared without their positions, as ReKV does: scores do not drift
    towards the end of a video. Products become shares among the chunks (softmax) per layer, head and prompt token;
    `tokens` as of `AttentionSelector`, with the best token's shares brought to a sum of 1.

    `layers=None` takes the second layer, or the second to the n-th of 12 n: that is at most a tenth of the model.
    The first layer's queries know nothing of the words around them. Summaries are made at ingest, from the finest
    level; of chunks without them H is summed up.
    """

    summary: str = "bounds"
    tokens: str = "max+last"
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_tokens(self.tokens)
        if self.summary not in SUMMARIES:
            raise SettingsError(f"summary='{self.summary}' is not known: use {', '.join(SUMMARIES)}")

    def score(self, question: TextTokens, memory: Memory, backbone: Backbone) -> Tensor:
        """Return each chunk's share (n_chunks,) of what the question looks for; they sum to 1. On the CPU.

        Raises SettingsError for layers of which the memory keeps no summaries.
        """
        asked, table = self._asked(question, memory, backbone)
        return _read(asked, table, self.tokens).mean(0).cpu()

    @property
    def features(self) -> tuple[str, ...]:
        """What is compared."""
        return (KEYS,)

    def explain(self, question: TextTokens, memory: Memory, backbone: Backbone, chunk: int) -> Attribution:
        """Return which words (of the last 512 tokens) and heads look for what a chunk holds."""
        asked, table = self._asked(question, memory, backbone)
        asked, layers = asked[:, :, -_ROWS:], self._layers(memory)
        shares = (asked @ table[:, None]).softmax(-1)  # (layers * kv_heads, group, rows, n_chunks)
        return attribution(shares.reshape(len(layers), -1, *shares.shape[2:]), chunk, layers, question, backbone)

    def _layers(self, memory: Memory) -> tuple[int, ...]:
        return early_layers(memory.shape.layers) if self.layers is None else self.layers

    def _asked(self, question: TextTokens, memory: Memory, backbone: Backbone) -> tuple[Tensor, Tensor]:
        """Return scaled queries (layers * kv_heads, group, rows, d) and the table that they are multiplied with."""
        layers = self._layers(memory)
        known = feature_layers(memory.shape.layers)
        if not layers or min(layers) < 0 or max(layers) >= known:
            raise SettingsError(f"layers={list(layers)} is not possible: memories keep keys of layers 0 to {known - 1}")
        queries, scaling = self._queries(question, memory, backbone, layers)
        kv_heads = memory.shape.heads
        table = memory.feature_cache.get(
            (KEYS, self.summary, layers), memory.chunks, lambda: self._table(memory, backbone)
        )
        asked = grouped(queries, kv_heads)  # (layers * kv_heads, group, rows, d)
        if self.summary == "bounds":  # the larger of q * greatest and q * least, in one product
            asked = torch.cat((asked.clamp_min(0), asked.clamp_max(0)), -1)
        return asked * scaling, table

    def _queries(
        self, question: TextTokens, memory: Memory, backbone: Backbone, layers: tuple[int, ...]
    ) -> tuple[Tensor, float]:
        """Return the unrotated queries (layers, query_heads, rows, d) float32, and the attention's scale."""
        first = memory.prefix[0].shape[2]
        cache = backbone.new_cache(first + len(question))
        cache.append(memory.prefix[0].to(backbone.device), memory.prefix[1].to(backbone.device))
        if memory.dialogue is not None:
            first = memory.dialogue.lay(cache, first, backbone)
        probe = QueryProbe(layers)
        partial_prefill(question, first, cache, backbone, probe)
        cos, sin = backbone.rotation(backbone.text_positions(first, len(question)))
        rotated = torch.stack([probe.queries[layer].to(cos.device) for layer in layers])
        return unrotate(rotated, cos, sin), probe.scaling

    def _table(self, memory: Memory, backbone: Backbone) -> Tensor:
        """Return the summaries side by side: (layers * kv_heads, d or 2 d, n_chunks) float32 on the device."""
        layers = self._layers(memory)
        features = torch.stack([key_feature(chunk, memory, backbone)[:, list(layers)] for chunk in memory.chunks])
        least, mean, greatest = features.to(backbone.device).float().unbind(1)  # (n_chunks, layers, kv_heads, d)
        found = torch.cat((greatest, least), -1) if self.summary == "bounds" else mean
        return found.permute(1, 2, 3, 0).flatten(0, 1).contiguous()


def early_layers(layers: int) -> tuple[int, ...]:
    """Return the layers that are looked at by default, of a model with so many."""
    return tuple(range(1, max(2, layers // 12 + 1))) if layers > 1 else (0,)


def key_feature(chunk: Chunk, memory: Memory, backbone: Backbone) -> Tensor:
    """Return the summary of a chunk's keys; made of H where the ingest left none."""
    found = chunk.features.get(KEYS)
    return key_features(chunk.level(memory.coarsest), chunk.positions, backbone) if found is None else found


def _read(asked: Tensor, table: Tensor, tokens: str) -> Tensor:
    """Return shares (n * group, n_chunks) of queries `asked` (n, group, rows, d) with `table` (n, d, n_chunks).

    Each is a softmax over chunks, reduced over the rows as `tokens` says, with a sum of 1. A long prompt is read in
    blocks of rows, so that little is held at once.
    """
    rows = asked.shape[2]
    best = total = last = torch.zeros((), device=table.device)
    for block in torch.split(asked, _ROWS, 2):
        products = block.flatten(1, 2) @ table  # (n, group * block, n_chunks)
        shares = products.softmax(-1).reshape(-1, block.shape[2], table.shape[-1])
        best, total, last = torch.maximum(best, shares.amax(1)), total + shares.sum(1), shares[:, -1]
    known = {"max": best, "mean": total / rows, "last": last}
    parts = [known[name] / known[name].sum(-1, keepdim=True) for name in tokens.split("+")]
    return torch.stack(parts).mean(0)
