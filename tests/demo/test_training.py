"""The training code computes what the stock model computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import Qwen2_5_VLForConditionalGeneration

from training.bank import GridBank
from training.batches import Packer
from training.evaluate import interval
from training.forward import decode, encode_grids
from training.geometry import demo_config, patchify, video_positions
from training.language import LanguagePhase, Stage, pair_up
from training.loop import Schedule, finished, run_phase
from training.vision import VisionPhase, make_clip
from videox2l.demo.questions import make_questions
from videox2l.demo.world import make_video

pytestmark = pytest.mark.skipif(transformers.__version__ < "5", reason="the trainer is written for transformers 5")


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(demo_config()).eval()


@torch.no_grad()
def test_vision_tower_is_the_stock_one(model: Any) -> None:
    patches = patchify(torch.from_numpy(make_video(0, 8).render()))
    stock = model.model.visual(patches.flatten(0, 1), torch.tensor([[4, 6, 6]])).pooler_output
    assert torch.allclose(encode_grids(model.model.visual, patches).flatten(0, 1), stock, atol=1e-5)


@torch.no_grad()
def test_questions_in_one_batch_do_not_see_each_other(model: Any) -> None:
    """Each conversation gets the logits that the stock model gives to it alone."""
    video, rng, packer = make_video(3, 8), np.random.default_rng(0), Packer()
    talks = pair_up(make_questions(video, rng, 6), rng)
    batch = packer.pack(4, [1.5], [talks])
    text = model.model.language_model
    embeds = text.embed_tokens(batch.ids)
    hidden = decode(text, embeds, batch.positions, batch.mask)
    at = batch.video.stop
    for turns in talks:
        tokens, _ = packer.conversation(turns)
        alone = torch.cat([batch.ids[:, : batch.video.stop], torch.tensor([tokens])], dim=1)
        after = 3 + 4 + 1  # three tokens before the video, whose last time is floor(3 * 1.5)
        places = torch.arange(after, after + len(tokens)).expand(3, 1, -1)
        positions = torch.cat([batch.positions[:, :, : batch.video.stop], places], dim=2)
        stock = text(inputs_embeds=text.embed_tokens(alone), position_ids=positions).last_hidden_state
        assert torch.allclose(hidden[:, at : at + len(tokens)], stock[:, batch.video.stop :], atol=1e-4)
        at += len(tokens)


def test_labels_are_the_answers() -> None:
    packer, rng = Packer(), np.random.default_rng(1)
    video = make_video(3, 32)
    questions = make_questions(video, rng, 8)
    batch = packer.pack(16, [2.0, 1.0], [[questions[:4], questions[4:]], [questions[:1]]])
    for number, question in enumerate([*questions, questions[0]]):
        said = batch.labels[batch.answer == number]
        assert packer.tokenizer.decode(said) == f"{question.answer} <|im_end|>"
        assert batch.kinds[number] == question.kind
    assert (batch.answer >= 0).eq(batch.labels >= 0).all()


def test_text_starts_after_the_last_position_of_the_video() -> None:
    assert video_positions(16, 2.0, 3).max() == 3 + 30
    assert video_positions(3, 0.5, 0)[0].tolist() == [0] * 18 + [1] * 9
    assert video_positions(1, 4.0, 0)[1:].max() == 2


def test_labels_of_clips_name_what_is_seen() -> None:
    rng = np.random.default_rng(0)
    clips = [make_clip(rng, 8) for _ in range(60)]
    shown = sum((labels > 0).any() for _, labels in clips)
    assert 40 < shown < 60
    assert all(frames.shape == (2, 48, 48, 3) and labels.shape == (9, 3) for frames, labels in clips)


def test_a_phase_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    pace = Schedule(steps=4, lr=1e-3, lr_end=1e-4, log_every=0.0)
    phase = VisionPhase(Qwen2_5_VLForConditionalGeneration(demo_config()), 0, 2, torch.device("cpu"))
    run_phase(phase, pace, tmp_path)
    assert finished(tmp_path / "vision.pt", pace)
    assert torch.load(tmp_path / "vision.pt", weights_only=True)["step"] == 4
    again = VisionPhase(Qwen2_5_VLForConditionalGeneration(demo_config()), 0, 2, torch.device("cpu"))
    run_phase(again, Schedule(7, 1e-3, 1e-4), tmp_path)
    assert torch.load(tmp_path / "vision.pt", weights_only=True)["step"] == 7
    assert '"phase": "vision"' in (tmp_path / "log.jsonl").read_text()


def test_a_live_phase_teaches_the_vision_tower() -> None:
    torch.manual_seed(0)
    fresh = Qwen2_5_VLForConditionalGeneration(demo_config())
    stages = [Stage(1.0, (4,), tokens=200, questions=3)]
    mix = {"digit": 1.0, "presence": 1.0}
    phase = LanguagePhase(fresh, "live", 0, stages, bank=None, mix=mix, device=torch.device("cpu"), half=False)
    loss, measured = phase.loss(0, 0.0)
    again, _ = phase.loss(0, 0.0)
    assert loss.item() == again.item()
    assert set(measured) == {"digit@4", "presence@4"}
    loss.backward()
    assert fresh.model.visual.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_bank_fills_videos_with_the_right_clips(model: Any) -> None:
    """A clip from the bank is the encoding of some picture of that event: the same one wherever it is asked for."""
    video = make_video(1, 32, durations=(2,), gap=4)
    bank = GridBank(model.model.visual, 0, clips=2, backgrounds=3, durations=(2,), things=video.things)
    index = bank.fill(video, np.random.default_rng(0))
    around = set()
    for event in video.events:
        parity = event.start % 2
        clips = bank.clips[event.colour, event.shape, event.digit, parity, 2]
        at, grids = event.start // 2, 1 + parity
        [first] = [first + n for first, _, n in clips if index[at] == first + n]
        assert index[at : at + grids].tolist() == list(range(first, first + grids))
        around |= {at - 1, at + grids}
    shown = {t // 2 for event in video.events for t in range(event.start, event.end)}
    stretches = {i for first, n in bank.backgrounds for i in range(first, first + n)}
    assert all((int(grid) in stretches) == (i not in shown) for i, grid in enumerate(index) if i not in around)
    assert all(int(grid) in stretches or i in around | shown for i, grid in enumerate(index))


def test_interval_is_wilson() -> None:
    low, high = interval(90, 100)
    assert (round(low, 1), round(high, 1)) == (82.6, 94.5)
