"""From a model's name or folder, or from model objects, to the backbone that serves it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, cast

import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from videox2l.backbones import video_xl_loading as video_xl
from videox2l.backbones.checkpoint import Checkpoint, translate_errors
from videox2l.backbones.quantised import check_not_quantized, check_packages, quantization_config, require
from videox2l.backbones.registry import adapter_for
from videox2l.backbones.video_xl import VideoXLBackbone
from videox2l.engine.backbone import Backbone
from videox2l.errors import ModelError, ModelWarning, SettingsError
from videox2l.options import LoadOptions

_PACKED = re.compile(r"scale|qweight|qzeros|zero_point|zeros|absmax|quant_map|quant_state|g_idx|_packed")
DTYPES: dict[str, Any] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def from_objects(model: Any, processor: Any, max_pixels: int | None = None) -> Backbone:
    """Wrap a loaded model and its processor, as the user has them.

    `processor` is a Hugging Face processor, or anything with a `tokenizer` and a `video_processor` (or
    `image_processor`) that has `to_dict()` or is a mapping.
    """
    tokenizer = getattr(processor, "tokenizer", None)
    part = getattr(processor, "video_processor", None) or getattr(processor, "image_processor", None)
    if tokenizer is None or part is None:
        raise ModelError(
            f"{type(processor).__name__} has no tokenizer with a video or image processor: pass the model's processor"
        )
    template = default_template(getattr(processor, "chat_template", None))
    if template:
        tokenizer.chat_template = template  # as transformers: the processor's comes before the tokenizer's
    config = part if isinstance(part, Mapping) else part.to_dict()
    return adapter_for(model.config.model_type, model.config)(model, tokenizer, config, max_pixels)


def from_pretrained(checkpoint: Checkpoint, options: LoadOptions) -> Backbone:
    """Load a checkpoint: a local directory, or of the Hugging Face hub (HF_HUB_OFFLINE is honored).

    No remote code is run and only safetensors are read. `device` defaults to CUDA where there is one; on the CPU,
    `dtype="auto"` means float32, since half precision is slower there. `device_map` as accelerate takes it, in place
    of `device`; `quantize` as in `quantization_config`. Raises ModelError, SettingsError.
    """
    dtype, device_map, quantize, max_pixels = options.dtype, options.device_map, options.quantize, options.max_pixels
    if options.dtype not in DTYPES:
        raise SettingsError(f"dtype must be one of {', '.join(DTYPES)}, got {options.dtype!r}")
    if options.device is not None and device_map is not None:
        raise SettingsError(
            f"device='{options.device}' and device_map={device_map!r} exclude each other: give one of them"
        )
    device = usable_device(options.device)
    precision = torch.float32 if dtype == "auto" and device == "cpu" and device_map is None else DTYPES[dtype]
    with translate_errors(checkpoint):
        adapter = adapter_for(checkpoint.config["model_type"], checkpoint.config)
        if checkpoint.config["model_type"] == video_xl.MODEL_TYPE:
            if device_map is not None or quantize is not None:
                wish = "quantize" if device_map is None else "device_map"
                raise ModelError(f"{wish} is not supported for Video-XL yet: leave it out")
            return load_video_xl(checkpoint, precision, max_pixels, device)
        tokenizer = load_tokenizer(checkpoint)
        pixels = video_processor_config(checkpoint)
        settings: dict[str, Any] = {"dtype": precision}
        if quantize is not None:
            check_not_quantized(checkpoint, quantize)
            settings["quantization_config"] = quantization_config(quantize, precision)
        packed = check_packages(checkpoint.config)
        if device_map is not None:
            require("accelerate", f"device_map={device_map!r}", "accelerate")
        elif quantize is not None or (packed and find_spec("accelerate")):  # quantized weights cannot be moved later
            device_map = {"": device}
        model = load_model(checkpoint, device_map=device_map, **settings)
        return adapter(model if device_map is not None else model.to(device), tokenizer, pixels, max_pixels)


def usable_device(device: str | None) -> str:
    """Return the device to load on, by default CUDA where there is one. Raises SettingsError for one that is not."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError, TypeError) as error:
        raise SettingsError(f"device '{device}' cannot be used: {str(error).splitlines()[0]}") from error
    return device


def load_model(checkpoint: Checkpoint, **options: Any) -> Any:
    """Load a model by transformers' Auto class. Raises ModelError where the weights do not fill it."""
    checkpoint.check_weights()
    model, found = AutoModelForImageTextToText.from_pretrained(
        checkpoint.where, use_safetensors=True, output_loading_info=True, **options, **checkpoint.hub
    )
    lost, unused = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    if lost:
        raise ModelError(
            f"the weights of '{checkpoint.where}' do not fill the model that config.json describes: {len(lost)} "
            f"tensors are missing, such as {lost[0]}"
        )
    packed = [name for name in unused if _PACKED.search(name)]
    if packed:
        raise ModelError(
            f"'{checkpoint.where}' holds quantized weights that the model does not take: {len(packed)} tensors such as "
            f"{packed[0]}, and config.json has no quantization_config for them: fetch the checkpoint again"
        )
    if unused:
        warnings.warn(
            f"{len(unused)} tensors of '{checkpoint.where}' have no place in the model that config.json describes, "
            f"such as {unused[0]}",
            ModelWarning,
            stacklevel=2,
        )
    return model


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Load a tokenizer with its chat template, from whichever of the known files has it."""
    checkpoint.check_tokenizer()
    kind = {"tokenizer_type": "qwen2"} if checkpoint.config["model_type"] == video_xl.MODEL_TYPE else {}
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.where, **kind, **checkpoint.hub)
    template = processor_template(checkpoint)
    if template:
        tokenizer.chat_template = template
    return tokenizer


def processor_template(checkpoint: Checkpoint) -> str | None:
    """Return the chat template of a checkpoint's processor, from where transformers looks for it, in its order."""
    path = checkpoint.find("chat_template.jinja")
    if path is not None:
        return path.read_text(encoding="utf-8")
    for file in ("chat_template.json", "processor_config.json"):
        template = default_template(checkpoint.json(file).get("chat_template"))
        if template:
            return template
    return None


def default_template(template: Any) -> str | None:
    """Return a chat template, the default one where several have names."""
    if isinstance(template, list):
        template = {part["name"]: part["template"] for part in template}
    if isinstance(template, Mapping):
        template = template.get("default") or next(iter(template.values()), None)
    return template if isinstance(template, str) else None


def load_video_xl(
    checkpoint: Checkpoint, precision: torch.dtype | str, max_pixels: int | None, device: str
) -> VideoXLBackbone:
    """Load a checkpoint of Video-XL, which transformers' Auto classes do not know."""
    config = checkpoint.config
    if isinstance(precision, str):
        precision = cast(
            "torch.dtype", getattr(torch, str(config.get("torch_dtype") or config.get("dtype") or "float16"))
        )
    checkpoint.check_weights()
    model = video_xl.load_video_xl_model(config, video_xl.weight_files(checkpoint.find), precision)
    tokenizer = load_tokenizer(checkpoint)
    side = model.model.vision_tower.vision_tower.config.image_size if model.has_vision else None
    pixels = video_xl.pixel_config(side, checkpoint.json("preprocessor_config.json"))
    return VideoXLBackbone(model.to(device), tokenizer, pixels, max_pixels)


def video_processor_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the model's video processor config, from whichever of the known files has it."""
    nested = checkpoint.json("processor_config.json")
    for found in (
        checkpoint.json("video_preprocessor_config.json"),
        nested.get("video_processor"),
        checkpoint.json("preprocessor_config.json"),
        nested.get("image_processor"),
    ):
        if found:
            return dict(found)
    raise ModelError(
        f"'{checkpoint.where}' has no processor (video_preprocessor_config.json, processor_config.json or "
        "preprocessor_config.json), so the sizes and colours of frames are unknown: copy it from the model that this "
        "one was made from"
    )
