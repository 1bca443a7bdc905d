"""A model without its weights: the backbone of a checkpoint on the meta device, from its config and processor."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from videox2l.backbones import video_xl_loading as video_xl
from videox2l.backbones.checkpoint import Checkpoint, translate_errors
from videox2l.backbones.loading import DTYPES, load_tokenizer, video_processor_config
from videox2l.backbones.registry import adapter_for
from videox2l.backbones.video_xl_model import VideoXLForCausalLM
from videox2l.demo.models import SHIPPED, checkpoint_of, load_backbone
from videox2l.engine.backbone import Backbone
from videox2l.errors import ModelError, SettingsError
from videox2l.options import LoadOptions
from videox2l.sizing.shadow import weight_bytes

PACKED_BITS = {"4bit": 4.5, "8bit": 8.0}
"""Bits that a quantised weight takes, scales included."""


@dataclass(frozen=True)
class Sketch:
    """A backbone whose tensors have shapes and no values, what its weights take, and what had to be assumed."""

    backbone: Backbone
    weights: int
    whole: int  # what the weights would take without quantisation
    notes: list[str] = field(default_factory=list)


def sketch(
    name: str,
    *,
    revision: str | None = None,
    max_pixels: int | None = None,
    dtype: str = "auto",
    quantize: str | None = None,
) -> Sketch:
    """Return the sketch of "demo", a folder or a hub id, of which only config.json need be there.

    `dtype="auto"` is what the config says. Where tokenizer or processor are missing, the family's defaults are taken,
    and `notes` says so. Raises ModelError, SettingsError.
    """
    if dtype not in DTYPES:
        raise ModelError(f"dtype '{dtype}' is not known: use {', '.join(DTYPES)}")
    if quantize not in (None, *PACKED_BITS):
        raise SettingsError(f"quantize='{quantize}' is not known: use {', '.join(PACKED_BITS)}")
    checkpoint = checkpoint_of(name, revision)
    notes: list[str] = []
    with translate_errors(checkpoint):
        if name in SHIPPED:
            backbone: Any = load_backbone(name, LoadOptions(device="cpu", max_pixels=max_pixels))[0]
            precision = torch.float32 if dtype == "auto" else DTYPES[dtype]
            for module in models_of(backbone):
                module.to(device="meta", dtype=precision)
        else:
            precision = precision_of(checkpoint.config) if dtype == "auto" else DTYPES[dtype]
            adapter: Any = adapter_for(checkpoint.config["model_type"])
            model = model_of(checkpoint, precision)
            tokenizer, pixels = _tokenizer(checkpoint, notes), _pixels(checkpoint, model, notes)
            backbone = adapter(model, tokenizer, pixels, max_pixels)
            if isinstance(tokenizer, StandInTokenizer):
                tokenizer.placeholder = backbone.markup.placeholder
    whole = weight_bytes(*models_of(backbone))
    weights = whole if quantize is None else _packed(backbone.model, whole, PACKED_BITS[quantize])
    return Sketch(backbone, weights, whole, notes)


def models_of(backbone: Any) -> list[nn.Module]:
    """Return the models that a backbone holds: its own, and for demo-xl that of its vision tower."""
    found = (getattr(backbone, "model", None), getattr(getattr(backbone, "vision_backbone", None), "model", None))
    return [model for model in found if model is not None]


def precision_of(config: dict[str, Any]) -> torch.dtype:
    """Return the dtype that a config.json names, by default bfloat16."""
    inner = config.get("text_config") or {}
    for found in (config.get("dtype"), config.get("torch_dtype"), inner.get("dtype"), inner.get("torch_dtype")):
        dtype = getattr(torch, str(found).removeprefix("torch."), None)
        if isinstance(dtype, torch.dtype):
            return dtype
    return torch.bfloat16


def model_of(checkpoint: Checkpoint, precision: torch.dtype) -> Any:
    """Return the model that config.json describes, on the meta device."""
    if checkpoint.config["model_type"] == video_xl.MODEL_TYPE:
        text, vision = video_xl.without_weights(checkpoint.config)
        with torch.device("meta"):
            return VideoXLForCausalLM(text, tuple("qkvo"), vision).to(precision)
    config = AutoConfig.from_pretrained(checkpoint.where, **checkpoint.hub)
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config).to(precision)


def _tokenizer(checkpoint: Checkpoint, notes: list[str]) -> Any:
    try:
        return load_tokenizer(checkpoint)
    except ModelError:
        notes.append("no tokenizer found: the prompt is taken as 30 tokens")
        return StandInTokenizer()


def _pixels(checkpoint: Checkpoint, model: Any, notes: list[str]) -> dict[str, Any]:
    if isinstance(model, VideoXLForCausalLM):
        return video_xl.pixel_config(model, checkpoint.json("preprocessor_config.json"))
    try:
        return video_processor_config(checkpoint)
    except ModelError:
        notes.append("no processor config found: the family's default size of frames is taken")
    found = dict(_default_processor(model.config)().to_dict())
    vision = model.config.vision_config
    for mine, theirs in (("patch_size", "patch_size"), ("merge_size", "spatial_merge_size")):
        if mine in found and getattr(vision, theirs, None) is not None:
            found[mine] = getattr(vision, theirs)
    side = getattr(vision, "image_size", None)
    if side is not None and "shortest_edge" not in (found.get("size") or {}):
        high, wide = side if isinstance(side, (list, tuple)) else (side, side)
        found["size"] = found["crop_size"] = {"height": high, "width": wide}
        found["max_image_size"] = {"longest_edge": high}
    return found


def _default_processor(config: Any) -> Any:
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

    try:
        found = IMAGE_PROCESSOR_MAPPING[type(config)]
    except KeyError as error:
        raise ModelError(
            f"no default processor is known for {config.model_type}: copy the preprocessor_config.json of the model"
        ) from error
    kinds = list(found.values()) if isinstance(found, dict) else [kind for kind in found if kind is not None]
    return kinds[0]


def _packed(model: nn.Module, weights: int, bits: float) -> int:
    """Return the bytes of the weights when all linear layers but the output are packed."""
    output = model.get_output_embeddings()  # type: ignore[operator]
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not output:
            weights -= int(module.weight.nbytes - module.weight.numel() * bits / 8)
    return weights


class StandInTokenizer:
    """Counts where a tokenizer is missing: names in angle brackets as one token each, other text by its length."""

    chat_template = "stand-in"
    placeholder = ""
    all_special_tokens: Sequence[str] = ()

    def __init__(self) -> None:
        self.names: dict[str, int] = {}

    def __getattr__(self, name: str) -> None:
        if not name.endswith(("_token", "_token_id")):
            raise AttributeError(name)
        # a token that a family may have

    def get_added_vocab(self) -> dict[str, int]:
        """Return no tokens."""
        return {}

    def get_vocab(self) -> dict[str, int]:
        """Return the names that came up."""
        return self.names

    def convert_ids_to_tokens(self, token: int) -> str:
        """Return a name for a token of the config."""
        name = f"<|{token}|>"
        self.names[name] = token
        return name

    def convert_tokens_to_ids(self, token: str) -> int:
        """Return the number of a name; new ones are counted down from -2, so that they meet none of the config's."""
        return self.names.setdefault(token, -2 - len(self.names))

    def apply_chat_template(self, messages: Sequence[Any], **_: Any) -> str:
        """Return a prompt of about 30 tokens, with the video in the middle."""
        return "text " * 15 + self.placeholder + "text " * 15

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        """Return ids: names as themselves, four or five characters of other text as one."""
        parts = re.split(r"(<[^<>\s]+>)", text)
        ids: list[int] = []
        for number, part in enumerate(parts):
            ids += [self.convert_tokens_to_ids(part)] if number % 2 else [0] * -(-len(part) // 5)
        return {"input_ids": ids}
