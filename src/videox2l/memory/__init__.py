"""The memory object, its levels, mixing them into a cache, and the store on disk."""

from videox2l.memory.cache_layout import (
    CacheLayout,
    DialogueKV,
    build_cache,
    planned_tokens,
    uniform_plan,
    update_cache,
)
from videox2l.memory.joint import JointMemory
from videox2l.memory.levels import Chunk, LevelCache, LevelKV, Levels
from videox2l.memory.memory import Memory
from videox2l.memory.plan import Plan

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
