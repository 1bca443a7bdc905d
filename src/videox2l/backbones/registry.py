"""Which adapter serves which family of models: those of this package, and those that other packages register.

A package adds families by entry points in the group `videox2l.backbones`, named after the `model_type` of the model's
config:

    [project.entry-points."videox2l.backbones"]
    my_model = "my_package:MyBackbone"
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, cast

from videox2l.backbones.checks import unsupported_fields_reason, unsupported_reason
from videox2l.engine.backbone import Backbone
from videox2l.errors import ModelError

GROUP = "videox2l.backbones"

_OWN = {
    "internvl": "videox2l.backbones.internvl:InternVLBackbone",
    "llava_next_video": "videox2l.backbones.linear:LlavaNextVideoBackbone",
    "llava_onevision": "videox2l.backbones.linear:LlavaOnevisionBackbone",
    "llava_qwen": "videox2l.backbones.video_xl:VideoXLBackbone",
    "qwen2_5_vl": "videox2l.backbones.qwen2_vl:MRopeBackbone",
    "qwen2_vl": "videox2l.backbones.qwen2_vl:MRopeBackbone",
    "qwen3_vl": "videox2l.backbones.qwen3_vl:Qwen3VLBackbone",
    "qwen3_vl_moe": "videox2l.backbones.qwen3_vl:Qwen3VLBackbone",
    "smolvlm": "videox2l.backbones.smolvlm:SmolVLMBackbone",
    "video_llama_3": "videox2l.backbones.video_llama_3:VideoLlama3Backbone",
}


class Adapter(Protocol):
    """What makes a backbone of a loaded model: a class, or any function."""

    def __call__(
        self, model: Any, tokenizer: Any, video_config: Mapping[str, Any], max_pixels: int | None = None
    ) -> Backbone:
        """Wrap `model`; `video_config` are the fields of its video (or image) processor config.

        `max_pixels` per frame overrides the config's budget. Raises ModelError where the model cannot be served, and
        SettingsError where `max_pixels` has no effect.
        """


def adapter_for(model_type: str, config: Any = None) -> Adapter:
    """Return the adapter of a model family, by the `model_type` of its config. This package's own come first.

    Raises ModelError for a family that has none, and where another package's adapter cannot be imported. `config`, a
    config object or the fields of a config.json, lets the message say why a family can have none.
    """
    if model_type in _OWN:
        module, name = _OWN[model_type].split(":")
        return cast("Adapter", getattr(import_module(module), name))
    for entry in _registered():
        if entry.name == model_type:
            try:
                return cast("Adapter", entry.load())
            except (ImportError, AttributeError) as error:
                raise ModelError(f"the adapter '{entry.value}' for {model_type} cannot be imported: {error}") from error
    fields = isinstance(config, Mapping)
    reason = unsupported_fields_reason(model_type, config) if fields else unsupported_reason(config)
    if config is not None and reason is not None:
        raise ModelError(f"{model_type} cannot be served: it {reason}")
    raise ModelError(f"no adapter for model type '{model_type}': supported are {', '.join(supported())}")


def supported() -> list[str]:
    """Return the model types that have an adapter, in order of the alphabet."""
    return sorted({*_OWN, *(entry.name for entry in _registered())})


def _registered() -> list[EntryPoint]:
    return list(entry_points(group=GROUP))
