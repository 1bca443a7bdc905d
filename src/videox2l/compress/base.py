"""What a compressor and a scorer promise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from videox2l.engine.backbone import Backbone
from videox2l.engine.cache import BufferCache
from videox2l.errors import SettingsError
from videox2l.memory.levels import LevelKV
from videox2l.types import VisualTokens


@dataclass(frozen=True)
class ChunkKV:
    """All KVs of one chunk after its prefill, uncompressed.

    `keys`, `values` (layers, heads, n, head_dim), keys rotated; `queries` (layers, query_heads, w, head_dim) of the
    chunk's last w tokens, rotated, or None when the scorer asked for none; with an echo, those of all its tokens when
    they are fed once more behind the chunk; `tokens` what went in; `scaling` of the attention logits.
    """

    keys: Tensor
    values: Tensor
    queries: Tensor | None
    tokens: VisualTokens
    scaling: float


def ignore_keys(keys: Tensor) -> None:
    """Do nothing with the keys of a chunk."""


@dataclass(frozen=True)
class ChunkContext:
    """What a compressor is told of a chunk besides its tokens.

    `before`: the visual tokens of each earlier chunk of the video; `last`: no chunk follows; `fused`: make all levels
    in one forward, even where one forward per level would be truer to the model's training; `on_keys`: called by
    compressors that have them with all keys of the chunk (layers, heads, n, head_dim), rotated, before any are dropped.
    """

    before: tuple[int, ...] = ()
    last: bool = False
    fused: bool = False
    on_keys: Callable[[Tensor], None] = ignore_keys


FIRST_CHUNK = ChunkContext()


class Compressor(Protocol):
    """Makes the levels of a chunk. It owns the chunk's forward pass, since summary tokens change it.

    `compact`: whether kept keys must stand at consecutive positions in every context and mix, so that a memory made
    with it has `reposition="compact"`. A compressor holds no state between calls.
    """

    compact: ClassVar[bool]

    def compress(
        self,
        tokens: VisualTokens,
        context: BufferCache,
        backbone: Backbone,
        ratios: Sequence[float],
        task: ChunkContext,
    ) -> dict[float, LevelKV]:
        """Prefill `tokens` behind `context` and return a level per ratio.

        Leaves `context` as it was. Levels may be views of one another.
        """


@runtime_checkable
class WindowCompressor(Protocol):
    """A compressor that can also prefill a window: several chunks in one forward, each then compressed on its own."""

    def compress_window(
        self,
        chunks: Sequence[VisualTokens],
        context: BufferCache,
        backbone: Backbone,
        ratios: Sequence[float],
        tasks: Sequence[ChunkContext],
    ) -> list[dict[float, LevelKV]]:
        """Prefill `chunks` behind `context`, each behind all tokens of those before it; return a level per ratio for
        each. Of one chunk exactly what `compress` returns.

        Leaves `context` as it was.
        """


def check_windows(compressor: object) -> None:
    """Raise SettingsError for a compressor that cannot prefill several chunks in one forward."""
    if not isinstance(compressor, WindowCompressor):
        raise SettingsError(
            f"{type(compressor).__name__} prefills each chunk in a forward of its own: use window_chunks=1, or a "
            "compressor that ranks or averages tokens, such as 'keydiff'"
        )


def compress_window(
    compressor: Compressor,
    chunks: Sequence[VisualTokens],
    context: BufferCache,
    backbone: Backbone,
    ratios: Sequence[float],
    tasks: Sequence[ChunkContext],
) -> list[dict[float, LevelKV]]:
    """Return a level per ratio for each of `chunks`, prefilled behind `context` in one forward. Raises SettingsError
    for several chunks and a compressor that cannot.
    """
    if len(chunks) == 1:
        return [compressor.compress(chunks[0], context, backbone, ratios, tasks[0])]
    check_windows(compressor)
    found: list[dict[float, LevelKV]] = compressor.compress_window(chunks, context, backbone, ratios, tasks)  # type: ignore[attr-defined]
    return found


class Scorer(Protocol):
    """Ranks the tokens of a chunk for keeping."""

    @property
    def window(self) -> int:
        """How many of the chunk's last queries `score` needs; 0 for none."""

    @property
    def echo(self) -> bool:
        """Whether the chunk is fed once more, and `score` gets the queries of that pass: twice the forward pass."""

    def score(self, chunk: ChunkKV) -> Tensor:
        """Return scores (layers, heads, n), higher = keep first."""
