"""Marks: the little that selectors compare with a question, kept of every chunk beside its levels.

A mark is a small tensor with a name. A memory without marks (of an earlier release, say) is still asked: what can be
made from H is made when it is first wanted.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from videox2l.engine.backbone import Backbone
from videox2l.engine.rope import unrotate
from videox2l.memory.levels import LevelKV
from videox2l.types import VisualTokens

if TYPE_CHECKING:
    from videox2l.memory.levels import Chunk

KEYS = "keys"
"""(3, layers, heads, head_dim): least, mean and greatest value of a chunk's keys per channel, RoPE undone."""
VISUAL = "visual"
"""(groups, hidden): mean of the visual tokens of each group of frames."""
PICTURES = "pictures"
"""(pictures, width) float16: unit vectors of some frames, by the vision tower of a dual encoder."""


def feature_layers(layers: int) -> int:
    """Return of how many layers, from the first on, keys are marked: a seventh, at least two.

    A selector that stops early needs no others, and one that runs deeper costs more than it is for.
    """
    return min(layers, max(2, layers // 7))


def key_features(level: LevelKV, positions: Tensor, backbone: Backbone) -> Tensor:
    """Return the mark `KEYS` of a level; `positions` (axes, n) are those of the chunk's visual tokens.

    Keys are compared without their positions: what is late in a video would otherwise be near to the question, and
    means of rotated keys mix phases.
    """
    layers = feature_layers(level.keys.shape[0])
    keys = level.keys[:layers].to(backbone.device)
    if level.positions is None:
        cos, sin = backbone.rotation(positions)
        index = level.index[:layers].long().to(cos.device)
        cos, sin = cos[index], sin[index]
    else:
        cos, sin = backbone.rotation(level.positions)
    plain = unrotate(keys, cos, sin)
    found = torch.stack((plain.amin(2), plain.mean(2), plain.amax(2)))
    return found.to(level.keys.dtype).cpu()


def visual_features(tokens: VisualTokens) -> Tensor:
    """Return the mark `VISUAL`: the mean embedding of each group of frames (groups, hidden)."""
    return tokens.group_means().to(tokens.embeds).cpu()


def chunk_features(levels: Mapping[float, LevelKV], tokens: VisualTokens, backbone: Backbone) -> dict[str, Tensor]:
    """Return the marks of a chunk that was just encoded."""
    finest = levels[min(levels)]
    return {KEYS: key_features(finest, tokens.positions, backbone), VISUAL: visual_features(tokens)}


class FeatureCache:
    """Marks of all chunks side by side, made when they are first wanted and kept while the chunks stay the same."""

    def __init__(self) -> None:
        self._held: dict[Hashable, tuple[Sequence[Chunk], Tensor]] = {}

    def get(self, name: Hashable, chunks: Sequence[Chunk], make: Callable[[], Tensor]) -> Tensor:
        """Return the table `name` of `chunks`, from `make` if it is not held."""
        held = self._held.get(name)
        if held is not None and len(held[0]) == len(chunks) and all(map(operator.is_, held[0], chunks)):
            return held[1]
        table = make()
        self._held[name] = (list(chunks), table)
        return table
