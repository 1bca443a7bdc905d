"""Rotating keys back and forth, for compressors that change keys and for mixing at new positions."""

from __future__ import annotations

import torch
from torch import Tensor


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of channels (half-split) of `x` (..., n, d) by cos and sin (..., n, d)."""
    half = x.shape[-1] // 2
    swapped = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + swapped * sin


def rotate(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE (half-split) to unrotated keys (..., n, d) with cos and sin (..., n, d), in float32."""
    return apply_rotary(keys.float(), cos, sin).to(keys.dtype)


def unrotate(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Undo `rotate`: return the keys (..., n, d) as float32 before RoPE.

    Some RoPE variants scale cos and sin (YaRN's attention factor); the scale is divided out, so that
    rotating the result again restores it.
    """
    return apply_rotary(keys.float(), cos, -sin) / (cos**2 + sin**2)


def rerotate(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn rotated keys (..., n, d) further, by the angles of cos and sin (..., n, d) alone, without their scale."""
    scale = (cos**2 + sin**2).sqrt()
    return rotate(keys, cos / scale, sin / scale)


def mix_mrope(table: Tensor, section: list[int]) -> Tensor:
    """Pick each frequency band of a (3, ..., d) cos or sin table from its axis: time, height or width.

    The layout is that of Qwen2-VL (arXiv 2409.12191): bands of `section` sizes, twice, axes in turn.
    """
    bands = torch.split(table, section * 2, dim=-1)
    return torch.cat([band[i % 3] for i, band in enumerate(bands)], dim=-1)
