"""The conformance checks: every family passes them, and each wrong adapter fails the one it should."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.conftest import make_llava_onevision, make_qwen25, make_video_xl
from tests.families.models import MAKERS, make_internvl, make_qwen3_vl, make_video_llama_3, needs
from videox2l import VideoX2L
from videox2l.compress import COMPRESSORS
from videox2l.conformance import EXACTNESS, CheckResult, assert_conforms, check
from videox2l.select import SELECTORS


@pytest.mark.parametrize("family", sorted(MAKERS))
def test_a_family_conforms(family: str) -> None:
    needs(family)
    found = check(VideoX2L.from_model(*MAKERS[family]()).backbone)
    assert [one for one in found if not one.ok] == []
    assert len(found) == len(EXACTNESS) + len(COMPRESSORS) + len(SELECTORS) - 1


def test_video_xl_conforms() -> None:
    assert_conforms(VideoX2L.from_model(*make_video_xl()).backbone)


def _late_text(backbone: Any) -> None:
    whole = backbone.text_positions
    backbone.text_positions = lambda first, n: whole(first + (first > 0), n)


def _frozen_time(backbone: Any) -> None:
    backbone.rate = 0.0


def _no_newline(backbone: Any) -> None:
    whole = backbone.suffix
    backbone.suffix = lambda *args: replace(whole(*args), ids=whole(*args).ids[1:], embeds=whole(*args).embeds[1:])


def _wrong_angles(backbone: Any) -> None:
    whole = backbone.rotation
    backbone.rotation = lambda positions: whole(positions * 2)


def _forgets_history(backbone: Any) -> None:
    whole = backbone.suffix
    backbone.suffix = lambda question, history=(): whole(question)


def _restarts_frame_numbers(backbone: Any) -> None:
    backbone.groups_before = lambda cursor: min(cursor.frames, 1)


def _drops_inner_features(backbone: Any) -> None:
    whole = backbone.decoder_embeds
    backbone.decoder_embeds = lambda embeds: whole(embeds[:, :64])


def _forgets_the_frame_before(backbone: Any) -> None:
    whole = backbone.visual_tokens
    backbone.visual_tokens = lambda *args: replace(whole(*args), last=None)


def _blind_to_earlier_chunks(backbone: Any) -> None:
    whole = backbone.forward

    def forward(embeds: Any, positions: Any, cache: Any, probe: Any = None) -> Any:
        fresh = backbone.new_cache() if embeds.shape[0] > 16 and len(cache) > 20 else cache
        hidden = whole(embeds, positions, fresh, probe)
        if fresh is not cache:
            cache.append(*fresh.columns(0))
        return hidden

    backbone.forward = forward


def _deaf_to_positions(backbone: Any) -> None:
    backbone.decoder.rotary_emb.inv_freq.zero_()


@pytest.mark.parametrize(
    ("make", "harm", "failing"),
    [
        (make_qwen25, _late_text, {"positions", "exact"}),
        (make_qwen25, _frozen_time, {"positions", "exact"}),
        (make_llava_onevision, _no_newline, {"positions", "chunk boundaries", "exact"}),
        (make_qwen25, _wrong_angles, {"rotation"}),
        (make_llava_onevision, _forgets_history, {"multi-turn"}),
        (make_llava_onevision, _blind_to_earlier_chunks, {"exact"}),
        (make_video_llama_3, _forgets_the_frame_before, {"positions", "chunk boundaries", "exact"}),
        (make_internvl, _restarts_frame_numbers, {"chunk boundaries", "exact"}),
        (make_qwen3_vl, _drops_inner_features, {"exact", "greedy"}),
        (make_llava_onevision, _deaf_to_positions, {"wrong-position control"}),
    ],
)
def test_a_wrong_adapter_fails(make: Callable[[], Any], harm: Callable[[Any], None], failing: set[str]) -> None:
    if make is make_video_llama_3:
        needs("video_llama_3")
    backbone: Any = VideoX2L.from_model(*make()).backbone
    with torch.no_grad():
        harm(backbone)
    found = {one.name for one in check(backbone, matrix=False) if not one.ok}
    assert failing <= found, found
    with pytest.raises(AssertionError, match=f"does not conform\n(.*\n)*{min(failing)}"):
        assert_conforms(backbone, matrix=False)


def test_a_check_that_breaks_is_a_finding() -> None:
    backbone: Any = VideoX2L.from_model(*make_qwen25()).backbone
    backbone.rotation = lambda positions: 1 / 0
    assert check(backbone, only=["rotation"], matrix=False) == [
        CheckResult("rotation", False, "ZeroDivisionError: division by zero")
    ]


def test_a_backbone_without_a_stock_model_says_so() -> None:
    found = check(object(), matrix=False)  # type: ignore[arg-type]
    assert [one.ok for one in found] == [False]
    assert "no model and stock_inputs" in found[0].detail


def test_the_clip_may_be_longer() -> None:
    backbone = VideoX2L.from_model(*make_llava_onevision()).backbone
    (found,) = check(backbone, frames=21, seed=3, only=["exact"], matrix=False)
    assert found.ok
    assert "6 chunks" in found.detail
