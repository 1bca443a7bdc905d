"""The memory object, its levels, mixing them into a cache, and the store on disk."""

from videox2l.memory.levels import Chunk, LevelKV, kept_tokens
from videox2l.memory.memory import Memory
from videox2l.memory.plan import Plan

__all__ = ["Chunk", "LevelKV", "Memory", "Plan", "kept_tokens"]
