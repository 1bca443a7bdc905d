"""Muon for matrices and AdamW for the rest, as one optimiser."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class MuonAdamW:
    """Momentum made orthogonal by Newton-Schulz for the matrices, AdamW for embeddings, norms and biases.

    An update of a matrix is scaled to the size that AdamW's would have, so both share one learning rate.
    See Jordan et al., "Muon" (2024), and Liu et al., "Muon is scalable for LLM training" (2025).
    """

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], *, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        self.momentum, self.weight_decay = momentum, weight_decay
        self.stacks: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        rest = []
        for name, parameter in named:
            if parameter.ndim >= 2 and not any(part in name for part in ("embed_tokens", "lm_head", "heads.")):
                matrix = parameter.flatten(1)
                self.stacks[(matrix.shape[0], matrix.shape[1])].append(parameter)
            else:
                rest.append(parameter)
        self.buffers = {shape: torch.zeros(len(group), *shape) for shape, group in self.stacks.items()}
        self.adam = torch.optim.AdamW(rest, lr=1.0, betas=(0.9, 0.98), weight_decay=0.0)

    def parameters(self) -> list[nn.Parameter]:
        """Return everything that is trained."""
        matrices = [p for group in self.stacks.values() for p in group]
        return matrices + [p for group in self.adam.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, lr: float, clip: float = 1.0) -> None:
        """Take one step with the gradients that are there, then clear them."""
        torch.nn.utils.clip_grad_norm_(self.parameters(), clip)
        for shape, group in self.stacks.items():
            gradient = torch.stack([p.grad.flatten(1) if p.grad is not None else torch.zeros(shape) for p in group])
            buffer = self.buffers[shape] = self.buffers[shape].to(gradient.device)
            buffer.lerp_(gradient, 1 - self.momentum)
            update = orthogonalise(gradient.lerp(buffer, self.momentum))
            scale = lr * 0.2 * max(shape) ** 0.5
            for parameter, change in zip(group, update, strict=True):
                parameter.mul_(1 - lr * self.weight_decay).add_(change.view_as(parameter), alpha=-scale)
                parameter.grad = None
        for options in self.adam.param_groups:
            options["lr"] = lr
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to go on."""
        return {"buffers": self.buffers, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.buffers = state["buffers"]
        self.adam.load_state_dict(state["adam"])


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Move the singular values of a stack of matrices (n, rows, columns) towards one."""
    x = (matrices / (matrices.flatten(1).norm(dim=1)[:, None, None] + 1e-7)).bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result.to(matrices.dtype)
