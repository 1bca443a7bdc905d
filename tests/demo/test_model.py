"""The shipped model folder: loads like any checkpoint, is small, and speaks its template."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from training.evaluate import MODEL, evaluate_model
from videox2l.demo.questions import make_questions
from videox2l.demo.tokens import SPECIAL, WORDS, build_tokenizer
from videox2l.demo.world import make_video


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


def test_folder_is_small_and_complete() -> None:
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 8 * 2**20
    video = json.loads((MODEL / "video_preprocessor_config.json").read_text())
    assert (video["patch_size"], video["temporal_patch_size"], video["merge_size"]) == (8, 2, 2)
    assert video["size"] == {"shortest_edge": 2304, "longest_edge": 2304}


def test_config_speaks_to_both_majors_of_transformers() -> None:
    text = json.loads((MODEL / "config.json").read_text())["text_config"]
    assert text["rope_theta"] == text["rope_parameters"]["rope_theta"]
    assert text["rope_scaling"]["mrope_section"] == text["rope_parameters"]["mrope_section"]
    config = AutoConfig.from_pretrained(MODEL)
    assert config.vision_config.tokens_per_second == 1
    assert SPECIAL[config.video_token_id] == "<|video_pad|>"
    assert SPECIAL[config.vision_start_token_id] == "<|vision_start|>"


def test_weights_load_whole() -> None:
    model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        MODEL, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values())
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert model.generation_config.eos_token_id == SPECIAL.index("<|im_end|>")
    assert not model.generation_config.do_sample


def test_every_question_is_in_the_vocabulary(tokenizer: Any) -> None:
    for seed in range(30):
        for question in make_questions(make_video(seed, 64), np.random.default_rng(seed), 8):
            ids = tokenizer(f"{question.question} {question.answer}")["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == f"{question.question} {question.answer}"


def test_shipped_tokenizer_is_the_one_in_the_code(tokenizer: Any) -> None:
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
    assert len(set(WORDS)) == len(WORDS)


def test_case_punctuation_and_unknown_words(tokenizer: Any) -> None:
    ids = tokenizer("What digit appears with the RED star?\n\nzebra")["input_ids"]
    assert tokenizer.decode(ids) == "what digit appears with the red star ? <|unk|>"
    assert tokenizer.decode(ids, skip_special_tokens=True).endswith("?")


def test_template_takes_parts_and_plain_text_over_several_turns(tokenizer: Any) -> None:
    content = [{"type": "video"}, {"type": "text", "text": "does a red star appear ?"}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    once = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert once == (
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>does a red star appear ?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert tokenizer.convert_ids_to_tokens(tokenizer(once)["input_ids"])[-1] == "assistant"
    messages += [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "when ?"}]
    twice = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert twice == once + "yes<|im_end|>\n<|im_start|>user\nwhen ?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.slow
def test_it_answers_better_than_chance() -> None:
    counts = evaluate_model(MODEL, [16], 12, split="dev")
    right, n = (sum(values) for values in zip(*counts.values(), strict=True))
    assert right / n > 0.7
