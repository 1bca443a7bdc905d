"""The worked example of docs/adding-a-backbone.md, as another package would ship it."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from tests.conftest import byte_tokenizer
from tests.families.models import FIXED, VICUNA, Made, built, text_config
from videox2l import ArraySource, VideoX2L
from videox2l.conformance import assert_conforms

DOC = Path(__file__).parents[2] / "docs" / "adding-a-backbone.md"


def make_video_llava() -> Made:
    from transformers import VideoLlavaConfig, VideoLlavaForConditionalGeneration

    special = ["<|endoftext|>", "</s>", "<|im_end|>", "<image>", "<video>"]
    tokenizer = byte_tokenizer(special, VICUNA)
    tokenizer.eos_token = "</s>"
    config = VideoLlavaConfig(
        text_config=text_config(tokenizer, "llama"),
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
            "projection_dim": 16,
            "initializer_range": 0.25,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_seq_length=17,
        video_seq_length=17,
        tie_word_embeddings=False,
    )
    video = {**FIXED, "size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    return built(VideoLlavaForConditionalGeneration, config, tokenizer, video)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example, installed with its entry point; its module."""
    text = DOC.read_text(encoding="utf-8")
    code, entry = (re.findall(rf"```{kind}\n(.*?)```", text, re.S)[0] for kind in ("python", "toml"))
    site = tmp_path / "site"
    info = site / "my_package-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "my_package.py").write_text(code)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    name, value = re.findall(r'(\w+) = "(.*)"', entry)[0]
    (info / "entry_points.txt").write_text(f"[videox2l.backbones]\n{name} = {value}\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "my_package", raising=False)
    return importlib.import_module("my_package")


def test_the_example_conforms(package: Any) -> None:
    model, processor = make_video_llava()
    assert_conforms(package.VideoLlavaBackbone(model, processor.tokenizer, processor.video_processor))


def test_the_example_is_found_by_its_entry_point(package: Any, tmp_path: Path, video: np.ndarray) -> None:
    model, processor = make_video_llava()
    expect = VideoX2L.from_model(model, processor)
    assert type(expect.backbone) is package.VideoLlavaBackbone
    if int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("the Auto class of transformers 4 does not know this family")
    model.save_pretrained(tmp_path / "model")
    processor.tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "video_preprocessor_config.json").write_text(json.dumps(processor.video_processor))
    loaded = VideoX2L.from_pretrained(str(tmp_path / "model"))
    answers = [x2l.ask(x2l.ingest(ArraySource(video)), "Who?", max_new_tokens=4).ids for x2l in (expect, loaded)]
    assert answers[0] == answers[1]
