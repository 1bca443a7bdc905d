"""Promise 1: everything kept and re-loaded equals the stock model's own pass over the whole prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import FAMILIES
from videox2l import VideoX2L
from videox2l.backbones.frames import stack
from videox2l.memory import Plan, build_cache
from videox2l.video import ArraySource

QUESTION = "What happens in the video?"
NEW = 12


CHAT = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}]


def stock_inputs(
    family: str, model: Any, processor: Any, video: np.ndarray, fps: float, chat: Any = CHAT
) -> dict[str, Any]:
    """What a user of plain transformers would give the model: ids with placeholders, pixels, positions.

    Pixels come from the package's preprocessing (compared with the library's in test_frames); everything after it
    is the stock model's own: placeholders, front end, one forward pass. The positions of Qwen2.5-VL are written out
    here by the rule in its documentation, token by token.
    """
    x2l = VideoX2L.from_model(model, processor)
    tokenizer = processor.tokenizer
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    pixels = x2l.backbone.vision.frames(stack(list(video)))
    if family == "llava_onevision":
        n = len(video) * 9 + 1
        text = text.replace("<video>", "<video>" * n)
        return {"input_ids": tokenizer(text, return_tensors="pt").input_ids, "pixel_values_videos": pixels[None]}
    patches, grid = pixels
    t, gh, gw = grid
    h, w = gh // 2, gw // 2
    ids = tokenizer(text.replace("<|video_pad|>", "<|video_pad|>" * (t * h * w)), return_tensors="pt").input_ids
    step = 2 / fps * model.config.vision_config.tokens_per_second
    rows: list[tuple[int, int, int]] = []
    at, group = 0, 0
    for token in ids[0].tolist():
        if token == model.config.video_token_id:
            i, rest = divmod(group, h * w)
            rows.append((at + int(i * step), at + rest // w, at + rest % w))
            group += 1
            if group == t * h * w:
                at = max(max(row) for row in rows) + 1
        else:
            rows.append((at, at, at))
            at += 1
    return {
        "input_ids": ids,
        "pixel_values_videos": patches,
        "video_grid_thw": torch.tensor([grid]),
        "position_ids": torch.tensor(rows).T[:, None],
    }


@torch.no_grad()
def stock_run(family: str, video: np.ndarray, fps: float, chat: Any = CHAT) -> tuple[torch.Tensor, list[int]]:
    """Logits of the last prompt token, and greedy ids by recomputing the whole sequence for every token."""
    model, processor = FAMILIES[family]()
    inputs = stock_inputs(family, model, processor, video, fps, chat)
    model.get_decoder().set_attn_implementation("eager")
    logits, ids = [], []
    for _ in range(NEW):
        out = model(**inputs, use_cache=False).logits[0, -1]
        logits.append(out)
        ids.append(int(out.argmax()))
        token = torch.tensor([[ids[-1]]])
        inputs["input_ids"] = torch.cat((inputs["input_ids"], token), 1)
        if "position_ids" in inputs:
            last = inputs["position_ids"][..., -1:] + 1
            inputs["position_ids"] = torch.cat((inputs["position_ids"], last), -1)
    return torch.stack(logits), ids


def our_logits(x2l: VideoX2L, memory: Any, shift: int = 0) -> torch.Tensor:
    backbone = x2l.backbone
    mixed = build_cache(memory, Plan.at([memory.finest] * len(memory)), backbone)
    prompt = backbone.suffix(QUESTION)
    positions = backbone.text_positions(mixed.next_position + shift, len(prompt))
    return backbone.logits(backbone.forward(prompt.embeds, positions, mixed.cache))[-1]


@pytest.mark.parametrize("history", ["L", "H", "recent:2", "own"])
@pytest.mark.parametrize("chunk_frames", [4, 8])
def test_ratio_one_equals_the_stock_model(family: str, video: np.ndarray, history: str, chunk_frames: int) -> None:
    stock_logits, stock_ids = stock_run(family, video, fps=1.0)
    x2l = VideoX2L.from_model(*FAMILIES[family]())
    memory = x2l.ingest(ArraySource(video, fps=1.0), ratios=(1,), history=history, chunk_frames=chunk_frames)
    assert len(memory) == -(-len(video) // chunk_frames)

    ours = our_logits(x2l, memory)
    assert (ours - stock_logits[0]).abs().max() < 1e-4
    assert (our_logits(x2l, memory, shift=1) - stock_logits[0]).abs().max() > 0.1  # the negative control

    assert list(_ask_without_stop(x2l, memory)) == stock_ids


def _ask_without_stop(x2l: VideoX2L, memory: Any) -> tuple[int, ...]:
    x2l.backbone.model.generation_config.eos_token_id = None
    x2l.backbone.tokenizer.eos_token = None
    return x2l.ask(memory, QUESTION, reload="all", max_new_tokens=NEW).ids
