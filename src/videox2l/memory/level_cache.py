"""Levels that were read or made for a question, kept up to a limit."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from videox2l.memory.levels import LevelKV

DEFAULT_BYTES = 2 << 30


class LevelCache:
    """A bounded cache of levels by chunk number and ratio; the one that was used longest ago goes first.

    Whether a level is found here or made again makes no difference to an answer, only to its time. `capacity` bytes
    of KVs are kept at most; 0 keeps none.
    """

    def __init__(self, capacity: int = DEFAULT_BYTES) -> None:
        self.capacity = capacity
        self._levels: OrderedDict[tuple[int, float], LevelKV] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._levels)

    def nbytes(self) -> int:
        """Bytes of the KVs that are held."""
        return sum(level.nbytes() for level in self._levels.values())

    def get(self, chunk: int, ratio: float) -> LevelKV | None:
        """Return a level, or None if it is not held."""
        with self._lock:
            level = self._levels.get((chunk, ratio))
            if level is not None:
                self._levels.move_to_end((chunk, ratio))
            return level

    def put(self, chunk: int, ratio: float, level: LevelKV) -> None:
        """Keep a level, in host memory; others make room for it."""
        level = level.to("cpu")
        with self._lock:
            self._levels[chunk, ratio] = level
            while self._levels and self.nbytes() > self.capacity:
                self._levels.popitem(last=False)

    def clear(self) -> None:
        """Let all levels go."""
        with self._lock:
            self._levels.clear()
