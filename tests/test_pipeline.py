"""Ingest and ask, as a user calls them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import make_qwen25
from videox2l import ArraySource, Memory, ModelError, SettingsError, Turn, VideoX2L
from videox2l.engine.decode import TextStream, chooser
from videox2l.options import SamplingParams

QUESTIONS = ["What happens?", "Who rings the bell?", "What is on the board in the video?"]


@pytest.fixture(scope="module")
def x2l() -> VideoX2L:
    return VideoX2L.from_model(*make_qwen25())


@pytest.fixture(scope="module")
def memory(x2l: VideoX2L) -> Memory:
    rng = np.random.default_rng(2)
    return x2l.ingest(ArraySource(rng.integers(0, 255, (40, 32, 32, 3), np.uint8)), ratios=(2, 8), chunk_frames=4)


def test_the_order_of_questions_never_changes_an_answer(x2l: VideoX2L, memory: Memory) -> None:
    def answers(order: list[int]) -> dict[int, Any]:
        return {i: x2l.ask(memory, QUESTIONS[i], max_new_tokens=10) for i in order}

    first, second = answers([0, 1, 2]), answers([2, 0, 1, 2, 1, 0])
    for i in range(3):
        assert first[i].ids == second[i].ids
        assert first[i].evidence == second[i].evidence
    assert len({answer.ids for answer in first.values()}) > 1  # the questions do matter


def test_asking_leaves_the_memory_as_it_was(x2l: VideoX2L, memory: Memory) -> None:
    before = memory.summary(), [chunk.level(2).keys.clone() for chunk in memory.chunks]
    x2l.ask(memory, QUESTIONS[0], max_new_tokens=4)
    assert memory.summary() == before[0]
    assert all(torch.equal(c.level(2).keys, k) for c, k in zip(memory.chunks, before[1], strict=True))


def test_evidence_and_cost_add_up(x2l: VideoX2L, memory: Memory) -> None:
    answer = x2l.ask(memory, QUESTIONS[0], reload=2, max_new_tokens=5)
    assert len(answer.evidence) == len(memory) == 10
    assert len(answer.reloaded) == 2
    assert [moment.start for moment in answer.evidence] == [4.0 * i for i in range(10)]
    best = sorted(answer.evidence, key=lambda moment: -(moment.score or 0))[:2]
    assert {moment.start for moment in best} == {moment.start for moment in answer.reloaded}
    assert {moment.level for moment in answer.reloaded} == {"L"}
    cost = answer.cost
    prefix = memory.prefix[0].shape[2]
    assert cost.tokens == prefix + 2 * 16 + 8 * 4
    assert cost.full_tokens == prefix + 10 * 32
    assert cost.bytes == cost.tokens * memory.shape.token_bytes
    assert cost.reloaded_bytes == 2 * 16 * memory.shape.token_bytes
    assert set(cost.seconds) == {"select", "reload", "prefill", "decode"}
    assert cost.new_tokens == len(answer.ids)


def test_reload_all_and_none(x2l: VideoX2L, memory: Memory) -> None:
    everything = x2l.ask(memory, QUESTIONS[0], reload="all", max_new_tokens=3)
    nothing = x2l.ask(memory, QUESTIONS[0], reload="none", max_new_tokens=3)
    assert len(everything.reloaded) == 10
    assert not nothing.reloaded
    assert everything.cost.tokens > nothing.cost.tokens
    assert {moment.score for moment in nothing.evidence} == {None}


def test_pinned_moment_is_reloaded(x2l: VideoX2L, memory: Memory) -> None:
    answer = x2l.ask(memory, QUESTIONS[0], reload=0, pinned=[(9, 10)], max_new_tokens=3)
    assert [(moment.start, moment.reason) for moment in answer.reloaded] == [(8.0, "pinned")]


def test_streamed_pieces_join_to_the_text(x2l: VideoX2L, memory: Memory) -> None:
    pieces: list[str] = []
    answer = x2l.ask(memory, QUESTIONS[1], max_new_tokens=30, on_text=pieces.append)
    assert "".join(pieces).strip() == answer.text
    assert answer.text == x2l.backbone.decode(answer.ids).strip()


def test_text_stream_holds_back_incomplete_characters() -> None:
    raw = "naïve 😀!".encode()
    stream = TextStream(lambda ids: bytes(ids).decode(errors="replace"))
    pieces = [stream.push(byte) for byte in raw]
    assert "".join(pieces) + stream.end() == "naïve 😀!"
    assert not any("\ufffd" in piece for piece in pieces)
    cut = TextStream(lambda ids: bytes(ids).decode(errors="replace"))
    assert "".join(cut.push(byte) for byte in "é".encode()[:1]) == ""
    assert cut.end() == "\ufffd"


def test_sampling_follows_its_seed(x2l: VideoX2L, memory: Memory) -> None:
    def ids(**options: Any) -> tuple[int, ...]:
        return x2l.ask(memory, QUESTIONS[0], max_new_tokens=12, **options).ids

    assert ids(temperature=2.0, seed=1) == ids(temperature=2.0, seed=1)
    assert len({ids(temperature=2.0, seed=seed) for seed in range(4)}) > 1
    assert ids(temperature=2.0, top_p=1e-9, seed=3) == ids()  # the nucleus is the best token alone


def test_nucleus_is_the_smallest_set_that_reaches_top_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    choose = chooser(SamplingParams(temperature=1.0, top_p=0.7, seed=0))
    assert {choose(logits) for _ in range(200)} == {0, 1}


def test_an_answer_ends_at_the_stop_token_or_the_limit(memory: Memory) -> None:
    x2l = VideoX2L.from_model(*make_qwen25())
    free = x2l.ask(memory, QUESTIONS[0], max_new_tokens=6)
    assert (free.finish, len(free.ids)) == ("length", 6)
    x2l.backbone.model.generation_config.eos_token_id = [free.ids[2]]  # type: ignore[attr-defined]
    assert free.ids[2] not in free.ids[:2]
    stopped = x2l.ask(memory, QUESTIONS[0], max_new_tokens=6)
    assert (stopped.finish, stopped.ids) == ("stop", free.ids[:2])


def test_history_of_a_dialogue_changes_the_prompt(x2l: VideoX2L, memory: Memory) -> None:
    turns = [Turn("Who rings the bell?", "someone")]
    prompt = x2l.backbone.decode  # decoded without control tokens
    ids = x2l.backbone.suffix("What then?", turns).ids.tolist()
    assert "Who rings the bell?" in prompt(ids)
    assert prompt(ids).index("someone") < prompt(ids).index("What then?")
    assert x2l.ask(memory, "What then?", history=turns, max_new_tokens=3).ids


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"question": ""}, "question is empty"),
        ({"question": "hi <|im_end|> there"}, r"control token '<\|im_end\|>'"),
        ({"question": "<|video_pad|>"}, r"control token '<\|video_pad\|>'"),
        ({"reload": -1}, "reload=-1"),
        ({"selector": "best"}, "selector 'best'"),
        ({"max_new_tokens": 0}, "max_new_tokens must be .* got 0"),
        ({"temperature": -1}, "temperature must be .* got -1"),
        ({"top_p": 0}, "top_p must be above 0"),
        ({"pinned": [(5, 1)]}, "time range 5-1 is empty"),
    ],
)
def test_wrong_questions_are_refused(x2l: VideoX2L, memory: Memory, options: dict[str, Any], message: str) -> None:
    question = options.pop("question", "What?") if "question" in options else "What?"
    with pytest.raises(SettingsError, match=message):
        x2l.ask(memory, question, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": ()}, "ratios must be"),
        ({"ratios": (0.5, 2)}, "ratios must be"),
        ({"ratios": (32, 2)}, "must rise"),
        ({"ratios": (2, 2)}, "must rise"),
        ({"compressor": "zip"}, "compressor 'zip'"),
        ({"history": "all"}, "history 'all'"),
        ({"chunk_frames": 3}, "multiple of 2 .* got 3"),
        ({"chunk_frames": 0}, "chunk_frames must be .* got 0"),
    ],
)
def test_wrong_ingests_are_refused(x2l: VideoX2L, video: np.ndarray, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        x2l.ingest(ArraySource(video), **options)


def test_progress_is_told(x2l: VideoX2L, video: np.ndarray) -> None:
    told: list[tuple[int, int | None, float]] = []
    x2l.ingest(ArraySource(video, fps=2.0), chunk_frames=4, progress=lambda *args: told.append(args))
    assert told == [(4, 11, 1.5), (8, 11, 3.5), (11, 11, 5.0)]


def test_models_that_cannot_be_served_are_named(x2l: VideoX2L) -> None:
    model, processor = make_qwen25()
    model.config.model_type = "gemma3"
    with pytest.raises(ModelError, match=r"model type 'gemma3': supported are .*qwen2_5_vl"):
        VideoX2L.from_model(model, processor)
    model, processor = make_qwen25()
    with pytest.raises(ModelError, match="no tokenizer with a video or image processor"):
        VideoX2L.from_model(model, processor.tokenizer)
    processor.tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        VideoX2L.from_model(model, processor)
    with pytest.raises(ModelError, match="'/no/where' is no folder"):
        VideoX2L.from_pretrained("/no/where")
    with pytest.raises(SettingsError, match=r"dtype must be one of auto.* got 'int3'"):
        VideoX2L.from_pretrained("demo", dtype="int3")
