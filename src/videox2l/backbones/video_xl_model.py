"""Video-XL's modules: a Qwen2 decoder with projections of its own for summary tokens, CLIP, a projector.

Parameter names are those of the published checkpoint (arXiv 2409.14485); "beacon" is its word for summary tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, Qwen2Config, Qwen2ForCausalLM

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
