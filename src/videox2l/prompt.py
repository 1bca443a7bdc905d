"""What stands in front of a question besides the video."""

from __future__ import annotations

from videox2l.backbones.base import Backbone
from videox2l.errors import SettingsError
from videox2l.memory import Memory, Plan
from videox2l.times import lines_within, span


def with_lines(question: str, memory: Memory, plan: Plan, backbone: Backbone) -> str:
    """Return the question behind the subtitles of the re-loaded chunks, each with its time.

    Lines that hold control tokens of the model are left out. Without lines the question stays as it is.
    """
    found = [
        line
        for chunk, ratio in zip(memory.chunks, plan.ratios, strict=True)
        if ratio < memory.coarsest
        for line in lines_within(memory.subtitles, chunk.start, chunk.end)
    ]
    said = []
    for line in dict.fromkeys(found):  # a line may be shown during two chunks
        try:
            backbone.suffix(line.text)
        except SettingsError:
            continue
        said.append(f"[{span(line.start, line.end)}] {line.text}")
    return "\n".join(["Subtitles:", *said, "", question]) if said else question
