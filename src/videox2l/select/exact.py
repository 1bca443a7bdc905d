"""Selection by exact keys: what the words of a question look for, against every key of a few layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videox2l.engine.attention import grouped
from videox2l.engine.backbone import Backbone
from videox2l.engine.rope import unrotate
from videox2l.errors import SettingsError
from videox2l.memory import Chunk, Memory, build_cache, uniform_plan
from videox2l.memory.features import INDEX, Votes, index_size, key_index, plain_keys, read_index, votes_of
from videox2l.select.probes import Attribution, QueryProbe, attribution, partial_prefill
from videox2l.types import TextTokens

NEUTRAL = ("What happens here?", "Describe what you see.", "Is anything interesting shown?")
"""Questions about nothing: what their words look for is what any words look for."""
KINDS = ("confident", "best")
_ROWS = 64
_CHUNKS = 4096
"""With more chunks than this keys are held as bytes, and made float32 block by block."""


@dataclass(frozen=True)
class ExactSelector:
    """Compares the question's queries with all keys of a chunk in a few layers, RoPE undone on both sides.

    Those are all that the chunk had when it was prefilled, whatever L keeps of them; of a memory without an index, or
    made with summary tokens, they are L's.

    Per layer, head and word of the question, a chunk's value is the largest product with any of its keys. Two votes
    can be made of it. *Confident*: values less those of neutral questions become shares among chunks (softmax); each
    word counts by how well it tells chunks apart, (1 - normalized entropy) ** `power`, as in inverse document
    frequency; summed over heads and words of a layer. *Best word*: shares without that, per head the mean of the best
    word's and the last word's. Of all votes, normalized to a sum of 1, the sharpest one counts: the one with the
    largest share for its best chunk.

    The question is understood behind H, or, with `behind="nothing"`, behind the text before the video alone. `votes`:
    pairs of a layer and "confident" or "best"; by default those that the memory has an index for
    (`videox2l.memory.features.INDEX`), which is made at ingest. `x2l doctor` finds those of a model.
    """

    votes: Votes | None = None
    behind: str = "H"
    power: float = 2.0

    def __post_init__(self) -> None:
        if self.behind not in ("H", "nothing"):
            raise SettingsError(f"behind must be H or nothing, got {self.behind!r}")

    @property
    def features(self) -> tuple[str, ...] | None:
        """What is compared; None behind H, which is more than features."""
        return (INDEX,) if self.behind == "nothing" else None

    def score(self, question: TextTokens, memory: Memory, backbone: Backbone) -> Tensor:
        """Return each chunk's share (n_chunks,) of what the question looks for; they sum to 1. On the CPU."""
        ballots = self._ballots(question, memory, backbone)
        sharpest = int(ballots.amax(-1).argmax())
        return ballots[sharpest].cpu()

    def explain(self, question: TextTokens, memory: Memory, backbone: Backbone, chunk: int) -> Attribution:
        """Return which words and heads look for what a chunk holds."""
        layers = self._layers(memory, backbone)
        values = self.values(question, memory, backbone, layers)
        shares = (values - self.neutral(memory, backbone, layers)[:, :, None]).softmax(-1)
        return attribution(shares, chunk, layers, question, backbone)

    def _ballots(self, question: TextTokens, memory: Memory, backbone: Backbone) -> Tensor:
        """Return all votes, (votes, n_chunks), each with a sum of 1."""
        layers = self._layers(memory, backbone)
        values = self.values(question, memory, backbone, layers)
        every = {kind: self.ballots(kind, values, memory, backbone, layers) for kind in KINDS}
        votes = memory_votes(memory, backbone) if self.votes is None else self.votes
        return torch.stack([every[kind][layers.index(layer)] for layer, kind in votes])

    def ballots(self, kind: str, values: Tensor, memory: Memory, backbone: Backbone, layers: tuple[int, ...]) -> Tensor:
        """Return the votes of one kind, (layers, n_chunks), of values (layers, heads, rows, n_chunks)."""
        if kind == "confident":
            shares = (values - self.neutral(memory, backbone, layers)[:, :, None]).softmax(-1)
            votes = (shares * self._confidence(shares)).sum((1, 2))
        else:
            shares = values.softmax(-1)
            best, last = shares.amax(2), shares[:, :, -1]
            votes = (best / best.sum(-1, keepdim=True) + last).mean(1)
        votes = votes + 1e-12  # where no word tells any chunks apart, all are alike
        return votes.div(votes.sum(-1, keepdim=True))

    def _confidence(self, shares: Tensor) -> Tensor:
        """Return how well each word tells chunks apart, (layers, heads, rows, 1) between 0 and 1."""
        entropy = torch.special.entr(shares).sum(-1, keepdim=True) / math.log(max(2, shares.shape[-1]))
        certain: Tensor = (1 - entropy).clamp_min(0)
        return certain.pow(self.power)

    def _layers(self, memory: Memory, backbone: Backbone) -> tuple[int, ...]:
        votes = memory_votes(memory, backbone) if self.votes is None else self.votes
        return tuple(sorted({layer for layer, _ in votes}))

    def values(self, question: TextTokens, memory: Memory, backbone: Backbone, layers: tuple[int, ...]) -> Tensor:
        """Return the largest product of each word with a key of each chunk, (layers, query_heads, rows, n_chunks)."""
        queries, scaling = self._queries(question, memory, backbone, layers)
        table, seen = self._table(memory, backbone, layers)
        rows, best = torch.split(queries, _ROWS, 2), list[Tensor]()
        for at in range(0, len(memory), _CHUNKS):
            part = table[:, at : at + _CHUNKS]
            keys, real = part if part.is_floating_point() else read_index(part), seen[at : at + _CHUNKS]
            found = []
            for block in rows:
                asked = grouped(block, memory.shape.heads) * scaling  # (layers * kv_heads, group, rows, d)
                products = torch.einsum("kgrd,kcmd->kgrcm", asked, keys).masked_fill(~real, -torch.inf)
                found.append(products.amax(-1))
            best.append(torch.cat(found, 2))
        values = torch.cat(best, -1)
        if bool(seen.any(1).logical_not().any()):  # a chunk that keeps nothing looks like the least likely one
            some = values.isfinite()
            values = torch.where(some, values, values.masked_fill(~some, torch.inf).amin(-1, keepdim=True))
        return values.reshape(len(layers), -1, *values.shape[2:])

    def _queries(
        self, question: TextTokens, memory: Memory, backbone: Backbone, layers: Sequence[int]
    ) -> tuple[Tensor, float]:
        """Return the unrotated queries (layers, query_heads, rows, d) float32, and the attention's scale."""
        if self.behind == "H":
            layout = build_cache(memory, uniform_plan(memory, memory.coarsest), backbone, len(question))
            cache, first = layout.cache, layout.next_position
        else:
            first = memory.prefix[0].shape[2]
            cache = backbone.new_cache(first + len(question))
            cache.append(memory.prefix[0].to(backbone.device), memory.prefix[1].to(backbone.device))
            if memory.dialogue is not None:
                first = memory.dialogue.lay(cache, first, backbone)
        probe = QueryProbe(tuple(layers))
        partial_prefill(question, first, cache, backbone, probe)
        cos, sin = backbone.rotation(backbone.text_positions(first, len(question)))
        rotated = torch.stack([probe.queries[layer].to(cos.device) for layer in layers])
        return unrotate(rotated, cos, sin), probe.scaling

    def prepare(self, memory: Memory, backbone: Backbone) -> None:
        """Make what all questions about a memory share; `score` does it by itself, at the first one."""
        self.neutral(memory, backbone, self._layers(memory, backbone))

    def neutral(self, memory: Memory, backbone: Backbone, layers: tuple[int, ...]) -> Tensor:
        """Return mean values of neutral questions, (layers, query_heads, n_chunks); made once per state of a memory."""

        def make() -> Tensor:
            plain = memory.after(None)
            asked = [backbone.suffix(text) for text in NEUTRAL]
            return torch.cat([self.values(question, plain, backbone, layers) for question in asked], 2).mean(2)

        return memory.feature_cache.get(("neutral", self.behind, layers), memory.chunks, make)

    def _table(self, memory: Memory, backbone: Backbone, layers: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return keys (layers * kv_heads, n_chunks, m, d) float32 on the device, and which are real (n_chunks, m).

        Of many chunks they are left as they stand in the feature `INDEX`, an eighth as large.
        """
        rows = list[Tensor]()

        def stored() -> list[Tensor]:
            if not rows:
                rows.extend(self._index(chunk, memory, backbone, layers) for chunk in memory.chunks)
            return rows

        def make() -> Tensor:
            most = max(part.shape[2] for part in stored())
            parts = [torch.nn.functional.pad(part, (0, 0, 0, most - part.shape[2])) for part in stored()]
            whole = torch.stack(parts, 2).flatten(0, 1).to(backbone.device)
            return whole if len(memory) > _CHUNKS else read_index(whole)

        def sizes() -> Tensor:
            return torch.tensor([index_size(part) for part in stored()], device=backbone.device)

        keys = memory.feature_cache.get((INDEX, layers), memory.chunks, make)
        known = memory.feature_cache.get((INDEX, layers, "sizes"), memory.chunks, sizes)
        most = keys.shape[2] if keys.is_floating_point() else index_size(keys)
        return keys, torch.arange(most, device=keys.device) < known[:, None]

    def _index(self, chunk: Chunk, memory: Memory, backbone: Backbone, layers: tuple[int, ...]) -> Tensor:
        """Return the feature `INDEX` of a chunk in some layers."""
        stored, held = chunk.features.get(INDEX), tuple(sorted({layer for layer, _ in memory_votes(memory, backbone)}))
        if stored is None or not set(layers) <= set(held):
            level = chunk.level(memory.finest if memory.finest in chunk.levels else memory.coarsest)
            stored, held = key_index(plain_keys(level, chunk.positions, backbone, layers)), layers
        return stored[[held.index(layer) for layer in layers]]


def memory_votes(memory: Memory, backbone: Backbone) -> Votes:
    """Return the votes that a memory has an index for, or would have one if it were made now."""
    known = memory.settings.get("index")
    return tuple((int(layer), str(kind)) for layer, kind in known) if known else votes_of(backbone)
