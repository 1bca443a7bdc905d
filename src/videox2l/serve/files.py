"""Uploaded videos: a folder for each, with its content and a record; uploads go on where they were cut off."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from videox2l.errors import plain_line
from videox2l.memory.disk.stores import flush_folder
from videox2l.serve.errors import APIError
from videox2l.serve.keys import Client
from videox2l.video import content_hash

log = logging.getLogger("videox2l.serve")
_RECORD = 1 << 20  # bytes of a record at most
_ID = re.compile(r"file-[0-9a-f]{32}")


Record = TypeVar("Record", bound=Any)


@dataclass(frozen=True)
class FileRecord:
    """An uploaded file: `status` "uploading" or "processed"; `size` bytes; `created` in epoch seconds."""

    id: str
    filename: str
    size: int
    created: int
    purpose: str = "user_data"
    status: str = "processed"
    sha256: str | None = None
    owners: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the file in OpenAI's shape."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.size,
            "created_at": self.created,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": self.status,
            "sha256": self.sha256,
        }


def write_json(path: Path, value: Any) -> None:
    """Write a record: it is there whole, or as it was before."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with fresh.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
    flush_folder(path.parent)


def read_record(kind: type[Record], path: Path, name: str) -> Record:
    """Return a record as `write_json` wrote it; ValueError for one that is damaged, or belongs to another `name`."""
    with path.open("rb") as file:
        record = TypeAdapter(kind).validate_json(file.read(_RECORD), strict=True)
    if record.id != name or not 0 <= record.created < 1 << 40:
        raise ValueError(f"it is the record of {record.id}, made at {record.created}")
    return record


def plain_name(name: str | None) -> str:
    """Return a file name without folders and control characters, for showing."""
    last = (name or "").replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(c for c in last if c.isprintable())[:200] or "video"


class FileStore:
    """Files in `folder`; `limit` bytes each at most, and `room(bytes)` raises where no more may be added."""

    def __init__(self, folder: Path, limit: int, room: Any) -> None:
        self.folder, self.limit, self._room = folder, limit, room
        self._lock = threading.Lock()
        self._writing: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for half in (*folder.glob(".fetch-*"), *folder.glob(".data-*")):  # of a server that was killed
            half.unlink(missing_ok=True)
        self._records = {record.id: record for record in self._read()}

    def _read(self) -> Iterator[FileRecord]:
        for place in self.folder.iterdir():
            if not _ID.fullmatch(place.name):
                continue
            try:
                yield read_record(FileRecord, place / "file.json", place.name)
            except FileNotFoundError:
                shutil.rmtree(place, ignore_errors=True)  # killed before it had a record
            except (OSError, ValueError) as error:  # its content stays: it may be all that is left of a video
                log.warning("file %s cannot be read: %s", place.name, plain_line(str(error)))

    def path(self, record: FileRecord) -> Path:
        """Return where the content lies."""
        return self.folder / record.id / "content"

    def of(self, client: Client) -> list[FileRecord]:
        """Return the files that a client sees, newest first."""
        seen = [record for record in self._records.values() if client.sees(record.owners)]
        return sorted(seen, key=lambda record: (-record.created, record.id))

    def get(self, name: str, client: Client) -> FileRecord:
        """Return a file. Raises APIError 404."""
        record = self._records.get(name)
        if record is None or not client.sees(record.owners):
            raise APIError(404, f"there is no file '{plain_name(name)}'", code="file_not_found")
        return record

    def create(self, name: str | None, size: int, client: Client, purpose: str = "user_data") -> FileRecord:
        """Begin a file of so many bytes. Raises APIError where it would be too large."""
        if size > self.limit:
            raise APIError(413, f"the file has {size} bytes, more than {self.limit} (--max-upload)", code="too_large")
        self._room(size)
        record = FileRecord(
            id=f"file-{secrets.token_hex(16)}",
            filename=plain_name(name),
            size=size,
            created=int(time.time()),
            purpose=purpose,
            status="uploading",
            owners=[client.name],
        )
        (self.folder / record.id).mkdir(mode=0o700)
        self.path(record).touch(mode=0o600)
        self._keep(record)
        return record

    def received(self, record: FileRecord) -> int:
        """Return how many bytes are here."""
        return self.path(record).stat().st_size

    async def write(self, record: FileRecord, start: int, total: int, pieces: AsyncIterator[bytes]) -> FileRecord:
        """Put bytes behind the first `start`; return the record, which is "processed" when all are here.

        Raises APIError 409 where `start` is not where the file ends, or somebody else writes it.
        """
        if record.status == "processed" or total != record.size:
            raise APIError(409, f"the file has {record.size} bytes and is {record.status}", code="upload")
        with self._writer(record):
            if start != self.received(record):
                text = f"the file goes on at byte {self.received(record)}, not at {start}"
                raise APIError(409, text, code="upload_offset", headers={"Range": f"bytes=0-{start - 1}"})
            with self.path(record).open("ab") as file:
                async for piece in pieces:
                    if file.tell() + len(piece) > record.size:
                        raise APIError(400, f"more than the {record.size} bytes that were announced", code="upload")
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
        return record

    def take(self, name: str | None, source: Path, client: Client) -> FileRecord:
        """Move a file that was fetched into the store; the same content is kept once for each client."""
        sha = content_hash(source)
        for known in self.of(client):
            if known.sha256 == sha and client.name in known.owners:
                source.unlink()
                return known
        record = self.create(name, source.stat().st_size, client)
        os.replace(source, self.path(record))
        return self.seal(record, sha)

    def seal(self, record: FileRecord, sha: str | None = None) -> FileRecord:
        """Hash a file whose bytes are all here, and mark it as such."""
        done = replace(record, status="processed", sha256=sha or content_hash(self.path(record)))
        self._keep(done)
        return done

    def delete(self, record: FileRecord) -> None:
        """Remove a file."""
        with self._writer(record):
            shutil.rmtree(self.folder / record.id, ignore_errors=True)
            self._records.pop(record.id, None)

    def _keep(self, record: FileRecord) -> None:
        write_json(self.folder / record.id / "file.json", asdict(record))
        self._records[record.id] = record

    @contextlib.contextmanager
    def _writer(self, record: FileRecord) -> Iterator[None]:
        with self._lock:
            if record.id in self._writing:
                raise APIError(409, "somebody else writes this file", code="upload")
            self._writing.add(record.id)
        try:
            yield
        finally:
            self._writing.discard(record.id)
