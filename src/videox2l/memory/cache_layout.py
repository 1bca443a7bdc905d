"""From a memory and a plan to one cache: the reload, with the KVs of a dialogue behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from videox2l.engine.backbone import Backbone
from videox2l.engine.cache import BufferCache
from videox2l.engine.rope import rerotate
from videox2l.errors import SettingsError
from videox2l.memory.disk.reader import StoredLevels, fetch_into, read_levels
from videox2l.memory.levels import LevelKV
from videox2l.memory.plan import Plan
from videox2l.memory.resident import ResidentLevel
from videox2l.types import TextTokens

if TYPE_CHECKING:
    from videox2l.memory.memory import Memory


@dataclass(frozen=True)
class CacheLayout:
    """A memory laid out for one question.

    Chunk i stands in the `sizes[i]` columns of `cache` from `offsets[i]` on; the last offset is the end of all chunks.
    Between two videos stands text. Earlier turns of a dialogue follow up to `text`, and
    the question behind them, from `next_position` on. `brought` are the numbers of the chunks whose levels were
    brought to the device for it.
    """

    cache: BufferCache
    offsets: list[int]
    sizes: Sequence[int]
    next_position: int
    brought: Sequence[int] = ()
    text: int = 0

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The columns of each chunk, the first and the one behind the last."""
        return [(start, start + size) for start, size in zip(self.offsets, self.sizes, strict=False)]


@dataclass(frozen=True)
class Placement:
    """Where one video stands among several: its `chunks`, by number, with `text` before them from position `first` on.

    Its keys are turned `shift` positions on from those at which they were prefilled. `resident` holds its H.
    """

    chunks: range
    resident: ResidentLevel
    text: TextTokens | None = None
    first: int = 0
    shift: int = 0


def build_cache(memory: Memory, plan: Plan, backbone: Backbone, room: int = 0) -> CacheLayout:
    """Lay the planned levels out as one cache: prefix, then the chunks in order of time.

    Stretches of H come from what is resident in one copy each, and so does each finer level, into buffers with `room`
    spare columns for question and answer: the number of copies does not depend on that of the chunks. Keys keep the
    positions at which they were prefilled, or, when the memory was made with `reposition="compact"`, are rotated
    on to the column that they stand in. Of several videos each is rotated on to its place behind those before it, and
    the text between them is prefilled now. Earlier turns of a dialogue follow the chunks.
    """
    if len(plan) != len(memory.chunks):
        raise SettingsError(f"the plan is for {len(plan)} chunks, the memory has {len(memory.chunks)}")
    sizes = [chunk.size(ratio) for chunk, ratio in zip(memory.chunks, plan.ratios, strict=True)]
    said = memory.dialogue
    text = memory.text_tokens + sum(sizes) + (0 if said is None else len(said))
    cache = backbone.new_cache(text + room)
    cache.append(memory.prefix[0].to(backbone.device), memory.prefix[1].to(backbone.device))
    compact = memory.reposition == "compact"
    if compact:
        offsets = list(accumulate(sizes, initial=len(cache)))
        levels = _planned_levels(memory, plan, sizes, range(len(memory.chunks)))
        for chunk, level, column in zip(memory.chunks, levels, offsets, strict=False):
            cache.append(rotated_to(level, chunk.positions, column, backbone), level.values)
    else:
        offsets = _lay_out_videos(memory, plan, sizes, cache, backbone)
    position = offsets[-1] if compact else memory.next_position
    if said is not None:
        position = said.lay(cache, position, backbone)
    return CacheLayout(cache, offsets, sizes, position, range(len(memory.chunks)), text)


def update_cache(mixed: CacheLayout, memory: Memory, old: Plan, new: Plan) -> CacheLayout:
    """Give the chunks whose level differs between two plans their new one; nothing else is brought again.

    `mixed` is the layout of `old`, and holds the memory's dialogue; it is used up. What stands behind the dialogue is
    forgotten. Equals `mix` of the new plan bit for bit. Only where keys stay where they are: those that are rotated to
    their columns would have to be rotated again, and text between two videos saw the levels before it.
    """
    if not memory.changes_in_place:
        what = f"reposition='{memory.reposition}' and {len(memory.runs)} videos"
        raise SettingsError(f"a memory with {what} cannot be changed in place: mix it anew")
    mixed.cache.crop(mixed.text)
    changed = [i for i, (was, now) in enumerate(zip(old.ratios, new.ratios, strict=True)) if was != now]
    if not changed:
        return replace(mixed, brought=())
    sizes = [chunk.size(ratio) for chunk, ratio in zip(memory.chunks, new.ratios, strict=True)]
    offsets = list(accumulate(sizes, initial=mixed.offsets[0]))
    levels = _planned_levels(memory, new, sizes, changed)
    mixed.cache.replace(
        [
            (mixed.offsets[i], mixed.offsets[i + 1], level.keys, level.values)
            for i, level in zip(changed, levels, strict=True)
        ]
    )
    text = mixed.text + offsets[-1] - mixed.offsets[-1]
    return CacheLayout(mixed.cache, offsets, sizes, mixed.next_position, changed, text)


def _planned_levels(memory: Memory, plan: Plan, sizes: Sequence[int], chunks: Sequence[int]) -> list[LevelKV]:
    """Return the levels of some chunks; those that are not in host memory are read together."""
    away = sorted(set(_away(memory, plan, sizes)).intersection(chunks))
    found = dict(zip(away, read_levels([_job(memory, plan, sizes, i) for i in away]), strict=True)) if away else {}
    return [found[i] if i in found else memory.chunks[i].level(plan.ratios[i]) for i in chunks]


def _lay_out_videos(
    memory: Memory, plan: Plan, sizes: Sequence[int], cache: BufferCache, backbone: Backbone
) -> list[int]:
    """Lay the videos out behind each other with the text between them; return where chunks begin, and the end."""
    offsets = list[int]()
    for place in memory.placements():
        if place.text is not None and len(place.text):
            positions = backbone.text_positions(place.first, len(place.text))
            backbone.forward(place.text.embeds, positions, cache)
        start = len(cache)
        offsets += list(accumulate((sizes[i] for i in place.chunks), initial=start))[:-1]
        _lay_out(memory, plan, sizes, cache, place, backbone)
        if place.shift:
            cache.rerotate(start, *backbone.rotation(backbone.text_positions(place.shift, 1)))
    return [*offsets, len(cache)]


def _lay_out(
    memory: Memory, plan: Plan, sizes: Sequence[int], cache: BufferCache, place: Placement, backbone: Backbone
) -> None:
    """Copy the planned levels into the cache: H in stretches of what is resident, finer levels one by one.

    Those that are not in host memory are read into the cache together.
    """
    away = set(_away(memory, plan, sizes))
    resident, spans = place.resident.bring([memory.chunks[i] for i in place.chunks], memory.coarsest, backbone)
    jobs, run = [], (0, 0)
    for i in place.chunks:
        chunk = memory.chunks[i]
        span = spans.get(id(chunk)) if plan.ratios[i] == memory.coarsest else None
        if span is not None and span[0] == run[1]:
            run = run[0], span[1]
            continue
        cache.append_from(resident, *run)
        run = span or (0, 0)
        if span is not None:
            continue
        if i in away:
            jobs.append((*_job(memory, plan, sizes, i), cache.extend(sizes[i])))
        else:
            level = chunk.level(plan.ratios[i])
            cache.append(level.keys, level.values)
    cache.append_from(resident, *run)
    if jobs:
        fetch_into(jobs)


def _away(memory: Memory, plan: Plan, sizes: Sequence[int]) -> list[int]:
    return [i for i, chunk in enumerate(memory.chunks) if not chunk.levels.in_memory(plan.ratios[i], sizes[i])]


def _job(memory: Memory, plan: Plan, sizes: Sequence[int], i: int) -> tuple[StoredLevels, float, int]:
    return cast("StoredLevels", memory.chunks[i].levels), plan.ratios[i], sizes[i]


def rotated_to(level: LevelKV, positions: Tensor, column: int, backbone: Backbone) -> Tensor:
    """Return a level's keys rotated on to the positions column, column + 1, ... in their order of time.

    `positions` (axes, n) are those of the chunk's visual tokens. Rotating by the difference equals rotating the
    unrotated keys at the new position (arXiv 2104.09864).
    """
    if backbone.axes != 1:
        raise SettingsError(f"reposition='compact' is not possible for {backbone.name}: it has {backbone.axes} axes")
    if level.positions is not None:  # summary tokens stand in order, the same ones in all layers and heads
        shift = column + torch.arange(len(level)) - level.positions[0].cpu()
    else:
        index = level.index.long()  # (layers, heads, n)
        shift = column + index.argsort(-1).argsort(-1) - positions[0].to(index.device)[index]
    if not shift.any():
        return level.keys
    cos, sin = backbone.rotation(shift.reshape(1, -1))
    shape = (*shift.shape, -1)
    keys = level.keys.to(cos.device)
    return rerotate(keys, cos.reshape(shape), sin.reshape(shape))


def uniform_plan(memory: Memory, ratio: float, reason: str = "") -> Plan:
    """Return the plan that gives every chunk one level."""
    return Plan.at([ratio] * len(memory.chunks), reason)


def planned_tokens(memory: Memory, plan: Plan) -> int:
    """Return how many tokens attention reads under a plan: text before and between videos, and chunks."""
    return memory.text_tokens + sum(chunk.size(ratio) for chunk, ratio in zip(memory.chunks, plan.ratios, strict=True))


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
        return rerotate(self.keys.to(cos.device), cos, sin)
