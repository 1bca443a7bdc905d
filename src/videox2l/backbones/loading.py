"""From a model's name or folder, or from model objects, to the backbone that serves it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer
from transformers.utils import cached_file

from videox2l.backbones import video_xl_loading as video_xl
from videox2l.backbones.base import Backbone
from videox2l.backbones.registry import adapter_for
from videox2l.backbones.video_xl import VideoXLBackbone
from videox2l.errors import ModelError, X2LError

if TYPE_CHECKING:
    from videox2l.backbones.transformers_backbone import TransformersBackbone

Find = Callable[[str], Path | None]
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
    if not tokenizer.chat_template:
        tokenizer.chat_template = getattr(processor, "chat_template", None)
    config = part if isinstance(part, Mapping) else part.to_dict()
    return adapter_for(model.config.model_type)(model, tokenizer, config, max_pixels)


def from_pretrained(
    name: str,
    *,
    device: str | None = None,
    dtype: str = "auto",
    device_map: Any = None,
    revision: str | None = None,
    max_pixels: int | None = None,
) -> Backbone:
    """Load a checkpoint from a local directory or the Hugging Face hub (cached files first, HF_HUB_OFFLINE honoured).

    No remote code is run and only safetensors are read. `device` defaults to CUDA where there is one; on the CPU,
    `dtype="auto"` means float32, since half precision is slower there.
    """
    if dtype not in DTYPES:
        raise ModelError(f"dtype '{dtype}' is not known: use {', '.join(DTYPES)}")
    where, subfolder = (str(demo_directory()), "") if name in ("demo", "demo-xl") else locate(name)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    precision = torch.float32 if dtype == "auto" and device == "cpu" and device_map is None else DTYPES[dtype]
    hub = {"revision": revision, "trust_remote_code": False, "subfolder": subfolder}
    find = partial(_find, where, revision=revision, subfolder=subfolder)
    try:
        if (plain := _read_json(find, "config.json")).get("model_type") == video_xl.MODEL_TYPE:
            if device_map is not None:
                raise ModelError("device_map is not supported for Video-XL yet: leave it out, the model has one device")
            return load_video_xl(plain, where, find, hub, precision, max_pixels, device)
        config = AutoConfig.from_pretrained(where, **hub)
        adapter = adapter_for(config.model_type)
        tokenizer = AutoTokenizer.from_pretrained(where, **hub)
        video_config = video_processor_config(where, find)
        if not tokenizer.chat_template:
            tokenizer.chat_template = _read_json(find, "chat_template.json").get("chat_template")
        model = AutoModelForImageTextToText.from_pretrained(
            where, dtype=precision, device_map=device_map, use_safetensors=True, **hub
        )
    except X2LError:
        raise
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load the model '{name}': {_first_line(error)}") from error
    if device_map is None:
        model = model.to(device)
    backbone = adapter(model, tokenizer, video_config, max_pixels)
    if name == "demo-xl":  # its vision tower is the demo model's
        from videox2l.demo import xl

        return xl.load(cast("TransformersBackbone", backbone), device, backbone.shape.dtype)
    return backbone


def load_video_xl(
    config: Mapping[str, Any],
    where: str,
    find: Find,
    hub: Mapping[str, Any],
    precision: Any,
    max_pixels: int | None,
    device: str,
) -> VideoXLBackbone:
    """Load a checkpoint of Video-XL, which transformers' Auto classes do not know."""
    if isinstance(precision, str):
        precision = getattr(torch, str(config.get("torch_dtype") or config.get("dtype") or "float16"))
    model = video_xl.load_model(config, video_xl.weight_files(find), precision)
    tokenizer = AutoTokenizer.from_pretrained(where, tokenizer_type="qwen2", **hub)
    pixels = video_xl.pixel_config(model, _read_json(find, "preprocessor_config.json"))
    return VideoXLBackbone(model.to(device), tokenizer, pixels, max_pixels)


def locate(name: str) -> tuple[str, str]:
    """Return a local folder or hub id, and the subfolder in which the model lies ("" for none).

    A third part of a hub id is a subfolder ("owner/name/folder"); a local folder without a config.json may have one
    subfolder that has it.
    """
    path = Path(name)
    if path.is_dir():
        inner = [] if (path / "config.json").exists() else [sub.parent for sub in path.glob("*/config.json")]
        return (str(inner[0]) if len(inner) == 1 else name), ""
    parts = name.split("/", 2)
    if len(parts) == 3 and not path.is_absolute() and parts[0] not in (".", ".."):
        return "/".join(parts[:2]), parts[2]
    return name, video_xl.SUBFOLDERS.get(name, "")


def demo_directory() -> Path:
    """Return the folder of the model that ships with the package."""
    return Path(__file__).parent.parent / "demo" / "model"


def video_processor_config(where: str, find: Find) -> dict[str, Any]:
    """Return the model's video processor config, from whichever of the known files has it."""
    nested = _read_json(find, "processor_config.json")
    for found in (
        _read_json(find, "video_preprocessor_config.json"),
        nested.get("video_processor"),
        _read_json(find, "preprocessor_config.json"),
        nested.get("image_processor"),
    ):
        if found:
            return dict(found)
    raise ModelError(
        f"'{where}' has no video_preprocessor_config.json, processor_config.json or preprocessor_config.json"
    )


def _find(where: str, file: str, revision: str | None, subfolder: str) -> Path | None:
    """Return where a file of a checkpoint lies on disk (fetched if need be), or None if there is none."""
    path = cached_file(
        where,
        file,
        revision=revision,
        subfolder=subfolder,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path)


def _read_json(find: Find, file: str) -> dict[str, Any]:
    path = find(file)
    return {} if path is None else dict(json.loads(path.read_text(encoding="utf-8")))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
