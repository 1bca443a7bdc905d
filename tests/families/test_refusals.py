"""Models that cannot be served are recognised, with the reason in one line; configs are those of real classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.conftest import QWEN_TEMPLATE, byte_tokenizer, make_qwen25
from tests.families.models import FIXED, text_config
from videox2l import ArraySource, ModelError, VideoX2L
from videox2l.backbones.checks import unsupported_reason
from videox2l.backbones.frames import SquareFrames
from videox2l.backbones.linear import LinearBackbone
from videox2l.backbones.prompts import VideoMarkup
from videox2l.backbones.registry import adapter_for
from videox2l.backbones.transformers_backbone import FrameVision

WINDOW = r"layers of type .*(sliding|chunked)_attention, which see only"
STATE = r"layers of type .*, which keep no keys and values of single tokens"
REASONS = {
    "BambaConfig": STATE,
    "Cohere2VisionConfig": WINDOW,
    "FalconH1Config": STATE,
    "Florence2Config": "encoder with a decoder",
    "GPT2Config": None,
    "Gemma2Config": WINDOW,
    "Gemma3Config": WINDOW,
    "Gemma3nConfig": WINDOW,
    "Gemma4Config": WINDOW,
    "GptOssConfig": WINDOW,
    "JambaConfig": STATE,
    "Lfm3VlConfig": STATE,
    "Llama4Config": WINDOW,
    "MiniCPMV4_7Config": STATE,
    "MistralConfig": WINDOW,
    "MllamaConfig": "cross-attention",
    "NemotronHConfig": STATE,
    "PaliGemmaConfig": "see what comes after",
    "Qwen2Config": None,
    "Qwen3NextConfig": STATE,
    "Qwen3_5Config": STATE,
    "Qwen3_5MoeConfig": STATE,
}


@pytest.mark.parametrize("name", sorted(REASONS))
def test_a_config_says_why(name: str) -> None:
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} does not have it")
    config, reason = getattr(transformers, name)(), REASONS[name]
    found = unsupported_reason(config)
    if reason is None:
        assert found is None
        return
    if int(transformers.__version__.split(".")[0]) < 5 and found is None:
        pytest.skip(f"the config of transformers {transformers.__version__} does not say it")
    with pytest.raises(ModelError, match=f"^{config.model_type} cannot be served: it .*") as error:
        adapter_for(config.model_type, config)
    assert error.match(reason)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}, "see only the last 64 tokens"),
        ({"layer_types": ["linear_attention"] * 3}, "layers of type linear_attention"),
        ({"use_bidirectional_attention": True}, "lets tokens see what comes after them"),
    ],
)
def test_a_supported_family_with_unusual_layers_is_refused(changes: dict[str, Any], reason: str) -> None:
    model, processor = make_qwen25()
    fields = {**model.config.text_config.to_dict(), **changes}
    if "layer_types" not in changes:
        fields.pop("layer_types", None)
    model.config.text_config = type(model.config.text_config)(**fields)
    with pytest.raises(ModelError, match=reason):
        VideoX2L.from_model(model, processor)


def test_a_checkpoint_that_cannot_be_served_is_refused_by_its_config_alone(tmp_path: Path) -> None:
    fields = transformers.Gemma3Config().to_dict()
    (tmp_path / "config.json").write_text(json.dumps({**fields, "model_type": "gemma3"}))
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(ModelError, match=rf"gemma3 cannot be served: it has {WINDOW}"):
        VideoX2L.from_pretrained(str(tmp_path))


class Gemma3Attempt(LinearBackbone):
    """What someone may write who does not know of Gemma 3's mask."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer, FIXED)
        frames = SquareFrames.from_config({**FIXED, "size": {"height": 16, "width": 16}})
        self.vision = FrameVision(frames, 2, "pixel_values", batched=False)

    @classmethod
    def video_markup(cls, config: Any, tokenizer: Any) -> VideoMarkup:
        return VideoMarkup("<image>", "<image>")

    def front_end(self, ids: Any, pixels: Any) -> Any:
        kinds = (ids == self.tokenizer.convert_tokens_to_ids("<image>")).int()
        return super().front_end(ids, {**pixels, "token_type_ids": kinds[None]})


def test_pictures_that_see_ahead_are_refused(video: np.ndarray) -> None:
    """A Gemma 3 whose layers all attend fully still masks pictures in both directions: its front end shows it."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
    tokenizer = byte_tokenizer(special, QWEN_TEMPLATE.replace("VIDEO", "<image>"))
    text = text_config(tokenizer, "gemma3_text", head_dim=16, pad_token_id=0, layer_types=["full_attention"] * 3)
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
        "vision_use_head": False,
    }
    config = Gemma3Config(
        text_config={**text, "sliding_window": None},
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    backbone = Gemma3Attempt(Gemma3ForConditionalGeneration(config).eval(), tokenizer)
    with pytest.raises(ModelError, match="gemma3 cannot be served: its visual tokens see one another in both"):
        VideoX2L(backbone).ingest(ArraySource(video), chunk_frames=1, ratios=(1,))


@pytest.mark.parametrize("option", ["sliding_window", "softcap", "s_aux"])
def test_attention_of_another_kind_is_refused_where_it_is_computed(option: str) -> None:
    """Were a layer of such a kind missed by its config, its first call would be refused."""
    from videox2l.engine.attention import x2l_attention

    q = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ModelError, match=f"Module asks for attention with {option}"):
        x2l_attention(torch.nn.Module(), q, q, q, None, **{option: 4})
    assert x2l_attention(torch.nn.Module(), q, q, q, None, **{option: None})[0].shape == (1, 3, 2, 4)
