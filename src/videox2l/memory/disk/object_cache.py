"""What was read from an object store, kept in a folder of this machine within a limit, by the hash of its content."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from platformdirs import user_cache_path

from videox2l.units import parse_bytes

FOLDER, LIMIT = "VIDEOX2L_CACHE", "VIDEOX2L_DISK_CACHE"
"""Environment variables: where the package keeps caches, and how many bytes of memories in stores, such as 20G."""


def cache_folder() -> Path:
    """Return the package's cache folder: $VIDEOX2L_CACHE, or `videox2l` where the system keeps caches."""
    if os.environ.get(FOLDER):
        return Path(os.environ[FOLDER]).expanduser()
    return user_cache_path("videox2l", appauthor=False)


class ObjectCache:
    """Stretches of objects in a folder, `limit` bytes at most; those that were not used for longest go first.

    Several processes may share it. A file that is damaged counts as none.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit

    @classmethod
    def of_environment(cls) -> ObjectCache | None:
        """Return the cache that $VIDEOX2L_DISK_CACHE asks for, or None. Raises SettingsError for what is no size."""
        limit = parse_bytes(os.environ.get(LIMIT) or "0", LIMIT)
        return cls(cache_folder() / "objects", limit) if limit else None

    @staticmethod
    def key(hashes: Sequence[str], start: int, end: int) -> str:
        """Return the name of bytes `start` to `end` of content with these hashes."""
        return hashlib.sha256("\n".join([*hashes, f"{start}-{end}"]).encode()).hexdigest()

    def get(self, key: str) -> bytes | None:
        """Return what is kept under a key, or None."""
        path = self.folder / key
        try:
            data = path.read_bytes()
            if hashlib.sha256(data[32:]).digest() != data[:32]:
                return None
            os.utime(path)
        except OSError:
            return None
        return data[32:]

    def put(self, key: str, data: bytes) -> None:
        """Keep bytes, if they fit in and the disk lets it; others make room for them."""
        if len(data) + 32 > self.limit:
            return
        with contextlib.suppress(OSError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.folder, prefix=".")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(hashlib.sha256(data).digest() + data)
                os.replace(name, self.folder / key)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
            self._trim()

    def _trim(self) -> None:
        states = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                states.append((entry.stat().st_mtime, entry.stat().st_size, entry.path))
        total = sum(size for _, size, _ in states)
        for _, size, path in sorted(states):
            if total <= self.limit:
                break
            Path(path).unlink(missing_ok=True)
            total -= size
