"""What earlier chunks look like to the next one while it is prefilled."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from videox2l.backbones.base import Backbone, TextTokens, VisualTokens
from videox2l.backbones.cache import BufferCache
from videox2l.compress.base import Compressor
from videox2l.errors import SettingsError
from videox2l.memory.levels import LevelKV


@dataclass(frozen=True)
class History:
    """A parsed `history` setting.

    `"H"`: earlier chunks at the coarsest level (cheap: the context grows slowly). `"L"`: at the finest. `"recent:n"`:
    the last n at the finest, older ones at the coarsest. `"own"`: one pass per level, each seeing its own level
    (the two passes of arXiv 2506.21184).
    """

    kind: str
    recent: int = 0

    @classmethod
    def parse(cls, text: str) -> History:
        """Read the setting; raises SettingsError that lists what is possible."""
        if text in ("H", "L", "own"):
            return cls(text)
        found = re.fullmatch(r"recent:([1-9]\d*)", text)
        if not found:
            raise SettingsError(f"history '{text}' is not known: use H, L, own, or recent:n such as recent:2")
        return cls("recent", int(found.group(1)))


class ChunkEncoder:
    """Turns a video's chunks, one after the other, into levels, and carries the context from chunk to chunk.

    Memory held: the prefix and one context at the levels that `history` asks for.
    """

    def __init__(self, backbone: Backbone, compressor: Compressor, ratios: Sequence[float], history: History) -> None:
        self.backbone = backbone
        self.compressor = compressor
        self.ratios = tuple(sorted(ratios))
        self.history = history
        streams = [(ratio,) for ratio in self.ratios] if history.kind == "own" else [self.ratios]
        self.streams = [_Stream(backbone.new_cache(), ratios, history.recent) for ratios in streams]

    def prefix(self, text: TextTokens) -> tuple[Tensor, Tensor]:
        """Prefill the text before the video; return its keys and values (layers, heads, n, head_dim)."""
        positions = self.backbone.text_positions(0, len(text))
        first = self.streams[0].context
        self.backbone.forward(text.embeds, positions, first)
        keys, values = first.columns(0)
        for stream in self.streams[1:]:
            stream.context.append(keys, values)
        for stream in self.streams:
            stream.settled = len(stream.context)
        return keys, values

    def add(self, tokens: VisualTokens) -> dict[float, LevelKV]:
        """Encode the next chunk; return its levels, finest first."""
        levels: dict[float, LevelKV] = {}
        for stream in self.streams:
            found = self.compressor.compress(tokens, stream.context, self.backbone, stream.ratios)
            levels.update(found)
            stream.extend(found, finest=self.history.kind == "L")
        return levels


class _Stream:
    """One context: the prefix, then earlier chunks, the last `recent` of them at their finest level."""

    def __init__(self, context: BufferCache, ratios: tuple[float, ...], recent: int) -> None:
        self.context = context
        self.ratios = ratios
        self.recent = recent
        self.settled = 0
        self.pending: list[dict[float, LevelKV]] = []

    def extend(self, levels: dict[float, LevelKV], finest: bool) -> None:
        """Add a chunk to the context; chunks that leave the recent ones fall back to their coarsest level."""
        if not self.recent:
            self._append(levels[min(levels) if finest else max(levels)])
            return
        self.pending.append(levels)
        if len(self.pending) > self.recent:
            self.context.crop(self.settled)
            old = self.pending.pop(0)
            self._append(old[max(old)])
            self.settled = len(self.context)
            for chunk in self.pending:
                self._append(chunk[min(chunk)])
        else:
            self._append(levels[min(levels)])

    def _append(self, level: LevelKV) -> None:
        self.context.append(level.keys, level.values)
