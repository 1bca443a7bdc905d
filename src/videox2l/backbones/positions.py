"""Position ids of video and text, computed here because transformers' own are wrong for Qwen's videos.

From transformers 5.3 on, `get_rope_index` of Qwen2-VL and Qwen2.5-VL places the text after a video *inside* the
video's range of times. The models were trained with text at the largest position of the video plus one.
"""

from __future__ import annotations

import torch
from torch import Tensor

# A sampled frame's pts may fall short of its nominal time by a rounding of the container's time base.
_SLACK = 1e-3


def text_positions(first: int, n: int, axes: int) -> Tensor:
    """Return (axes, n) int64: the same running number on every axis."""
    return torch.arange(first, first + n).expand(axes, n)


def mrope_positions(times: Tensor, height: int, width: int, start: int, rate: float) -> Tensor:
    """Return the M-RoPE positions (3, t * height * width) int64 of a run of frame groups.

    `times` (t,) seconds since the first frame of the video; `height`, `width` visual tokens per group; `start` the
    position of the video's first token; `rate` positions per second. Rows are time, height, width, all
    counted from `start` (arXiv 2409.12191; times in seconds: arXiv 2502.13923).
    """
    t = torch.floor(times.double() * rate + _SLACK).long()
    grid = torch.stack(
        (
            t[:, None, None].expand(-1, height, width),
            torch.arange(height)[None, :, None].expand(len(t), -1, width),
            torch.arange(width)[None, None, :].expand(len(t), height, -1),
        )
    )
    return grid.reshape(3, -1) + start
