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


def spelled_out(ids: Tensor, video_token: int, grid: tuple[int, int, int], step: float) -> Tensor:
    """Return the M-RoPE positions (3, 1, n) of a whole prompt with one video, token after token.

    The rule as the models' authors give it, for checks: text counts on from the largest position so far; a visual token
    has the video's first position plus its group's time (`step` positions a group, rounded down), row and column.
    """
    rows: list[tuple[int, int, int]] = []
    free = start = seen = 0
    for token in ids.tolist():
        row = (free, free, free)
        if token == video_token:
            start = start if seen else free
            group, place = divmod(seen, grid[1] * grid[2])
            row = (start + int(group * step), start + place // grid[2], start + place % grid[2])
            seen += 1
        rows.append(row)
        free = max(free, max(row) + 1)
    return torch.tensor(rows, device=ids.device).T[:, None]
