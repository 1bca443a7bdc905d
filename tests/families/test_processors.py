"""Prompt and pixels of every family against what the library's own processor makes of the same chat and clip.

The stored outputs are those of transformers 5.23 with torchvision 0.28 (`tests/data/make_hf_processors.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.families.models import MAKERS, needs
from tests.families.processors import PROCESSORS, QUESTION
from videox2l import VideoX2L
from videox2l.types import VideoInfo

DATA = Path(__file__).parent.parent / "data"
GOLDEN = load_file(DATA / "hf_processors.safetensors")
PTS = [0.0, 0.5, 1.0, 1.5, 2.0]


def ours(family: str) -> tuple[Any, dict[str, Tensor]]:
    backbone: Any = VideoX2L.from_model(*MAKERS[family]()).backbone
    frames = [frame.permute(1, 2, 0).numpy() for frame in GOLDEN["video"]]
    return backbone, backbone.stock_inputs(frames, PTS, QUESTION, (), VideoInfo(5, 2.5))


def as_the_authors_wrote(backbone: Any, ids: Tensor) -> Tensor:
    """Leave out the marks around a whole Qwen3-VL video, which processors of transformers 5 do not take away."""
    text = ids[0].tolist()
    start, end = backbone.model.config.vision_start_token_id, backbone.model.config.vision_end_token_id
    text.remove(start)
    del text[len(text) - 1 - text[::-1].index(end)]
    return torch.tensor([text])


@pytest.mark.parametrize("family", sorted(PROCESSORS))
def test_equals_the_librarys_processor(family: str) -> None:
    needs(family)
    backbone, made = ours(family)
    ids = GOLDEN[f"{family}.input_ids"]
    if family == "qwen3_vl":
        ids = as_the_authors_wrote(backbone, ids)
    assert backbone.tokenizer.decode(made["input_ids"][0]) == backbone.tokenizer.decode(ids[0])
    assert torch.equal(made["input_ids"], ids)
    for name in PROCESSORS[family].tensors:
        assert torch.equal(made[name], GOLDEN[f"{family}.{name}"]), name


def test_qwen3_vl_prompts_are_those_of_transformers_4_57() -> None:
    """The release that came with the model puts no marks around the whole video; those since do."""
    old = load_file(DATA / "hf_processors_4_57.safetensors")["qwen3_vl.input_ids"]
    backbone, made = ours("qwen3_vl")
    assert torch.equal(made["input_ids"], old)
    assert torch.equal(as_the_authors_wrote(backbone, GOLDEN["qwen3_vl.input_ids"]), old)
    assert GOLDEN["qwen3_vl.input_ids"].shape[1] == old.shape[1] + 2
