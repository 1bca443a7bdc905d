"""Features: the little that selectors compare with a question, kept of every chunk beside its levels.

A feature is a small tensor with a name. A memory without features is still asked: what can be made from its levels is
made when it is first wanted. `INDEX`, (rows, 8 + n, head_dim / 2) bytes, holds all n keys of a chunk of a few layers
and kv heads (`index_rows`), RoPE undone; see `key_index`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from videox2l.engine.backbone import Backbone, BackboneFacts
from videox2l.engine.rope import unrotate
from videox2l.memory.disk.objects import HEADER
from videox2l.memory.disk.objects import INDEX as INDEX
from videox2l.memory.levels import LevelKV
from videox2l.memory.votes import Votes, index_rows
from videox2l.types import VisualTokens

if TYPE_CHECKING:
    from videox2l.memory.levels import Chunk

KEYS = "keys"
"""(3, layers, heads, head_dim): least, mean and greatest value of a chunk's keys per channel, RoPE undone."""
VISUAL = "visual"
"""(groups, hidden): mean of the visual tokens of each group of frames."""
PICTURES = "pictures"
"""(pictures, width) float16: unit vectors of some frames, by the vision tower of a dual encoder."""
_LEVELS = 15


def feature_layers(layers: int) -> int:
    """Return of how many layers, from the first on, bounds of keys are kept: a seventh, at least two.

    A selector that stops early needs no others, and one that runs deeper costs more than it is for.
    """
    return min(layers, max(2, layers // 7))


def key_features(level: LevelKV, positions: Tensor, backbone: Backbone) -> Tensor:
    """Return the feature `KEYS` of a level; `positions` (axes, n) are those of the chunk's visual tokens.

    Keys are compared without their positions: what is late in a video would otherwise be near to the question, and
    means of rotated keys mix phases.
    """
    plain = plain_keys(level, positions, backbone, range(feature_layers(level.keys.shape[0])))
    found = torch.stack((plain.amin(2), plain.mean(2), plain.amax(2)))
    return found.to(level.keys.dtype).cpu()


def votes_of(backbone: BackboneFacts) -> Votes:
    """Return which layers of a model say which chunk a question is about, and how each is read.

    What `x2l doctor` found for it, or else: of models of a few layers the second's best words and the first's tags, of
    others an early layer and one at two fifths of the depth.
    """
    found = getattr(backbone, "index_votes", None)
    if found:
        return tuple((int(layer), str(kind)) for layer, kind in found)
    layers = backbone.shape.layers
    if layers <= 6:
        return ((1, "best"), (0, "confident")) if layers > 1 else ((0, "best"),)
    return ((2, "confident"), (round(0.4 * (layers - 1)), "confident"))


def votes_in(settings: Mapping[str, Any], backbone: Backbone) -> Votes:
    """Return the votes that the settings of a memory name; where they name none, those of the model."""
    known = settings.get("index")
    return tuple((int(layer), str(kind)) for layer, kind in known) if known else votes_of(backbone)


def indexed(keys: Tensor, rows: Sequence[tuple[int, int]]) -> Tensor:
    """Return the keys (rows, n, head_dim) of some layers and kv heads out of keys (layers, heads, n, head_dim)."""
    return torch.stack([keys[layer, head] for layer, head in rows])


def key_index(keys: Tensor) -> Tensor:
    """Return the feature `INDEX` of keys (rows, n, head_dim), RoPE undone: 4 bits each.

    Every channel of a row has its own zero and step in a chunk, since keys have channels of their own size
    (KIVI, arXiv 2402.02750). Both stand, in float16, in the first rows; uint8 stands for bytes.
    """
    keys = keys.float()
    low = keys.amin(1, keepdim=True).half()
    step = ((keys.amax(1, keepdim=True) - low.float()) / _LEVELS).half()
    codes = ((keys - low.float()) / step.float().clamp_min(1e-12)).round().clamp(0, _LEVELS).to(torch.uint8)
    rows = codes[..., 0::2] | codes[..., 1::2] << 4
    header = torch.cat((low, step), 1).view(torch.uint8).reshape(len(rows), HEADER, -1)
    return torch.cat((header, rows), 1).cpu()


def read_index(index: Tensor) -> Tensor:
    """Return the keys (..., n, head_dim) float32 of a feature `INDEX` (..., HEADER + n, head_dim / 2)."""
    header, rows = index[..., :HEADER, :], index[..., HEADER:, :]
    scales = header.reshape(*rows.shape[:-2], 2, -1).view(torch.float16).float()
    keys = scales.new_empty(*rows.shape[:-1], scales.shape[-1])
    keys[..., 0::2] = rows & 15
    keys[..., 1::2] = rows >> 4
    return keys.mul_(scales[..., 1:, :]).add_(scales[..., :1, :])


def index_size(index: Tensor) -> int:
    """Return of how many keys per head a feature `INDEX` is."""
    return index.shape[-2] - HEADER


def plain_keys(level: LevelKV, positions: Tensor, backbone: Backbone, layers: Sequence[int]) -> Tensor:
    """Return the keys of a level in some layers, (layers, heads, n, head_dim), RoPE undone, on the device.

    `positions` (axes, n) are those of the chunk's visual tokens.
    """
    picked = list(layers)
    if level.positions is None:
        cos, sin = backbone.rotation(positions)
        index = level.index[picked].long().to(cos.device)
        cos, sin = cos[index], sin[index]
    else:
        cos, sin = backbone.rotation(level.positions)
    return unrotate(level.keys[picked].to(backbone.device), cos, sin)


def level_index(level: LevelKV, positions: Tensor, backbone: Backbone, rows: Sequence[tuple[int, int]]) -> Tensor:
    """Return the feature `INDEX` of the keys that a level keeps, for some layers and kv heads."""
    layers = sorted({layer for layer, _ in rows})
    keys = plain_keys(level, positions, backbone, layers)
    return key_index(indexed(keys, [(layers.index(layer), head) for layer, head in rows]))


def visual_features(tokens: VisualTokens) -> Tensor:
    """Return the feature `VISUAL`: the mean embedding of each group of frames (groups, hidden)."""
    return tokens.group_means().to(tokens.embeds).cpu()


class KeyTap:
    """Keeps the keys of a chunk that `votes` need, RoPE undone, when a compressor has all of them.

    The first time counts: where every level has a forward of its own, the finest one's comes first.
    """

    def __init__(self, tokens: VisualTokens, backbone: Backbone, votes: Votes) -> None:
        self._tokens, self._backbone = tokens, backbone
        self._rows = index_rows(votes, backbone.shape.heads)
        self._keys: Tensor | None = None

    def __call__(self, keys: Tensor) -> None:
        """Take the keys (layers, heads, n, head_dim) of all layers, rotated."""
        if self._keys is None:
            cos, sin = self._backbone.rotation(self._tokens.positions)
            self._keys = unrotate(indexed(keys, self._rows).to(cos.device), cos, sin)

    def index(self, finest: LevelKV) -> Tensor:
        """Return the feature `INDEX` of the chunk.

        Of the keys that the finest level keeps where the compressor never had all, as with summary tokens.
        """
        if self._keys is None:
            return level_index(finest, self._tokens.positions, self._backbone, self._rows)
        return key_index(self._keys)


def chunk_features(
    levels: Mapping[float, LevelKV], tokens: VisualTokens, backbone: Backbone, tap: KeyTap
) -> dict[str, Tensor]:
    """Return the features of a chunk that was just encoded; `tap` saw its keys meanwhile."""
    finest = levels[min(levels)]
    return {
        KEYS: key_features(finest, tokens.positions, backbone),
        INDEX: tap.index(finest),
        VISUAL: visual_features(tokens),
    }


class FeatureCache:
    """Features of all chunks side by side, made when they are first wanted and kept while the chunks stay the same."""

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
