"""Tiny random models of every family, with tokenizers and video processor configs; no files, no network."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from tests.conftest import (
    QWEN_TEMPLATE,
    byte_tokenizer,
    make_llava_onevision,
    make_qwen25,
    qwen_video_config,
)

Made = tuple[Any, Any]
QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"]
NORMAL = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28], "resample": 3}
FIXED = {**NORMAL, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}


def text_config(tokenizer: Any, model_type: str, **changes: Any) -> dict[str, Any]:
    """A decoder of three layers whose weights are large enough that wrong positions show."""
    return {
        "model_type": model_type,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 4096,
        "initializer_range": 0.25,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
        **changes,
    }


def built(model_class: Any, config: Any, tokenizer: Any, video: dict[str, Any], seed: int = 0) -> Made:
    """A model with seeded weights, its biases and norms random as well, and what a processor would bring."""
    torch.manual_seed(seed)
    model = model_class(config).eval().float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.1)
            elif "norm" in name and weight.ndim == 1:
                weight.uniform_(0.5, 1.5)
    return model, SimpleNamespace(tokenizer=tokenizer, video_processor=video)


def make_qwen2_vl(seed: int = 0) -> Made:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    template = QWEN_TEMPLATE.replace("VIDEO", "<|vision_start|><|video_pad|><|vision_end|>")
    tokenizer = byte_tokenizer(QWEN_SPECIAL, template)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in QWEN_SPECIAL}
    rope = {"rope_type": "default", "type": "default", "mrope_section": [2, 3, 3]}
    text = text_config(tokenizer, "qwen2_vl_text", rope_theta=1e6, rope_scaling=rope)
    text["rope_parameters"] = {**rope, "rope_theta": 1e6}
    vision = {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": 64,
        "mlp_ratio": 2,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "initializer_range": 0.25,
    }
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        video_token_id=ids["<|video_pad|>"],
        image_token_id=ids["<|endoftext|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    return built(Qwen2VLForConditionalGeneration, config, tokenizer, qwen_video_config(), seed)


def make_qwen3_vl(seed: int = 0, moe: bool = False) -> Made:
    import transformers

    template = QWEN_TEMPLATE.replace("VIDEO", "<|vision_start|><|video_pad|><|vision_end|>")
    tokenizer = byte_tokenizer(QWEN_SPECIAL, template)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in QWEN_SPECIAL}
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    kind = "qwen3_vl_moe" if moe else "qwen3_vl"
    text = text_config(tokenizer, f"{kind}_text", head_dim=16, rope_theta=1e6, rope_scaling=rope)
    text["rope_parameters"] = {**rope, "rope_theta": 1e6}
    if moe:
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 64,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
        "initializer_range": 0.25,
    }
    name = "Qwen3VLMoe" if moe else "Qwen3VL"
    config = getattr(transformers, f"{name}Config")(
        text_config=text,
        vision_config=vision,
        video_token_id=ids["<|video_pad|>"],
        image_token_id=ids["<|endoftext|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    video = qwen_video_config(size={"shortest_edge": 2 * 16 * 16, "longest_edge": 12 * 24 * 32})
    return built(getattr(transformers, f"{name}ForConditionalGeneration"), config, tokenizer, video, seed)


def make_qwen3_vl_moe(seed: int = 0) -> Made:
    return make_qwen3_vl(seed, moe=True)


VICUNA = (
    "{% for m in messages %}{{ 'USER: ' if m['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% for c in m['content'] %}{% if c['type'] == 'video' %}<video>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{{ ' ' if m['role'] == 'user' else '</s>' }}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def make_llava_next_video(seed: int = 0) -> Made:
    """With a tokenizer that adds a token at the beginning of a prompt, as Llama's does."""
    from tokenizers import processors
    from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

    special = ["<s>", "</s>", "<|endoftext|>", "<|im_end|>", "<image>", "<video>"]
    tokenizer = byte_tokenizer(special, VICUNA)
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.convert_tokens_to_ids("<s>"))]
    )
    config = LlavaNextVideoConfig(
        text_config=text_config(tokenizer, "llama"),
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 24,
            "patch_size": 4,
            "projection_dim": 16,
            "initializer_range": 0.25,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[24, 48]],
        image_seq_length=36,
        video_seq_length=9,
        tie_word_embeddings=False,
    )
    video = {**FIXED, "size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}, "do_center_crop": True}
    return built(LlavaNextVideoForConditionalGeneration, config, tokenizer, video, seed)


def make_internvl(seed: int = 0) -> Made:
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
    tokenizer = byte_tokenizer(special, QWEN_TEMPLATE.replace("VIDEO", "<video>\n"))
    config = InternVLConfig(
        text_config=text_config(tokenizer, "qwen2"),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [24, 24],
            "patch_size": [4, 4],
            "initializer_range": 0.25,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=9,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    video = {**FIXED, "size": {"height": 24, "width": 24}}
    return built(InternVLForConditionalGeneration, config, tokenizer, video, seed)


def make_smolvlm(seed: int = 0) -> Made:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    special = ["<|endoftext|>", "<|im_start|>", "<end_of_utterance>", "<|im_end|>", "<image>"]
    special += ["<fake_token_around_image>", "<global-img>"]
    tokenizer = byte_tokenizer(special, "the library's own is used")
    tokenizer.eos_token = "<end_of_utterance>"
    config = SmolVLMConfig(
        text_config=text_config(tokenizer, "llama", pad_token_id=0),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 24,
            "patch_size": 4,
            "initializer_range": 0.25,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    video = {**FIXED, "resample": 1, "size": {"longest_edge": 60}, "max_image_size": {"longest_edge": 24}}
    return built(SmolVLMForConditionalGeneration, config, tokenizer, video, seed)


def make_video_llama_3(seed: int = 0) -> Made:
    from transformers import VideoLlama3Config, VideoLlama3ForConditionalGeneration

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = byte_tokenizer(special, QWEN_TEMPLATE.replace("VIDEO", "<|video_pad|>\n"))
    config = VideoLlama3Config(
        text_config=text_config(tokenizer, "qwen2"),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 4,
            "initializer_range": 0.25,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        tie_word_embeddings=False,
    )
    size = {"shortest_edge": 16 * 16, "longest_edge": 12 * 24 * 32}
    video = {**FIXED, "size": size, "patch_size": 4, "merge_size": 2, "temporal_patch_size": 1}
    return built(VideoLlama3ForConditionalGeneration, config, tokenizer, video, seed)


def needs(family: str) -> None:
    """Skip where a family cannot be tried in this environment."""
    if family == "smolvlm":
        pytest.importorskip("num2words")
    if family == "video_llama_3" and not hasattr(transformers, "VideoLlama3Config"):
        pytest.skip(f"transformers {transformers.__version__} does not have {family}")


MAKERS: dict[str, Callable[..., Made]] = {
    "internvl": make_internvl,
    "llava_next_video": make_llava_next_video,
    "llava_onevision": make_llava_onevision,
    "qwen2_5_vl": make_qwen25,
    "qwen2_vl": make_qwen2_vl,
    "qwen3_vl": make_qwen3_vl,
    "qwen3_vl_moe": make_qwen3_vl_moe,
    "smolvlm": make_smolvlm,
    "video_llama_3": make_video_llama_3,
}
