"""A model by its config.json: sizes of decoder and vision tower, prompt and frames, bytes of weights. None is built."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig

from videox2l.backbones import video_xl_loading as video_xl
from videox2l.backbones.checkpoint import Checkpoint, translate_errors
from videox2l.backbones.decoder_backbone import kv_shape
from videox2l.backbones.loading import DTYPES, load_tokenizer, video_processor_config
from videox2l.backbones.prompts import ChatPrompt
from videox2l.backbones.quantised import CHOICES, check_not_quantized, quantization_of
from videox2l.backbones.registry import adapter_for
from videox2l.backbones.transformers_backbone import Vision
from videox2l.backbones.video_llama_3 import VideoLlama3Backbone, drops_tokens
from videox2l.backbones.video_xl_model import VideoXLConfig
from videox2l.demo import xl
from videox2l.demo.models import checkpoint_of
from videox2l.errors import ModelError, SettingsError
from videox2l.flops import DecoderShape, VisionShape
from videox2l.options import LoadOptions
from videox2l.types import KVShape, VideoInfo

_NAMES = SimpleNamespace(convert_ids_to_tokens=lambda token: f"<{token}>")  # in place of a tokenizer
_PACKED_BITS = {"4bit": 4.5, "8bit": 8.0}  # of a weight, scales included


@dataclass
class ModelShape:
    """What an estimate knows of a model. `weights` bytes as loaded, `whole` without quantization.

    The fields that a backbone has too are what settings of an ingest are resolved against. Without a tokenizer
    (`chat` None) words are counted by their look.
    """

    name: str
    shape: KVShape
    axes: int
    group_frames: int
    default_chunk_frames: int
    default_compressor: str
    adapter: Any
    config: Any
    decoder: DecoderShape
    tower: VisionShape
    vision: Vision
    chat: ChatPrompt | None
    weights: int
    whole: int
    notes: list[str] = field(default_factory=list)

    @property
    def max_positions(self) -> int | None:
        """How many positions the config names."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    def prefix(self, facts: VideoInfo) -> int:
        """Return how many tokens stand before a video."""
        if self.chat is None:
            return 15
        return len(self.adapter.prefix_ids(self.chat, self._markup, facts))

    def words(self, times: Sequence[Sequence[float]], facts: VideoInfo) -> list[int]:
        """Return how many tokens of words stand in each group of frames, by the pts of its frames."""
        markup = self._markup
        if not markup.opening(0, [0.0]) and not markup.close:
            return [0] * len(times)
        if self.chat is not None:
            return self.chat.group_words(markup, times, facts)
        texts = (markup.opening(group, pts) + markup.close for group, pts in enumerate(times))
        return [len(re.findall(r"<[^<>\s]+>|\d|[^\W\d]+|[^\w ]", text)) for text in texts]

    @property
    def _markup(self) -> Any:
        return self.adapter.video_markup(self.config, _NAMES if self.chat is None else self.chat.tokenizer)


def model_shape(name: str, options: LoadOptions, cpu: bool = False) -> ModelShape:
    """Return the sizes of "demo", a folder or a hub id, of which only config.json need be there.

    `cpu`: it will run on the CPU, where `dtype="auto"` is float32. Where tokenizer, processor or weights are missing
    `notes` says what is taken instead. Raises ModelError, SettingsError.
    """
    if options.dtype not in DTYPES:
        raise ModelError(f"dtype '{options.dtype}' is not known: use {', '.join(DTYPES)}")
    if options.quantize not in (None, *CHOICES):
        raise SettingsError(f"quantize='{options.quantize}' is not known: use {', '.join(CHOICES)}")
    checkpoint = checkpoint_of(name, options.revision)
    with translate_errors(checkpoint):
        if options.quantize is not None:
            check_not_quantized(checkpoint, options.quantize)
        adapter: Any = adapter_for(checkpoint.config["model_type"], checkpoint.config)
        if not hasattr(adapter, "tower_of"):
            raise ModelError(f"{checkpoint.config['model_type']} cannot be planned: its adapter has no tower_of")
        notes: list[str] = []
        files = _weight_files(checkpoint)
        config = _config(checkpoint, files)
        found = _video_config(checkpoint, config, adapter, notes)
        vision, tower = adapter.vision_of(config, found, options.max_pixels), adapter.tower_of(config)
        if adapter is VideoLlama3Backbone and drops_tokens(found):
            notes.append("tokens of what does not change are left out: these are the most there can be")
        if name == "demo-xl":  # its vision tower is the demo model's
            adapter, config = xl.DemoXLBackbone, xl.demo_xl_config()
            files += [xl.FOLDER / "model.safetensors"]
        chat = _chat(checkpoint, config, adapter, notes)
        auto = torch.float32 if cpu else _precision(checkpoint.config)
        shape = kv_shape(config.get_text_config(), auto if options.dtype == "auto" else DTYPES[options.dtype])
        decoder = decoder_shape(config.get_text_config(), shape)
        whole, linear = _weights(checkpoint, files, decoder, tower, config, notes)
    bits = 8 * shape.dtype.itemsize
    weights = whole - int(linear * (bits - _PACKED_BITS.get(str(options.quantize), bits)) / 8)
    return ModelShape(
        name=name if name == "demo-xl" else config.model_type,
        shape=shape,
        axes=adapter.axes,
        group_frames=vision.group_frames,
        default_chunk_frames=adapter.default_chunk_frames,
        default_compressor=adapter.default_compressor,
        adapter=adapter,
        config=config,
        decoder=decoder,
        tower=tower,
        vision=vision,
        chat=chat,
        weights=weights,
        whole=whole,
        notes=notes,
    )


def decoder_shape(text: Any, shape: KVShape) -> DecoderShape:
    """Return the sizes of a language model by its text config; of experts, those that a token runs through."""
    active = getattr(text, "num_experts_per_tok", None)
    return DecoderShape(
        layers=shape.layers,
        hidden=text.hidden_size,
        heads=text.num_attention_heads,
        kv_heads=shape.heads,
        head_dim=shape.head_dim,
        mlp=active * text.moe_intermediate_size if active else text.intermediate_size,
        vocabulary=text.vocab_size,
        bytes_per_value=shape.dtype.itemsize,
        experts=int(getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None) or 0),
    )


def _precision(config: Mapping[str, Any]) -> torch.dtype:
    """Return the dtype that a config.json names, by default bfloat16."""
    inner = config.get("text_config") or {}
    for found in (config.get("dtype"), config.get("torch_dtype"), inner.get("dtype"), inner.get("torch_dtype")):
        dtype = getattr(torch, str(found).removeprefix("torch."), None)
        if isinstance(dtype, torch.dtype):
            return dtype
    return torch.bfloat16


def _config(checkpoint: Checkpoint, files: list[Path]) -> Any:
    if checkpoint.config["model_type"] != video_xl.MODEL_TYPE:
        return AutoConfig.from_pretrained(checkpoint.where, **checkpoint.hub)
    config, usual = video_xl.without_weights(checkpoint.config)
    shapes = {name: shape for name, _, shape in _tensors(files)}
    config.vision_config = video_xl.vision_config(checkpoint.config, shapes) if files else usual
    if config.vision_config is None:
        raise ModelError(f"'{checkpoint.where}' has no vision tower: it cannot be given videos")
    return config


def _video_config(checkpoint: Checkpoint, config: Any, adapter: Any, notes: list[str]) -> dict[str, Any]:
    """Return the fields of the processor config; where there is none, what fits the vision tower."""
    vision = config.vision_config
    if isinstance(config, VideoXLConfig):
        return video_xl.pixel_config(vision.image_size, checkpoint.json("preprocessor_config.json"))
    try:
        return video_processor_config(checkpoint)
    except ModelError:
        notes.append("no processor config found: the family's default size of frames is taken")
    merge, side = getattr(vision, "spatial_merge_size", 2), getattr(vision, "image_size", None)
    found = {"patch_size": vision.patch_size, "merge_size": merge, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    if side is not None:
        high = side if isinstance(side, int) else side[0]
        sizes = {"height": high, "width": high, "shortest_edge": high}
        found |= {"size": sizes, "crop_size": sizes, "max_image_size": {"longest_edge": high}}
    return {**found, **adapter.default_pixels}


def _chat(checkpoint: Checkpoint, config: Any, adapter: Any, notes: list[str]) -> ChatPrompt | None:
    try:
        tokenizer = load_tokenizer(checkpoint)
    except ModelError:
        notes.append("no tokenizer found: the prompt is taken as 15 tokens, and words are counted by their look")
        return None
    return ChatPrompt(tokenizer, adapter.video_markup(config, tokenizer).placeholder, adapter.template)


def _weight_files(checkpoint: Checkpoint) -> list[Path]:
    """Return a checkpoint's safetensors files where all are on disk, else []. Nothing but an index is fetched."""
    folder = Path(str(checkpoint.find("config.json"))).parent
    shards = checkpoint.json("model.safetensors.index.json").get("weight_map") or {"": "model.safetensors"}
    files = [folder / name for name in sorted(set(shards.values()))]
    return files if all(file.is_file() for file in files) else []


def _tensors(files: Sequence[Path]) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return name, dtype as safetensors writes it, and shape of all tensors, from the files' headers."""
    found = []
    for file in files:
        with safe_open(str(file), framework="pt") as held:
            for name in held.keys():  # noqa: SIM118
                part = held.get_slice(name)
                found.append((name, str(part.get_dtype()), tuple(part.get_shape())))
    return found


def _weights(
    checkpoint: Checkpoint, files: list[Path], decoder: DecoderShape, tower: VisionShape, config: Any, notes: list[str]
) -> tuple[int, int]:
    """Return the bytes of all weights without quantization on loading, and how many weights that would pack.

    By the headers of the files, else by what their index says, else by the config. Weights that are quantized already
    stay as they are, others are brought to the dtype that is asked for.
    """
    size, packed = decoder.bytes_per_value, quantization_of(checkpoint.config)
    if files:
        whole = linear = 0
        for name, dtype, shape in _tensors(files):
            if video_xl.is_unused(name, getattr(config, "vision_config", None)):
                continue
            bits = re.search(r"\d+", dtype)
            own = (int(bits[0]) if bits else 8) / 8
            whole += int(math.prod(shape) * (own if packed or not dtype.startswith(("F", "BF")) else size))
            linear += math.prod(shape) * (len(shape) == 2 and not re.search("embed|lm_head|position|norm", name))
        return whole, linear
    text = config.get_text_config()
    idle = decoder.experts * text.moe_intermediate_size - decoder.mlp if decoder.experts else 0
    linear = decoder.row // 2 + 3 * decoder.layers * decoder.hidden * idle + tower.weights
    total = int((checkpoint.json("model.safetensors.index.json").get("metadata") or {}).get("total_size", 0))
    if total:
        return total if packed else total * size // _precision(checkpoint.config).itemsize, linear
    notes.append("no weights found: their bytes are reckoned from config.json, without norms and biases")
    tied = getattr(config, "tie_word_embeddings", False) or getattr(text, "tie_word_embeddings", False)
    embedding = decoder.hidden * decoder.vocabulary * (1 if tied else 2)
    few = packed.get("load_in_4bit") or packed.get("bits") == 4
    each = 8.0 * size if not packed else _PACKED_BITS["4bit" if few else "8bit"]
    return int(embedding * size + linear * each / 8), linear
