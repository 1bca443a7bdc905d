"""The part of a memory that one question sees, with its subtitles, and how that lies in a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from videox2l.compress import compressor_by_name
from videox2l.compress.lazy import with_planned_levels
from videox2l.engine.backbone import Backbone
from videox2l.errors import SettingsError
from videox2l.memory import CacheLayout, DialogueKV, JointMemory, Memory, Plan
from videox2l.options import TimeRange
from videox2l.units import format_range


@dataclass(frozen=True)
class View:
    """What a question sees of a memory: `memory` is all of `whole`, or its chunks `seen`, with the dialogue so far."""

    whole: Memory
    seen: Sequence[int]
    memory: Memory

    @classmethod
    def of(
        cls,
        memory: Memory,
        as_of: float | None = None,
        within: TimeRange | None = None,
        dialogue: DialogueKV | None = None,
        said: str | None = None,
    ) -> View:
        """Return the view of a memory as it is now. Raises SettingsError if it leaves nothing to see."""
        whole = memory.snapshot()
        if as_of is None and within is None and said is None:
            seen, part = list(range(len(whole))), whole
        else:
            seen = whole.seen(as_of, within, said)
            part = whole.only(seen)
        return cls(whole, seen, part.after(dialogue))

    def with_levels(self, plan: Plan, backbone: Backbone) -> Memory:
        """Return the memory that is seen with the levels of the plan.

        Levels that the ingest left out are made now, behind all earlier chunks, seen or not, as the ingest would have.
        """
        if isinstance(self.whole, JointMemory) and isinstance(self.memory, JointMemory):
            left = iter(plan.ratios)
            seen = zip(self.whole.parts, self.whole.split(self.seen), self.memory.parts, strict=True)
            views = [View(*one) for one in seen]
            plans = [Plan.at([next(left) for _ in view.seen]) for view in views]
            parts = [view.with_levels(part, backbone) for view, part in zip(views, plans, strict=True)]
            return self.memory.with_parts(parts)
        if self.whole.settings.get("l_tier", "stored") == "stored":
            return self.memory
        ratios = [self.whole.coarsest] * len(self.whole)
        for i, ratio in zip(self.seen, plan.ratios, strict=True):
            ratios[i] = ratio
        compressor = compressor_by_name(self.whole.settings["compressor"])
        whole = with_planned_levels(self.whole, Plan.at(ratios), backbone, compressor)
        part = whole if len(self.seen) == len(whole) else whole.only(self.seen)
        return part.after(self.memory.dialogue)

    def numbers_within(self, ranges: Sequence[TimeRange]) -> list[int]:
        """Return which of the chunks that are seen overlap time ranges (seconds)."""
        return sorted({i for start, end in ranges for i in self.memory.chunks_within(start, end)})


@dataclass(frozen=True)
class LoadedView:
    """A view that lies in a cache under a plan."""

    layout: CacheLayout
    plan: Plan
    view: View

    def matches(self, view: View) -> bool:
        """Return whether the chunks of `view` are those in the cache, at the same positions."""
        old, new = self.view.memory, view.memory
        same = [(chunk.start, chunk.end) for chunk in old.chunks] == [(chunk.start, chunk.end) for chunk in new.chunks]
        return same and old.next_position == new.next_position and old.changes_in_place


def with_lines(question: str, memory: Memory, plan: Plan, backbone: Backbone) -> str:
    """Return the question behind the subtitles of the re-loaded chunks, each with its time.

    Lines that hold control tokens of the model are left out. Without lines the question stays as it is.
    """
    numbers = [f"video {number}, " for number in range(1, len(memory.runs) + 1)] if len(memory.runs) > 1 else [""]
    found = [
        (number, line)
        for number, run in zip(numbers, memory.runs, strict=True)
        for i in run
        if plan.ratios[i] < memory.coarsest
        for line in memory.lines(i)
    ]
    said = []
    for number, line in dict.fromkeys(found):  # a line may be shown during two chunks
        try:
            backbone.suffix(line.text)
        except SettingsError:
            continue
        said.append(f"[{number}{format_range(line.start, line.end)}] {line.text}")
    return "\n".join(["Subtitles:", *said, "", question]) if said else question
