"""Selection by exact keys: what the words of a question look for, against every key of a few layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from videox2l.engine.attention import grouped
from videox2l.engine.backbone import Backbone
from videox2l.engine.rope import unrotate
from videox2l.errors import SettingsError
from videox2l.memory import Chunk, Memory, build_cache, uniform_plan
from videox2l.memory.features import INDEX, index_size, level_index, read_index, votes_in
from videox2l.memory.votes import Votes, head_of_vote, index_rows
from videox2l.select.probes import Attribution, QueryProbe, attribution, partial_prefill
from videox2l.types import TextTokens

NEUTRAL = ("What happens here?", "Describe what you see.", "Is anything interesting shown?")
"""Questions about nothing: what their words look for is what any words look for."""
Rows = tuple[tuple[int, ...], ...]
"""Layer and kv head, for all query heads that share it; or layer, kv head and which one of them, as in "head K.J"."""
Pairs = tuple[tuple[int, int], ...]
"""Layer and kv head."""
_WORDS = 64
BLOCK_VALUES = 1 << 26
"""Float32 values that stand on the device at once, of keys and of products; more are dealt with block by block."""


@dataclass(frozen=True)
class ExactSelector:
    """Compares the question's queries with all keys of a chunk in a few layers, RoPE undone on both sides.

    Those are all that the chunk had when it was prefilled, whatever L keeps of them; of a memory without an index, or
    made with summary tokens, they are L's.

    Per layer, head and word of the question, a chunk's value is the largest product with any of its keys. Two votes
    can be made of it. *Confident*: values less those of neutral questions become shares among chunks (softmax); each
    word counts by how well it tells chunks apart, (1 - normalized entropy) ** `power`, as in inverse document
    frequency; summed over heads and words of a layer. *Best word*: shares without that, per head the mean of the best
    word's and the last word's. *Heads* ("head K.J", of any layers; see `videox2l.memory.votes`): as confident, in units
    of what the words of neutral questions differ by; their votes, each with a sum of 1, are averaged. Of all votes,
    normalized to a sum of 1, the sharpest one counts: the one with the largest share for its best chunk.

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
        rows = index_rows(self._votes(memory, backbone), memory.shape.heads)
        values = self.values(question, memory, backbone, rows)
        shares = (values - self.neutral(memory, backbone, rows)[..., None, :-1]).softmax(-1)
        found = attribution(shares, chunk, range(len(rows)), question, backbone)
        heads = ((rows[row][0], rows[row][1] * shares.shape[1] + query, value) for row, query, value in found.heads)
        return replace(found, heads=tuple(heads))

    def _ballots(self, question: TextTokens, memory: Memory, backbone: Backbone) -> Tensor:
        """Return all votes, (votes, n_chunks), each with a sum of 1; heads vote together."""
        ballots = []
        for votes, rows in self._lookups(memory, backbone):
            values, neutral = self.values(question, memory, backbone, rows), self.neutral(memory, backbone, rows)
            if head_of_vote(votes[0][1]) is not None:
                ballots.append(self.head_ballots(values, neutral).mean((0, 1)))
                continue
            for layer, kind in votes:
                at = [row for row, (of, *_) in enumerate(rows) if of == layer]
                ballots.append(self._ballot(kind, values[at], neutral[at]))
        return torch.stack(ballots)

    def _lookups(self, memory: Memory, backbone: Backbone) -> list[tuple[Votes, Rows]]:
        """Return the votes of single heads, and those of whole layers, with the rows that they read."""
        votes = self._votes(memory, backbone)
        heads = tuple(vote for vote in votes if head_of_vote(vote[1]) is not None)
        layers = tuple(vote for vote in votes if head_of_vote(vote[1]) is None)
        alone = tuple((layer, *(head_of_vote(kind) or ())) for layer, kind in heads)
        found = ((heads, alone), (layers, index_rows(layers, memory.shape.heads)))
        return [(kind, rows) for kind, rows in found if kind]

    def _ballot(self, kind: str, values: Tensor, neutral: Tensor) -> Tensor:
        """Return the vote (n_chunks,) of a whole layer from its values (kv_heads, group, words, n_chunks)."""
        if kind == "confident":
            shares = (values - neutral[..., None, :-1]).softmax(-1)
            vote = (shares * self._confidence(shares)).sum((0, 1, 2))
        else:
            shares = values.softmax(-1)
            best, last = shares.amax(2), shares[:, :, -1]
            vote = (best / best.sum(-1, keepdim=True) + last).mean((0, 1))
        vote = vote + 1e-12  # where no word tells any chunks apart, all are alike
        return vote.div(vote.sum())

    def head_ballots(self, values: Tensor, neutral: Tensor) -> Tensor:
        """Return the vote of every head (rows, group, n_chunks), each with a sum of 1.

        Values are measured in what the words of neutral questions differ by, so that no head is louder than others.
        """
        shares = ((values - neutral[..., None, :-1]) / neutral[..., None, -1:]).softmax(-1)
        votes = (shares * self._confidence(shares)).sum(2) + 1e-12
        return votes.div(votes.sum(-1, keepdim=True))

    def _confidence(self, shares: Tensor) -> Tensor:
        """Return how well each word tells chunks apart, (layers, heads, rows, 1) between 0 and 1."""
        entropy = torch.special.entr(shares).sum(-1, keepdim=True) / math.log(max(2, shares.shape[-1]))
        certain: Tensor = (1 - entropy).clamp_min(0)
        return certain.pow(self.power)

    def _votes(self, memory: Memory, backbone: Backbone) -> Votes:
        return votes_in(memory.settings, backbone) if self.votes is None else self.votes

    def values(self, question: TextTokens, memory: Memory, backbone: Backbone, rows: Rows) -> Tensor:
        """Return the largest product of each word with a key of each chunk, (rows, group, words, n_chunks).

        `group`: of rows that name a kv head, the query heads that share it; of those that name one query head, 1.
        """
        layers = tuple(sorted({row[0] for row in rows}))
        rotated, scaling = self._queries(question, memory, backbone, layers)
        every = grouped(rotated, memory.shape.heads) * scaling  # (layers * kv_heads, group, words, d)
        pairs = tuple(sorted({(layer, kv_head) for layer, kv_head, *_ in rows}))
        table, seen = self._table(memory, backbone, pairs)
        found = []
        for layer, kv_head, *query in rows:
            queries = every[layers.index(layer) * memory.shape.heads + kv_head]
            found.append(_largest(queries[query] if query else queries, table[pairs.index((layer, kv_head))], seen))
        values = torch.stack(found)
        if bool(seen.any(1).logical_not().any()):  # a chunk that keeps nothing looks like the least likely one
            some = values.isfinite()
            values = torch.where(some, values, values.masked_fill(~some, torch.inf).amin(-1, keepdim=True))
        return values

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
        for _, rows in self._lookups(memory, backbone):
            self.neutral(memory, backbone, rows)

    def neutral(self, memory: Memory, backbone: Backbone, rows: Rows) -> Tensor:
        """Return mean values of neutral questions, made once per state of a memory: (rows, group, n_chunks + 1).

        Behind those of the chunks stands how much the words of such questions differ, as a mean over chunks.
        """

        def make() -> Tensor:
            plain = memory.after(None)
            values = torch.cat([self.values(backbone.suffix(text), plain, backbone, rows) for text in NEUTRAL], 2)
            spread = values.std(2).mean(-1, keepdim=True).clamp_min(1e-6)
            return torch.cat((values.mean(2), spread), -1)

        return memory.feature_cache.get(("neutral", self.behind, rows), memory.chunks, make)

    def _table(self, memory: Memory, backbone: Backbone, rows: Pairs) -> tuple[Tensor, Tensor]:
        """Return keys (rows, n_chunks, m, d) float32 on the device, and which are real (n_chunks, m).

        Where they are too many they are left as they stand in the feature `INDEX`, an eighth as large.
        """
        parts = list[Tensor]()

        def stored() -> list[Tensor]:
            if not parts:
                parts.extend(self._index(chunk, memory, backbone, rows) for chunk in memory.chunks)
            return parts

        def make() -> Tensor:
            most = max(part.shape[1] for part in stored())
            padded = [torch.nn.functional.pad(part, (0, 0, 0, most - part.shape[1])) for part in stored()]
            whole = torch.stack(padded, 1).to(backbone.device)
            return whole if 2 * whole.numel() > BLOCK_VALUES else read_index(whole)

        def sizes() -> Tensor:
            return torch.tensor([index_size(part) for part in stored()], device=backbone.device)

        keys = memory.feature_cache.get((INDEX, rows), memory.chunks, make)
        known = memory.feature_cache.get((INDEX, rows, "sizes"), memory.chunks, sizes)
        most = keys.shape[2] if keys.is_floating_point() else index_size(keys)
        return keys, torch.arange(most, device=keys.device) < known[:, None]

    def _index(self, chunk: Chunk, memory: Memory, backbone: Backbone, rows: Pairs) -> Tensor:
        """Return the feature `INDEX` of a chunk for some layers and kv heads."""
        stored, held = chunk.features.get(INDEX), index_rows(votes_in(memory.settings, backbone), memory.shape.heads)
        if stored is not None and set(rows) <= set(held):
            return stored[[held.index(row) for row in rows]]
        level = chunk.level(memory.finest if memory.finest in chunk.levels else memory.coarsest)
        return level_index(level, chunk.positions, backbone, rows)


def _largest(queries: Tensor, table: Tensor, seen: Tensor) -> Tensor:
    """Return the largest product of queries (heads, words, d) with a key of each chunk, (heads, words, n_chunks).

    `table`: keys of one kv head (n_chunks, m, d), or as they stand in the index; `seen` (n_chunks, m): which are real.
    """
    best, words = list[Tensor](), torch.split(queries, _WORDS, 1)
    of_chunk = seen.shape[1] * max(queries.shape[0] * min(_WORDS, queries.shape[1]), queries.shape[2])
    step = max(1, BLOCK_VALUES // of_chunk)
    for at in range(0, len(seen), step):
        part, real = table[at : at + step], seen[at : at + step]
        keys = part if part.is_floating_point() else read_index(part)
        products = (torch.einsum("hwd,cmd->hwcm", some, keys).masked_fill_(~real, -torch.inf) for some in words)
        best.append(torch.cat([each.amax(-1) for each in products], 1))
    return torch.cat(best, -1)
