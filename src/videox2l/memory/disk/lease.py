"""One writer at a time in an object store: a lease that is renewed while it is held.

Leases are numbered objects that are created and never replaced by others: of two who take the next number, one fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from videox2l.errors import MemoryFileError

if TYPE_CHECKING:
    from videox2l.memory.disk.stores import RemoteStore

SECONDS = 60.0
"""A lease that was not renewed for so long is over. Clocks of machines that share a store must agree to seconds."""
FOLDER = ".lease"


class Lease:
    """The right to write to a store, until `release`; a thread renews it."""

    def __init__(self, store: RemoteStore) -> None:
        """Take the lease. Raises MemoryFileError while somebody else has it, OSError where the store fails."""
        self._store = store
        numbers = [int(name) for name in store.hidden(FOLDER) if name.isdecimal()]
        if numbers and (owner := _owner(store, max(numbers))) is not None:
            raise _taken(store, owner)
        self._name = f"{FOLDER}/{max(numbers, default=0) + 1:06d}"
        self._renewed, self._until = time.monotonic(), time.time() + SECONDS
        self._failure = ""
        try:
            store.create(self._name, _record(SECONDS))
        except FileExistsError:
            raise _taken(store, {}) from None
        for number in numbers:
            store.delete(f"{FOLDER}/{number:06d}")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="x2l-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise MemoryFileError where the lease is lost: it could not be renewed in time, so others may write."""
        if self._lost():
            why = f" ({self._failure})" if self._failure else ""
            raise MemoryFileError(
                f"the lease of '{self._store}' could not be renewed for {SECONDS:g} s{why}, so that another writer may "
                "be there: nothing more is written; the same ingest goes on from the last whole chunk"
            )

    def release(self) -> None:
        """Let others write."""
        self._over.set()
        self._thread.join()
        if not self._lost():
            with contextlib.suppress(OSError):  # it runs out by itself
                self._store.put(self._name, _record(0))

    def _lost(self) -> bool:
        """Return whether it ran out, by either clock: one stands still while a machine sleeps, the other can be set."""
        return time.monotonic() - self._renewed > SECONDS or time.time() > self._until

    def _renew(self) -> None:
        while not self._over.wait(SECONDS / 4):
            begun, until = time.monotonic(), time.time() + SECONDS
            if self._lost():
                return
            try:
                self._store.put(self._name, _record(SECONDS))
                self._renewed, self._until = begun, until
            except OSError as error:
                self._failure = str(error)


@contextlib.contextmanager
def leased(store: RemoteStore) -> Iterator[None]:
    """Hold the lease of a store, which then refuses to write once it is lost."""
    lease = Lease(store)
    store.lease = lease
    try:
        yield
    finally:
        store.lease = None
        lease.release()


def _record(seconds: float) -> bytes:
    values = {"machine": _machine(), "pid": os.getpid(), "until": time.time() + seconds if seconds else 0}
    return json.dumps(values).encode()


def _owner(store: RemoteStore, number: int) -> dict[str, Any] | None:
    """Return who holds a lease, or None where it is over: released, run out, or of a process here that ended."""
    try:
        owner = json.loads(store.fetch(f"{FOLDER}/{number:06d}"))
        if owner["until"] < time.time() or (owner["machine"] == _machine() and not _runs(int(owner["pid"]))):
            return None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return {}
    return dict(owner)


def _machine() -> str:
    """Return what tells apart where process ids are counted: the host, and on Linux the namespace."""
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()} {space}".strip()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _taken(store: RemoteStore, owner: dict[str, Any]) -> MemoryFileError:
    who = f"process {owner['pid']} on {str(owner['machine']).split()[0]}" if owner else "another process"
    return MemoryFileError(
        f"'{store}' is being written to by {who}: wait until it ends, or {SECONDS:g} s after it was killed"
    )
