"""Many memories: finding, removing, packing into one file and back, keeping within a quota."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videox2l.errors import MemoryFileError, SettingsError
from videox2l.memory.disk.journal import COARSE, JOURNAL, MANIFEST, PREFIX
from videox2l.memory.disk.locks import check_target, locked
from videox2l.memory.disk.source import USED, Source, is_memory, objects_of, open_source, remove_hidden
from videox2l.memory.disk.stores import LocalStore, flush_folder, open_store

_OURS = re.compile(r"(chunks/\d{6,}\.safetensors|thumbs/\d{6,}\.jpg|subtitles-[0-9a-f]{16}\.json)(\.tmp)?")
_FILES = (MANIFEST, JOURNAL, COARSE, PREFIX)


@dataclass(frozen=True)
class Entry:
    """A memory in a library: `seconds` of video, `nbytes` on disk, `used`: when it was last opened (epoch seconds)."""

    path: Path
    source: str
    seconds: float
    chunks: int
    complete: bool
    nbytes: int
    used: float

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as plain JSON values."""
        return {**self.__dict__, "path": str(self.path)}


def find(folder: Path) -> tuple[list[Entry], list[str]]:
    """Return the memories in a folder (or the one that it is), oldest use first, and what is wrong with others.

    Only manifests and journals are read. Raises MemoryFileError if there is no such folder.
    """
    if not folder.is_dir():
        raise MemoryFileError(f"'{folder}' is no folder: name one that holds memories")
    found, wrong = [], []
    for path in [folder] if is_memory(folder) else sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith(".") and is_memory(path):
            try:
                found.append(entry_of(path))
            except MemoryFileError as error:
                wrong.append(str(error))
    return sorted(found, key=lambda entry: entry.used), wrong


def locations(library: str | os.PathLike[str]) -> dict[str, tuple[str, object]]:
    """Return the memories in a folder or at an fsspec URL: by name, where each lies and what changes when it does.

    Nothing of a memory is read. Raises MemoryFileError if there is no such library.
    """
    place, files = open_store(library), dict[str, dict[str, object]]()
    if isinstance(place, LocalStore):
        if not place.folder.is_dir():
            raise MemoryFileError(f"'{place}' is no folder: name one that holds memories")
        for file in (*place.folder.glob(f"*/{MANIFEST}"), *place.folder.glob(f"*/{JOURNAL}")):
            with contextlib.suppress(OSError):  # it was removed just now
                state = file.stat()
                files.setdefault(file.parent.name, {})[file.name] = (state.st_ino, state.st_size, state.st_mtime_ns)
    else:
        files = place.stamps((MANIFEST, JOURNAL))
    separator = os.sep if isinstance(place, LocalStore) else "/"
    return {
        name: (f"{str(place).rstrip(separator)}{separator}{name}", sorted(states.items()))
        for name, states in sorted(files.items())
        if MANIFEST in states and not name.startswith(".")
    }


def entry_of(path: Path) -> Entry:
    """Return what a library shows of a memory; raises MemoryFileError if it is damaged."""
    source = open_source(open_store(path))
    chunks = source.journal.chunks
    return Entry(
        path=path,
        source=str(source.head["video"].get("source")),
        seconds=chunks[-1].end - chunks[0].start if chunks else 0.0,
        chunks=len(chunks),
        complete=source.journal.facts is not None,
        nbytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        used=_used(path),
    )


def _used(path: Path) -> float:
    for name in (USED, MANIFEST):
        with contextlib.suppress(OSError):
            return (path / name).stat().st_mtime
    return 0.0


def inspect(where: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a memory is made of, from its manifest and journal alone, as plain JSON values."""
    source = open_source(open_store(where))
    head, chunks = source.head, source.journal.chunks
    bytes_of = {
        "L" if source.head["settings"].get("l_tier") != "lazy" else "visual tokens": sum(
            entry.fine.nbytes for entry in chunks if entry.fine is not None
        ),
        "H": sum(entry.coarse.nbytes for entry in chunks),
        "subtitles": 0 if source.journal.subtitles is None else source.journal.subtitles.nbytes,
        "thumbnails": sum(entry.thumb.nbytes for entry in chunks if entry.thumb is not None),
        "prefix": int(head["prefix"]["bytes"]),
        "manifest": source.place.size(MANIFEST),
        "journal": source.journal.length,
    }
    ratios = [float(ratio) for ratio in head["ratios"]]
    return {
        "path": str(source.place),
        "format": head["version"],
        "source": head["video"].get("source"),
        "content": head["content"],
        "complete": source.journal.facts is not None,
        "chunks": len(chunks),
        "window_chunks": max((entry.window[1] for entry in chunks), default=1),
        "frames": sum(len(entry.pts) for entry in chunks),
        "start": chunks[0].start if chunks else None,
        "end": chunks[-1].end if chunks else None,
        "levels": {f"{ratio:g}": sum(entry.levels.get(ratio, 0) for entry in chunks) for ratio in ratios},
        "visual_tokens": sum(entry.tokens for entry in chunks),
        "bytes": {**bytes_of, "all": sum(bytes_of.values())},
        "settings": head["settings"],
        "identity": head["identity"],
        "shape": head["shape"],
        "sources": [{"source": facts.get("source"), "sha256": facts.get("sha256")} for facts in source.journal.sources],
    }


def remove(path: Path) -> int:
    """Delete a memory; return the bytes. Other files in its folder are left there.

    Raises MemoryFileError when there is no memory, or it is being written to.
    """
    if path.is_symlink() or not is_memory(path):
        raise MemoryFileError(f"no memory at '{path}': nothing was deleted")
    with locked(open_store(path)):
        size = 0
        for name in sorted(ours(path), key=lambda name: name != MANIFEST):  # half deleted, it is no memory any more
            size += (path / name).stat().st_size
            (path / name).unlink()
    remove_hidden(path)
    for folder in (path / "chunks", path / "thumbs", path):
        with contextlib.suppress(OSError):  # it holds other files, or was not there
            folder.rmdir()
    return size


def ours(path: Path) -> list[str]:
    """Return the files in a memory's folder that are the memory's."""
    names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    return sorted(name for name in names if _OURS.fullmatch(name) or name.removesuffix(".tmp") in _FILES)


def collect(folder: Path, quota: int) -> list[Entry]:
    """Delete memories, those that were not opened for longest first, until all together are within `quota` bytes.

    Memories that are being written to stay. Returns those that were deleted.
    """
    if quota < 0:
        raise SettingsError(f"quota={quota} is not possible: use 0 or more bytes")
    entries, _ = find(folder)
    total, gone = sum(entry.nbytes for entry in entries), []
    for entry in entries:
        if total <= quota:
            break
        with contextlib.suppress(MemoryFileError):
            remove(entry.path)
            total -= entry.nbytes
            gone.append(entry)
    return gone


def export(where: str | os.PathLike[str], file: Path) -> int:
    """Pack a memory into one file: a zip archive without compression. Return its bytes.

    Every object is checked on the way. Raises MemoryFileError; an older file at `file` is untouched then.
    """
    source = open_source(open_store(where))
    if not file.parent.is_dir() or file.is_dir():
        raise MemoryFileError(f"cannot write '{file}': it is a folder, or the folder above it does not exist")
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as raw:
            with zipfile.ZipFile(raw, "w", zipfile.ZIP_STORED) as archive:
                _pack(source, archive)
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(name, file)
        flush_folder(file.parent)
    except OSError as error:
        raise MemoryFileError(f"cannot write '{file}': {error}") from error
    finally:
        Path(name).unlink(missing_ok=True)
    return file.stat().st_size


def _pack(source: Source, archive: zipfile.ZipFile) -> None:
    for at in objects_of(source):
        if at.name != COARSE:
            _put(archive, at.name, source.whole(at))
    with archive.open(zipfile.ZipInfo(COARSE), "w", force_zip64=True) as pack:
        for entry in source.journal.chunks:
            pack.write(source.whole(entry.coarse))
    _put(archive, MANIFEST, source.place.read(MANIFEST))
    _put(archive, JOURNAL, source.place.read(JOURNAL)[: source.journal.length] if source.journal.length else b"")


def _put(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name), data)  # the same time in each archive: equal memories, equal files


def import_(file: Path, target: Path) -> None:
    """Unpack what `export` wrote into a new folder, and verify it before it is put there.

    Archives with names that are no memory's, links, or compressed members (which may unpack to any size) are refused.
    Raises MemoryFileError.
    """
    from videox2l.memory.disk.folder import verify

    check_target(target)
    if file.exists() and not file.is_file():
        raise MemoryFileError(f"cannot import '{file}': it is no regular file")
    if target.exists() and any(target.iterdir()):
        raise MemoryFileError(f"cannot import to '{target}': it is not empty; name a new folder")
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                _check_member(member, file)
                path = fresh.joinpath(*member.filename.split("/"))
                path.parent.mkdir(mode=0o700, exist_ok=True)
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
                with archive.open(member) as source, os.fdopen(handle, "wb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
                    copy.flush()
                    os.fsync(copy.fileno())
        wrong = verify(fresh)
        if wrong:
            raise MemoryFileError(f"'{file}' is damaged: {wrong[0].replace(str(fresh), file.name)}")
        for folder in (fresh / "chunks", fresh / "thumbs", fresh):
            if folder.is_dir():
                flush_folder(folder)
        if target.exists():
            target.rmdir()
        os.rename(fresh, target)
        flush_folder(target.parent)
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise MemoryFileError(f"cannot import '{file}': {error}") from error  # zipfile raises all these on bad headers
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _check_member(member: zipfile.ZipInfo, file: Path) -> None:
    name = member.filename
    if not (name in _FILES or (_OURS.fullmatch(name) and not name.endswith(".tmp"))):
        raise MemoryFileError(f"'{file}' is no exported memory: it holds '{name[:80]}'")
    kind = member.external_attr >> 16 & 0o170000
    if member.compress_type != zipfile.ZIP_STORED or kind not in (0, 0o100000) or member.flag_bits & 1:
        raise MemoryFileError(f"'{file}' is no exported memory: '{name}' is compressed, encrypted or a link")
