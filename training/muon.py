"""The optimizer of the trainings: Muon for matrices, AdamW for all else, at one learning rate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class MuonAdamW:
    """`torch.optim.Muon` for the matrices, AdamW for embeddings, heads, norms, biases and kernels of convolutions.

    An update of a matrix is scaled to the size that AdamW's would have, so both share one learning rate
    (Liu et al., "Muon is scalable for LLM training", arXiv 2502.16982).
    """

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], *, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in named:
            other = parameter.ndim != 2 or any(part in name for part in ("embed_tokens", "lm_head", "heads."))
            (rest if other else matrices).append(parameter)
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            self.parts.append(
                torch.optim.Muon(
                    matrices, lr=1.0, momentum=momentum, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
                )
            )
        if rest:
            self.parts.append(torch.optim.AdamW(rest, lr=1.0, betas=(0.9, 0.98), weight_decay=0.0))

    def parameters(self) -> list[nn.Parameter]:
        """Return everything that is trained."""
        return [p for part in self.parts for group in part.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, lr: float, clip: float = 1.0) -> None:
        """Take one step with the gradients that are there, then clear them."""
        torch.nn.utils.clip_grad_norm_(self.parameters(), clip)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to go on."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)
