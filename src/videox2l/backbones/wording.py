"""How a family of models writes a video into its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from videox2l.backbones.base import VideoFacts


@dataclass(frozen=True)
class Wording:
    """The words around a video's visual tokens; by default there are none.

    `placeholder` is what the chat template renders for a video, `pad` the token that stands for one visual token. A
    group of frames is written as `opening`, its pads, `close`; the video as `intro`, its groups, `outro`. `pad` and
    `close` are control tokens, so that no word is joined over the end of a group.
    """

    placeholder: str
    pad: str
    close: str = ""
    outro: str = ""

    def intro(self, facts: VideoFacts) -> str:
        """Return what stands before the first group of frames."""
        return ""

    def opening(self, group: int, times: Sequence[float]) -> str:
        """Return what stands before a group: its number in the video, from 0, and the pts (seconds) of its frames."""
        return ""

    def groups(self, first: int, times: Sequence[Sequence[float]], pads: Sequence[int]) -> str:
        """Return a run of groups, the first of number `first`: the pts of each one's frames, and its visual tokens."""
        return "".join(
            self.opening(first + i, pts) + self.pad * count + self.close
            for i, (pts, count) in enumerate(zip(times, pads, strict=True))
        )

    def video(self, times: Sequence[Sequence[float]], facts: VideoFacts, pads: Sequence[int]) -> str:
        """Return a whole video, as it stands in a prompt."""
        return self.intro(facts) + self.groups(0, times, pads) + self.outro
