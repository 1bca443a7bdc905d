"""Frames to pixels: equal to the library's own processors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.conftest import qwen_video_config
from videox2l.backbones.frames import Normalise, PatchFrames, SquareFrames, stack
from videox2l.errors import ModelError, SettingsError

GOLDEN = Path(__file__).parent / "data" / "hf_video_processors.safetensors"


def test_equals_the_library_bit_for_bit() -> None:
    """The stored outputs are those of Qwen2VLVideoProcessor and LlavaOnevisionVideoProcessor (transformers 5.23)."""
    golden = load_file(GOLDEN)
    video = golden["video"]
    config = qwen_video_config()
    patches, grid = PatchFrames.from_config(config)(video)
    assert grid == tuple(golden["qwen.grid"].tolist())
    assert torch.equal(patches, golden["qwen.pixels"])
    square = {**config, "size": {"height": 24, "width": 24}}
    assert torch.equal(SquareFrames.from_config(square)(video), golden["llava.pixels"])
    with safe_open(GOLDEN, framework="pt") as file:
        assert file.metadata()["transformers"].startswith("5.")


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 7])
def test_chunks_equal_the_whole(frames: int, video: np.ndarray) -> None:
    make = PatchFrames.from_config(qwen_video_config())
    whole, _ = make(stack(list(video)))
    pieces = [make(stack(list(video[i : i + 2 * frames])))[0] for i in range(0, len(video), 2 * frames)]
    assert torch.equal(torch.cat(pieces), whole)


def test_patch_order_is_merge_blocks_of_rows() -> None:
    """Pixel values that name their place show which patch, and which pixel in it, comes where."""
    height = width = 16
    features = torch.arange(2 * 3 * height * width).reshape(2, 3, height, width).float()
    plain = PatchFrames(Normalise((0.0,) * 3, (1.0,) * 3, 1.0, "bicubic"), 4, 2, 2, 1, 256)
    patches, grid = plain(features.to(torch.int32))  # type: ignore[arg-type]
    assert grid == (1, 4, 4)
    # patches of a 2x2 merge block stand together: (0,0) (0,1) (1,0) (1,1), then the block to the right
    corners = [(0, 0), (0, 4), (4, 0), (4, 4), (0, 8), (0, 12), (4, 8), (4, 12)]
    for patch, (y, x) in zip(patches, corners, strict=False):
        expect = features[:, :, y : y + 4, x : x + 4].permute(1, 0, 2, 3).reshape(-1)  # rgb, time, y, x
        assert torch.equal(patch, expect)


@pytest.mark.parametrize(
    ("height", "width", "expect"),
    [(40, 56, (24, 32)), (8, 8, (16, 16)), (33, 31, (32, 32)), (200, 40, (64, 8)), (1000, 1000, (32, 32))],
)
def test_frame_size_stays_in_budget(height: int, width: int, expect: tuple[int, int]) -> None:
    assert PatchFrames.from_config(qwen_video_config()).size(height, width) == expect


def test_max_pixels_overrides_the_config() -> None:
    make = PatchFrames.from_config(qwen_video_config(), max_pixels=256)
    assert make.size(1000, 1000) == (16, 16)
    with pytest.raises(SettingsError, match=r"max_pixels=10 .* at least 64"):
        PatchFrames.from_config(qwen_video_config(), max_pixels=10)


def test_published_qwen_config_without_video_file() -> None:
    """Qwen2.5-VL ships min_pixels and max_pixels in preprocessor_config.json and no `size`."""
    config = {k: v for k, v in qwen_video_config().items() if k != "size"}
    make = PatchFrames.from_config({**config, "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14})
    assert (make.min_pixels, make.max_pixels) == (3136, 12845056)
    assert make.size(1080, 1920) == (1092, 1932)


def test_unusable_configs_are_named() -> None:
    with pytest.raises(ModelError, match="image_mean"):
        PatchFrames.from_config(qwen_video_config(image_mean=None))
    with pytest.raises(ModelError, match="resample=5"):
        PatchFrames.from_config(qwen_video_config(resample=5))
    with pytest.raises(SettingsError, match="one size"):
        stack([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 6, 3), np.uint8)])
