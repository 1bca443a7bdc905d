"""Writing a checkpoint as a model folder that `from_pretrained` of transformers 4.57 to 5 reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from training.geometry import MEAN, MERGE, PATCH, STD, TEMPORAL
from videox2l.demo.draw import NATIVE
from videox2l.demo.tokens import CHAT_TEMPLATE, SPECIAL, build_tokenizer


def export_model(model: Any, folder: Path, words: Sequence[str] = ()) -> None:
    """Write weights in bfloat16, configuration, tokenizer, chat template and processor settings.

    `words` are those that the tokenizer has beyond the demo model's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.generation_config.update(
        do_sample=False,
        bos_token_id=None,
        eos_token_id=SPECIAL.index("<|im_end|>"),
        pad_token_id=SPECIAL.index("<|endoftext|>"),
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    model.to(torch.float32).load_state_dict(weights)
    _write_tokenizer(folder, words)
    _write_config(folder)
    _write_processor(folder)


def _write_config(folder: Path) -> None:
    """Add the rotary settings under the names of transformers 4; both majors then read the same numbers."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    text, rope = config["text_config"], config["text_config"]["rope_parameters"]
    text["rope_theta"] = rope["rope_theta"]
    text["rope_scaling"] = {"type": "default", "rope_type": "default", "mrope_section": rope["mrope_section"]}
    text["tie_word_embeddings"] = True
    path.write_text(json.dumps(config, indent=2) + "\n")


def _write_tokenizer(folder: Path, words: Sequence[str]) -> None:
    """Write the settings by hand: those that transformers 5 saves do not load in 4."""
    tokenizer = build_tokenizer(words)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
        "unk_token": tokenizer.unk_token,
        "additional_special_tokens": list(SPECIAL[1:7]),
        "clean_up_tokenization_spaces": False,
        "model_max_length": tokenizer.model_max_length,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def _write_processor(folder: Path) -> None:
    common = {
        "do_resize": True,
        "size": {"shortest_edge": NATIVE * NATIVE, "longest_edge": NATIVE * NATIVE},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [MEAN] * 3,
        "image_std": [STD] * 3,
        "do_convert_rgb": True,
        "patch_size": PATCH,
        "temporal_patch_size": TEMPORAL,
        "merge_size": MERGE,
    }
    image = common | {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    video = common | {
        "video_processor_type": "Qwen2VLVideoProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "do_sample_frames": False,
        "min_frames": 2,
        "max_frames": 100000,
    }
    for name, settings in (("preprocessor_config", image), ("video_preprocessor_config", video)):
        (folder / f"{name}.json").write_text(json.dumps(settings, indent=2) + "\n")
