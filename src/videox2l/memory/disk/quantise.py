"""KVs in 8 or 4 bits: keys with one scale per token, values with one scale per channel (VidKV, arXiv 2503.16257)."""

from __future__ import annotations

import torch
from torch import Tensor

from videox2l.errors import SettingsError

PER_TOKEN, PER_CHANNEL = -1, -2


def check_bits(bits: int | None, name: str) -> None:
    """Raise SettingsError for a precision that does not exist; None is the model's own dtype."""
    if bits not in (None, 8, 4):
        raise SettingsError(f"{name}={bits!r} is not possible: use 8, 4, or None for the model's own dtype")


def quantise(x: Tensor, bits: int, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, scale and zero of `x` (..., n, d), so that x is about codes * scale + zero.

    `axis` is the one over which scale and zero (float32) are shared: PER_TOKEN d, PER_CHANNEL n. Codes are uint8; with
    4 bits, two to a byte along d, the even one in the lower half. Each value comes back within half a scale, rounding
    of the result to the dtype aside; constant runs come back as they were.
    """
    x = x.float()
    zero = x.amin(axis, keepdim=True)
    top = float((1 << bits) - 1)
    scale = (x.amax(axis, keepdim=True) - zero) / top
    codes = ((x - zero) / scale.where(scale > 0, 1.0)).round_().clamp_(0, top).to(torch.uint8)
    if bits == 4:
        if codes.shape[-1] % 2:
            raise SettingsError(f"4 bits are not possible for a head size of {codes.shape[-1]}: it is odd; use 8")
        codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return codes.contiguous(), scale, zero


def dequantise(codes: Tensor, scale: Tensor, zero: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Return what `quantise` took, within its error, as (..., n, d) of `dtype`."""
    if bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)
    return codes.float().mul_(scale).add_(zero).to(dtype)
