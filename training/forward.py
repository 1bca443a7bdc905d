"""The forward pass of a stock Qwen2.5-VL, arranged for training many small videos at once.

The modules and their weights are those of transformers, and so are the results (a test compares them); only
the loops are different: all grids go through the vision tower as one batch, and several questions share one
pass over their video.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from training.geometry import MERGE, PATCH, SIDE
from videox2l.demo.draw import NATIVE


def encode_grids(visual: Any, patches: Tensor) -> Tensor:
    """Run the vision tower over independent grids: (n, 36, 384) -> (n, 9, hidden)."""
    cos, sin = _vision_rotary(visual.blocks[0].attn.head_dim, patches.device)
    x = F.linear(patches, visual.patch_embed.proj.weight.flatten(1))
    n, p, width = x.shape
    for block in visual.blocks:
        heads = block.attn.qkv(_norm(block.norm1, x)).view(n, p, 3, block.attn.num_heads, -1)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # (n, heads, 36, head_dim) each
        q, k = _rotate(q, cos, sin).to(v.dtype), _rotate(k, cos, sin).to(v.dtype)
        mixed = _attend(q, k, v, patches.new_zeros(1, 1))
        x = x + block.attn.proj(mixed.transpose(1, 2).reshape(n, p, width))
        x = x + block.mlp(_norm(block.norm2, x))
    merger = visual.merger
    out: Tensor = merger.mlp(_norm(merger.ln_q, x).view(n, p // MERGE**2, width * MERGE**2))
    return out


def decode(language_model: Any, embeds: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
    """Run the decoder: (b, s, hidden), positions (3, b, s) -> (b, s, hidden).

    `mask` (b, 1, t, s) says what the last t tokens see, True or 0 where seen; those before them are causal.
    """
    cos, sin = language_model.rotary_emb(embeds, positions)
    if cos.ndim == 4:  # transformers < 5.15 mixes the three axes in the layers
        cos, sin = (_mix(t, language_model.config.rope_parameters["mrope_section"]) for t in (cos, sin))
    cos, sin = cos[:, None], sin[:, None]
    x, (b, s, width), head = embeds, embeds.shape, embeds.shape[1] - mask.shape[2]
    for layer in language_model.layers:
        attn, h = layer.self_attn, _norm(layer.input_layernorm, x)
        q, k, v = (p(h).view(b, s, -1, attn.head_dim).transpose(1, 2) for p in (attn.q_proj, attn.k_proj, attn.v_proj))
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        k, v = (t.repeat_interleave(attn.num_key_value_groups, dim=1) for t in (k, v))
        q, k = q.to(v.dtype), k.to(v.dtype)
        seen = _attend(q[:, :, head:], k, v, mask)
        if head:
            seen = torch.cat([_attend(q[:, :, :head], k[:, :, :head], v[:, :, :head], None), seen], dim=2)
        x = x + attn.o_proj(seen.transpose(1, 2).reshape(b, s, width))
        x = x + layer.mlp(_norm(layer.post_attention_layernorm, x))
    return _norm(language_model.norm, x)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attend under a mask, or causally without one.

    The fused kernels are slow on CPUs in bfloat16, where plain matrix products are several times faster.
    """
    if q.device.type != "cpu" or q.dtype == torch.float32:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    if mask is None:
        mask = torch.full((q.shape[2], k.shape[2]), float("-inf")).triu(1)
    weights = (q @ k.mT * q.shape[-1] ** -0.5 + mask.to(q.dtype)).softmax(dim=-1)
    mixed: Tensor = weights @ v
    return mixed


def _norm(module: Any, x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), module.weight, module.variance_epsilon)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    one, two = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-two, one), dim=-1) * sin


def _mix(t: Tensor, section: list[int]) -> Tensor:
    parts = torch.split(t, [*section, *section], dim=-1)
    return torch.cat([part[i % 3] for i, part in enumerate(parts)], dim=-1)


def _vision_rotary(head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (36, head_dim) of the patches of one grid, in the order of `patchify`."""
    side = NATIVE // PATCH
    cell = torch.arange(side * side, device=device).view(SIDE, MERGE, SIDE, MERGE).transpose(1, 2).flatten()
    place = torch.stack([cell // side, cell % side], dim=-1).float()  # (36, 2)
    rates = 1.0 / (10000.0 ** (torch.arange(0, head_dim // 2, 2, device=device).float() / (head_dim // 2)))
    angles = (place[..., None] * rates).flatten(1).repeat(1, 2)
    return angles.cos(), angles.sin()
