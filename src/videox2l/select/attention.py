"""Selection by the model's own attention over the compressed memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from videox2l.backbones.attention import causal_mask, grouped
from videox2l.backbones.base import Backbone, TextTokens
from videox2l.errors import SettingsError
from videox2l.memory import Memory, Plan, mix, uniform_plan

TOKENS = ("last", "mean", "max", "max+last")


@dataclass
class MassProbe:
    """A probe that sums, layer by layer, how much attention the last `rows` prompt tokens pay to each chunk.

    `offsets` are the columns at which chunks begin, and the end of the last. `masses` gets one tensor
    (query_heads, rows, n_chunks) per layer: shares of all attention, prefix and question included.
    """

    offsets: Sequence[int]
    rows: int = 1
    masses: list[Tensor] = field(default_factory=list)

    def __call__(self, layer: int, query: Tensor, key: Tensor, scaling: float) -> None:
        """Take the mass of one layer."""
        del layer
        last = grouped(query[:, :, -self.rows :], key.shape[1]).float()  # (kv_heads, group, rows, d)
        logits = last @ key[0].float()[:, None].transpose(-1, -2) * scaling  # (kv_heads, group, rows, m)
        mask = causal_mask(self.rows, key.shape[2], key.device)
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        running = logits.softmax(-1).flatten(0, 1).cumsum(-1)
        edges = running[..., torch.tensor(self.offsets, device=running.device) - 1]
        self.masses.append(edges.diff())


@dataclass(frozen=True)
class AttentionSelector:
    """Prefills the question on prefix + all chunks and reads what its last token attends to, in two looks.

    The first look is over all chunks at H. Its best `shortlist` chunks are laid out at L for the second look, whose
    scores count: H says where something is, L what it is. `shortlist=0` leaves it at one look; so does a memory whose
    L-KVs would have to be made first (`l_tier="lazy"`).

    Attention mass is summed per chunk and averaged over heads and layers; `skip_layers` leaves out first layers.
    With `per_head`, each head's mass is taken as shares among the chunks first: a head that looks mostly at the prompt
    still says which chunk it prefers. `tokens` says whose attention counts: `"last"`, the last prompt token, where
    the answer is about to be written; `"max"`, per chunk the token that attends to it most (late interaction, as in
    ColBERT, arXiv 2004.12832); `"max+last"`, both; `"mean"`, all alike. Defaults were chosen on the demo model's
    development split.
    """

    tokens: str = "last"
    shortlist: int = 12
    skip_layers: int = 0
    per_head: bool = True

    def __post_init__(self) -> None:
        if self.tokens not in TOKENS:
            raise SettingsError(f"tokens='{self.tokens}' is not known: use {', '.join(TOKENS)}")
        if self.shortlist < 0:
            raise SettingsError(f"shortlist={self.shortlist} is not possible: use 0 (one look) or more")

    def score(self, question: TextTokens, memory: Memory, backbone: Backbone) -> Tensor:
        """Return each chunk's attention (n_chunks,), between 0 and 1, on the CPU."""
        scores = self._look(question, memory, backbone, uniform_plan(memory, memory.coarsest))
        if not self.shortlist or memory.finest == memory.coarsest or not memory.has(memory.finest):
            return scores
        best = set(scores.argsort(descending=True, stable=True)[: self.shortlist].tolist())
        ratios = [memory.finest if i in best else memory.coarsest for i in range(len(memory))]
        return self._look(question, memory, backbone, Plan.at(ratios))

    def _look(self, question: TextTokens, memory: Memory, backbone: Backbone, plan: Plan) -> Tensor:
        mixed = mix(memory, plan, backbone, room=len(question))
        probe = MassProbe(mixed.offsets, 1 if self.tokens == "last" else len(question))
        positions = backbone.text_positions(mixed.next_position, len(question))
        backbone.forward(question.embeds, positions, mixed.cache, probe)
        layers = probe.masses[min(self.skip_layers, len(probe.masses) - 1) :]
        mass = torch.stack([layer.cpu() for layer in layers])  # (layers, query_heads, rows, n_chunks)
        if self.per_head:
            mass = mass / mass.sum(-1, keepdim=True).clamp_min(torch.finfo(mass.dtype).tiny)
        return _over_tokens(mass, self.tokens).mean((0, 1))


def _over_tokens(mass: Tensor, tokens: str) -> Tensor:
    """Reduce mass (layers, heads, rows, n_chunks) over the prompt tokens, its rows."""
    if tokens == "mean":
        return mass.mean(2)
    last = mass[:, :, -1]
    if tokens == "last":
        return last
    best = mass.amax(2)
    return best if tokens == "max" else (best + last) / 2
