"""Memories at fsspec locations: to be read in ranges, and copied to."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from videox2l.errors import MemoryFileError
from videox2l.memory.disk.places import LocalPlace, Place, Range

REMOTE = ("s3", "gs", "az", "abfs", "memory")
"""Kinds of fsspec URLs that are opened. Object stores, which one has to have keys for; never just any web server."""


class RemotePlace(Place):
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

    def _read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
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


def place_at(where: str | os.PathLike[str]) -> LocalPlace | RemotePlace:
    """Return the place of a path or an fsspec URL."""
    text = os.fspath(where)
    return RemotePlace(text) if "://" in text else LocalPlace(Path(text))
