"""Position ids and rotation against tables and the model's own rotation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from tests.conftest import FAMILIES, make_qwen25
from videox2l.backbones.positions import mrope_positions, text_positions
from videox2l.engine.rope import rotate, unrotate
from videox2l.types import VideoCursor, VisualTokens


def test_qwen25_positions_equal_the_table_of_transformers_4_57() -> None:
    """64 groups of 12 x 20 patches, one second each, 4 positions a second, behind 3 text tokens."""
    ids = mrope_positions(torch.arange(64.0), 6, 10, start=3, rate=4)
    assert ids.shape == (3, 64 * 60)
    assert ids[0].unique().tolist() == list(range(3, 256, 4))
    assert ids[1].unique().tolist() == list(range(3, 9))
    assert ids[2].unique().tolist() == list(range(3, 13))
    cursor = VideoCursor(3, 0.0, 0, 3).after(VisualTokens(torch.zeros(3840, 1), ids, (64, 6, 10)))
    assert cursor.next_position == 256
    assert text_positions(cursor.next_position, 3, 3).tolist() == [[256, 257, 258]] * 3


def test_short_video_positions() -> None:
    """The 4-frame case: 12 x 20 patches in 4 groups; width, not time, is the largest axis at 1 position a group."""
    ids = mrope_positions(torch.arange(4.0), 6, 10, start=3, rate=1)
    cursor = VideoCursor(3, 0.0, 0, 3).after(VisualTokens(torch.zeros(240, 1), ids, (4, 6, 10)))
    assert cursor.next_position == 13
    spaced = mrope_positions(torch.arange(4.0), 6, 10, start=3, rate=4)
    assert int(spaced.max()) + 1 == 16  # then 16, 17, 18


def test_positions_follow_time_not_index() -> None:
    ids = mrope_positions(torch.tensor([0.0, 2.0, 2.5, 60.0]), 1, 1, start=10, rate=2)
    assert ids[0].tolist() == [10, 14, 15, 130]
    # NTSC: pts a little above the nominal time, and a rounding below it, stay on the nominal position
    ids = mrope_positions(torch.tensor([0.0, 2.002, 3.9996]), 1, 1, start=0, rate=2)
    assert ids[0].tolist() == [0, 4, 8]


@pytest.mark.parametrize("pieces", [1, 3])
def test_cursor_is_the_same_in_one_piece_and_in_several(pieces: int) -> None:
    cursor = VideoCursor(5, 0.0, 0, 5)
    times = torch.arange(6.0)
    for part in times.chunk(pieces):
        ids = mrope_positions(part, 2, 2, cursor.start, 2)
        cursor = cursor.after(VisualTokens(torch.zeros(ids.shape[1], 1), ids, (len(part), 2, 2)))
    assert (cursor.tokens, cursor.next_position) == (24, 16)


@torch.no_grad()
def test_rotation_is_the_models_own(family: str) -> None:
    """Keys of the first layer, rotated here, equal what the decoder writes into its cache."""
    from videox2l import VideoX2L

    backbone: Any = VideoX2L.from_model(*FAMILIES[family]()).backbone
    torch.manual_seed(1)
    n = 9
    positions = torch.randint(0, 50, (backbone.axes, n)).sort(-1).values
    x = torch.randn(n, 64)
    cache = backbone.new_cache()
    backbone.forward(x, positions, cache)
    written, _ = cache.columns(0)
    layer = backbone.decoder.layers[0]
    plain = layer.self_attn.k_proj(layer.input_layernorm(x)).reshape(n, 2, 16).transpose(0, 1)
    cos, sin = backbone.rotation(positions)
    torch.testing.assert_close(rotate(plain, cos, sin), written[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(unrotate(written[0], cos, sin), plain, atol=1e-5, rtol=1e-5)
    wrong, _ = backbone.rotation(positions + 1)
    assert (rotate(plain, wrong, sin) - written[0]).abs().max() > 0.1


def test_unrotate_divides_out_a_scale() -> None:
    angles = torch.rand(5, 4)
    cos, sin = (1.3 * torch.cat((f(angles), f(angles)), -1) for f in (torch.cos, torch.sin))
    keys = torch.randn(2, 5, 8)
    torch.testing.assert_close(unrotate(rotate(keys, cos, sin), cos, sin), keys)


def test_weights_id_sees_a_change_in_any_weight() -> None:
    from videox2l.engine.identity import weights_id

    model, _ = make_qwen25()
    before = weights_id(model)
    assert before == weights_id(make_qwen25()[0])
    assert before != weights_id(make_qwen25(seed=1)[0])
    with torch.no_grad():
        model.model.language_model.norm.weight[0] += 1e-3
    assert before != weights_id(model)


def test_canary_for_the_librarys_own_video_positions() -> None:
    """Right up to transformers 5.2, wrong after it. When this fails on a new release, they have been mended."""
    model, _ = make_qwen25()
    video = model.config.video_token_id
    ids = torch.tensor([[9, 9, model.config.vision_start_token_id, *[video] * 24, 9, 9]])
    grid = torch.tensor([[6, 4, 4]])  # 6 groups of 2 x 2 tokens
    ours = mrope_positions(torch.arange(6.0), 2, 2, start=3, rate=2)
    expect = torch.cat((text_positions(0, 3, 3), ours, text_positions(int(ours.max()) + 1, 2, 3)), 1)
    kwargs: dict[str, Any] = {"video_grid_thw": grid, "second_per_grid_ts": torch.tensor([1.0])}
    if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < (5, 3):
        positions, _ = model.model.get_rope_index(ids, **kwargs)
        assert torch.equal(positions[:, 0], expect)
        return
    kinds = (ids == video).int() * 2
    positions, _ = model.model.get_rope_index(ids, mm_token_type_ids=kinds, **kwargs)
    assert torch.equal(positions[:, 0, :3], expect[:, :3])
    assert not torch.equal(positions[:, 0], expect), "transformers counts video positions right again"
