"""The memories that a server has: their records on disk, their ingests, and those that are open."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from videox2l.compress import compressor_by_name
from videox2l.errors import MemoryFileError, SettingsError, X2LError, plain_line
from videox2l.ingest import ingest_steps
from videox2l.memory import Memory
from videox2l.memory.disk import library
from videox2l.memory.disk.source import is_memory
from videox2l.memory.disk.stores import open_store
from videox2l.options import IngestOptions
from videox2l.pipeline import VideoX2L, frame_sampling
from videox2l.serve.errors import APIError
from videox2l.serve.files import plain_name, read_record, write_json
from videox2l.serve.keys import Client
from videox2l.serve.scheduler import Scheduler
from videox2l.types import without_source
from videox2l.units import Cue
from videox2l.video import FrameSource, open_video
from videox2l.video.subtitles import read_subtitles

log = logging.getLogger("videox2l.serve")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_OPEN = 32
ACTIVE = ("queued", "ingesting")
STATES = (*ACTIVE, "complete", "cancelled", "failed")
CHUNK_FRAMES = 256
"""More frames in one chunk than this are refused, as a chunk is held whole."""
WINDOW_CHUNKS = 64
"""More chunks in one window than this are refused, as their tokens are held, and questions wait for the forward."""


@dataclass(frozen=True)
class VideoFile:
    """A video to be ingested: where it lies, its name, hash, and the id of its upload, if it is one."""

    path: Path
    name: str
    sha256: str
    file_id: str | None = None


@dataclass
class MemoryRecord:
    """A memory of the catalog. `state`: queued, ingesting, complete, cancelled or failed."""

    id: str
    name: str
    created: int
    state: str = "queued"
    error: str | None = None
    owners: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    video: str | None = None
    file_id: str | None = None
    sha256: str | None = None


@dataclass
class Progress:
    """How far an ingest is: frames done and expected, the second reached, and when it began."""

    done: int = 0
    expected: int | None = None
    reached: float = 0.0
    begun: float | None = None
    first: int | None = None

    def update(self, done: int, expected: int | None, reached: float) -> None:
        """Take what an ingest tells after a chunk."""
        self.done, self.expected, self.reached = done, expected, reached
        if self.begun is None:
            self.begun, self.first = time.monotonic(), done

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, with the seconds that are left, where they can be told."""
        left = None
        if self.begun is not None and self.first is not None and self.expected and self.done > self.first:
            pace = (time.monotonic() - self.begun) / (self.done - self.first)
            left = round(pace * (self.expected - self.done), 1)
        return {"frames": self.done, "expected_frames": self.expected, "reached": self.reached, "seconds_left": left}


class Catalog:
    """The memories in a folder, and the ingests that make them.

    A memory's id is made of the video's content, the model, and all settings: the same video with the same settings is
    ingested once. What was begun goes on at the next start.
    """

    def __init__(self, folder: Path, x2l: VideoX2L, scheduler: Scheduler, room: Any) -> None:
        self.folder, self.x2l, self._scheduler, self._room = folder, x2l, scheduler, room
        self._jobs = folder / ".jobs"
        self._jobs.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.RLock()
        self._open: dict[str, Memory] = {}
        self._progress: dict[str, Progress] = {}
        self._stopped: set[str] = set()  # ids whose ingest is to end
        self._deleted: set[str] = set()
        self._records = {record.id: record for record in self._read()}
        self._resumed = False  # nothing is begun before
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="x2l-open")

    def _read(self) -> Iterator[MemoryRecord]:
        for file in self._jobs.glob("*.json"):
            try:
                record = read_record(MemoryRecord, file, file.stem)
                if record.state not in STATES or not _ID.fullmatch(record.id):
                    raise ValueError(f"state {record.state}")
                yield record
            except (OSError, ValueError) as error:
                log.warning("record %s cannot be read: %s", file.name, plain_line(str(error)))

    def resume(self) -> int:
        """Go on with all ingests that were not over when the server stopped; return how many."""
        self._resumed = True
        waiting = [record for record in self._records.values() if record.state in ACTIVE]
        for record in sorted(waiting, key=lambda record: record.created):
            self._begin(record)
        return len(waiting)

    def close(self) -> None:
        """Open no more videos."""
        self._readers.shutdown(wait=True, cancel_futures=True)

    def create(self, video: VideoFile, keywords: Mapping[str, Any], client: Client) -> MemoryRecord:
        """Return the memory of a video, whose ingest begins now if there is none. Raises APIError, SettingsError."""
        options = ingest_options(keywords)
        name = self._id(video, options)
        with self._lock:
            record = self._records.get(name)
            if record is None:
                self._room(0)
                record = MemoryRecord(name, video.name, int(time.time()), options=dict(keywords), sha256=video.sha256)
                self._records[name] = record
                begin = True
            else:
                begin = record.state not in (*ACTIVE, "complete")
            if not record.owners or client.name not in record.owners:
                record.owners.append(client.name)
            if video.file_id is not None or record.video is None:
                record.video, record.file_id = str(video.path), video.file_id
            if begin:
                record.state, record.error = "queued", None
            self._keep(record)
            if begin:
                self._begin(record)
        return record

    def of(self, client: Client) -> list[MemoryRecord]:
        """Return the memories that a client sees, newest first; those that were put into the folder are everybody's."""
        found = {record.id: record for record in self._records.values()}
        for path in self.folder.iterdir():
            if path.name not in found and _ID.fullmatch(path.name) and path.is_dir() and is_memory(path):
                found[path.name] = self._stranger(path)
        seen = [record for record in found.values() if client.sees(record.owners)]
        return sorted(seen, key=lambda record: (-record.created, record.id))

    def get(self, name: str, client: Client) -> MemoryRecord:
        """Return a memory. Raises APIError 404."""
        record = self._records.get(name)
        if record is None and _ID.fullmatch(name) and is_memory(self.folder / name):
            record = self._stranger(self.folder / name)
        if record is None or not client.sees(record.owners):
            raise APIError(404, f"there is no memory '{plain_name(name)}'", code="memory_not_found")
        return record

    def memory(self, record: MemoryRecord) -> Memory:
        """Return a memory as far as it is. Raises APIError 409 where nothing of it is ingested yet."""
        with self._lock:
            memory = self._open.pop(record.id, None)
            if memory is None and is_memory(self.folder / record.id):
                memory = Memory.load(self.folder / record.id)
                memory.check_model(self.x2l.identity)
            if memory is None or not memory.chunks:
                raise APIError(409, "nothing of this video is ingested yet: try again shortly", code="not_ready")
            self._open[record.id] = memory
            while len(self._open) > _OPEN:
                del self._open[next(iter(self._open))]
            return memory

    def check(self, record: MemoryRecord) -> None:
        """Raise what asking about a memory would."""
        self.memory(record)

    def show(self, record: MemoryRecord) -> dict[str, Any]:
        """Return what is told of a memory, as plain JSON values."""
        found: dict[str, Any] = {
            "id": record.id,
            "object": "memory",
            "name": record.name,
            "created_at": record.created,
            "state": record.state,
            "error": record.error,
            "file_id": record.file_id,
            "has_video": record.video is not None and Path(record.video).is_file(),
            "progress": self._progress.get(record.id, Progress()).to_dict(),
            "chunks": 0,
        }
        with contextlib.suppress(MemoryFileError, APIError):
            memory = self.memory(record)
            found |= {
                "chunks": len(memory),
                "covers": [memory.chunks[0].start, memory.chunks[-1].end],
                "duration": memory.manifest.get("duration"),
                "levels": {memory.level_name(ratio): ratio for ratio in memory.ratios},
                "tokens": memory.full_tokens,
                "subtitles": len(memory.subtitles),
                "warnings": list(memory.manifest.get("warnings") or ()),
            }
        return found

    def set_subtitles(self, record: MemoryRecord, lines: Sequence[Cue], client: Client) -> None:
        """Give a memory subtitles, in place of those that it has. Raises APIError, MemoryFileError."""
        if record.owners != [client.name]:  # they change the answers that the others get
            client.need("admin")
        with self._lock:
            if record.state in ACTIVE:
                raise APIError(409, "its ingest is not over: give subtitles then", code="state")
            self.memory(record).set_subtitles(lines)

    def cancel(self, record: MemoryRecord) -> None:
        """Stop an ingest behind its last whole chunk; what is there can be asked. Raises APIError 409."""
        with self._lock:
            if record.state not in ACTIVE:
                raise APIError(409, f"the ingest is {record.state}: there is nothing to cancel", code="state")
            self._stopped.add(record.id)

    def delete(self, record: MemoryRecord, client: Client) -> None:
        """Remove a memory; where others have it too, only this client's part in it."""
        with self._lock:
            if not record.owners:
                client.need("admin")
            others = [owner for owner in record.owners if owner != client.name]
            if others and "admin" not in client.scopes:
                record.owners = others
                self._keep(record)
                return
            if record.state in ACTIVE:  # removed where the ingest ends
                self._stopped.add(record.id)
                self._deleted.add(record.id)
                return
            self._remove(record)

    def _remove(self, record: MemoryRecord) -> None:
        self._open.pop(record.id, None)
        if is_memory(self.folder / record.id):
            library.remove(self.folder / record.id)
        (self._jobs / f"{record.id}.json").unlink(missing_ok=True)
        self._records.pop(record.id, None)
        self._deleted.discard(record.id)

    def _stranger(self, path: Path) -> MemoryRecord:
        """Return the record of a memory that another program put into the folder."""
        name, state = path.name, "failed"
        with contextlib.suppress(MemoryFileError):
            entry = library.entry_of(path)
            name, state = plain_name(entry.source), "complete" if entry.complete else "cancelled"
        return MemoryRecord(path.name, name, int(path.stat().st_mtime), state)

    def _id(self, video: VideoFile, options: IngestOptions) -> str:
        identity = without_source(self.x2l.identity)
        whole = {"sha256": video.sha256, "identity": identity, "options": asdict(options)}
        return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()[:32]

    def _keep(self, record: MemoryRecord) -> None:
        write_json(self._jobs / f"{record.id}.json", asdict(record))

    def _begin(self, record: MemoryRecord) -> None:
        if not self._resumed:
            return
        self._stopped.discard(record.id)
        self._progress[record.id] = Progress()
        self._readers.submit(self._prepare, record)

    def _prepare(self, record: MemoryRecord) -> None:
        """Open a video, which reads all of it once, outside of the model's thread; its ingest waits from then on."""
        try:
            if record.video is None:
                raise SettingsError("the video of this memory is gone: upload it again")
            options = ingest_options(record.options)
            cues = read_subtitles("embedded", record.video) if options.subtitles == "embedded" else ()
            source = open_video(record.video, frame_sampling(options))
            source.__enter__()
            options = IngestOptions.from_keywords(options, {"subtitles": cues})
            self._scheduler.ingest(self._steps(record, source, options))
        except Exception as error:
            self._failed(record, error)

    def _steps(self, record: MemoryRecord, source: Any, options: IngestOptions) -> Iterator[object]:
        """Ingest, and keep the record; never raises."""
        try:
            with source, contextlib.closing(self._ingest(record, source, options)) as steps:
                record.state = "ingesting"
                for memory in steps:
                    if memory.chunks and self._open.get(record.id) is not memory:
                        with self._lock:
                            self._open[record.id] = memory
                    if record.id in self._stopped:
                        break
                    yield memory
            self._over(record)
        except Exception as error:
            self._failed(record, error)

    def _over(self, record: MemoryRecord) -> None:
        """Keep the record of an ingest that came to its end, or was stopped."""
        with self._lock:
            record.state = "cancelled" if record.id in self._stopped else "complete"
            if record.id in self._deleted:
                self._remove(record)
            else:
                self._keep(record)
        log.info("ingest", extra={"fields": {"memory": record.id, "state": record.state}})

    def _ingest(self, record: MemoryRecord, source: FrameSource, options: IngestOptions) -> Any:
        subtitles: Any = options.subtitles
        return ingest_steps(
            source,
            self.x2l.backbone,
            options,
            self.x2l.identity,
            store=open_store(self.folder / record.id),
            progress=self._progress[record.id].update,
            subtitles=subtitles,
        )

    def _failed(self, record: MemoryRecord, error: Exception) -> None:
        told = isinstance(error, X2LError)
        fields = {"memory": record.id, "state": "failed", "reason": str(error)}
        log.warning("ingest", extra={"fields": fields}, exc_info=not told)
        with self._lock:
            record.state = "failed"
            record.error = f"the server failed ({type(error).__name__}): its log says more"
            if told:  # by the name that its owner knows, not that of the file here
                words = str(error).replace(f"'{Path(record.video or '').name}'", f"'{record.name}'")
                record.error = plain_line(words)
            try:
                if record.id in self._deleted:
                    self._remove(record)
                else:
                    self._keep(record)
            except (OSError, X2LError):  # such as on a full disk: the next start goes on with the ingest
                log.warning("record", extra={"fields": {"memory": record.id}}, exc_info=True)


def ingest_options(keywords: Mapping[str, Any]) -> IngestOptions:
    """Return the options of an ingest that comes over the net. Raises SettingsError for what only a server's owner may
    choose: files and models by name.
    """
    for name in ("embedder", "transcribe", "live"):
        if keywords.get(name):
            raise SettingsError(f"{name} cannot be chosen by a request")
    if keywords.get("subtitles", ()) not in ((), [], None, "embedded"):
        raise SettingsError('subtitles can be "embedded" only: files of the server are not read')
    if keywords.get("compressor") is not None and not isinstance(keywords["compressor"], str):
        raise SettingsError(f"compressor must be a name, got {keywords['compressor']!r}")
    try:
        json.dumps(keywords, ensure_ascii=False).encode()  # they are kept in a record, and hashed
    except (TypeError, ValueError) as error:
        raise SettingsError(f"the options cannot be kept: {error}") from None
    wanted = {name: value for name, value in keywords.items() if value is not None and value != []}
    try:
        options = IngestOptions.from_keywords(None, wanted)
    except TypeError as error:
        raise SettingsError(f"the options cannot be read: {error}") from None
    if isinstance(options.compressor, str):
        compressor_by_name(options.compressor)
    if options.chunk_frames is not None and options.chunk_frames > CHUNK_FRAMES:
        raise SettingsError(f"chunk_frames must be at most {CHUNK_FRAMES} here, got {options.chunk_frames}")
    if options.window_chunks is not None and options.window_chunks > WINDOW_CHUNKS:
        raise SettingsError(f"window_chunks must be at most {WINDOW_CHUNKS} here, got {options.window_chunks}")
    return options
