"""Short names of weights and texts, for telling models apart."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def sha256_of(text: str) -> str:
    """Return the SHA-256 of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


@torch.no_grad()
def weights_id(model: nn.Module, samples: int = 64) -> str:
    """Return a SHA-256 (hex) over name, shape, dtype and `samples` evenly spread values of every weight.

    Reading all weights of a large model would take longer than answering a question; a model that differs was
    trained or rounded differently, and so differs nearly everywhere.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        flat = weight.detach().reshape(-1)
        picks = torch.linspace(0, max(len(flat) - 1, 0), min(samples, len(flat)), dtype=torch.float64).long()
        values = flat[picks.to(flat.device)].cpu().contiguous()
        digest.update(f"{name}|{tuple(weight.shape)}|{weight.dtype}|".encode())
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
