"""Frame sizes of families with a budget of pixels against the library's own functions, on many sizes and lengths."""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from typing import Any

import pytest

from videox2l.backbones.frames import DividedPatchFrames, LongPatchFrames, PatchFrames, SharedPatchFrames, TwiceFrames

CONFIG = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "merge_size": 2, "temporal_patch_size": 2}
QWEN3 = {**CONFIG, "patch_size": 16, "size": {"shortest_edge": 4096, "longest_edge": 25165824}}
QWEN2 = {**CONFIG, "patch_size": 14, "min_pixels": 3136, "max_pixels": 602112}


def library(family: str, name: str) -> Any:
    """A function of the library, from its processing of videos, or of pictures where that needs torchvision."""
    for kind in ("video_processing", "image_processing", "image_processing_pil"):
        try:
            return getattr(importlib.import_module(f"transformers.models.{family}.{kind}_{family}"), name)
        except (ImportError, AttributeError):
            continue
    pytest.skip("the library's processing needs torchvision here")


def cases(count: int = 1500) -> Iterator[tuple[int, int, int]]:
    """Heights, widths and numbers of frames."""
    draw = random.Random(0)
    for _ in range(count):
        height, width = draw.randint(32, 2200), draw.randint(32, 3900)
        if max(height, width) < 150 * min(height, width):
            yield height, width, draw.randint(2, 768)


@pytest.mark.parametrize("cap", [False, True])
def test_qwen3_vl(cap: bool) -> None:
    resize = library("qwen3_vl", "smart_resize")
    frames = SharedPatchFrames.of_video({**QWEN3, "cap_pixels_per_frame": cap})
    low, high = 4096, 25165824
    for height, width, n in cases():
        most = max(min(768 * 32 * 32, high // n), int(low * 1.05)) * n if cap else high
        expect = resize(n, height, width, temporal_factor=2, factor=32, min_pixels=low, max_pixels=most)
        assert frames.size(height, width, n) == expect, (height, width, n)
    assert frames.size(720, 1280, None) == frames.size(720, 1280, 768) == frames.size(720, 1280, 10**6)
    assert frames.size(720, 1280, 8) != frames.size(720, 1280, 768)


def test_video_llama_3() -> None:
    resize = library("video_llama_3", "smart_resize")
    config = {**QWEN2, "temporal_patch_size": 1, "max_frames": 768}
    frames = DividedPatchFrames.of_video(config)
    for height, width, n in cases():
        assert frames.size(height, width, n) == resize(height, width, 28, 3136, 602112 // n), (height, width, n)


def test_qwen2_vl() -> None:
    resize = library("qwen2_vl", "smart_resize")
    frames = PatchFrames.from_config(QWEN2)
    for height, width, n in cases():
        assert frames.size(height, width, n) == resize(height, width, 28, 3136, 602112), (height, width)


def test_frames_of_long_videos_get_their_share_as_qwen_s_own_tool_divides_it() -> None:
    """Its rule, in pixels: what two frames share of nine tenths of 128,000 patches, at least 128 patches and 5 %."""
    resize = library("qwen2_vl", "smart_resize")
    frames = LongPatchFrames.of_video(QWEN2)
    for height, width, n in cases():
        n *= 4
        share = int(max(min(602112, 128_000 * 28 * 28 * 0.9 / n * 2), 128 * 28 * 28 * 1.05))
        assert frames.size(height, width, n) == resize(height, width, 28, 3136, share), (height, width, n)
    hour = frames.size(720, 1280, 3600)
    assert hour[0] * hour[1] // 28**2 * 1800 < 2.1 * 115_200  # the least per group of frames is more than the share
    assert frames.size(720, 1280, None) == frames.size(720, 1280, 16) == PatchFrames.from_config(QWEN2).size(720, 1280)


@pytest.mark.parametrize(("height", "width"), [(50, 70), (70, 50), (64, 64), (1080, 1920), (3, 400)])
def test_smolvlm_resizes_twice(height: int, width: int) -> None:
    """The longer side goes to `edge` first, the shorter one in proportion to an even number."""
    import torch

    resize = library("smolvlm", "get_resize_output_image_size")
    frames = TwiceFrames.from_config({**CONFIG, "size": {"longest_edge": 60}, "max_image_size": {"longest_edge": 24}})
    seen: list[tuple[int, int]] = []

    class Watched(type(frames.normalise)):  # type: ignore[misc]
        def resize(self, video: Any, high: int, wide: int) -> Any:
            seen.append((high, wide))
            return super().resize(video, high, wide)

    watched = TwiceFrames(Watched(**vars(frames.normalise)), frames.edge, frames.size)
    clip = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    assert watched(clip).shape == (1, 3, 24, 24)
    assert seen == [resize(clip, resolution_max_side=60), (24, 24)]
