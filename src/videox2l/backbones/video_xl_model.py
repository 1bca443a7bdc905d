"""Video-XL's modules and its forward pass over chunks with summary tokens: Qwen2 decoder, CLIP, projector.

Parameter names are those of the published checkpoint (arXiv 2409.14485); "beacon" is its word for summary tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, Qwen2Config, Qwen2ForCausalLM

from videox2l.engine.attention import attend, causal
from videox2l.engine.cache import BufferCache
from videox2l.engine.rope import rotate
from videox2l.engine.summary import SummaryLayout
from videox2l.errors import ModelError

PROJECTIONS = ("q", "k", "v", "o")


class VideoXLConfig(Qwen2Config):  # type: ignore[misc]
    """Qwen2's configuration with the fields of Video-XL, which are kept under their own names."""

    model_type = "llava_qwen"


class VisionTower(nn.Module):
    """CLIP up to the hidden layer that the projector reads; later layers do not exist here."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.vision_tower = CLIPVisionModel(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """Turn pixels (frames, 3, size, size) into features (frames, patches, width), without the CLS token."""
        features: Tensor = self.vision_tower(pixel_values=pixels).last_hidden_state
        return features[:, 1:]


class VideoXLForCausalLM(Qwen2ForCausalLM):  # type: ignore[misc]
    """Qwen2 with `beacon` projections in every layer, one embedding for all summary tokens, and the vision side.

    `beacons` are the projections that summary tokens have of their own, of q, k, v, o. `vision` is the tower's
    configuration, cut to the layers that run; None builds the language model alone.
    """

    config_class = VideoXLConfig

    def __init__(
        self, config: VideoXLConfig, beacons: Sequence[str] = ("q", "k", "v"), vision: CLIPVisionConfig | None = None
    ) -> None:
        super().__init__(config)
        unknown = sorted(set(beacons) - set(PROJECTIONS))
        if unknown:
            raise ModelError(f"beacon_param {unknown} is not supported: only {', '.join(PROJECTIONS)} are")
        self.beacons = tuple(name for name in PROJECTIONS if name in beacons)
        for layer in self.model.layers:
            for name in self.beacons:
                like = getattr(layer.self_attn, f"{name}_proj")
                own = nn.Linear(like.in_features, like.out_features, bias=like.bias is not None)
                setattr(layer.self_attn, f"beacon_{name}_proj", own)
        self.model.beacon_embed_tokens = nn.Embedding(1, config.hidden_size)
        self.has_vision = vision is not None
        if vision is not None:
            self.model.vision_tower = VisionTower(vision)
            self.model.mm_projector = nn.Sequential(
                nn.Linear(vision.hidden_size, config.hidden_size),
                nn.GELU(),
                nn.Linear(config.hidden_size, config.hidden_size),
            )

    @torch.no_grad()
    def encode_frames(self, pixels: Tensor) -> Tensor:
        """Turn pixels (frames, 3, size, size) into visual tokens (frames, side, side, hidden).

        The mean over 2 x 2 patches is taken before the projector's second Linear, which commutes with it: a quarter
        of its work.
        """
        first, act, second = self.model.mm_projector
        features = act(first(self.model.vision_tower(pixels)))
        frames, patches, width = features.shape
        side = int(patches**0.5)
        pooled = features.view(frames, side // 2, 2, side // 2, 2, width).mean((2, 4))
        out: Tensor = second(pooled)
        return out


def project(attention: Any, name: str, rows: Tensor, visual: int) -> Tensor:
    """Apply projection `name` of an attention module to rows (n, width): `visual` ordinary ones, then summary tokens.

    Summary tokens use the ordinary weights where they have none of their own.
    """
    ordinary: nn.Linear = getattr(attention, f"{name}_proj")
    own: nn.Linear = getattr(attention, f"beacon_{name}_proj", ordinary)
    if own is ordinary or visual == 0:
        return own(rows)  # type: ignore[no-any-return]
    return torch.cat((ordinary(rows[:visual]), own(rows[visual:])))


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
def summarize_chunk(
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
