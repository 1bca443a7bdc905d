"""What earlier chunks look like to the next one while it is prefilled."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from videox2l.compress.base import ChunkContext, Compressor, compress_window, ignore_keys
from videox2l.engine.backbone import Backbone
from videox2l.engine.cache import BufferCache
from videox2l.errors import SettingsError
from videox2l.memory.cache_layout import rotated_to
from videox2l.memory.levels import Chunk, LevelKV
from videox2l.types import TextTokens, VisualTokens


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
    """Turns a video's chunks, one or several at a time, into levels, and carries the context from chunk to chunk.

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
        first.crop(0)
        self._begin(keys, values)
        return keys, values

    def restore(self, prefix: tuple[Tensor, Tensor], chunks: Sequence[Chunk]) -> None:
        """Go on behind chunks that were encoded before, as if they had been encoded now.

        `prefix`: what `prefix` returned then. Only the levels that the history needs are read.
        """
        self._begin(*prefix)
        for stream in self.streams:
            stream.restore(chunks, finest=self.history.kind == "L")
        self.sizes = tuple(chunk.tokens for chunk in chunks)

    def _begin(self, keys: Tensor, values: Tensor) -> None:
        for stream in self.streams:
            stream.context.crop(0)
            stream.context.append(keys.to(self.backbone.device), values.to(self.backbone.device))
            stream.settled = len(stream.context)

    def add(self, tokens: VisualTokens, last: bool = False) -> dict[float, LevelKV]:
        """Encode the next chunk; return its levels, finest first. `last`: no chunk follows."""
        levels = self.make(tokens, last)
        self.extend(levels, tokens.positions)
        return levels

    def make(
        self, tokens: VisualTokens, last: bool = False, on_keys: Callable[[Tensor], None] = ignore_keys
    ) -> dict[float, LevelKV]:
        """Encode the next chunk, but leave the context as it is: `extend` must follow, with what was kept of it."""
        return self.make_window([tokens], last, [on_keys])[0]

    def make_window(
        self, chunks: Sequence[VisualTokens], last: bool, on_keys: Sequence[Callable[[Tensor], None]]
    ) -> list[dict[float, LevelKV]]:
        """Encode the next chunks in one forward per stream, but leave the context as it is: `extend` must follow for
        each. `last`: none follows the last of them; `on_keys` of each chunk.
        """
        tasks, sizes, fused = list[ChunkContext](), self.sizes, self.history.kind == "fused"
        for tokens, take in zip(chunks, on_keys, strict=True):
            tasks.append(ChunkContext(sizes, last and len(tasks) + 1 == len(chunks), fused=fused, on_keys=take))
            sizes = (*sizes, len(tokens))
        levels: list[dict[float, LevelKV]] = [{} for _ in chunks]
        for stream in self.streams:
            if self.sizes or not levels[0]:
                # All streams begin with the prefix alone: the first window is made once, at all ratios.
                ratios = stream.ratios if self.sizes else self.ratios
                made = compress_window(self.compressor, chunks, stream.context, self.backbone, ratios, tasks)
                levels = [known | new for known, new in zip(levels, made, strict=True)]
        return [dict(sorted(chunk.items())) for chunk in levels]

    def extend(self, levels: Mapping[float, LevelKV], positions: Tensor) -> None:
        """Add a chunk to the context; `positions` (axes, n) of its visual tokens."""
        for stream in self.streams:
            stream.extend(levels, positions, finest=self.history.kind == "L")
        self.sizes = (*self.sizes, positions.shape[1])


class _Stream:
    """One context: the prefix, then earlier chunks, the last `recent` of them at their finest level."""

    def __init__(self, backbone: Backbone, compact: bool, ratios: tuple[float, ...], recent: int) -> None:
        self.backbone = backbone
        self.context: BufferCache = backbone.new_cache()
        self.compact = compact
        self.ratios = ratios
        self.recent = recent
        self.settled = 0
        self.pending: list[tuple[LevelKV, LevelKV, Tensor]] = []

    def extend(self, levels: Mapping[float, LevelKV], positions: Tensor, finest: bool) -> None:
        """Add a chunk to the context; chunks that leave the recent ones fall back to their coarsest level.

        `positions` (axes, n) of the chunk's visual tokens.
        """
        if not self.recent:
            self._append(levels[min(self.ratios) if finest else max(self.ratios)], positions)
            return
        fine, coarse = levels[min(self.ratios)], levels[max(self.ratios)]
        self.pending.append((fine, coarse, positions))
        if len(self.pending) > self.recent:
            self.context.crop(self.settled)
            _, old, at = self.pending.pop(0)
            self._append(old, at)
            self.settled = len(self.context)
            for chunk, _, at in self.pending:
                self._append(chunk, at)
        else:
            self._append(fine, positions)

    def restore(self, chunks: Sequence[Chunk], finest: bool) -> None:
        """Add chunks as `extend` does, reading the finest levels of the recent ones only."""
        old = len(chunks) - self.recent if self.recent else 0
        for chunk in chunks[: max(old, 0)]:
            self._append(chunk.level(max(self.ratios)), chunk.positions)
        self.settled = len(self.context)
        for chunk in chunks[max(old, 0) :]:
            self.extend(chunk.levels, chunk.positions, finest)

    def _append(self, level: LevelKV, positions: Tensor) -> None:
        keys = rotated_to(level, positions, len(self.context), self.backbone) if self.compact else level.keys
        self.context.append(keys, level.values)
