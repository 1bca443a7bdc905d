"""Ask long videos many questions: ingest once, keep two levels of KVs, re-load the chunks that matter.

from videox2l import VideoX2L
x2l = VideoX2L.from_pretrained("demo")
memory = x2l.ingest("lecture.mp4")
answer = x2l.ask(memory, "What is on the board when the bell rings?")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from videox2l.version import __version__

if TYPE_CHECKING:
    from videox2l.ask.answer import Answer, Cost, Evidence, Step
    from videox2l.ask.chat import Chat
    from videox2l.ask.escalation import Escalation
    from videox2l.errors import MemoryFileError, ModelError, SettingsError, VideoError, VideoWarning, X2LError
    from videox2l.ingest import transcribe
    from videox2l.memory import Memory, Plan
    from videox2l.pipeline import VideoX2L
    from videox2l.types import Turn
    from videox2l.video import ArraySource

# Names are imported when first used: torch and transformers take seconds, `x2l --help` must not.
_HOMES = {
    "Answer": "ask.answer",
    "ArraySource": "video",
    "Chat": "ask.chat",
    "Cost": "ask.answer",
    "Escalation": "ask.escalation",
    "Evidence": "ask.answer",
    "Memory": "memory",
    "MemoryFileError": "errors",
    "ModelError": "errors",
    "Plan": "memory",
    "SettingsError": "errors",
    "Step": "ask.answer",
    "Turn": "types",
    "VideoError": "errors",
    "VideoWarning": "errors",
    "VideoX2L": "pipeline",
    "X2LError": "errors",
    "transcribe": "ingest",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'videox2l' has no attribute '{name}'")
    return getattr(import_module(f"videox2l.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*_HOMES, "__version__"])


__all__ = [
    "Answer",
    "ArraySource",
    "Chat",
    "Cost",
    "Escalation",
    "Evidence",
    "Memory",
    "MemoryFileError",
    "ModelError",
    "Plan",
    "SettingsError",
    "Step",
    "Turn",
    "VideoError",
    "VideoWarning",
    "VideoX2L",
    "X2LError",
    "__version__",
    "transcribe",
]
