"""Levels that are made when a plan first wants them, from the visual tokens that the ingest kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import groupby

from videox2l.compress.base import ChunkContext, Compressor, compress_window
from videox2l.engine.backbone import Backbone
from videox2l.errors import SettingsError
from videox2l.memory import LevelKV, Memory, Plan, build_cache, uniform_plan

L_TIERS = ("stored", "lazy")


def check_l_tier(l_tier: str, history: str, ratios: Sequence[float]) -> None:
    """Raise SettingsError where finer levels cannot be made later: they are made behind the coarsest ones."""
    if l_tier not in L_TIERS:
        raise SettingsError(f"l_tier '{l_tier}' is not known: use {', '.join(L_TIERS)} or none")
    if l_tier == "lazy" and history != "H":
        raise SettingsError(f"l_tier='lazy' is not possible with history='{history}': use history='H'")
    if l_tier == "lazy" and len(ratios) < 2:
        raise SettingsError("l_tier='lazy' needs two ratios, such as 2,32: with one there is nothing to make later")


def with_planned_levels(memory: Memory, plan: Plan, backbone: Backbone, compressor: Compressor) -> Memory:
    """Return `memory` with every level that `plan` asks for.

    Missing levels come from the memory's bounded cache or are made as the ingest would have made them with
    `history="H"`. The memory itself keeps its levels; a memory that lacks nothing is returned as it is.
    """
    missing = [
        i for i, chunk in enumerate(memory.chunks) if chunk.visual is not None and plan.ratios[i] not in chunk.levels
    ]
    if not missing:
        return memory
    held = {i: memory.level_cache.get(i, plan.ratios[i]) for i in missing}
    found = {i: level for i, level in held.items() if level is not None}
    wanted = [i for i in missing if i not in found]
    if wanted:
        found |= _make(memory, plan, wanted, backbone, compressor)
    chunks = list(memory.chunks)
    for i in missing:
        chunks[i] = dataclasses.replace(chunks[i], levels=chunks[i].levels.with_level(plan.ratios[i], found[i]))
    return memory.with_chunks(chunks)


def _make(
    memory: Memory, plan: Plan, wanted: Sequence[int], backbone: Backbone, compressor: Compressor
) -> dict[int, LevelKV]:
    """Make levels behind the coarsest levels of the earlier windows, which are laid out once and cropped.

    A chunk's window is prefilled up to the last chunk that is wanted of it.
    """
    head, chunks = memory.only(range(max(wanted) + 1)), memory.chunks
    windows = [(first, list(part)) for first, part in groupby(sorted(wanted), lambda i: _window_start(memory, i))]
    largest = max(sum(chunk.tokens for chunk in chunks[first : part[-1] + 1]) for first, part in windows)
    context = build_cache(head, uniform_plan(head, memory.coarsest), backbone, room=2 * largest)
    sizes = tuple(chunk.tokens for chunk in chunks)
    made = {}
    for first, part in reversed(windows):
        context.cache.crop(context.offsets[first])
        together = range(first, part[-1] + 1)
        tokens = [visual.to(backbone.device) for i in together if (visual := chunks[i].visual) is not None]
        tasks = [ChunkContext(sizes[:i], last=chunks[i].last) for i in together]
        ratios = sorted({plan.ratios[i] for i in part})
        levels = compress_window(compressor, tokens, context.cache, backbone, ratios, tasks)
        for i in part:
            made[i] = levels[i - first][plan.ratios[i]]
            memory.level_cache.put(i, plan.ratios[i], made[i])
    return made


def _window_start(memory: Memory, i: int) -> int:
    """Return the number of the first chunk of a chunk's window, or of what is there of it in a part of a memory."""
    first, place = i, memory.chunks[i].window[0]
    while first and place and memory.chunks[first - 1].window[0] == place - 1:
        first, place = first - 1, place - 1
    return first
