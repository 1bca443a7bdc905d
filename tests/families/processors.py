"""The library's processor of each family, and how a chat is given to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

QUESTION = "Who rings the bell?"


@dataclass(frozen=True)
class Names:
    """Class names of a family, its settings beyond those of the tiny model, and the tensors that it returns."""

    processor: str
    image: str
    video: str
    tensors: tuple[str, ...]
    tokens: dict[str, str] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    template: str | None = None


PATCHES = ("pixel_values_videos", "video_grid_thw")
INTERNVL = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
PROCESSORS = {
    "internvl": Names(
        "InternVLProcessor",
        "GotOcr2ImageProcessor",
        "InternVLVideoProcessor",
        ("pixel_values",),
        {**INTERNVL, "video_token": "<video>"},
        settings={"image_seq_length": 9},
    ),
    "llava_next_video": Names(
        "LlavaNextVideoProcessor",
        "LlavaNextImageProcessor",
        "LlavaNextVideoVideoProcessor",
        ("pixel_values_videos",),
        settings={"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    "llava_onevision": Names(
        "LlavaOnevisionProcessor",
        "LlavaOnevisionImageProcessor",
        "LlavaOnevisionVideoProcessor",
        ("pixel_values_videos",),
        settings={"num_image_tokens": 36, "vision_feature_select_strategy": "full"},
    ),
    "qwen2_5_vl": Names("Qwen2_5_VLProcessor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor", PATCHES),
    "qwen2_vl": Names("Qwen2VLProcessor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor", PATCHES),
    "qwen3_vl": Names("Qwen3VLProcessor", "Qwen2VLImageProcessor", "Qwen3VLVideoProcessor", PATCHES),
    "smolvlm": Names(
        "SmolVLMProcessor",
        "SmolVLMImageProcessor",
        "SmolVLMVideoProcessor",
        ("pixel_values",),
        settings={"image_seq_len": 9},
        template="DEFAULT_CHAT_TEMPLATE",
    ),
    "video_llama_3": Names(
        "VideoLlama3Processor",
        "VideoLlama3ImageProcessor",
        "VideoLlama3VideoProcessor",
        (*PATCHES, "video_merge_sizes", "video_compression_mask"),
    ),
}


def clip() -> Tensor:
    """Five frames (5, 3, 50, 70) uint8: the third repeats the second, the fifth a part of the fourth."""
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(5, 3, 6, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(50, 70), mode="bilinear")
    noise = 0.1 * torch.rand(5, 3, 50, 70, generator=generator)
    frames = ((smooth + noise).clamp(0, 1) * 255).round().byte()
    frames[2] = frames[1]
    frames[4, :, :25] = frames[3, :, :25]
    return frames


def chat(tokenizer: Any, template: str | None = None) -> str:
    """One question about a video, rendered; `template` names a constant of the library's SmolVLM processor."""
    if template is not None:
        from transformers.models.smolvlm import processing_smolvlm

        template = getattr(processing_smolvlm, template)
    content = [{"type": "video"}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    return str(
        tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)
    )
