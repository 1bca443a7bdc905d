"""The memory object, its levels, mixing them into a cache, and the store on disk.

Names are imported when first used: what lists memories on disk must not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from videox2l.memory.cache_layout import (
        CacheLayout,
        DialogueKV,
        build_cache,
        planned_tokens,
        uniform_plan,
        update_cache,
    )
    from videox2l.memory.joint import JointMemory
    from videox2l.memory.level_cache import LevelCache
    from videox2l.memory.levels import Chunk, LevelKV, Levels
    from videox2l.memory.memory import Memory
    from videox2l.memory.plan import Plan

_HOMES = {
    "CacheLayout": "cache_layout",
    "Chunk": "levels",
    "DialogueKV": "cache_layout",
    "JointMemory": "joint",
    "LevelCache": "level_cache",
    "LevelKV": "levels",
    "Levels": "levels",
    "Memory": "memory",
    "Plan": "plan",
    "build_cache": "cache_layout",
    "planned_tokens": "cache_layout",
    "uniform_plan": "cache_layout",
    "update_cache": "cache_layout",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'videox2l.memory' has no attribute '{name}'")
    return getattr(import_module(f"videox2l.memory.{_HOMES[name]}"), name)


__all__ = [
    "CacheLayout",
    "Chunk",
    "DialogueKV",
    "JointMemory",
    "LevelCache",
    "LevelKV",
    "Levels",
    "Memory",
    "Plan",
    "build_cache",
    "planned_tokens",
    "uniform_plan",
    "update_cache",
]
