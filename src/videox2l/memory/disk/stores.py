"""Object stores of a memory: a folder, this process, or anything that fsspec reaches."""

from __future__ import annotations

import contextlib
import os
import stat
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from videox2l.errors import MemoryFileError

ByteRange = tuple[str, int, int]
"""Name of an object, first byte, end."""

_VECTORS = 512  # buffers per system call; Linux takes 1024


class ObjectStore(ABC):
    """Named objects that are written once, and a few that are appended to.

    Names are relative, with "/" between folders. `reads` counts the bytes that were read, by object. Missing objects
    raise FileNotFoundError, other trouble OSError.
    """

    #: Whether reading at a position is cheap, so that small reads straight into their target pay.
    local = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.reads: Counter[str] = Counter()

    def __str__(self) -> str:
        return self.name

    def read(self, name: str) -> bytes:
        """Return a whole object."""
        data = self._read(name)
        self.reads[name] += len(data)
        return data

    def read_ranges(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        """Return parts of objects, each as long as asked for; EOFError names an object that is too short."""
        found = self._read_ranges(ranges)
        for (name, start, end), data in zip(ranges, found, strict=True):
            self.reads[name] += len(data)
            if len(data) != end - start:
                raise EOFError(name)
        return found

    def read_into(self, name: str, start: int, targets: Sequence[memoryview]) -> None:
        """Fill `targets` one after the other with an object's bytes from `start` on; EOFError if it is too short."""
        size = sum(len(target) for target in targets)
        (data,) = self.read_ranges([(name, start, start + size)])
        at = 0
        for target in targets:
            target[:] = data[at : at + len(target)]
            at += len(target)

    @abstractmethod
    def _read(self, name: str) -> bytes: ...

    @abstractmethod
    def _read_ranges(self, ranges: Sequence[ByteRange]) -> list[bytes]: ...

    @abstractmethod
    def write(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        """Write an object: it is there whole, on disk, or not at all."""

    @abstractmethod
    def append(self, name: str, at: int, data: bytes) -> None:
        """Put `data` behind the first `at` bytes of an object; what stood there is cut off. On disk on return."""

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of all objects, sorted."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Return the bytes of an object."""


class RamStore(ObjectStore):
    """Objects in this process."""

    def __init__(self) -> None:
        super().__init__("memory")
        self.objects: dict[str, bytearray] = {}

    def _read(self, name: str) -> bytes:
        if name not in self.objects:
            raise FileNotFoundError(name)
        return bytes(self.objects[name])

    def _read_ranges(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        return [bytes(memoryview(self.objects[name])[start:end]) for name, start, end in ranges]

    def write(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        """Keep an object."""
        self.objects[name] = bytearray(b"".join(pieces))

    def append(self, name: str, at: int, data: bytes) -> None:
        """Put `data` behind the first `at` bytes."""
        self.objects.setdefault(name, bytearray())[at:] = data

    def names(self) -> list[str]:
        """Return the names of all objects, sorted."""
        return sorted(self.objects)

    def size(self, name: str) -> int:
        """Return the bytes of an object."""
        return len(self.objects[name])


class LocalStore(ObjectStore):
    """A folder. Objects are files of mode 0600: KVs are derived from video that may be private."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder

    def path(self, name: str) -> Path:
        """Return the file of an object; MemoryFileError for a name that leads out of the folder."""
        parts = name.split("/")
        if not name or any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
            raise MemoryFileError(f"'{self}' names an object '{name}' outside of it: it is damaged or forged")
        return self.folder.joinpath(*parts)

    def checked(self, name: str) -> Path:
        """Return the file of an object; MemoryFileError also where a folder on the way is a link."""
        path = self.path(name)
        for folder in path.parents:
            if folder == self.folder:
                break
            if folder.is_symlink():
                raise MemoryFileError(f"'{folder.name}' of '{self}' is a link: the memory is damaged or forged")
        return path

    def _read(self, name: str) -> bytes:
        handle = self._open(name)
        try:
            pieces, at = [], 0
            while piece := os.pread(handle, max(1 << 16, os.fstat(handle).st_size - at), at):
                pieces.append(piece)
                at += len(piece)
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        finally:
            os.close(handle)

    def _read_ranges(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        found = []
        for name, start, end in ranges:
            if end > self.size(name):  # before anything is allocated
                raise EOFError(name)
            data = bytearray(end - start)
            self._fill(name, start, [memoryview(data)])
            found.append(bytes(data))
        return found

    def read_into(self, name: str, start: int, targets: Sequence[memoryview]) -> None:
        """Fill `targets` by positioned reads, many per system call."""
        self._fill(name, start, targets)
        self.reads[name] += sum(len(target) for target in targets)

    def _fill(self, name: str, start: int, targets: Sequence[memoryview]) -> None:
        handle = self._open(name)
        try:
            rest = [target for target in targets if len(target)]
            while rest:
                got = os.preadv(handle, rest[:_VECTORS], start)
                if not got:
                    raise EOFError(name)
                start += got
                done = 0
                while done < len(rest) and got >= len(rest[done]):
                    got -= len(rest[done])
                    done += 1
                rest = rest[done:]
                if got:
                    rest[0] = rest[0][got:]
        finally:
            os.close(handle)

    def _open(self, name: str) -> int:
        path = self.checked(name)
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise MemoryFileError(f"'{name}' of '{self}' is no regular file: the memory is damaged or forged")
        return handle

    def write(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        """Write under a temporary name, flush to disk, rename, and flush the folder."""
        path = self.checked(name)
        if not path.parent.is_dir():
            make_folder(path.parent)
        temporary = path.with_name(path.name + ".tmp")
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                for piece in pieces:
                    _write_all(handle, piece)
                os.fsync(handle)
            finally:
                os.close(handle)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error tells; the next writer overwrites what is left
                os.unlink(temporary)
            raise
        flush_folder(path.parent)

    def append(self, name: str, at: int, data: bytes) -> None:
        """Cut the file to `at` bytes, write `data` behind them, and flush it to disk."""
        path = self.checked(name)
        new = not path.exists()
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            size = os.fstat(handle).st_size
            if size < at:
                raise EOFError(name)
            if size > at:
                os.ftruncate(handle, at)
            os.lseek(handle, at, os.SEEK_SET)
            try:
                _write_all(handle, data)
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, at)
                raise
        finally:
            os.close(handle)
        if new:
            flush_folder(path.parent)

    def names(self) -> list[str]:
        """Return the names of all objects, sorted; hidden and temporary files are none."""
        found = []
        for folder, folders, files in os.walk(self.folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            base = Path(folder).relative_to(self.folder)
            found += [(base / name).as_posix() for name in files if not name.startswith(".") and name[-4:] != ".tmp"]
        return sorted(found)

    def size(self, name: str) -> int:
        """Return the bytes of an object."""
        return self.checked(name).lstat().st_size


def make_folder(path: Path) -> None:
    """Make a folder of mode 0700 and flush the one above it."""
    path.mkdir(mode=0o700, exist_ok=True)
    flush_folder(path.parent)


def flush_folder(path: Path) -> None:
    """Flush a folder's entries to disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_all(handle: int, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while len(rest):
        rest = rest[os.write(handle, rest) :]


REMOTE = ("s3", "gs", "az", "abfs", "memory")
"""Kinds of fsspec URLs that are opened. Object stores, which one has to have keys for; never just any web server."""


class RemoteStore(ObjectStore):
    """A location that fsspec knows, such as s3://bucket/lecture.x2l: objects are put whole, read in ranges."""

    local = False

    def __init__(self, url: str) -> None:
        super().__init__(url)
        protocol = url.split("://", 1)[0]
        if protocol not in REMOTE or "::" in url:
            raise MemoryFileError(f"'{url}' is no place for a memory: use a folder, or a URL of {', '.join(REMOTE)}")
        import fsspec

        try:
            self.fs, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise MemoryFileError(f"'{url}' cannot be reached: {error}") from error
        self.root = str(root).rstrip("/")

    def _at(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _read(self, name: str) -> bytes:
        data: bytes = self.fs.cat_file(self._at(name))
        return data

    def _read_ranges(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        """All ranges at once; file systems with parallel requests use them."""
        paths = [self._at(name) for name, _, _ in ranges]
        found: list[Any] = self.fs.cat_ranges(
            paths, [start for _, start, _ in ranges], [end for _, _, end in ranges], on_error="raise"
        )
        return [bytes(data) for data in found]

    def write(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        """Put a whole object."""
        path = self._at(name)
        self.fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        self.fs.pipe_file(path, b"".join(pieces))

    def append(self, name: str, at: int, data: bytes) -> None:
        """Not possible: object stores do not append."""
        raise MemoryFileError(f"'{self}' cannot be written to step by step: ingest to a local folder, then export it")

    def names(self) -> list[str]:
        """Return the names of all objects, sorted."""
        self.fs.invalidate_cache(self.root)
        return sorted(str(path)[len(self.root) + 1 :] for path in self.fs.find(self.root))

    def size(self, name: str) -> int:
        """Return the bytes of an object."""
        return int(self.fs.size(self._at(name)))

    def stamps(self, names: Sequence[str]) -> dict[str, dict[str, object]]:
        """Return what changes when an object does, of objects `FOLDER/NAME`: by folder and name, in one listing."""
        self.fs.invalidate_cache(self.root)
        found: dict[str, dict[str, object]] = {}
        try:
            listed = self.fs.find(self.root, maxdepth=2, detail=True)
        except OSError as error:
            raise MemoryFileError(f"cannot list '{self}': {error}") from error
        for path, facts in listed.items():
            folder, _, name = str(path)[len(self.root) + 1 :].partition("/")
            if name in names:
                changed = facts.get("ETag") or facts.get("etag") or facts.get("created")
                found.setdefault(folder, {})[name] = (facts.get("size"), str(changed))
        return found


def open_store(where: str | os.PathLike[str]) -> LocalStore | RemoteStore:
    """Return the place of a path or an fsspec URL."""
    text = os.fspath(where)
    return RemoteStore(text) if "://" in text else LocalStore(Path(text))
