"""Generation settings of a checkpoint are served as `generate` serves them, or refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import GenerationConfig

from tests.conftest import make_qwen25
from videox2l import ArraySource, ModelError, SettingsError, VideoX2L

QUESTION = "What happens?"
NEW = 16
FRAMES = np.random.default_rng(0).integers(0, 255, (8, 56, 56, 3), np.uint8)


def made(**generation: Any) -> tuple[VideoX2L, Any]:
    model, processor = make_qwen25()
    model.generation_config = GenerationConfig(eos_token_id=[0, 2], pad_token_id=0, **generation)
    return VideoX2L.from_model(model, processor), model


def ours(x2l: VideoX2L, **options: Any) -> list[int]:
    memory = x2l.ingest(ArraySource(FRAMES), ratios=(1,))
    return list(x2l.ask(memory, QUESTION, reload="all", max_new_tokens=NEW, **options).ids)


def stock(x2l: VideoX2L, model: Any) -> list[int]:
    backbone: Any = x2l.backbone
    frames = list(FRAMES)
    inputs = backbone.stock_inputs(frames, [float(i) for i in range(len(frames))], QUESTION)
    backbone.attend_with("eager")
    mask = torch.ones_like(inputs["input_ids"])
    out = model.generate(**inputs, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
    backbone.attend_with("x2l")
    ids = out[0, inputs["input_ids"].shape[1] :].tolist()
    ends = [i for i, token in enumerate(ids) if token in (0, 2)]
    return ids[: ends[0]] if ends else ids


PLAIN = ours(made()[0])


@pytest.mark.parametrize(
    "generation",
    [
        {"repetition_penalty": 1.7},
        {"suppress_tokens": [PLAIN[0], PLAIN[3]]},
        {"begin_suppress_tokens": [PLAIN[0]]},
        {"bad_words_ids": [[PLAIN[1]], [PLAIN[4], PLAIN[5]]]},
        {"no_repeat_ngram_size": 1},
        {"sequence_bias": [[[PLAIN[2]], -50.0]]},
        {"min_new_tokens": 8, "suppress_tokens": [PLAIN[1]]},
    ],
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(transformers.__version__ < "5", reason="generate of 4.57 does not go on with positions it is given")
def test_greedy_is_that_of_generate(generation: dict[str, Any]) -> None:
    x2l, model = made(**generation)
    found = ours(x2l)
    assert found == stock(x2l, model)
    if "repetition_penalty" not in generation and "no_repeat_ngram_size" not in generation:
        assert found != PLAIN  # the control: without it the answer is another one


def test_options_come_before_the_checkpoint() -> None:
    x2l, _ = made(repetition_penalty=1.7)
    assert ours(x2l, repetition_penalty=1.0) == PLAIN
    plain, _ = made()
    assert len(set(ours(plain, presence_penalty=2.0))) >= len(set(PLAIN))
    one = ours(plain, temperature=5.0, top_k=1, seed=3)
    assert one == PLAIN  # the likeliest token alone
    assert ours(plain, temperature=50.0, seed=3) != PLAIN
    assert ours(plain, temperature=50.0, seed=3, min_p=1.0) == PLAIN
    narrow, _ = made(top_k=1)
    assert ours(narrow, temperature=50.0, seed=3) == PLAIN  # the checkpoint's own


@pytest.mark.parametrize(("field", "value"), [("num_beams", 4), ("guidance_scale", 2.0), ("stop_strings", ["x"])])
def test_what_is_not_served_is_refused(field: str, value: Any) -> None:
    x2l, _ = made(**{field: value})
    with pytest.raises(SettingsError, match=f"generation config asks for {field}="):
        ours(x2l)


def test_logits_that_are_not_finite_are_an_error() -> None:
    x2l, model = made()
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    with pytest.raises(ModelError, match=r"not finite, or all the same: fetch the model again"):
        ours(x2l)


@pytest.mark.parametrize("layer", [0, 1])
def test_kvs_that_are_not_finite_name_chunk_and_layer(layer: int) -> None:
    x2l, model = made()
    with torch.no_grad():
        model.model.language_model.layers[layer].self_attn.v_proj.weight[0, 0] = float("inf")
    with pytest.raises(ModelError, match=rf"layer {layer} .* not finite"):
        x2l.ingest(ArraySource(FRAMES))


def test_frames_that_are_not_finite_as_tokens_are_an_error() -> None:
    x2l, model = made()
    with torch.no_grad():
        model.model.visual.patch_embed.proj.weight[0] = float("nan")
    with pytest.raises(ModelError, match="visual tokens of chunk 0 are not finite"):
        x2l.ingest(ArraySource(FRAMES))
