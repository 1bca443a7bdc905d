"""One forward pass of visual tokens with summary tokens among them, over Qwen2's own modules.

Rows are held visual tokens first, then the summary tokens of each layout, so that every projection is a plain GEMM on
a slice; they are interleaved only for attention. Of the last layer only the summary tokens' keys and values are
wanted, and of the one before it only the summary tokens' outputs: the rest is not computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from videox2l.backbones.attention import attend, causal
from videox2l.backbones.cache import BufferCache
from videox2l.backbones.rope import rotate
from videox2l.backbones.summary import SummaryLayout
from videox2l.backbones.video_xl_model import project

Rotation = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Geometry:
    """Where the rows of a pass stand: `past` cached columns, then `visual` tokens with `layouts` among them."""

    past: int
    visual: int
    layouts: Sequence[SummaryLayout]

    @property
    def main(self) -> SummaryLayout:
        """The layout that shares a causal sequence with the visual tokens."""
        return self.layouts[0]

    @property
    def sequence(self) -> int:
        """Length of that sequence."""
        return self.visual + self.main.count

    def positions(self) -> Tensor:
        """Return the positions (rows,) at which queries and keys are rotated.

        A summary token of another layout stands right behind the visual token it follows.
        """
        visual = self.main.visual_columns(self.visual)
        others = [visual[layout.covered() - 1] + 1 for layout in self.layouts[1:]]
        return self.past + torch.cat((visual, self.main.columns(), *others))

    def kept_positions(self) -> Tensor:
        """Return the positions (summary rows,) that the kept keys are rotated at: those of their columns."""
        return self.past + torch.cat([torch.arange(layout.count) for layout in self.layouts])

    def main_mask(self) -> Tensor:
        """Return what the main layout's summary tokens see: (count, past + sequence) bool."""
        return torch.arange(self.past + self.sequence) <= self.past + self.main.columns()[:, None]

    def side_mask(self, layout: SummaryLayout) -> Tensor:
        """Return what another layout's summary tokens see: (count, past + sequence + count) bool."""
        last = self.main.visual_columns(self.visual)[layout.covered() - 1]
        stairs = torch.arange(self.past + self.sequence) <= self.past + last[:, None]
        return torch.cat((stairs, torch.ones(layout.count, layout.count, dtype=torch.bool).tril()), 1)


@torch.no_grad()
def summarise(
    decoder: Any, embeds: Tensor, geometry: Geometry, cache: BufferCache, at: Rotation, kept: Rotation
) -> list[tuple[Tensor, Tensor]]:
    """Run the pass; see `SummaryBackbone.summarise`.

    `embeds` (visual, hidden); `at` and `kept` are cos and sin (rows, head_dim) of the geometry's positions.
    """
    visual = geometry.visual
    summaries = sum(layout.count for layout in geometry.layouts)
    beacon = decoder.beacon_embed_tokens.weight.to(embeds.dtype).expand(summaries, -1)
    x = torch.cat((embeds, beacon))
    sides = [geometry.side_mask(layout).to(x.device) for layout in geometry.layouts[1:]]
    keys, values = [], []
    last = len(decoder.layers) - 1
    for index, layer in enumerate(decoder.layers):
        attention = layer.self_attn
        if index == last:
            h = layer.input_layernorm(x[-summaries:])
            k, v = (_heads(project(attention, name, h, 0), attention) for name in "kv")
        else:
            h = layer.input_layernorm(x)
            k, v = (_heads(project(attention, name, h, visual), attention) for name in "kv")
            skipped = visual if index == last - 1 else 0  # rows whose output nobody reads
            x, asking, ordinary = x[skipped:], h[skipped:], visual - skipped
            q = _heads(project(attention, "q", asking, ordinary), attention)
            q = rotate(q, at[0][skipped:], at[1][skipped:])
            mixed = _attention(q, rotate(k, *at), v, geometry, sides, cache, attention)
            x = x + project(attention, "o", mixed, ordinary)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
            k, v = k[:, visual:], v[:, visual:]
        keys.append(rotate(k, *kept))
        values.append(v)
    sizes = [layout.count for layout in geometry.layouts]
    both = (torch.split(torch.stack(x), sizes, 2) for x in (keys, values))
    return list(zip(*both, strict=True))


def _heads(rows: Tensor, attention: Any) -> Tensor:
    """Turn (rows, heads * head_dim) into (heads, rows, head_dim), a view."""
    return rows.view(len(rows), -1, attention.head_dim).transpose(0, 1)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, geometry: Geometry, sides: Sequence[Tensor], cache: BufferCache, attention: Any
) -> Tensor:
    """Attention of one layer; q (heads, asking rows, d), k and v (kv_heads, all rows, d).

    Asking rows are all rows, or the summary tokens alone. Returns (asking rows, heads * d); the cache's layer is left
    as it was.
    """
    store = cache.layers[attention.layer_idx]
    visual, main, scale = geometry.visual, geometry.main, attention.scaling
    end = visual + main.count
    keys, values = store.update(*(_interleaved(x[:, :end], geometry) for x in (k, v)))
    if q.shape[1] == k.shape[1]:
        out = causal(_interleaved(q[:, :end], geometry), keys, values, scale)
        parts = [main.separate(out[0].transpose(0, 1))]
        row = end
    else:
        mask = geometry.main_mask().to(q.device)
        parts = [attend(q[None, :, : main.count], keys, values, scale, mask)[0].transpose(0, 1)]
        row = main.count
    for layout, mask in zip(geometry.layouts[1:], sides, strict=True):
        keys, values = store.update(*(x[None, :, end : end + layout.count] for x in (k, v)))
        parts.append(attend(q[None, :, row : row + layout.count], keys, values, scale, mask)[0].transpose(0, 1))
        store.crop(geometry.past + geometry.sequence)
        row, end = row + layout.count, end + layout.count
    store.crop(geometry.past)
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return whole.reshape(len(whole), -1)


def _interleaved(rows: Tensor, geometry: Geometry) -> Tensor:
    """Turn (heads, visual + main, d), visual tokens first, into (1, heads, sequence, d) in causal order."""
    turned = rows.transpose(0, 1)
    mixed = geometry.main.interleave(turned[: geometry.visual], turned[geometry.visual :])
    return mixed.transpose(0, 1)[None]
