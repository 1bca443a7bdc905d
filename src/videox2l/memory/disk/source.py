"""A memory where it lies, from its manifest and journal alone; no torch, for which a list of memories must not wait."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from videox2l.errors import MemoryFileError, MemoryWarning
from videox2l.memory.disk.admission import check_shape, check_source, need
from videox2l.memory.disk.journal import FORMAT, JOURNAL, MANIFEST, Journal, ObjectRef, read_journal, unpack_manifest
from videox2l.memory.disk.object_cache import ObjectCache
from videox2l.memory.disk.objects import Segment, StoredShape, check_hash, damaged
from videox2l.memory.disk.stores import LocalStore, ObjectStore, open_store
from videox2l.memory.level_cache import LevelCache
from videox2l.types import KVShape
from videox2l.units import Cue

USED = ".used"
"""A file whose time says when a memory was last opened; no part of the memory."""
_SUBTITLES = 64 << 20
"""Bytes of subtitles at most."""
PICTURE = 320
"""Pixels of a thumbnail at most, on each side."""
REMOTE_CACHE = 1 << 30
"""Bytes of re-loaded levels that are kept where reading them again is slow: remote, or quantised."""


@dataclass
class Source:
    """A memory where it lies: its place, what it is made of, and the levels that were read and kept.

    `cache` holds re-loaded levels up to its capacity. A folder at the model's own dtype needs none: the operating
    system keeps what was read, and levels are read straight into the cache that a question attends to. `kept`: a folder
    of this machine for what was read from a store.
    """

    place: ObjectStore
    head: dict[str, Any]
    journal: Journal
    cache: LevelCache
    kept: ObjectCache | None = None
    seen: set[tuple[str, int]] = field(default_factory=set)

    @property
    def stored(self) -> StoredShape:
        """The shape of a token's KVs, as the manifest says it."""
        return StoredShape(**self.head["shape"])

    @cached_property
    def shape(self) -> KVShape:
        """The shape of a token's KVs."""
        return self.stored.loaded()

    @property
    def l_bits(self) -> int | None:
        """Bits of the finer levels; None for the model's dtype."""
        bits: int | None = self.head["settings"].get("l_bits")
        return bits

    @property
    def h_bits(self) -> int | None:
        """Bits of the coarsest level."""
        bits: int | None = self.head["settings"].get("h_bits")
        return bits

    def where(self, name: str) -> str:
        """Return an object's name for a message."""
        return f"'{name}' of the memory '{self.place}'"

    @contextlib.contextmanager
    def wrap_errors(self, names: Sequence[str]) -> Iterator[None]:
        """Turn trouble with objects into MemoryFileError that names them."""
        try:
            yield
        except EOFError as error:
            raise damaged(self.where(str(error)), "it is cut short") from error
        except OSError as error:
            raise MemoryFileError(f"cannot read {self.where(', '.join(sorted(set(names))))}: {error}") from error

    def verify(self, at: ObjectRef, part: Segment, digest: str) -> None:
        """Raise MemoryFileError if a part that was read is not what was written."""
        if digest != part.sha256:
            raise damaged(self.where(at.name))
        self.seen.add((at.name, part.start))

    def whole(self, at: ObjectRef) -> bytes:
        """Return an object, checked. Raises MemoryFileError."""
        (data,) = self.ranges([at], [(at.start, at.start + at.nbytes)])
        check_hash(data, at.sha256, self.where(at.name))
        return data

    def picture(self, at: ObjectRef) -> bytes:
        """Return a thumbnail, checked: a JPEG of at most `PICTURE` pixels a side. Raises MemoryFileError."""
        from PIL import Image

        data = self.whole(at)
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:  # reads the header alone
                width, height = image.size
        except (OSError, ValueError, Image.DecompressionBombError):
            raise damaged(self.where(at.name), "it is no JPEG") from None
        if max(width, height) > PICTURE:
            raise damaged(self.where(at.name), f"a picture of {width} x {height} is no thumbnail")
        return data

    def ranges(self, objects: Sequence[ObjectRef], spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return stretches of objects; those of a store from this machine's cache, where they are there."""
        names = [at.name for at in objects]
        kept = self.kept
        keys = [] if kept is None else [kept.key([at.sha256], *span) for at, span in zip(objects, spans, strict=True)]
        found: list[bytes | None] = [None] * len(names) if kept is None else [kept.get(key) for key in keys]
        missing = [i for i, data in enumerate(found) if data is None]
        with self.wrap_errors(names):
            read = self.place.read_ranges([(names[i], *spans[i]) for i in missing]) if missing else []
        for i, data in zip(missing, read, strict=True):
            found[i] = data
            if kept is not None:
                kept.put(keys[i], data)
        return [data for data in found if data is not None]


def open_source(place: ObjectStore, cache: LevelCache | None = None) -> Source:
    """Read a memory's manifest and journal. Raises MemoryFileError when there is none or it is damaged.

    A line of the journal that was being written when its writer was stopped is left out, with a MemoryWarning.
    """
    try:
        head = unpack_manifest(place.read(MANIFEST), f"'{MANIFEST}' of '{place}'")
    except OSError as error:
        raise MemoryFileError(f"no memory at '{place}': {_why_not(place, error)}") from error
    try:
        data = place.read(JOURNAL)
    except FileNotFoundError:
        data = b""
    except OSError as error:
        raise MemoryFileError(f"cannot read '{JOURNAL}' of the memory '{place}': {error}") from error
    journal = read_journal(data, head["check"], f"'{JOURNAL}' of the memory '{place}'")
    if journal.torn:
        warnings.warn(
            f"'{place}': the writer was stopped in the middle of a line; its {journal.torn} bytes are left out, "
            f"{len(journal.chunks)} chunks are whole",
            MemoryWarning,
            stacklevel=2,
        )
    kept = None if place.local else ObjectCache.of_environment()
    try:
        check_shape(head["shape"])
        quantised = any(head["settings"].get(name) is not None for name in ("l_bits", "h_bits"))
        if cache is None:
            cache = LevelCache(0 if place.local and not quantised else REMOTE_CACHE)
        source = Source(place, head, journal, cache, kept)
        check_source(source)
    except FileNotFoundError as error:
        name = os.path.basename(error.filename or str(error))
        raise MemoryFileError(f"'{name}' of the memory '{place}' is missing: copy the memory again") from error
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, IndexError, OSError) as error:
        raise MemoryFileError(
            f"the memory '{place}' is damaged or forged: {error}; get it again, or ingest the video again"
        ) from error
    return source


def subtitles_of(source: Source) -> tuple[Cue, ...]:
    """Read the subtitles, if there are any. Raises MemoryFileError."""
    at = source.journal.subtitles
    if at is None:
        return ()
    try:
        need(at.nbytes <= _SUBTITLES, f"{at.nbytes} bytes of subtitles")
        values = json.loads(source.whole(at))
        need(isinstance(values, list), "no list")
        lines = [Cue(float(x["start"]), float(x["end"]), x["text"]) for x in values]
        for line in lines:
            need(math.isfinite(line.start) and math.isfinite(line.end), "the times of a subtitle")
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        raise damaged(source.where(at.name), f"its lines cannot be read ({error})") from None
    return tuple(lines)


def video_facts(source: Source) -> dict[str, Any]:
    """Return the sampling manifest: what is known of the video, with the sampled frames of all whole chunks."""
    chunks = source.journal.chunks
    facts = source.head["video"] if source.journal.facts is None else source.journal.facts
    return {
        **facts,
        "pts": [pts for chunk in chunks for pts in chunk.pts],
        "indices": [index for chunk in chunks for index in chunk.indices],
    }


def is_memory(where: str | os.PathLike[str]) -> bool:
    """Return whether a memory is at a path or URL: its manifest names the format."""
    try:
        place = open_store(where)
        return f'"{FORMAT}"'.encode() in place.read(MANIFEST)[:200]
    except (OSError, MemoryFileError):
        return False


def objects_of(source: Source) -> list[ObjectRef]:
    """Return all objects of a memory, the pack in pieces, subtitles and the like included."""
    found = [ObjectRef.from_json(source.head["prefix"])]
    if source.journal.subtitles is not None:
        found.append(source.journal.subtitles)
    return [*found, *(at for entry in source.journal.chunks for at in entry.objects())]


def remove_hidden(folder: Path) -> None:
    """Remove the lock and the time of last use from a folder."""
    for path in folder.iterdir():
        if path.name.startswith(".") and path.is_file():
            path.unlink()


def _why_not(place: ObjectStore, error: OSError) -> str:
    if not isinstance(place, LocalStore):
        return str(error) or "not found"
    if place.folder.is_file():
        return "it is a file; an exported memory is brought back with `x2l memory import`"
    if not place.folder.exists():
        return "no such folder"
    if isinstance(error, PermissionError):
        return f"permission denied ({os.fspath(place.folder)})"
    return "the folder holds none, or its ingest was stopped before it had begun; ingest again"
