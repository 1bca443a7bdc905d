"""Object stores of a memory: a folder, this process, or anything that fsspec reaches."""

from __future__ import annotations

import contextlib
import os
import stat
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videox2l.errors import MemoryFileError
from videox2l.options import check_path

if TYPE_CHECKING:
    from videox2l.memory.disk.lease import Lease

ByteRange = tuple[str, int, int]
"""Name of an object, first byte, end."""

_MOST, _LARGEST = {"manifest.json": 16 << 20}, 1 << 30
"""Bytes of an object that is read whole without a reference that tells its size: a manifest, a journal."""

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

    def commit(self, name: str, at: int, data: bytes) -> None:
        """Append the line that makes what was written before count."""
        self.append(name, at, data)

    def join(self) -> None:
        """Put what was appended in its final place, where that is another one."""
        return

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
            size, most = os.fstat(handle).st_size, _MOST.get(name, _LARGEST)
            if size > most:
                raise MemoryFileError(f"'{name}' of '{self}' has {size:,} bytes: the memory is damaged or forged")
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


_TAIL = ".tail"


@dataclass
class _Extent:
    """The bytes of an object that grows: `base` of them in the object, then pieces from `starts` on, up to `end`."""

    base: int
    starts: list[int]
    end: int


class RemoteStore(ObjectStore):
    """A location that fsspec knows, such as s3://bucket/lecture.x2l: objects are put whole, read in ranges.

    What is appended lies in pieces of its own, `.tail/NAME/FIRST BYTE`, until `join` puts the whole object in their
    place. Readers see both alike. While a `lease` is set nothing is written once that is lost.
    """

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
        self.lease: Lease | None = None
        self._grown: dict[str, _Extent] | None = None

    def _at(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _read(self, name: str) -> bytes:
        """Read a whole object, as it is now."""
        grown = self._refreshed().get(name)
        return self.fetch(name) if grown is None else self._read_grown([(name, 0, grown.end)])[0]

    def fetch(self, name: str) -> bytes:
        """Return an object that never grows."""
        with _as_os_error():
            data: bytes = self.fs.cat_file(self._at(name))
        return data

    def _read_ranges(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        """All ranges at once; file systems with parallel requests use them."""
        if self._grown is None or any(end > g.end for name, _, end in ranges if (g := self._grown.get(name))):
            self._refreshed()
        try:
            return self._read_grown(ranges)
        except FileNotFoundError:  # pieces may have been joined just now
            self._refreshed()
            return self._read_grown(ranges)

    def _read_grown(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        spans = [self._spans(*one) for one in ranges]
        flat = [span for own in spans for span in own]
        with _as_os_error():
            found: list[Any] = self.fs.cat_ranges(
                [path for path, _, _ in flat],
                [start for _, start, _ in flat],
                [end for _, _, end in flat],
                on_error="raise",
            )
        pieces = iter(found)
        return [b"".join(bytes(next(pieces)) for _ in own) for own in spans]

    def _spans(self, name: str, start: int, end: int) -> list[tuple[str, int, int]]:
        """Return where a range lies: paths, first bytes and ends."""
        grown = (self._grown or {}).get(name)
        if grown is None:
            return [(self._at(name), start, end)]
        found = [(self._at(name), start, min(end, grown.base))] if start < grown.base else []
        for first, stop in pairwise([*grown.starts, grown.end]):
            if start < stop and first < end:
                found.append((self._piece(name, first), max(start, first) - first, min(end, stop) - first))
        return found

    def _piece(self, name: str, start: int) -> str:
        return self._at(f"{_TAIL}/{name}/{start:015d}")

    def _refreshed(self) -> dict[str, _Extent]:
        """Look which objects have pieces, and up to where they follow one another without a gap."""
        pieces: dict[str, dict[int, int]] = {}
        for path, size in self._listed(_TAIL).items():
            name, _, start = path.rpartition("/")
            if start.isdecimal():
                pieces.setdefault(name, {})[int(start)] = size
        self._grown = {}
        for name, sizes in pieces.items():
            try:
                base = self._size(name)
            except FileNotFoundError:
                base = 0
            grown = _Extent(base, [], base)
            for at, size in sorted(sizes.items()):
                if at == grown.end:
                    grown.starts.append(at)
                    grown.end += size
            if base or grown.starts:
                self._grown[name] = grown
        return self._grown

    def _listed(self, folder: str) -> dict[str, int]:
        """Return the bytes of all objects below a folder, by name within it."""
        path = self._at(folder) if folder else self.root
        with _as_os_error():
            self.fs.invalidate_cache(path)
            found = self.fs.find(path, detail=True)
        return {str(name)[len(path) + 1 :]: int(facts["size"]) for name, facts in found.items()}

    def write(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        """Put a whole object."""
        self._guarded()
        self.put(name, b"".join(pieces))

    def put(self, name: str, data: bytes) -> None:
        """Put a whole object, whoever holds the lease."""
        path = self._at(name)
        with _as_os_error():
            self.fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            self.fs.pipe_file(path, data)

    def create(self, name: str, data: bytes) -> None:
        """Put an object that is not there yet: of two who do so at once, one gets FileExistsError."""
        path = self._at(name)
        with _as_os_error():
            self.fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            try:
                self.fs.pipe_file(path, data, mode="create")
            except OSError as error:
                if not isinstance(error, FileExistsError) and not self.fs.exists(path):
                    raise
                self.fs.invalidate_cache(path)
                if self.fs.cat_file(path) != data:  # else a request was sent twice
                    raise FileExistsError(f"another writer put '{name}' there") from error

    def delete(self, name: str) -> None:
        """Remove an object, if it is there."""
        with _as_os_error(), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self._at(name))

    def append(self, name: str, at: int, data: bytes) -> None:
        """Put `data` behind the first `at` bytes, as a piece of its own."""
        self._guarded()
        grown = self._length(name)
        if grown.end < at:
            raise EOFError(name)
        if grown.end > at:
            self._cut(name, grown, at)
        self.put(f"{_TAIL}/{name}/{at:015d}", data)
        self._took(name, grown, at, len(data))

    def commit(self, name: str, at: int, data: bytes) -> None:
        """Append, where nothing stands behind `at`; FileExistsError where another writer was faster."""
        self._guarded()
        grown = self._length(name)
        if grown.end < at:
            raise EOFError(name)
        if grown.end > at:
            raise FileExistsError(f"another writer went on with '{name}'")
        self.create(f"{_TAIL}/{name}/{at:015d}", data)
        self._took(name, grown, at, len(data))

    def _length(self, name: str) -> _Extent:
        grown = (self._refreshed() if self._grown is None else self._grown).get(name)
        if grown is not None:
            return grown
        try:
            size = self._size(name)
        except FileNotFoundError:
            size = 0
        return _Extent(size, [], size)

    def _took(self, name: str, grown: _Extent, at: int, size: int) -> None:
        grown.starts.append(at)
        grown.end = at + size
        if self._grown is not None:
            self._grown[name] = grown

    def _cut(self, name: str, grown: _Extent, at: int) -> None:
        """Let go what stands behind the first `at` bytes, the last piece first."""
        while grown.starts and grown.starts[-1] >= at:
            grown.end = grown.starts.pop()
            self.delete(f"{_TAIL}/{name}/{grown.end:015d}")
        if grown.end > at:  # within a piece, or within the object itself
            (data,) = self._read_grown([(name, grown.starts[-1] if grown.starts else 0, at)])
            self.put(f"{_TAIL}/{name}/{grown.starts[-1]:015d}" if grown.starts else name, data)
            grown.base, grown.end = (grown.base, at) if grown.starts else (at, at)

    def join(self) -> None:
        """Put whole objects in place of those that lie in pieces, and remove the pieces."""
        self._guarded()
        for name, grown in list(self._refreshed().items()):
            if grown.starts:
                (data,) = self._read_grown([(name, 0, grown.end)])
                self.write(name, [data])
        for path in self._listed(_TAIL):
            self.delete(f"{_TAIL}/{path}")
        self._grown = {}

    def _guarded(self) -> None:
        if self.lease is not None:
            self.lease.check()

    def names(self) -> list[str]:
        """Return the names of all objects, sorted; hidden ones are none."""
        whole = {name for name in self._listed("") if not any(part.startswith(".") for part in name.split("/"))}
        return sorted(whole | set(self._refreshed()))

    def hidden(self, folder: str) -> list[str]:
        """Return the names of the objects in a hidden folder."""
        return sorted(self._listed(folder))

    def size(self, name: str) -> int:
        """Return the bytes of an object."""
        grown = (self._refreshed() if self._grown is None else self._grown).get(name)
        return self._size(name) if grown is None else grown.end

    def _size(self, name: str) -> int:
        with _as_os_error():
            self.fs.invalidate_cache(self._at(name))
            return int(self.fs.size(self._at(name)))

    def stamps(self, names: Sequence[str]) -> dict[str, dict[str, object]]:
        """Return what changes when an object does, of objects `FOLDER/NAME`, pieces included, by folder and name."""
        self.fs.invalidate_cache(self.root)
        found: dict[str, dict[str, object]] = {}
        with _as_os_error():
            listed = self.fs.find(self.root, detail=True)
        for path, facts in listed.items():
            folder, _, name = str(path)[len(self.root) + 1 :].partition("/")
            if name in names or name.startswith(f"{_TAIL}/"):
                changed = facts.get("ETag") or facts.get("etag") or facts.get("created")
                found.setdefault(folder, {})[name] = (facts.get("size"), str(changed))
        return found


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """Turn what clients of stores raise for a network that fails into OSError."""
    try:
        yield
    except (OSError, MemoryFileError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def open_store(where: str | os.PathLike[str]) -> LocalStore | RemoteStore:
    """Return the place of a path or an fsspec URL."""
    check_path(where, "the place of a memory")
    text = os.fspath(where)
    return RemoteStore(text) if "://" in text else LocalStore(Path(text))
