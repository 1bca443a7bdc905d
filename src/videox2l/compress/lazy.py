"""Levels that are made when a plan first wants them, from the visual tokens that the ingest kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from videox2l.compress.base import ChunkContext, Compressor
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
    """Make levels behind the coarsest levels of the earlier chunks, which are laid out once and cropped."""
    head = memory.only(range(max(wanted) + 1))
    largest = max(memory.chunks[i].tokens for i in wanted)
    context = build_cache(head, uniform_plan(head, memory.coarsest), backbone, room=2 * largest)
    sizes = tuple(chunk.tokens for chunk in memory.chunks)
    made = {}
    for i in sorted(wanted, reverse=True):
        context.cache.crop(context.offsets[i])
        ratio, tokens = plan.ratios[i], memory.chunks[i].visual
        assert tokens is not None
        task = ChunkContext(sizes[:i], last=memory.chunks[i].last)
        made[i] = compressor.compress(tokens.to(backbone.device), context.cache, backbone, (ratio,), task)[ratio]
        memory.level_cache.put(i, ratio, made[i])
    return made
