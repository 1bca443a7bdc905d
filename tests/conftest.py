"""Tiny random models with real tokenizers and chat templates; no files, no network."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

_VERDICTS = tempfile.TemporaryDirectory(prefix="videox2l-tests-")  # of tiny models
os.environ["VIDEOX2L_CACHE"] = _VERDICTS.name

torch.set_num_threads(1)  # tiny tensors: threads only wait for each other

QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'video' %}VIDEO{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "What happens in the video? The bell rings, and someone writes on the board.",
    "red star blue circle 0123456789",
]


def byte_tokenizer(special: list[str], template: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=template
    )


def qwen_video_config(**changes: Any) -> dict[str, Any]:
    config = {
        "patch_size": 4,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
        "size": {"shortest_edge": 16 * 16, "longest_edge": 32 * 32},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
    }
    return {**config, **changes}


def make_qwen25(seed: int = 0, *, layers: int = 3, theta: float = 1e6) -> tuple[Any, Any]:
    """A Qwen2.5-VL whose weights are large enough that wrong positions show."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"]
    template = QWEN_TEMPLATE.replace("VIDEO", "<|vision_start|><|video_pad|><|vision_end|>")
    tokenizer = byte_tokenizer(special, template)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in special}
    rope = {"rope_type": "default", "type": "default", "mrope_section": [2, 3, 3]}
    text = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 4096,
        "rope_theta": theta,
        "rope_scaling": rope,
        "rope_parameters": {**rope, "rope_theta": theta},
        "initializer_range": 0.25,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 64,
        "window_size": 16,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
        "initializer_range": 0.25,
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        video_token_id=ids["<|video_pad|>"],
        image_token_id=ids["<|endoftext|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        initializer_range=0.25,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config).eval().float()
    return model, SimpleNamespace(tokenizer=tokenizer, video_processor=qwen_video_config())


def make_llava_onevision(seed: int = 0) -> tuple[Any, Any]:
    """A LLaVA-OneVision (Qwen2 decoder) with 3 x 3 pooled tokens per frame."""
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
    tokenizer = byte_tokenizer(special, QWEN_TEMPLATE.replace("VIDEO", "<video>\n"))
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in special}
    config = LlavaOnevisionConfig(
        text_config={
            "model_type": "qwen2",
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
            "eos_token_id": ids["<|im_end|>"],
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 24,
            "patch_size": 4,
            "vision_use_head": False,
        },
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
        image_token_id=ids["<image>"],
        video_token_id=ids["<video>"],
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = LlavaOnevisionForConditionalGeneration(config).eval().float()
    torch.nn.init.normal_(model.model.image_newline, std=0.5)
    video = {
        "size": {"height": 24, "width": 24},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
    }
    return model, SimpleNamespace(tokenizer=tokenizer, video_processor=video)


def make_video_xl(seed: int = 0, *, layers: int = 3, beacons: str = "qkv") -> tuple[Any, Any]:
    """A Video-XL with 2 x 2 pooled tokens per frame."""
    from transformers import CLIPVisionConfig

    from videox2l.backbones.video_xl_model import VideoXLConfig, VideoXLForCausalLM

    tokenizer = byte_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "set by the backbone")
    config = VideoXLConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=4096,
        rope_theta=1e6,
        initializer_range=0.25,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
    )
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=1,
        image_size=16,
        patch_size=4,
        hidden_act="quick_gelu",
    )
    torch.manual_seed(seed)
    model = VideoXLForCausalLM(config, tuple(beacons), vision).eval().float()
    for name, weight in model.named_parameters():
        if "beacon" in name or "mm_projector" in name:
            torch.nn.init.normal_(weight, std=0.25)
    image = {
        "size": {"shortest_edge": 16},
        "crop_size": {"height": 16, "width": 16},
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
    }
    return model, SimpleNamespace(tokenizer=tokenizer, image_processor=image)


FAMILIES = {"qwen2_5_vl": make_qwen25, "llava_onevision": make_llava_onevision}


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """The name of each supported family in turn."""
    return str(request.param)


@pytest.fixture
def model_and_processor(family: str) -> tuple[Any, Any]:
    """A fresh tiny model of the family."""
    return FAMILIES[family]()


@pytest.fixture
def video() -> np.ndarray:
    """Eleven frames of smooth noise, (11, 40, 56, 3) uint8: no chunk size divides eleven."""
    rng = np.random.default_rng(7)
    coarse = torch.from_numpy(rng.random((11, 3, 5, 7), dtype=np.float32))
    fine = torch.nn.functional.interpolate(coarse, size=(40, 56), mode="bilinear")
    return (fine * 255).round().byte().permute(0, 2, 3, 1).numpy()


S3_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket at an S3-compatible server on this machine."""
    if not all(importlib.util.find_spec(name) for name in ("s3fs", "moto", "flask")):
        pytest.skip("s3fs and moto[server] are not installed")
    import s3fs

    keep = {name: os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL")}
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", S3_SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{int(server.stdout.readline())}",
        }
        s3fs.S3FileSystem.clear_instance_cache()
        for _ in range(50):
            try:
                s3fs.S3FileSystem().mkdir("memories")
                break
            except Exception:  # the server is starting
                time.sleep(0.1)
        yield "s3://memories"
    finally:
        server.stdin.close()
        server.wait(20)
        server.stdout.close()
        for name, value in keep.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
