"""Stretches of a video from which nothing could be read."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from videox2l.units import format_time
from videox2l.video.sampling import FrameChoice
from videox2l.video.timeline import LEAST, Timeline


@dataclass
class Gaps:
    """The holes of the range that was asked for: (start, end) in seconds, ascending, as far as they are known.

    Times between frames are known before anything is decoded; frames that cannot be decoded are met on the way. A video
    whose frames come rarely by its own nature has no holes: what counts is a pause much longer than nearly all others,
    and longer than its frame is said to last.
    """

    found: list[tuple[float, float]] = field(default_factory=list)
    cut: str = ""  # what to say where the end is missing

    @classmethod
    def of(cls, timeline: Timeline, choice: FrameChoice, declared: float | None) -> Gaps:
        """Return the holes between the frames of a choice; `declared`: seconds of video by the file's headers."""
        seconds, gaps = timeline.seconds, cls()
        if choice.first == 0 and seconds[0] > LEAST:
            gaps.found.append((0.0, float(seconds[0])))
        for i in timeline.pauses(LEAST).tolist():
            if choice.first <= i and i + 1 < min(choice.last + 1, len(seconds)):
                gaps.found.append((float(seconds[i] + timeline.step(i)), float(seconds[i + 1])))
        to_the_end = choice.last >= len(seconds)
        if to_the_end and declared is not None and declared - timeline.duration > max(LEAST, 0.02 * declared):
            gaps.found.append((timeline.duration, declared))
            ends = f"the video ends at {timeline.duration:.3f} s of {declared:.3f} s declared"
            gaps.cut = f"stopped: {ends} (cut short?)"
        return gaps

    def meet(self, timeline: Timeline, samples: npt.NDArray[np.int64], first: int, index: int) -> bool:
        """Note that no sample from frame `first` on came before frame `index`; return whether a hole lies before it.

        Holes that are nearer to one another than half a second are one.
        """
        seconds = timeline.seconds
        lost = samples[(samples >= first) & (samples < index)]
        end = float(seconds[index]) if index < len(seconds) else timeline.duration
        if len(lost) and end - float(seconds[lost[0]]) >= min(LEAST, timeline.step(int(lost[0]))):
            start = float(seconds[lost[0]])
            inside = [hole for hole in self.found if hole[0] <= end + LEAST and hole[1] >= start - LEAST]
            self.found = [hole for hole in self.found if hole not in inside]
            self.found.append((min([start, *(a for a, _ in inside)]), max([end, *(b for _, b in inside)])))
            self.found.sort()
        since = float(seconds[first - 1]) if 0 < first <= len(seconds) else 0.0
        return any(start >= since - 1e-9 and stop <= end + 1e-9 for start, stop in self.found)

    def sentences(self, known: int = 0) -> list[str]:
        """Return what a reader needs to know; nothing if there are just the `known` holes that were told before."""
        if len(self.found) == known:
            return []
        if self.cut and not known and len(self.found) == 1:
            return [self.cut]
        listed = ", ".join(f"{format_time(a)}-{format_time(b)}" for a, b in self.found[:8])
        more = f" and {len(self.found) - 8} more" if len(self.found) > 8 else ""
        total = sum(b - a for a, b in self.found)
        told = [self.cut] if self.cut and not known else []
        return [*told, f"nothing could be read from {listed}{more}: {total:.1f} s are missing"]
