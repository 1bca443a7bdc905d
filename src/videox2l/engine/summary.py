"""Summary tokens: where they stand among a chunk's visual tokens, and what a backbone that has them can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from videox2l.engine.backbone import Backbone
from videox2l.engine.cache import BufferCache


@dataclass(frozen=True)
class SummaryLayout:
    """`count` summary tokens, one after every `ratio` visual tokens, the first after `first` of them."""

    ratio: int
    first: int
    count: int

    @property
    def stride(self) -> int:
        """Distance of summary tokens in the interleaved sequence."""
        return self.ratio + 1

    def covered(self) -> Tensor:
        """Return how many visual tokens stand before each summary token: (count,)."""
        return self.first + self.ratio * torch.arange(self.count)

    def columns(self) -> Tensor:
        """Return where the summary tokens stand in the interleaved sequence: (count,)."""
        return self.first + self.stride * torch.arange(self.count)

    def visual_columns(self, n: int) -> Tensor:
        """Return where `n` visual tokens stand in the interleaved sequence: (n,)."""
        index = torch.arange(n)
        before = torch.div(index - self.first, self.ratio, rounding_mode="floor") + 1
        return index + before.clamp(0, self.count)

    def interleave(self, visual: Tensor, summary: Tensor) -> Tensor:
        """Return (n + count, ...) of visual (n, ...) and summary (count, ...), by strided copies, no gathers."""
        n, tail = len(visual), self.first + self.ratio * (self.count - 1)
        whole = visual.new_empty(self.first + self.count * self.stride, *visual.shape[1:])
        whole[: self.first] = visual[: self.first]
        blocks = whole[self.first :].view(self.count, self.stride, *visual.shape[1:])
        blocks[:, 0] = summary
        blocks[:-1, 1:] = visual[self.first : tail].view(self.count - 1, self.ratio, *visual.shape[1:])
        blocks[-1, 1 : 1 + n - tail] = visual[tail:]
        return whole[: n + self.count]

    def separate(self, whole: Tensor) -> Tensor:
        """Undo `interleave`: return (n + count, ...) with the visual tokens first, then the summary tokens."""
        count = self.count
        n = len(whole) - count
        tail = self.first + self.ratio * (count - 1)
        out = torch.empty_like(whole)
        out[: self.first] = whole[: self.first]
        body = whole[self.first : self.first + (count - 1) * self.stride].view(count - 1, self.stride, *whole.shape[1:])
        out[self.first : tail].view(count - 1, self.ratio, *whole.shape[1:])[:] = body[:, 1:]
        out[tail:n] = whole[self.first + (count - 1) * self.stride + 1 :]
        out[n:] = whole[self.first :: self.stride]
        return out


@runtime_checkable
class SummaryBackbone(Backbone, Protocol):
    """A backbone whose model was trained with summary tokens."""

    def summarise(
        self, embeds: Tensor, layouts: Sequence[SummaryLayout], cache: BufferCache
    ) -> list[tuple[Tensor, Tensor]]:
        """Run visual tokens (n, hidden) with summary tokens among them behind what `cache` holds.

        Visual tokens and the summary tokens of `layouts[0]` form one causal sequence. Those of every other layout see
        the cache, what stands before them in that sequence, and one another, but are seen by nothing else: the first
        result does not depend on them. Returns for each layout the summary tokens' keys and values
        (layers, kv_heads, count, head_dim), keys rotated at len(cache), len(cache) + 1, ... `cache` stays as it was.
        """
