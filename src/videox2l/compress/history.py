"""What earlier chunks look like to the next one while it is prefilled."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from videox2l.backbones.base import Backbone, TextTokens, VisualTokens
from videox2l.backbones.cache import BufferCache
from videox2l.compress.base import ChunkTask, Compressor
from videox2l.errors import SettingsError
from videox2l.memory.levels import LevelKV
from videox2l.memory.mix import rotated_to


@dataclass(frozen=True)
class History:
    """A parsed `history` setting.

    `"H"`: earlier chunks at the coarsest level (cheap: the context grows slowly). `"L"`: at the finest. `"recent:n"`:
    the last n at the finest, older ones at the coarsest. `"own"`: one pass per level, each seeing its own level
    (the two passes of arXiv 2506.21184). `"fused"`: as "H", but all levels are made in one forward per chunk. That is
    what compressors without summary tokens do in any case.
    """

    kind: str
    recent: int = 0

    @classmethod
    def parse(cls, text: str) -> History:
        """Read the setting; raises SettingsError that lists what is possible."""
        if text in ("H", "L", "own", "fused"):
            return cls(text)
        found = re.fullmatch(r"recent:([1-9]\d*)", text)
        if not found:
            raise SettingsError(f"history '{text}' is not known: use H, L, own, fused, or recent:n such as recent:2")
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
        self.streams = [_Stream(backbone, compressor.compact, ratios, history.recent) for ratios in streams]
        self.sizes: tuple[int, ...] = ()

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

    def add(self, tokens: VisualTokens, last: bool = False) -> dict[float, LevelKV]:
        """Encode the next chunk; return its levels, finest first. `last`: no chunk follows."""
        task = ChunkTask(self.sizes, last, fused=self.history.kind == "fused")
        levels: dict[float, LevelKV] = {}
        for stream in self.streams:
            if self.sizes or not levels:
                # All streams begin with the prefix alone: the first chunk is made once, at all ratios.
                ratios = stream.ratios if self.sizes else self.ratios
                found = self.compressor.compress(tokens, stream.context, self.backbone, ratios, task)
                levels.update(found)
            made = {ratio: levels[ratio] for ratio in stream.ratios}
            stream.extend(made, tokens.positions, finest=self.history.kind == "L")
        self.sizes = (*self.sizes, len(tokens))
        return levels


class _Stream:
    """One context: the prefix, then earlier chunks, the last `recent` of them at their finest level."""

    def __init__(self, backbone: Backbone, compact: bool, ratios: tuple[float, ...], recent: int) -> None:
        self.backbone = backbone
        self.context: BufferCache = backbone.new_cache()
        self.compact = compact
        self.ratios = ratios
        self.recent = recent
        self.settled = 0
        self.pending: list[tuple[dict[float, LevelKV], Tensor]] = []

    def extend(self, levels: dict[float, LevelKV], positions: Tensor, finest: bool) -> None:
        """Add a chunk to the context; chunks that leave the recent ones fall back to their coarsest level.

        `positions` (axes, n) of the chunk's visual tokens.
        """
        if not self.recent:
            self._append(levels[min(levels) if finest else max(levels)], positions)
            return
        self.pending.append((levels, positions))
        if len(self.pending) > self.recent:
            self.context.crop(self.settled)
            old, at = self.pending.pop(0)
            self._append(old[max(old)], at)
            self.settled = len(self.context)
            for chunk, at in self.pending:
                self._append(chunk[min(chunk)], at)
        else:
            self._append(levels[min(levels)], positions)

    def _append(self, level: LevelKV, positions: Tensor) -> None:
        keys = rotated_to(level, positions, len(self.context), self.backbone) if self.compact else level.keys
        self.context.append(keys, level.values)
