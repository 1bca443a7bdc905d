"""Shape of the demo model, and the two things that a processor would do for it: patches and positions."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig

from videox2l.demo.draw import NATIVE
from videox2l.demo.tokens import SPECIAL, VOCABULARY

PATCH, MERGE, TEMPORAL = 8, 2, 2
SIDE = NATIVE // PATCH // MERGE
TOKENS_PER_GRID = SIDE * SIDE
"""Visual tokens of two frames."""
MEAN = STD = 0.5


def demo_config() -> Qwen2_5_VLConfig:
    """Return the configuration of the demo model, a stock Qwen2.5-VL of about a million parameters.

    Of the rotary frequencies the time axis gets half, so that the slowest one does not turn once within forty
    minutes: questions about order need it. The height and width of nine tokens need little.
    """
    ids = {name: SPECIAL.index(f"<|{name}|>") for name in ("video_pad", "image_pad", "vision_start", "vision_end")}
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "initializer_range": 0.05,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [8, 4, 4]},
            "bos_token_id": None,
            "eos_token_id": SPECIAL.index("<|im_end|>"),
            "pad_token_id": SPECIAL.index("<|endoftext|>"),
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 96,
            "intermediate_size": 288,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": TEMPORAL,
            "tokens_per_second": 1,
            "window_size": NATIVE,
            "fullatt_block_indexes": [2],
            "out_hidden_size": 128,
            "initializer_range": 0.05,
        },
        video_token_id=ids["video_pad"],
        image_token_id=ids["image_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        tie_word_embeddings=True,
    )


def patchify(frames: Tensor) -> Tensor:
    """Cut frames into patches in the order of the Qwen2-VL video processor.

    (..., T, 48, 48, 3) uint8 -> (..., T/2, 36, 3*2*8*8) float, normalised.
    """
    lead, (t, h, w, c) = frames.shape[:-4], frames.shape[-4:]
    x = (frames.float() / 255 - MEAN) / STD
    x = x.reshape(-1, t // TEMPORAL, TEMPORAL, h // PATCH // MERGE, MERGE, PATCH, w // PATCH // MERGE, MERGE, PATCH, c)
    x = x.permute(0, 1, 3, 6, 4, 7, 9, 2, 5, 8)  # (n, grid, h/16, w/16, 2, 2, colour, time, 8, 8)
    return x.reshape(*lead, t // TEMPORAL, (h // PATCH) * (w // PATCH), -1)


def video_positions(grids: int, step: float, start: int) -> Tensor:
    """Return the (3, 9 * grids) positions of video tokens: time floor(i * step), height, width, from `start` on."""
    cell = torch.arange(TOKENS_PER_GRID).repeat(grids)
    time = (torch.arange(grids, dtype=torch.float64) * step).long().repeat_interleave(TOKENS_PER_GRID)
    return torch.stack([time, cell // SIDE, cell % SIDE]) + start
