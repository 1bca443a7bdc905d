"""The memory object, its levels, mixing them into a cache, and the store on disk."""

from videox2l.memory.computed import ComputedLevels
from videox2l.memory.dialogue import DialogueKV
from videox2l.memory.levels import Chunk, LevelKV, Levels, kept_tokens
from videox2l.memory.memory import Memory
from videox2l.memory.mix import Mixed, mix, planned_tokens, remix, uniform_plan
from videox2l.memory.plan import Plan

__all__ = [
    "Chunk",
    "ComputedLevels",
    "DialogueKV",
    "LevelKV",
    "Levels",
    "Memory",
    "Mixed",
    "Plan",
    "kept_tokens",
    "mix",
    "planned_tokens",
    "remix",
    "uniform_plan",
]
