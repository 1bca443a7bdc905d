"""Data that passes between rooms: tokens, positions, turns of a dialogue, subtitles. No logic.

Shapes: `n` tokens, `hidden` model width, `axes` position axes (1 for ordinary positions, 3 for M-RoPE's time,
height and width).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

SOURCE = "source"
"""The entry of an identity that says where a model was fetched from. It is told; memories need not agree on it."""


def without_source(identity: Mapping[str, str]) -> dict[str, str]:
    """Return the entries of an identity that memories must agree on."""
    return {key: value for key, value in identity.items() if key != SOURCE}


@dataclass(frozen=True)
class Turn:
    """One earlier question of a dialogue and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class KVShape:
    """The shape of one token's KVs: `layers` x `heads` (kv heads) x `head_dim`, keys and values."""

    layers: int
    heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        """Bytes of the KVs of one token over all layers."""
        return 2 * self.layers * self.heads * self.head_dim * self.dtype.itemsize


@dataclass(frozen=True)
class TextTokens:
    """A run of prompt tokens: `ids` (n,) int64 and `embeds` (n, hidden).

    An id of -1 stands for a vector that no token of the vocabulary has. `text`: the question in plain words, for
    selectors that compare words; empty where there is none.
    """

    ids: Tensor
    embeds: Tensor
    text: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int, stop: int | None = None) -> TextTokens:
        """Return the tokens from `start` to `stop`, numbered as in a slice."""
        return TextTokens(self.ids[start:stop], self.embeds[start:stop])

    def then(self, *others: TextTokens) -> TextTokens:
        """Return these tokens with others behind them, and the plain words of these."""
        import torch

        parts = (self, *others)
        return replace(self, ids=torch.cat([part.ids for part in parts]), embeds=torch.cat([p.embeds for p in parts]))


@dataclass(frozen=True)
class VisualTokens:
    """The tokens of one chunk, frame after frame in raster order.

    `embeds` (n, width) as `Backbone.forward` takes them: the width is the model's, or a multiple of it where visual
    features are added in early layers as well; `positions` (axes, n) int64; `grid` (t, h, w) of the tokens, where t
    counts groups of frames (temporal patches). Some families put words between frames, times for example. The words
    are tokens of the chunk too, and the grid is (1, 1, n) then: what stands next to what is not told. `means`
    (groups, hidden) float32, where it cannot be taken from `embeds`: the mean of each group's visual tokens. `last`:
    the last frame (h, w, 3) uint8, where the next chunk's tokens depend on it.
    """

    embeds: Tensor
    positions: Tensor
    grid: tuple[int, int, int]
    means: Tensor | None = None
    last: np.ndarray | None = None

    def __len__(self) -> int:
        return self.embeds.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the embeddings."""
        return self.embeds.nbytes

    def group_means(self) -> Tensor:
        """Return the mean of each group's visual tokens, (groups, hidden) float32."""
        if self.means is not None:
            return self.means
        return self.embeds.reshape(self.grid[0], -1, self.embeds.shape[-1]).float().mean(1)

    def to(self, device: torch.device | str) -> VisualTokens:
        """Return the tokens with their embeddings on `device`."""
        return replace(self, embeds=self.embeds.to(device))


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video before it is read, for prompts and sizes that depend on it; None: not known.

    `frames` that will be sampled, `duration` in seconds; `system`: the system text of the prompt that the video stands
    in, None for the chat template's own.
    """

    frames: int | None = None
    duration: float | None = None
    system: str | None = None


UNKNOWN_VIDEO = VideoInfo()


@dataclass(frozen=True)
class VideoCursor:
    """Where the next chunk of a video stands.

    `start` is the position of the video's first token, `origin` the pts (seconds) of its first sampled frame,
    `tokens` the tokens and `frames` the frames so far, `next_position` the first position that is free for text after
    them; `facts` as given to `Backbone.prefix`; `last` the frame (h, w, 3) uint8 before the chunk, where a model asks
    for it (`VisualTokens.last`).
    """

    start: int
    origin: float
    tokens: int
    next_position: int
    frames: int = 0
    facts: VideoInfo = UNKNOWN_VIDEO
    last: np.ndarray | None = None

    def after(self, tokens: VisualTokens, frames: int = 0) -> VideoCursor:
        """Return the cursor behind `tokens` of so many `frames`."""
        free = max(self.next_position, int(tokens.positions.max()) + 1)
        done = {"tokens": self.tokens + len(tokens), "frames": self.frames + frames, "last": tokens.last}
        return replace(self, next_position=free, **done)  # type: ignore[arg-type]
