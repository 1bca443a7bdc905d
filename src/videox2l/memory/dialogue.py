"""What was said about a video: the KVs of the earlier turns of a dialogue."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from videox2l.backbones.base import Backbone
from videox2l.backbones.cache import BufferCache
from videox2l.backbones.rope import turn_by


@dataclass(frozen=True)
class DialogueKV:
    """KVs of text that follows the video.

    `keys`, `values` (layers, heads, n, head_dim); keys are rotated at the positions `first`, `first` + 1, ..., the same
    on all axes.
    """

    keys: Tensor
    values: Tensor
    first: int

    def __len__(self) -> int:
        return self.keys.shape[2]

    def lay(self, cache: BufferCache, first: int, backbone: Backbone) -> int:
        """Append the KVs to a cache, from position `first` on; return the position behind them."""
        cache.append(self.keys_at(first, backbone), self.values)
        return first + len(self)

    def keys_at(self, first: int, backbone: Backbone) -> Tensor:
        """Return the keys at the positions `first`, `first` + 1, ...: as they are, or turned by the difference."""
        if first == self.first:
            return self.keys
        cos, sin = backbone.rotation(backbone.text_positions(first - self.first, 1))
        return turn_by(self.keys.to(cos.device), cos, sin)
