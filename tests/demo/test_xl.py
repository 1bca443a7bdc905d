"""The masked pass that demo-xl is trained with equals prefill, mixing and asking chunk by chunk."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from training.geometry import demo_config
from training.summary import Prompt, SummaryScene, begin, draw_scene, export_summary_model, forward, pack
from videox2l import ArraySource, VideoX2L
from videox2l.compress import ChunkEncoder, History, SummaryTokenCompressor
from videox2l.demo.questions import WorldQuestion, make_questions
from videox2l.demo.world import make_video
from videox2l.demo.xl import load_demo_xl
from videox2l.memory import Chunk, Memory, build_cache, uniform_plan
from videox2l.types import TextTokens, VisualTokens

QUESTIONS = [
    WorldQuestion("what digit appears with the red star ?", "7", "digit", (((0, 1),),)),
    WorldQuestion("does a blue circle appear ?", "no", "presence"),
    WorldQuestion("which appears first , the red star or the blue circle ?", "red star", "order", (((0, 1),),)),
]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    found = begin(Qwen2_5_VLForConditionalGeneration(demo_config())).eval()
    for name, weight in found.named_parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.2 if "embed" in name else 0.12)
    found.lm_head.weight.data.copy_(found.model.embed_tokens.weight)
    return found


@torch.no_grad()
@pytest.mark.parametrize(("ratio", "sizes"), [(2, [36, 36, 18]), (8, [36, 36, 36]), (5, [18, 18, 18, 9])])
def test_training_and_asking_compute_the_same(ratio: int, sizes: list[int], model: Any, tmp_path: Any) -> None:
    export_summary_model(model, tmp_path)
    eyes: Any = VideoX2L.from_pretrained("demo", device="cpu").backbone
    backbone = load_demo_xl(eyes, torch.float32, tmp_path)
    prompt = Prompt()
    features = torch.randn(sum(sizes), 128) * 0.3
    compressor = SummaryTokenCompressor(end_ratio=None)
    encoder = ChunkEncoder(backbone, compressor, (float(ratio),), History.parse("own"))
    prefix = backbone.prefix()
    assert prefix.ids.tolist() == prompt.prefix
    memory = Memory({}, {}, {}, backbone.shape, (float(ratio),), encoder.prefix(prefix), len(prefix), "compact")
    layouts, before = [], 0
    for i, rows in enumerate(features.split(sizes)):
        at = torch.arange(before, before + len(rows))[None]
        tokens = VisualTokens(rows, at, (len(rows) // 9, 3, 3))
        memory.add(Chunk(float(i), i + 1.0, 2, at, encoder.add(tokens)))
        before += len(rows)
        level = memory.chunks[-1].level(ratio)
        first = int(level.index[0, 0, 0]) + 1
        layouts.append(type(compressor.layout(tokens, ratio, _task(sizes[:i])))(ratio, first, len(level)))
    scene = SummaryScene(len(prefix), sizes, layouts)

    talks = pack(prompt, [[[QUESTIONS[0]], [QUESTIONS[1]], [QUESTIONS[2], QUESTIONS[0]]]])
    found = model_logits(backbone.model, scene, features, talks, prefix)
    answers = (talks.labels >= 0).sum()
    assert found.shape == (answers, model.config.vocab_size)
    expect = []
    for turns in ([QUESTIONS[0]], [QUESTIONS[1]], [QUESTIONS[2], QUESTIONS[0]]):
        mixed = build_cache(memory, uniform_plan(memory, ratio), backbone)
        ids, turn = prompt.talk(turns)
        if len(turns) == 1:
            asked = backbone.suffix(turns[0].question).ids.tolist()
            assert ids[: len(asked)] == asked
        positions = backbone.text_positions(mixed.next_position, len(ids))
        hidden = backbone.forward(backbone.embed(torch.tensor(ids)), positions, mixed.cache)
        rows = [i - 1 for i, t in enumerate(turn) if t >= 0]
        expect.append(backbone.logits(hidden[rows]))
    torch.testing.assert_close(found, torch.cat(expect), atol=2e-3, rtol=1e-3)
    shifted = SummaryScene(len(prefix), sizes, [type(x)(x.ratio, max(1, x.first - 1), x.count) for x in layouts])
    assert (model_logits(backbone.model, shifted, features, talks, prefix) - found).abs().max() > 0.05  # the control


def model_logits(
    model: Any, scene: SummaryScene, features: torch.Tensor, talks: Any, prefix: TextTokens
) -> torch.Tensor:
    return forward(model, scene, features[None], talks, prefix.ids)


def _task(before: list[int]) -> Any:
    from videox2l.compress import ChunkContext

    return ChunkContext(tuple(before))


def test_scenes_keep_something_of_every_chunk() -> None:
    for seed in range(200):
        scene = draw_scene(np.random.default_rng(seed), 9 * (1 + seed % 40), 10)
        assert all(layout.count > 0 and layout.first > 0 for layout in scene.layouts)
        visual, summary, of_visual, of_summary = scene.places()
        assert len(visual) == scene.visual == 9 * (1 + seed % 40)
        assert len(summary) == len(of_summary) == scene.summaries
        for i in range(len(scene.chunks)):
            places = torch.cat((visual[of_visual == i], summary[of_summary == i])).sort().values
            assert torch.equal(places, scene.starts()[i] + torch.arange(len(places)))  # no gaps, nothing twice


def test_the_shipped_model_answers_from_summary_tokens() -> None:
    """Digits at two levels, the event's chunk among the re-loaded ones or not; without the video it is chance."""
    x2l = VideoX2L.from_pretrained("demo-xl", device="cpu")
    right = {"own": 0, "fused": 0, "nothing": 0}
    asked = 0
    for seed in range(4):
        video = make_video(seed, 32, "dev")
        questions = make_questions(video, np.random.default_rng(seed), 4, {"digit": 1.0})
        asked += len(questions)
        pictures = video.render()
        for history in ("own", "fused"):
            memory = x2l.ingest(ArraySource(pictures), history=history)
            assert memory.settings["compressor"] == "summary"
            for question in questions:
                answer = x2l.ask(memory, question.question, reload=1, max_new_tokens=4)
                right[history] += answer.text == question.answer
        empty = dataclasses.replace(memory, chunks=[])
        right["nothing"] += sum(
            x2l.ask(empty, q.question, reload="none", max_new_tokens=4).text == q.answer for q in questions
        )
    assert asked >= 12
    assert min(right["own"], right["fused"]) >= 0.7 * asked
    assert right["nothing"] <= 0.4 * asked
