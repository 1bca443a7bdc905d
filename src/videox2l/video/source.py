"""Frames with their true times, and what anything that gives out frames must offer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from videox2l.video.manifest import Manifest


@dataclass(frozen=True, eq=False)
class Frame:
    """One decoded picture.

    image: (height, width, 3) uint8 RGB, contiguous, rotated as it is to be shown.
    pts: seconds since the first frame of the source, from its timestamps.
    index: index of the frame among all frames of the source, in presentation order.
    """

    image: npt.NDArray[np.uint8]
    pts: float
    index: int


@runtime_checkable
class FrameSource(Protocol):
    """Something that gives out frames, in ascending order of `pts`, each once, and can be iterated once.

    No source keeps more than a few frames in memory.
    """

    def __iter__(self) -> Iterator[Frame]:
        """Give out the frames."""
        ...

    @property
    def manifest(self) -> Manifest:
        """What is known so far: facts of the source before, everything after the iteration. A snapshot."""
        ...

    @property
    def expected_frames(self) -> int | None:
        """How many frames the iteration gives out if nothing is damaged; None if that is not known."""
        ...
