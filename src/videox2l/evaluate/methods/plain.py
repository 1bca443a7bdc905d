"""Reference rows: full KV, no video, and one level for everything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from videox2l.compress import RankedCompressor, compressor_by_name
from videox2l.engine.backbone import Backbone
from videox2l.evaluate.base import VideoSession
from videox2l.evaluate.encode import EncodedVideo
from videox2l.evaluate.static_cache import StaticSession
from videox2l.memory import Plan, build_cache, uniform_plan


@dataclass(frozen=True)
class FullMethod:
    """Every KV of the model's own prefill."""

    name: str = "full"
    about: str = "full KV"
    at_budget: bool = False
    uses_question: bool = False
    reusable: bool = True

    def prepare(self, video: EncodedVideo, budget: float, max_new_tokens: int) -> VideoSession:
        """Prefill the whole video."""
        return StaticSession(video, video.full.cache, max_new_tokens, video.full.flops)


@dataclass(frozen=True)
class NoVideoMethod:
    """The prompt without the video: what can be guessed."""

    name: str = "none"
    about: str = "no video"
    at_budget: bool = False
    uses_question: bool = False
    reusable: bool = True

    def prepare(self, video: EncodedVideo, budget: float, max_new_tokens: int) -> VideoSession:
        """Prefill the text before the video alone."""
        cache = video.backbone.new_cache()
        video.prefill(cache, ())
        return StaticSession(video, cache, max_new_tokens, None, next_position=len(cache))


def default_compressor(backbone: Backbone) -> str:
    """Return the compressor that a model's memories are made with, or KeyDiff where that makes no level of any size."""
    name = backbone.default_compressor
    return name if isinstance(compressor_by_name(name), RankedCompressor) else "keydiff"


@dataclass(frozen=True)
class LevelMethod:
    """All chunks at one level of compression, by the package's own ingest.

    `ratio` None means the one that the budget asks for: H alone. Otherwise a reference row: L alone. `compressor`: by
    default the model's.
    """

    name: str
    about: str
    ratio: float | None = None
    compressor: str | None = None
    history: str = "H"
    split: int = 1
    uses_question: bool = False
    reusable: bool = True

    @property
    def at_budget(self) -> bool:
        """Whether the ratio follows the budget."""
        return self.ratio is None

    def prepare(self, video: EncodedVideo, budget: float, max_new_tokens: int) -> VideoSession:
        """Ingest the video at one ratio, then lay it out once.

        The tokens of the budget are dealt to the chunks by their length: at most one token apart from the ratio.
        """
        ratio, sizes = self.ratio, []
        if ratio is None:
            chunks = video.chunked(video.split(self.split))
            sizes = shares([len(chunk.tokens) for chunk in chunks], video.allowance(budget))
            ratio = min(len(chunk.tokens) / size for chunk, size in zip(chunks, sizes, strict=True))
        name = self.compressor or default_compressor(video.backbone)
        memory, flops = video.memory(compressor_by_name(name), (ratio,), self.history, name, video.split(self.split))
        plan = uniform_plan(memory, memory.finest)
        if sizes and memory.chunks[0].levels.ranked:
            wanted = [chunk.tokens / (size + 1e-6) for chunk, size in zip(memory.chunks, sizes, strict=True)]
            plan = Plan.at([max(ratio, memory.finest) for ratio in wanted])
        mixed = build_cache(memory, plan, video.backbone, room=64)
        return StaticSession(video, mixed.cache, max_new_tokens, flops, mixed.next_position)


def shares(lengths: Sequence[int], n: int) -> list[int]:
    """Deal `n` tokens to chunks in proportion to their lengths, at least one and at most all of each."""
    edges = [round(n * total / sum(lengths)) for total in accumulate(lengths, initial=0)]
    return [min(size, max(1, b - a)) for size, a, b in zip(lengths, edges, edges[1:], strict=False)]
