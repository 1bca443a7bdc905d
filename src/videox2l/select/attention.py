"""Selection by the model's own attention over the compressed memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from videox2l.engine.attention import causal_mask, grouped
from videox2l.engine.backbone import Backbone
from videox2l.errors import SettingsError
from videox2l.memory import Memory, Plan, build_cache, uniform_plan
from videox2l.select.base import Selector
from videox2l.select.probes import Attribution, StopForward, attribution, check_tokens, over_tokens, partial_prefill
from videox2l.types import TextTokens


@dataclass
class MassProbe:
    """A probe that sums, layer by layer, how much attention the last `rows` prompt tokens pay to each chunk.

    `spans` are the columns of each chunk, the first and the one behind the last. `masses` gets one tensor
    (query_heads, rows, n_chunks) per layer of `layers` (None: all): shares of all attention, prefix and question
    included. The pass ends behind the last of `layers`.
    """

    spans: Sequence[tuple[int, int]]
    rows: int = 1
    layers: Sequence[int] | None = None
    masses: list[Tensor] = field(default_factory=list)

    def __call__(self, layer: int, query: Tensor, key: Tensor, scaling: float) -> None:
        """Take the mass of one layer."""
        if self.layers is None or layer in self.layers:
            last = grouped(query[:, :, -self.rows :], key.shape[1]).float()  # (kv_heads, group, rows, d)
            logits = last @ key[0].float()[:, None].transpose(-1, -2) * scaling  # (kv_heads, group, rows, m)
            mask = causal_mask(self.rows, key.shape[2], key.device)
            if mask is not None:
                logits = logits.masked_fill(~mask, -torch.inf)
            running = logits.softmax(-1).flatten(0, 1).cumsum(-1)
            starts, stops = torch.tensor(self.spans, device=running.device).unbind(1)
            self.masses.append(running[..., stops - 1] - running[..., starts - 1])
        if self.layers is not None and layer >= max(self.layers):
            raise StopForward


@dataclass(frozen=True)
class AttentionSelector:
    """Prefills the question on prefix + all chunks and reads what its last token attends to, in two looks.

    The first look is over all chunks at H. Its best `shortlist` chunks are laid out at L for the second look, whose
    scores count: H says where something is, L what it is. `shortlist=0` leaves it at one look over H; so does a memory
    whose L-KVs would have to be made first (`l_tier="lazy"`). A shortlist of all chunks is one look over L.

    Attention mass is summed per chunk and averaged over heads and layers. With `per_head`, each head's mass is taken as
    shares among the chunks first, layer by layer: a head that looks mostly at the prompt still says which chunk it
    prefers. `layers` counts some layers only, and a look ends behind the last of them. `tokens` says whose attention
    counts: `"last"`, the last prompt token, where the answer is about to be written; `"max"`, per chunk the token that
    attends to it most (late interaction, as in ColBERT, arXiv 2004.12832); `"max+last"`, both; `"mean"`, all alike.

    `scout`: another selector makes the shortlist in place of the first look: a cheap one for all chunks, this one for
    few.
    """

    tokens: str = "last"
    shortlist: int = 12
    per_head: bool = True
    layers: tuple[int, ...] | None = None
    scout: Selector | None = None

    def __post_init__(self) -> None:
        check_tokens(self.tokens)
        if self.shortlist < 0:
            raise SettingsError(f"shortlist={self.shortlist} is not possible: use 0 (one look) or more")
        if self.layers is not None and (not self.layers or min(self.layers) < 0):
            raise SettingsError(f"layers={list(self.layers)} is not possible: name one layer or more, from 0 up")

    def score(self, question: TextTokens, memory: Memory, backbone: Backbone) -> Tensor:
        """Return each chunk's attention (n_chunks,), between 0 and 1, on the CPU."""
        if self.layers is not None and max(self.layers) >= memory.shape.layers:
            raise SettingsError(f"layers={list(self.layers)} is not possible: the model has {memory.shape.layers}")
        return self._scores(question, memory, backbone)[0]

    def _scores(self, question: TextTokens, memory: Memory, backbone: Backbone) -> tuple[Tensor, Plan]:
        """Return the scores of the last look, and what it looked at."""
        plan = uniform_plan(memory, memory.coarsest)
        if self.scout is not None and self.shortlist:
            scores = self.scout.score(question, memory, backbone)
        else:
            scores = self._look(question, memory, backbone, plan)
        if self.shortlist and memory.finest != memory.coarsest and memory.has(memory.finest):
            best = set(scores.argsort(descending=True, stable=True)[: self.shortlist].tolist())
            plan = Plan.at([memory.finest if i in best else memory.coarsest for i in range(len(memory))])
            scores = self._look(question, memory, backbone, plan)
        return scores, plan

    def explain(self, question: TextTokens, memory: Memory, backbone: Backbone, chunk: int) -> Attribution:
        """Return which words and heads attend to a chunk in the last look; their shares are among the chunks alone."""
        _, plan = self._scores(question, memory, backbone)
        mass = self._mass(question, memory, backbone, plan, len(question))
        shares = mass / mass.sum(-1, keepdim=True).clamp_min(torch.finfo(mass.dtype).tiny)
        layers = range(memory.shape.layers) if self.layers is None else sorted(self.layers)
        return attribution(shares, chunk, layers, question, backbone)

    def _look(self, question: TextTokens, memory: Memory, backbone: Backbone, plan: Plan) -> Tensor:
        mass = self._mass(question, memory, backbone, plan, 1 if self.tokens == "last" else len(question))
        if self.per_head:
            mass = mass / mass.sum(-1, keepdim=True).clamp_min(torch.finfo(mass.dtype).tiny)
        return over_tokens(mass, self.tokens).mean((0, 1))

    def _mass(self, question: TextTokens, memory: Memory, backbone: Backbone, plan: Plan, rows: int) -> Tensor:
        """Return what each of the last `rows` tokens attends to: (layers, query_heads, rows, n_chunks)."""
        mixed = build_cache(memory, plan, backbone, room=len(question))
        probe = MassProbe(mixed.spans, rows, self.layers)
        partial_prefill(question, mixed.next_position, mixed.cache, backbone, probe)
        return torch.stack([layer.cpu() for layer in probe.masses])
