"""Video-XL from the repository layout in which it was published.

A folder (or a subfolder of a hub repository) holds config.json with `model_type` "llava_qwen", safetensors in one file
or in shards with an index, and a tokenizer. The vision tower's weights are in the checkpoint; its configuration is
not, and is read off the shapes of its weights. transformers' Auto classes do not know the type.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPVisionConfig

from videox2l.backbones.video_xl_model import PROJECTIONS, VideoXLConfig, VideoXLForCausalLM
from videox2l.errors import ModelError, ModelWarning

MODEL_TYPE = "llava_qwen"
SUBFOLDERS = {"sy1998/Video_XL": "VideoXL_weight_8"}

_TOWER = "model.vision_tower.vision_tower."
_PUBLISHED_TOWER = f"{_TOWER}vision_model."
_NOT_FIELDS = ("architectures", "model_type", "rope_scaling", "torch_dtype", "dtype", "transformers_version")
# What the published model computes; a checkpoint that asks for something else is refused rather than run wrongly.
_ONLY: dict[str, tuple[Any, ...]] = {
    "beacon_pos": ("interleave",),
    "beacon_attn": ("full-coverage",),
    "beacon_sink_size": (0,),
    "beacon_parallel_window": (1,),
    "enable_beacon": (True,),
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_resampler_type": ("spatial_pool",),
    "mm_spatial_pool_mode": ("average",),
    "mm_spatial_pool_stride": (2,),
    "mm_vision_select_feature": ("patch",),
    "tie_word_embeddings": (False,),
}
# openai/clip-vit-large-patch14-336, for checkpoints that do not bring a preprocessor_config.json.
_CLIP_PIXELS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}


class Weights:
    """The tensors of a checkpoint by name, read from its files one at a time."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in files:
            with safe_open(str(path), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    self.files[name] = path
                    self.shapes[name] = tuple(file.get_slice(name).get_shape())

    def load_into(self, model: nn.Module, names: Mapping[str, str], dtype: torch.dtype) -> None:
        """Give `model` its tensors; `names` maps a name in the files to the model's own. Nothing is left out."""
        for path in dict.fromkeys(self.files.values()):
            with safe_open(str(path), framework="pt") as file:
                here = [name for name, at in self.files.items() if at == path and name in names]
                state: dict[str, Tensor] = {names[name]: file.get_tensor(name).to(dtype) for name in here}
            model.load_state_dict(state, strict=False, assign=True)


def weight_files(find: Callable[[str], Path | None]) -> list[Path]:
    """Return the safetensors files of a checkpoint; `find` returns the path of one of its files, or None."""
    single = find("model.safetensors")
    if single is not None:
        return [single]
    index = find("model.safetensors.index.json")
    if index is None:
        raise ModelError("the checkpoint has neither model.safetensors nor model.safetensors.index.json")
    shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    found = {shard: find(shard) for shard in shards}
    lost = [shard for shard, path in found.items() if path is None]
    if lost:
        raise ModelError(f"the checkpoint's index names files that are missing: {', '.join(lost)}")
    return [path for path in found.values() if path is not None]


def load_video_xl_model(
    config: Mapping[str, Any], files: Iterable[Path], dtype: torch.dtype = torch.float32
) -> VideoXLForCausalLM:
    """Build the model that `config` and the weights describe, and load it.

    Raises ModelError that names every key that is missing, unknown or of another shape.
    """
    check_config(config)
    weights = Weights(files)
    beacons = beacon_projections(config, weights.shapes)
    vision = vision_config(config, weights.shapes)
    fields = {name: value for name, value in config.items() if name not in _NOT_FIELDS and not name.startswith("_")}
    try:
        with torch.device("meta"):
            model: VideoXLForCausalLM = VideoXLForCausalLM(VideoXLConfig(**fields), beacons, vision)
    except (TypeError, ValueError) as error:
        raise ModelError(f"config.json does not describe a Qwen2 model: {error}") from error
    weights.load_into(model, _names(model, weights, vision), dtype)
    _rebuild_buffers(model)
    model.eval()
    return model


def check_config(config: Mapping[str, Any]) -> None:
    """Raise ModelError where the configuration asks for a computation that is not supported."""
    for name, known in _ONLY.items():
        if name in config and config[name] is not None and config[name] not in known:
            raise ModelError(f"{name}={config[name]!r} of config.json is not supported: only {known[0]!r} is")


def beacon_projections(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Return the projections that summary tokens have of their own, from the weights, checked against the config.

    The weights decide: a projection that the config does not name is used, with a warning; one that the config names
    but the weights lack cannot be.
    """
    parts = (name.rsplit(".", 2)[-2] for name in shapes if ".beacon_" in name and name.endswith(".weight"))
    held = {part.removeprefix("beacon_").removesuffix("_proj") for part in parts if part.endswith("_proj")}
    asked = set(config.get("beacon_param") or held)
    lost, unnamed = sorted(asked - held), sorted(held - asked)
    if lost:
        raise ModelError(
            f"beacon_param={sorted(asked)} of config.json, but the weights have no beacon projections for "
            f"{', '.join(lost)}: they have them for {', '.join(sorted(held)) or 'none'}"
        )
    if held - set(PROJECTIONS):
        extra = ", ".join(sorted(held - set(PROJECTIONS)))
        raise ModelError(
            f"the weights have beacon projections for {extra}: only {', '.join(PROJECTIONS)} are supported"
        )
    if unnamed:
        warnings.warn(
            f"beacon_param={sorted(asked)} of config.json, but the weights also have beacon projections for "
            f"{', '.join(unnamed)}: these are used",
            ModelWarning,
            stacklevel=2,
        )
    return tuple(name for name in PROJECTIONS if name in held)


def vision_config(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> CLIPVisionConfig | None:
    """Return the configuration of CLIP up to the selected hidden layer, read off the weights; None if there are none.

    `mm_vision_tower` is often a path on its authors' machine, so it is not opened; heads have 64 dimensions, as in
    every published CLIP.
    """
    tower = {name.removeprefix(_PUBLISHED_TOWER): shape for name, shape in shapes.items() if name.startswith(_TOWER)}
    if not tower:
        if any(name.startswith("model.mm_projector.") for name in shapes):
            name = PurePosixPath(str(config.get("mm_vision_tower"))).name
            raise ModelError(f"the checkpoint has a projector but no weights of its vision tower ({name})")
        return None
    try:
        hidden, _, patch, _ = tower["embeddings.patch_embedding.weight"]
        positions = tower["embeddings.position_embedding.weight"][0]
        intermediate = tower["encoder.layers.0.mlp.fc1.weight"][0]
    except (KeyError, ValueError) as error:
        raise ModelError(f"the vision tower of the checkpoint is not CLIP: {error} is missing or odd") from error
    layers = 1 + max(int(name.split(".")[2]) for name in tower if name.startswith("encoder.layers."))
    side = round((positions - 1) ** 0.5)
    selected = config.get("mm_vision_select_layer", -1)
    # hidden_states of a CLIP with `layers` layers has layers + 1 entries, the first being the embeddings.
    run = selected if selected >= 0 else layers + 1 + selected
    if not 0 < run <= layers or side**2 + 1 != positions or side % 2 or hidden % 64:
        raise ModelError(
            f"the vision tower cannot be used: mm_vision_select_layer={selected}, {layers} layers, {positions} "
            f"positions (an even square and 1 needed), width {hidden} (a multiple of 64 needed)"
        )
    return CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=run,
        num_attention_heads=hidden // 64,
        image_size=side * patch,
        patch_size=patch,
        hidden_act="quick_gelu",
    )


def without_weights(config: Mapping[str, Any]) -> tuple[VideoXLConfig, CLIPVisionConfig]:
    """Return the language model's configuration and that of its usual vision tower (CLIP ViT-L/14 at 336 pixels)."""
    check_config(config)
    fields = {name: value for name, value in config.items() if name not in _NOT_FIELDS and not name.startswith("_")}
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=23,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        hidden_act="quick_gelu",
    )
    return VideoXLConfig(**fields), vision


def pixel_config(size: int | None, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the image processor config: the checkpoint's own, or CLIP's at the `size` of the tower."""
    if found or size is None:
        return dict(found)
    return {**_CLIP_PIXELS, "size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}


def _names(model: nn.Module, weights: Weights, vision: CLIPVisionConfig | None) -> dict[str, str]:
    """Map the names in the files to the model's own; raise ModelError where they do not match one to one."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    # transformers 5 dropped a level from the names of CLIP's modules.
    nested = any(name.startswith(_PUBLISHED_TOWER) for name in wanted)
    names, unknown = {}, []
    for name in weights.shapes:
        own = name if nested or not name.startswith(_PUBLISHED_TOWER) else name.replace(_PUBLISHED_TOWER, _TOWER, 1)
        if own in wanted:
            names[name] = own
        elif not is_unused(name, vision):
            unknown.append(name)
    missing = sorted(set(wanted) - set(names.values()))
    odd = [
        f"{name} {weights.shapes[name]} instead of {wanted[own]}"
        for name, own in names.items()
        if weights.shapes[name] != wanted[own]
    ]
    problems = [("missing", missing), ("unknown", sorted(unknown)), ("of another shape", sorted(odd))]
    found = "; ".join(f"{what}: {', '.join(keys)}" for what, keys in problems if keys)
    if found:
        raise ModelError(f"the weights do not fit the configuration; {found}")
    return names


def is_unused(name: str, vision: CLIPVisionConfig | None) -> bool:
    """Say whether a weight is known not to be needed: layers of CLIP behind the selected one, stored buffers."""
    if vision is None or not name.startswith(_TOWER):
        return False
    part = name.removeprefix(_PUBLISHED_TOWER).split(".")
    if part[:2] == ["encoder", "layers"]:
        return bool(int(part[2]) >= vision.num_hidden_layers)
    return name.endswith(".position_ids")


def _rebuild_buffers(model: VideoXLForCausalLM) -> None:
    """Make anew what is computed rather than stored, and so was left on the meta device."""
    decoder = model.model
    decoder.rotary_emb = type(decoder.rotary_emb)(config=model.config)
    if model.has_vision:
        for module in decoder.vision_tower.modules():
            if "position_ids" in dict(module.named_buffers(recurse=False)):
                module.position_ids = torch.arange(module.num_positions)[None]
    left = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if left:
        raise ModelError(f"tensors of the model were left empty: {', '.join(left)}")
