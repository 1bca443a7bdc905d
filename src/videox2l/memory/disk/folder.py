"""Whole memories: load, save, copy, verify."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from videox2l.errors import MemoryFileError
from videox2l.memory.disk.journal import COARSE, JOURNAL, MANIFEST
from videox2l.memory.disk.locks import check_target
from videox2l.memory.disk.objects import check_hash, damaged
from videox2l.memory.disk.reader import read_chunks, read_prefix
from videox2l.memory.disk.source import (
    USED,
    Source,
    is_memory,
    objects_of,
    open_source,
    remove_hidden,
    subtitles_of,
    video_facts,
)
from videox2l.memory.disk.stores import LocalStore, ObjectStore, RamStore, RemoteStore, flush_folder, open_store
from videox2l.memory.disk.writer import Head, open_writer
from videox2l.memory.level_cache import LevelCache

if TYPE_CHECKING:
    from videox2l.memory.memory import Memory


def load(where: str | os.PathLike[str], cache_bytes: int | None = None) -> Memory:
    """Open a memory: reads its manifest, journal, prefix and coarsest level, and nothing else.

    `cache_bytes` of re-loaded levels are kept in host memory; by default none where a folder can be read again
    quickly, 1 GiB otherwise. Raises MemoryFileError.
    """
    place = open_store(where)
    cache = None if cache_bytes is None else LevelCache(cache_bytes)
    memory = memory_of(open_source(place, cache))
    if isinstance(place, LocalStore):
        with contextlib.suppress(OSError):  # such as on a disk that may only be read
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            handle = os.open(place.folder / USED, flags, 0o600)  # a link would lead out of the memory
            try:
                os.utime(handle)
            finally:
                os.close(handle)
    return memory


def memory_of(source: Source) -> Memory:
    """Return the memory at a source that was opened, as it was then."""
    from videox2l.memory.memory import Memory

    try:
        prefix = read_prefix(source)
        chunks = read_chunks(source)
        memory = Memory(
            identity=dict(source.head["identity"]),
            settings=dict(source.head["settings"]),
            manifest=video_facts(source),
            shape=source.shape,
            ratios=tuple(float(ratio) for ratio in source.head["ratios"]),
            prefix=prefix,
            next_position=0,
            reposition=str(source.head["reposition"]),
            chunks=chunks,
            complete=source.journal.facts is not None,
            source=source,
            subtitles=subtitles_of(source),
        )
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError, OverflowError) as error:
        raise MemoryFileError(f"'{MANIFEST}' of '{source.place}' is damaged: it lacks or garbles {error}") from error
    memory.next_position = memory.free_position()
    return memory


def head_of(memory: Memory) -> Head:
    """Return what a manifest says of a memory."""
    facts = {key: value for key, value in memory.manifest.items() if key not in ("pts", "indices")}
    return Head(
        identity=memory.identity,
        settings=memory.settings,
        content=content_of(facts),
        video=facts,
        shape=memory.shape,
        ratios=memory.ratios,
        reposition=memory.reposition,
        prefix=memory.prefix,
    )


def content_of(facts: dict[str, object]) -> dict[str, object]:
    """Return what determines the frames of an ingest: the content's hash and the sampling settings."""
    found = {key: facts.get(key) for key in ("sha256", "fps", "max_frames", "start", "end", "mode")}
    return found if facts.get("at") is None else {**found, "at": facts["at"]}  # memories from before have no word of it


def save(memory: Memory, where: str | os.PathLike[str]) -> None:
    """Write a memory to a new folder beside `where`, then put it there; or put it at a URL, object by object.

    Raises MemoryFileError naming the path and the cause; an older memory at `where` is untouched then.
    """
    target = open_store(where)
    if memory.source is not None and len(memory) != len(memory.source.journal.chunks):
        raise MemoryFileError(f"cannot save to '{target}': this is a part of a memory on disk; save the whole one")
    if isinstance(target, RemoteStore):
        with contextlib.ExitStack() as stack:
            source = memory.source
            if source is None:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="videox2l-"))
                source = _written(memory, LocalStore(Path(folder)))
            copy(source, target)
        return
    check_target(target.folder)
    if target.folder.exists() and os.listdir(target.folder) and not is_memory(target.folder):
        raise MemoryFileError(f"cannot save to '{target}': the folder holds other files; name a new folder")
    try:
        with _beside(target.folder) as fresh:
            if memory.source is None:
                _written(memory, LocalStore(fresh))
            else:
                copy(memory.source, LocalStore(fresh))
            replace_folder(fresh, target.folder)
    except OSError as error:
        raise MemoryFileError(f"cannot save to '{target}': {error}") from error


def _written(memory: Memory, place: LocalStore | RamStore) -> Source:
    head = head_of(memory)
    pts, indices = memory.manifest["pts"], memory.manifest["indices"]
    with open_writer(place, head) as writer:
        if memory.subtitles:
            writer.subtitles([asdict(line) for line in memory.subtitles])
        done = 0
        for chunk in memory.chunks:
            frames = slice(done, done + chunk.frames)
            writer.add(chunk, pts[frames], indices[frames])
            done += chunk.frames
        if memory.complete:
            writer.finish(head.video)
    if isinstance(place, LocalStore):
        remove_hidden(place.folder)
    return writer.source


def copy(source: Source, target: ObjectStore) -> None:
    """Copy a memory, checking every object; the journal comes last, so that half a copy is no memory.

    Raises MemoryFileError when an object is damaged, or the target holds something already.
    """
    names = target.names()
    if names:
        raise MemoryFileError(f"cannot copy to '{target}': it holds '{names[0]}' already; name a new place")
    try:
        pack = b"".join(source.whole(entry.coarse) for entry in source.journal.chunks)
        target.write(COARSE, [pack])
        del pack
        for at in objects_of(source):
            if at.name != COARSE:
                target.write(at.name, [source.whole(at)])
        target.write(MANIFEST, [source.place.read(MANIFEST)])
        if source.journal.length:
            target.write(JOURNAL, [source.place.read(JOURNAL)[: source.journal.length]])
    except OSError as error:
        raise MemoryFileError(f"cannot write to '{target}': {error}") from error


def verify(where: str | os.PathLike[str]) -> list[str]:
    """Read every byte of a memory against its hash; return what is damaged or missing, one line each."""
    try:
        source = open_source(open_store(where))
    except MemoryFileError as error:
        return [str(error)]
    found = []
    for at in objects_of(source):
        piece = f" (bytes {at.start}-{at.start + at.nbytes})" if at.name == COARSE else ""
        try:
            if at.name != COARSE and source.place.size(at.name) != at.nbytes:
                raise damaged(source.where(at.name), "it has another size than was written")
            check_hash(source.whole(at), at.sha256, source.where(at.name) + piece)
        except FileNotFoundError:
            found.append(f"{source.where(at.name)} is missing: copy the memory again, or ingest the video again")
        except (MemoryFileError, OSError) as error:
            found.append(str(error))
    for entry in source.journal.chunks if not found else ():
        try:
            if entry.thumb is not None:
                source.picture(entry.thumb)
        except MemoryFileError as error:
            found.append(str(error))
    return found or _not_finite(source)


def _not_finite(source: Source) -> list[str]:
    """Return what holds NaN or Inf, which a question would attend to, and objects that no line of the journal names.

    Earlier subtitles stay where later ones take their place, for those who opened the memory before.
    """
    try:
        memory = memory_of(source)
        found = [
            f"chunk {number} of '{source.place}' holds NaN or Inf at 1/{ratio:g}: ingest the video again"
            for number, chunk in enumerate(memory.chunks)
            for ratio in (() if source.head["settings"].get("l_tier") == "lazy" else chunk.levels)
            if not bool((chunk.level(ratio).keys.isfinite() & chunk.level(ratio).values.isfinite()).all())
        ]
    except MemoryFileError as error:
        return [str(error)]
    if not memory.complete:  # objects of the chunk that was being written may lie there
        return found
    named = {MANIFEST, JOURNAL, COARSE, *(at.name for at in objects_of(source))}
    strangers = [name for name in source.place.names() if name not in named and not name.startswith("subtitles-")]
    return found + [f"'{name}' of '{source.place}' is in no line of its journal: remove it" for name in strangers[:20]]


def replace_folder(fresh: Path, target: Path) -> None:
    """Put a new folder where a memory may be; if that fails, the old one is there again."""
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    had = target.exists()
    if had:
        os.rename(target, old)
    try:
        os.rename(fresh, target)
    except BaseException:
        if had:
            os.rename(old, target)
        raise
    flush_folder(target.parent)
    if had:
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Yield a new empty folder on the same disk as `target`; what is left of it is removed."""
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
