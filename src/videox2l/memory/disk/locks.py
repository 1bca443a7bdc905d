"""One writer at a time, and what keeps a memory from being written at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from videox2l.errors import MemoryFileError
from videox2l.memory.disk.lease import leased
from videox2l.memory.disk.stores import LocalStore, ObjectStore, RemoteStore, make_folder, open_store

LOCK = ".lock"


@contextlib.contextmanager
def locked(place: ObjectStore) -> Iterator[None]:
    """Hold the lock of a folder, which is made if it is not there, or the lease of a URL.

    The lock of a process that ended is no lock.
    """
    if isinstance(place, RemoteStore):
        with contextlib.ExitStack() as stack:
            with writing_errors(place):
                stack.enter_context(leased(place))
            yield
        return
    if not isinstance(place, LocalStore):
        yield
        return
    folder = place.folder
    check_target(folder)
    if (folder / LOCK).is_symlink():
        raise MemoryFileError(f"cannot write to '{folder}': its {LOCK} is a link; remove it")
    lock = FileLock(folder / LOCK, timeout=0, mode=0o600, thread_local=False)  # an ingest may end in another thread
    with writing_errors(place):
        if not folder.exists():
            make_folder(folder)
        try:
            lock.acquire()
        except Timeout:
            raise MemoryFileError(f"'{place}' is being written to by another process: wait until it ends") from None
    try:
        yield
    finally:
        lock.release()


def check_store(where: str | os.PathLike[str]) -> None:
    """Raise MemoryFileError where no memory can be written: what `check_target` says of a folder, or an odd URL."""
    place = open_store(where)
    if isinstance(place, LocalStore):
        check_target(place.folder)


def check_target(folder: Path) -> None:
    """Raise MemoryFileError where no memory can be written: a file, no folder above it, or no permission."""
    if folder.exists() and not folder.is_dir():
        raise MemoryFileError(f"cannot write to '{folder}': it is a file; name a folder")
    if not folder.is_dir() and not folder.parent.is_dir():
        raise MemoryFileError(f"cannot write to '{folder}': the folder '{folder.parent}' does not exist")
    above = folder if folder.is_dir() else folder.parent
    if not os.access(above, os.W_OK | os.X_OK):
        raise MemoryFileError(f"cannot write to '{folder}': no permission to write in '{above}'")


@contextlib.contextmanager
def writing_errors(place: ObjectStore) -> Iterator[None]:
    """Turn trouble with writing into MemoryFileError."""
    try:
        yield
    except EOFError as error:
        raise MemoryFileError(f"'{error}' of the memory '{place}' is damaged: it is cut short") from error
    except OSError as error:
        raise MemoryFileError(
            f"cannot write to '{place}': {error.strerror or error}; what was written before is whole, "
            "and the same ingest goes on from there"
        ) from error
