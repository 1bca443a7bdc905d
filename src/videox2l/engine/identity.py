"""Short names of weights and texts, for telling models apart."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


def sha256_of(text: str) -> str:
    """Return the SHA-256 of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


@torch.no_grad()
def weights_id(model: nn.Module, samples: int = 64) -> str:
    """Return a SHA-256 (hex) over name, shape, dtype and `samples` evenly spread values of every weight.

    Reading all weights of a large model would take longer than answering a question; a model that differs was
    trained or rounded differently, and so differs nearly everywhere.
    """
    said = {name: _samples(name, weight, samples) for name, weight in model.state_dict().items() if not weight.is_meta}
    if len(said) < len(model.state_dict()):  # accelerate keeps parts elsewhere, and brings them module by module
        from accelerate.utils import align_module_device

        for path, module in model.named_modules():
            with align_module_device(module):
                for name, weight in module.state_dict(prefix=f"{path}." if path else "").items():
                    if name not in said and not weight.is_meta:
                        said[name] = _samples(name, weight, samples)
    digest = hashlib.sha256()
    for name in sorted(said):
        digest.update(said[name])
    return digest.hexdigest()


def _samples(name: str, weight: Tensor, samples: int) -> bytes:
    flat = weight.detach().reshape(-1)
    picks = torch.linspace(0, max(len(flat) - 1, 0), min(samples, len(flat)), dtype=torch.float64).long()
    values = flat[picks.to(flat.device)].cpu().contiguous()
    return f"{name}|{tuple(weight.shape)}|{weight.dtype}|".encode() + values.view(torch.uint8).numpy().tobytes()
