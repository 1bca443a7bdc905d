"""Ingest of many videos by actors of Ray: each holds the model, takes one video after the other, and writes a memory.

Nothing is kept but the memories and a report: whatever is killed, the same call goes on from what is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from videox2l.errors import MemoryFileError, ModelError, SettingsError, VideoError, X2LError
from videox2l.memory.disk.locks import locked
from videox2l.memory.disk.stores import ObjectStore, open_store
from videox2l.options import IngestOptions, LoadOptions, ScaleOptions
from videox2l.video.files import FORMATS

REPORT = "ingest.jsonl"
WAIT = 15.0
"""Seconds before a memory that another writer holds is tried again: leases run out after a minute."""
_VIDEOS = {f".{name}" for name in FORMATS.split(",")} | {".mkv", ".m4v", ".ts", ".mpg", ".wmv", ".y4m"}


@dataclass(frozen=True)
class IngestRecord:
    """One try to ingest a video, a line of the report.

    `state`: "complete", "failed" (not tried again) or "retry", which has another record behind it; `error`: why;
    `attempt`: from 1; `seconds` of the worker; `worker`: its node and process.
    """

    video: str
    memory: str
    state: str
    attempt: int
    error: str = ""
    seconds: float = 0.0
    chunks: int = 0
    frames: int = 0
    worker: str = ""


Progress = Callable[[int, int, str], None]
"""Called with the videos done, all videos, and what is going on."""


@dataclass
class _Job:
    video: str
    memory: str
    attempt: int = 1
    not_before: float = 0.0


class _Worker:
    """What an actor does: it loads the model once and ingests what it is given."""

    def __init__(self, model: str, loading: LoadOptions, options: IngestOptions) -> None:
        from videox2l.pipeline import VideoX2L

        self._x2l, self._options = VideoX2L.from_pretrained(model, loading), options
        self._at = ""

    def name(self) -> str:
        """Return node and process."""
        import ray

        return f"{ray.util.get_node_ip_address()}:{os.getpid()}"

    def at(self) -> str:
        """Return how far the ingest of now is, also while it runs."""
        return self._at

    def ingest(self, video: str, where: str) -> dict[str, Any]:
        """Ingest a video; return what is told of it, or why it failed, and whether trying again could help."""
        from videox2l.units import format_time

        def tell(done: int, expected: int | None, pts: float) -> None:
            self._at = f"{Path(video).name} at {format_time(pts)} ({done} of {expected or '?'} frames)"

        begun = time.perf_counter()
        try:
            memory = self._x2l.ingest(video, self._options, store=where, progress=tell)
            found = {"state": "complete", "chunks": len(memory), "frames": sum(c.frames for c in memory.chunks)}
        except (X2LError, OSError, RuntimeError, MemoryError) as error:
            again = not isinstance(error, (VideoError, SettingsError, ModelError))
            found = {"state": "retry" if again else "failed", "error": f"{type(error).__name__}: {error}"}
        self._at = ""
        return {**found, "seconds": round(time.perf_counter() - begun, 3)}


def ingest_many(
    videos: Sequence[str | Path],
    library: str | Path,
    model: str = "demo",
    options: IngestOptions | None = None,
    *,
    loading: LoadOptions | None = None,
    scaling: ScaleOptions | None = None,
    progress: Progress | None = None,
) -> list[IngestRecord]:
    """Ingest videos into the memories of a library, a folder or fsspec URL, with Ray; return the last record of each.

    A memory is called after its video's file. Videos and a library in a folder must be seen under the same paths by all
    machines. A video whose memory is complete is not read again, one that was stopped goes on from its last whole
    chunk. What fails is tried `scaling.retries` times more, by any worker; a worker that dies is replaced. Every try is
    a line of `ingest.jsonl` in the library.

    Raises SettingsError (also where Ray is not installed), ModelError where no worker can load the model, and
    MemoryFileError where the library cannot be written.
    """
    scaling = ScaleOptions() if scaling is None else scaling
    jobs = [_Job(video, name) for video, name in named(videos).items()]
    place = open_store(library)
    with locked(place), _ray(scaling), Report(place) as report:
        return _Run(place, jobs, report, scaling, progress).finish(
            (model, loading or LoadOptions(), options or IngestOptions())
        )


@dataclass
class _Run:
    """The jobs of one call, and the actors that work on them."""

    place: ObjectStore
    waiting: Sequence[_Job]
    report: Report
    scaling: ScaleOptions
    progress: Progress | None
    last: dict[str, IngestRecord] = field(default_factory=dict)
    lost: int = 0

    def finish(self, made_of: tuple[Any, ...]) -> list[IngestRecord]:
        """Work until every job is done or has failed."""
        import ray

        queue, order = deque(self.waiting), [job.video for job in self.waiting]
        number = min(len(queue), self.scaling.workers or _places(self.scaling.gpus))
        actor = ray.remote(_Worker).options(
            num_cpus=1, num_gpus=self.scaling.gpus, max_concurrency=2, max_restarts=0, max_task_retries=0
        )
        starting = {(worker := actor.remote(*made_of)).name.remote(): worker for _ in range(number)}
        names: dict[Any, str] = {}
        busy: dict[Any, tuple[Any, _Job]] = {}
        idle: list[Any] = []
        while queue or busy:
            now = time.monotonic()
            while idle and queue and (job := _ready(queue, now)) is not None:
                worker = idle.pop()
                busy[worker.ingest.remote(job.video, self._where(job))] = (worker, job)
            done, _ = ray.wait([*starting, *busy], num_returns=1, timeout=1.0)
            for reference in done:
                if reference in starting:
                    worker = starting.pop(reference)
                    if (name := _loaded(reference)) is not None:
                        names[worker] = name
                        idle.append(worker)
                        continue
                    self.lost += 1
                    if self.lost > number + self.scaling.retries:
                        raise ModelError(
                            f"{self.lost} workers died while they loaded the model: is there memory for it?"
                        )
                    another = actor.remote(*made_of)
                    starting[another.name.remote()] = another
                    continue
                worker, job = busy.pop(reference)
                try:
                    found = ray.get(reference)
                    idle.append(worker)
                except ray.exceptions.RayError as error:  # it was killed, or its machine is gone
                    found = {"state": "retry", "error": f"the worker died: {str(error).splitlines()[0]}"}
                    another = actor.remote(*made_of)
                    starting[another.name.remote()] = another
                self._note(job, found, names.get(worker, ""), queue)
            self._tell(len(order), [worker for worker, _ in busy.values()])
        return [self.last[video] for video in order]

    def _where(self, job: _Job) -> str:
        return f"{str(self.place).rstrip('/')}/{job.memory}"

    def _note(self, job: _Job, found: dict[str, Any], worker: str, queue: deque[_Job]) -> None:
        """Write a try down; put what failed back, if it may be tried again."""
        if found["state"] == "retry" and job.attempt > self.scaling.retries:
            found["state"] = "failed"
        record = IngestRecord(job.video, job.memory, attempt=job.attempt, worker=worker, **found)
        self.last[job.video] = record
        self.report.add(record)
        if record.state == "retry":
            held = "is being written to" in record.error
            queue.append(_Job(job.video, job.memory, job.attempt + 1, time.monotonic() + (WAIT if held else 0.0)))

    def _tell(self, total: int, workers: Sequence[Any]) -> None:
        import ray

        if self.progress is None:
            return
        done = sum(record.state != "retry" for record in self.last.values())
        notes = [worker.at.remote() for worker in workers]
        ready, _ = ray.wait(notes, num_returns=len(notes), timeout=1.0) if notes else ([], [])
        told = []
        for note in ready:
            with contextlib.suppress(ray.exceptions.RayError):
                told.append(ray.get(note))
        self.progress(done, total, "; ".join(filter(None, told)))


class Report:
    """`ingest.jsonl` of a library: a line is on disk when `add` returns; a line that was cut short is let go."""

    def __init__(self, place: ObjectStore) -> None:
        self._place = place
        self._length = 0

    def __enter__(self) -> Report:
        try:
            try:
                data = self._place.read(REPORT)
            except FileNotFoundError:
                data = b""
            self._length = data.rfind(b"\n") + 1
        except OSError as error:
            raise MemoryFileError(f"cannot write to '{self._place}': {error}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._place.join()

    def add(self, record: IngestRecord) -> None:
        """Append a record. Raises MemoryFileError."""
        line = json.dumps(asdict(record), ensure_ascii=False).encode() + b"\n"
        try:
            self._place.append(REPORT, self._length, line)
        except (OSError, EOFError) as error:
            raise MemoryFileError(f"cannot write '{REPORT}' to '{self._place}': {error}") from error
        self._length += len(line)


def videos_in(arguments: Sequence[str]) -> list[str]:
    """Return the videos that paths name: files, all videos below folders, and those that a .txt or .lst file lists.

    Raises SettingsError for a path that is not there, or names no video.
    """
    found = list[str]()
    for text in arguments:
        path = Path(text)
        if path.is_dir():
            own = sorted(str(file) for file in path.rglob("*") if file.suffix.lower() in _VIDEOS and file.is_file())
        elif path.suffix.lower() in (".txt", ".lst"):
            try:
                lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
            except (OSError, ValueError) as error:
                raise SettingsError(f"the list '{text}' cannot be read: {error}") from None
            own = [line for line in lines if line and not line.startswith("#")]
        elif path.is_file():
            own = [text]
        else:
            raise SettingsError(
                f"'{text}' is not there: name videos, folders of videos, or a .txt file that lists them"
            )
        if not own:
            raise SettingsError(f"'{text}' names no video")
        found += own
    return list(dict.fromkeys(found))


def named(videos: Sequence[str | Path]) -> dict[str, str]:
    """Return the name of each video's memory, by its absolute path: that of the file, made distinct by its folder's.

    Raises SettingsError where there is no video.
    """
    paths = list(dict.fromkeys(os.path.abspath(video) for video in videos))
    if not paths:
        raise SettingsError("videos is empty: name one or more")
    stems = [Path(path).stem.lstrip(".") or "video" for path in paths]
    found = {}
    for path, stem in zip(paths, stems, strict=True):
        mark = f"-{hashlib.sha256(path.encode()).hexdigest()[:8]}" if stems.count(stem) > 1 else ""
        found[path] = stem + mark
    return found


@contextlib.contextmanager
def _ray(scaling: ScaleOptions) -> Iterator[None]:
    """Be connected to a cluster; one that was not there before is left again."""
    try:
        import ray
    except ImportError:
        raise SettingsError("many videos at once need Ray: pip install 'videox2l[scale]'") from None
    if ray.is_initialized():
        yield
        return
    try:
        more = {"include_dashboard": False} if scaling.ray == "local" else {}
        ray.init(address=scaling.ray, log_to_driver=False, logging_level="error", **more)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise SettingsError(f"no Ray cluster at '{scaling.ray}': {str(error).splitlines()[0]}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _places(gpus: float) -> int:
    """Return how many workers the cluster has room for: by GPUs, or one per machine."""
    import ray

    if gpus:
        room = int(ray.cluster_resources().get("GPU", 0) / gpus)
        if not room:
            raise SettingsError(f"gpus={gpus:g} is not possible: the cluster has no GPU for a worker; use gpus=0")
        return room
    return max(1, len([node for node in ray.nodes() if node["Alive"]]))


def _loaded(reference: Any) -> str | None:
    """Return a worker's name once it has loaded the model, or None where it was killed meanwhile.

    Raises ModelError with the reason where the model cannot be loaded.
    """
    import ray

    try:
        return str(ray.get(reference))
    except ray.exceptions.RayError as error:
        if not getattr(error, "actor_init_failed", False):
            return None
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ModelError(
            f"a worker could not load the model: {lines[-1].split('Error: ', 1)[-1] if lines else error}"
        ) from None


def _ready(queue: deque[_Job], now: float) -> _Job | None:
    """Take the first job whose time has come."""
    for _ in range(len(queue)):
        job = queue.popleft()
        if job.not_before <= now:
            return job
        queue.append(job)
    return None
