"""A tiny Video-XL for the synthetic world: its language model was trained with summary tokens, its vision tower is the
demo model's.

The folder `model_xl` holds config and weights of the language model in Video-XL's published layout.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from videox2l.backbones.transformers_backbone import TransformersBackbone
from videox2l.backbones.video_xl import VideoXLBackbone
from videox2l.backbones.video_xl_loading import load_video_xl_model, weight_files
from videox2l.backbones.video_xl_model import VideoXLConfig, VideoXLForCausalLM
from videox2l.demo.tokens import VOCABULARY, build_tokenizer
from videox2l.engine.identity import weights_id
from videox2l.errors import ModelError
from videox2l.types import VideoCursor, VisualTokens

FOLDER = Path(__file__).parent / "model_xl"


def demo_xl_config() -> VideoXLConfig:
    """Return the configuration of the language model: the demo model's sizes, one axis of positions."""
    return VideoXLConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_theta=1000000.0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        beacon_param=["q", "k", "v", "o"],
        beacon_pos="interleave",
        beacon_attn="full-coverage",
    )


class DemoXLBackbone(VideoXLBackbone):
    """Video-XL's language model behind the demo model's vision tower: nine tokens for two frames."""

    default_chunk_frames = 8

    def __init__(self, model: VideoXLForCausalLM, vision: TransformersBackbone) -> None:
        super().__init__(model, build_tokenizer(), {})
        self.vision_backbone = vision
        self.name = "demo-xl"
        self.group_frames = vision.group_frames

    @torch.no_grad()
    def visual_tokens(self, frames: Sequence[np.ndarray], pts: Sequence[float], cursor: VideoCursor) -> VisualTokens:
        """Run the demo model's vision tower; positions count tokens."""
        seen = self.vision_backbone.visual_tokens(frames, pts, cursor)
        positions = self.text_positions(cursor.start + cursor.tokens, len(seen))
        return replace(seen, positions=positions)

    def identity(self) -> dict[str, str]:
        """Return what a memory must agree on to be usable, the weights of the vision tower among it."""
        return {**super().identity(), "vision": weights_id(self.vision_backbone.model)}

    def processing(self) -> dict[str, Any]:
        """Return the settings by which frames become visual tokens."""
        return self.vision_backbone.processing()


def load_demo_xl(vision: TransformersBackbone, dtype: torch.dtype, folder: Path = FOLDER) -> DemoXLBackbone:
    """Load the model behind `vision`, the demo model's backbone."""

    def find(name: str) -> Path | None:
        return folder / name if (folder / name).exists() else None

    config = find("config.json")
    if config is None:
        raise ModelError(f"no demo-xl model at '{folder}': train it with python -m training.summary")
    model = load_video_xl_model(json.loads(config.read_text(encoding="utf-8")), weight_files(find), dtype)
    return DemoXLBackbone(model.to(vision.device), vision)
