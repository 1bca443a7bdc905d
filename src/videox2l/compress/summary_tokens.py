"""Compression by summary tokens, as Video-XL was trained and Video-X2L uses it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from videox2l.compress.base import ChunkContext
from videox2l.engine.backbone import Backbone
from videox2l.engine.cache import BufferCache
from videox2l.engine.summary import SummaryBackbone, SummaryLayout
from videox2l.errors import ModelError, SettingsError
from videox2l.memory.levels import LevelKV
from videox2l.types import VisualTokens


@dataclass(frozen=True)
class SummaryTokenCompressor:
    """Video-XL's summary tokens (arXiv 2409.14485) at two or more ratios (arXiv 2506.21184).

    One summary token follows every `ratio` visual tokens; after the chunk only their KVs are kept. Visual tokens
    that are left over at the end of a chunk count towards the first summary token of the next. The first and the last
    chunk of a video get `end_ratio` at every level, as published; None gives them the level's own ratio.

    Each level is a forward of its own, or with `ChunkContext.fused` all levels are made in one: visual tokens and the
    coarsest level's summary tokens see nothing of the finer levels, so that the coarsest level stays as it was.
    """

    end_ratio: int | None = 2
    compact: ClassVar[bool] = True

    def compress(
        self,
        tokens: VisualTokens,
        context: BufferCache,
        backbone: Backbone,
        ratios: Sequence[float],
        task: ChunkContext,
    ) -> dict[float, LevelKV]:
        """Prefill `tokens` behind `context` and return a level per ratio; levels with one layout are one object."""
        if not isinstance(backbone, SummaryBackbone):
            raise ModelError(
                f"{backbone.name} was not trained with summary tokens: use another compressor, such as 'keydiff'"
            )
        layouts = {ratio: self.layout(tokens, ratio, task) for ratio in sorted(ratios, reverse=True)}
        distinct = list(dict.fromkeys(layouts.values()))  # coarsest first
        runs = [distinct] if task.fused else [[layout] for layout in distinct]
        made: dict[SummaryLayout, LevelKV] = {}
        for run in runs:
            found = backbone.summarise(tokens.embeds, run, context)
            for layout, (keys, values) in zip(run, found, strict=True):
                index = (layout.covered() - 1).int().to(keys.device).expand(*keys.shape[:2], -1)
                at = len(context) + torch.arange(layout.count)
                made[layout] = LevelKV(keys, values, index, positions=at[None])
        return {ratio: made[layouts[ratio]] for ratio in sorted(ratios)}

    def layout(self, tokens: VisualTokens, ratio: float, task: ChunkContext) -> SummaryLayout:
        """Return where the summary tokens of a chunk stand at `ratio`.

        The remainder is a function of the sizes of the earlier chunks, so nothing has to be carried along. Of a
        remainder beyond `end_ratio` at the last chunk, for which the published code has no answer, whole groups of
        `end_ratio` are left out.
        """
        if ratio != int(ratio):
            raise SettingsError(f"ratio {ratio:g} is not possible with summary tokens: use a whole number")
        n = len(tokens)
        step = self._step(ratio, first=not task.before, last=task.last)
        rest = 0
        for number, size in enumerate(task.before):
            own = self._step(ratio, first=number == 0, last=False)
            rest = (size + rest) % own
        rest %= step
        count = (n + rest) // step
        if not count:
            each = n // tokens.grid[0]
            raise SettingsError(
                f"a chunk of {n} visual tokens is too short for ratio {step}: use a ratio of at most {n}, or "
                f"chunk_frames={math.ceil(step / each)} or more"
            )
        return SummaryLayout(step, step - rest, count)

    def _step(self, ratio: float, first: bool, last: bool) -> int:
        return int(ratio) if self.end_ratio is None or not (first or last) else self.end_ratio
