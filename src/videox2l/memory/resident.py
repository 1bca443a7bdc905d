"""H of a memory in one buffer on the device: a question's cache is a copy of it with some L swapped in."""

from __future__ import annotations

import itertools
import operator
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from videox2l.engine.backbone import Backbone
from videox2l.engine.cache import BufferCache
from videox2l.errors import SettingsError

if TYPE_CHECKING:
    from videox2l.memory.levels import Chunk


class ResidentLevel:
    """The coarsest level of a memory's chunks, side by side in attention's own layout.

    It is made when it is first wanted, grows with the memory, and is shared by all its snapshots and parts.
    """

    def __init__(self) -> None:
        self._chunks: list[Chunk] = []
        self._spans: dict[int, tuple[int, int]] = {}  # id of a chunk -> its columns
        self._cache: BufferCache | None = None
        self._lock = threading.Lock()

    def bring(
        self, chunks: Sequence[Chunk], ratio: float, backbone: Backbone
    ) -> tuple[BufferCache, dict[int, tuple[int, int]]]:
        """Return the buffers, and by the id of a chunk its columns in them; those that stand behind are added.

        A chunk that is neither held nor behind those that are, such as one with a level that was made for a question,
        has no columns there.
        """
        with self._lock:
            known = sum(id(chunk) in self._spans for chunk in chunks)
            held = len(self._chunks)
            if self._cache is None or not known or (known < len(chunks) and held < len(chunks)):
                grows = known == held and all(map(operator.is_, self._chunks, chunks))
                if self._cache is None or not grows:
                    self._chunks, self._spans = [], {}
                    self._cache = backbone.new_cache(sum(chunk.size(ratio) for chunk in chunks))
                for chunk in chunks[len(self._chunks) :]:
                    level, start = chunk.level(ratio), len(self._cache)
                    self._cache.append(level.keys, level.values)
                    self._spans[id(chunk)] = start, len(self._cache)
                    self._chunks.append(chunk)  # held, so that its id stays its own
            found = self._cache, self._spans
        _used(self)
        return found

    def nbytes(self) -> int:
        """Bytes on the device."""
        cache = self._cache
        return 0 if cache is None else cache.nbytes()

    def clear(self) -> None:
        """Give the bytes back; the next question brings them again."""
        with self._lock:
            self._chunks, self._spans, self._cache = [], {}, None


_limit = 8 << 30
_residents: OrderedDict[int, weakref.ref[ResidentLevel]] = OrderedDict()
_residents_lock = threading.Lock()


def set_device_kv(nbytes: int) -> None:
    """Bound the bytes that the coarsest levels of all memories take on devices, 8 GiB by default.

    Those of memories that were asked longest ago make room; they are brought again from host memory. Raises
    SettingsError.
    """
    global _limit  # one process has one device memory
    if isinstance(nbytes, bool) or not isinstance(nbytes, int) or nbytes < 0:
        raise SettingsError(f"device_kv={nbytes!r} is not possible: use bytes, 0 or more")
    _limit = nbytes


def _used(resident: ResidentLevel) -> None:
    """Note that a memory was asked, and let others go where all of them are beyond the limit."""
    with _residents_lock:
        _residents[id(resident)] = weakref.ref(resident)
        _residents.move_to_end(id(resident))
        for key in [key for key, held in _residents.items() if held() is None]:
            del _residents[key]
        found = [held() for held in _residents.values()]
    total = sum(one.nbytes() for one in found if one is not None)
    for one in itertools.takewhile(lambda one: one is not resident, found):
        if total <= _limit:
            return
        if one is not None:
            total -= one.nbytes()
            one.clear()
