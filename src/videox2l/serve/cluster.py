"""The model on the machines of a Ray cluster: replicas of Ray Serve answer and ingest, the server itself needs none.

The process that speaks HTTP keeps files, records and keys as on one machine. A question goes to the replica that its
memory belongs to by a hash, and to the next one while that is busy, so that H of a memory is fetched by few. Where a
replica dies, another one is asked again: answers are the same everywhere, so a stream goes on behind what was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import ray
from prometheus_client import Counter
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import RequestRouter

from videox2l.errors import ModelError, SettingsError, X2LError
from videox2l.memory.disk.journal import JOURNAL
from videox2l.memory.disk.source import is_memory, open_source
from videox2l.memory.disk.stores import open_store
from videox2l.memory.resident import set_device_kv
from videox2l.options import LoadOptions, ServeOptions
from videox2l.pipeline import VideoX2L
from videox2l.serve.catalog import ACTIVE, Catalog, MemoryRecord
from videox2l.serve.chat import ChatQuestion, Reply
from videox2l.serve.errors import APIError, api_error
from videox2l.serve.keys import Client
from videox2l.serve.scheduler import Pending, Scheduler, Steps, Ticket, check_queue
from videox2l.serve.service import Metrics, Service, reply_steps
from videox2l.version import __version__

log = logging.getLogger("videox2l.serve")
WAITING = 2
"""Questions that wait at a replica before the next one is asked."""
TRIES = 4
"""Replicas that may die of one question, or of one ingest."""
_MARK = "cluster"


class ByMemory(RequestRouter):  # type: ignore[misc]  # ray has no types
    """Ranks replicas by a hash of the memory's id and their own (rendezvous): those that are full are passed over.

    A replica that comes or goes moves the memories of that one alone.
    """

    async def choose_replicas(self, candidate_replicas: Any, pending_request: Any = None) -> list[list[Any]]:
        """Return the replicas in the order in which a request tries them."""
        key = ""
        if pending_request is not None:
            key = pending_request.metadata.multiplexed_model_id
            pending_request.routing_context.should_backoff = True  # where all are full

        def rank(replica: Any) -> bytes:
            return hashlib.sha256(f"{key}/{replica.replica_id.unique_id}".encode()).digest()

        return [[replica] for replica in sorted(candidate_replicas, key=rank)]


class SharedCatalog(Catalog):
    """A catalog of a folder that other processes write to: what changed there is opened again."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._stamps: dict[str, Any] = {}

    def memory(self, record: MemoryRecord) -> Any:
        """Return a memory as far as it is. Raises APIError 409 where nothing of it is ingested yet."""
        stamp = None
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(self.folder / record.id / JOURNAL)
            stamp = found.st_ino, found.st_size, found.st_mtime_ns
        with self._lock:
            if self._stamps.get(record.id) != stamp:
                self._open.pop(record.id, None)
                self._stamps[record.id] = stamp
            return super().memory(record)

    def holds(self, name: str) -> bool:
        """Return whether a memory is open."""
        return name in self._open


class ReplicaCatalog(SharedCatalog):
    """Memories and ingests of a replica. The server keeps the records."""

    def _keep(self, record: MemoryRecord) -> None:
        pass

    async def ingest(self, record: MemoryRecord) -> AsyncIterator[Any]:
        """Ingest; yield how far it is, and at last the state and the error of the record."""
        stop = _stop_file(self.folder, record)
        self._resumed = True
        self._begin(record)
        try:
            while record.state in ACTIVE:
                if stop.exists():
                    self._stopped.add(record.id)
                progress = self._progress[record.id]
                yield progress.done, progress.expected, progress.reached
                await asyncio.sleep(0.25)
            yield record.state, record.error
        finally:
            self._stopped.add(record.id)


class Replica:
    """What an actor does: it holds the model and the memories that it was asked about. All machines share a folder."""

    def __init__(self, model: str, loading: LoadOptions, options: ServeOptions, mark: str, version: str) -> None:
        self._version = version
        folder = Path(options.library)
        if _mark(folder) != mark:
            raise SettingsError(f"'{folder}' is another folder on {os.uname().nodename}: all machines must share it")
        set_device_kv(options.device_kv)
        self._x2l = VideoX2L.from_pretrained(model, loading)
        self._scheduler = Scheduler(1 << 30, options.timeout, options.batch)
        self._catalog = ReplicaCatalog(folder, self._x2l, self._scheduler, lambda _: None)
        self._name = str(serve.get_replica_context().replica_id.unique_id)
        self._scheduler.start()

    def about(self) -> tuple[dict[str, str], str]:
        """Return what a memory must agree on with the model, and which version this is."""
        return self._x2l.identity, self._version

    async def answer(self, question: ChatQuestion, names: Sequence[str], client: str) -> AsyncIterator[Any]:
        """Yield the name of the replica and whether it holds the memories, pieces of text, and a Reply or an error."""
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[str | None]()

        def put(piece: str | None) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def steps(ticket: Ticket) -> Steps:
            records = [MemoryRecord(name, name, 0) for name in names]
            memories = {record.id: self._catalog.memory(record).snapshot() for record in records}

            def piece(text: str) -> None:
                ticket.check()
                put(text)

            return (yield from reply_steps(self._x2l, question, memories, piece))

        held = all(map(self._catalog.holds, names))
        ticket = self._scheduler.ask(client, steps)
        ticket.future.add_done_callback(lambda _: put(None))
        try:
            yield self._name, held
            while (text := await pieces.get()) is not None:
                yield text
            yield replace(ticket.future.result(), replica=self._name)
        except Exception as error:
            told = api_error(error)
            if told.status == 500:
                log.error("answer failed", exc_info=error)
            yield {"status": told.status, "message": str(told), "param": told.param, "code": told.code}
        finally:
            ticket.cancel()

    async def ingest(self, record: MemoryRecord) -> AsyncIterator[Any]:
        """Ingest; yield how far it is, and at last the state and the error of the record."""
        async for told in self._catalog.ingest(record):
            yield told


class ClusterCatalog(SharedCatalog):
    """The catalog of a server without a model: replicas ingest."""

    def __init__(self, service: ClusterService, handle: Any) -> None:
        super().__init__(service.folder, service.x2l, service.scheduler, service.room)
        self._handle, self._service, self._closing = handle, service, service.stopping
        self._readers = ThreadPoolExecutor(service.options.replica_bounds()[1], thread_name_prefix="x2l-ingest")

    @property
    def ingesting(self) -> int:
        """How many ingests run or wait."""
        return sum(record.state in ACTIVE for record in list(self._records.values()))

    def check(self, record: MemoryRecord) -> None:
        """Raise what asking about a memory would; H, which is large, is not read for it."""
        path = self.folder / record.id
        if not is_memory(path) or not open_source(open_store(path)).journal.chunks:
            raise APIError(409, "nothing of this video is ingested yet: try again shortly", code="not_ready")

    def _prepare(self, record: MemoryRecord) -> None:
        try:
            if record.video is None:
                raise SettingsError("the video of this memory is gone: upload it again")
            if self._ingested(record):
                self._over(record)
        except Exception as error:
            self._failed(record, error)
        finally:
            _stop_file(self.folder, record).unlink(missing_ok=True)

    def _ingested(self, record: MemoryRecord) -> bool:
        """Have replicas ingest, another one where one died; return whether it is over, not only the server."""
        stop, lost = _stop_file(self.folder, record), 0
        handle = self._handle.options(stream=True, multiplexed_model_id=record.id)
        while record.id not in self._stopped and not self._closing.is_set():
            stop.unlink(missing_ok=True)
            state, error = "", ""
            try:
                for told in handle.ingest.remote(record):
                    if record.id in self._stopped or self._closing.is_set():
                        stop.touch()  # the replica ends behind a whole chunk, and says so
                    if len(told) == 2:
                        state, error = told
                    elif told[0]:
                        record.state = "ingesting"
                        self._progress[record.id].update(*told)
            except RayTaskError:
                raise
            except RayError as death:
                error = str(death).splitlines()[0]
            if state == "complete":
                return True
            if state == "failed" and "is being written to" not in error:
                raise X2LError(error)
            if not state:
                lost += 1
                self._service.deaths.inc()
                log.warning("replica", extra={"fields": {"memory": record.id, "reason": error}})
                if lost == TRIES:
                    raise ModelError(f"{lost} replicas died of this video: {error}")
            time.sleep(0.5)
        return record.id in self._stopped


class _Asked:
    """A question on its way to replicas, in a task of the server's event loop."""

    def __init__(self) -> None:
        self.future: Future[Any] = Future()
        self.begun = False
        self.task: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        """Give the question up."""
        if self.task is not None:
            self.task.cancel()


class _Queue(Scheduler):
    """The questions that are on their way; no thread, as there is no model here."""

    catalog: ClusterCatalog | None = None

    def __init__(self, options: ServeOptions) -> None:
        super().__init__(options.queue, options.timeout, options.batch)
        self.asked: set[_Asked] = set()

    @property
    def waiting(self) -> int:
        """How many questions no replica has taken yet."""
        return sum(not one.begun for one in self.asked)

    @property
    def ingesting(self) -> int:
        """How many ingests run or wait."""
        return 0 if self.catalog is None else self.catalog.ingesting

    def start(self) -> None:
        """Nothing to begin."""


class ClusterService(Service):
    """A server whose model is in replicas; all else is as on one machine."""

    def __init__(self, handle: Any, name: str, model: str, options: ServeOptions) -> None:
        identity, _ = handle.about.remote().result()
        super().__init__(cast("VideoX2L", SimpleNamespace(identity=identity)), model, options)
        self._handle, self._name = handle, name
        self.metrics = Metrics(self, ["replica"])
        registry = self.metrics.registry
        told = "Answers whose memories the replica held already."
        self._held = Counter("x2l_answers_held_total", told, ["replica"], registry=registry)
        told = "Questions and ingests whose replica died, and that went on at another."
        self.deaths = Counter("x2l_replica_deaths_total", told, registry=registry)
        self.scheduler = self._queue = _Queue(options)
        self.catalog = self._queue.catalog = ClusterCatalog(self, handle)

    def ready(self) -> bool:
        """Return whether questions are taken now, and there is a replica for them."""
        app = serve.status().applications.get(self._name)
        states = [] if app is None else [one.replica_states for one in app.deployments.values()]
        return super().ready() and any(state.get("RUNNING", 0) for state in states)

    def ask(
        self, question: ChatQuestion, records: Sequence[MemoryRecord], client: Client, on_text: Callable[[str], None]
    ) -> Pending:
        """Send a question to a replica; `on_text` gets pieces of the answer."""
        queue, asked = self._queue, _Asked()
        if self.stopping.is_set():
            raise APIError(503, "the server is stopping", code="stopping", headers={"Retry-After": "10"})
        check_queue(queue.waiting, queue.limit, queue.pace)
        names = [record.id for record in records]
        answer = functools.partial(self._answer, asked, question, names, client, on_text)
        asked.task = asyncio.create_task(self._finish(asked, answer))
        queue.asked.add(asked)
        return asked

    async def _finish(self, asked: _Asked, answer: Callable[[], Awaitable[Reply]]) -> None:
        """Put what comes of a question into its future."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(self.options.timeout):
                reply = await answer()
            self._queue.pace += 0.2 * (time.monotonic() - begun - self._queue.pace)
            asked.future.set_result(reply)
        except TimeoutError:
            told = "the answer took longer than the server allows (--timeout)"
            asked.future.set_exception(APIError(503, told, code="timeout"))
        except asyncio.CancelledError:
            asked.future.cancel()
            raise
        except Exception as error:
            asked.future.set_exception(error)
        finally:
            self._queue.asked.discard(asked)

    async def _answer(
        self, asked: _Asked, question: ChatQuestion, names: list[str], client: Client, on_text: Callable[[str], None]
    ) -> Reply:
        """Ask a replica, and another one where it dies: what was sent already is not sent again."""
        handle = self._handle.options(stream=True, multiplexed_model_id=names[0])
        sent, reason = "", ""
        for _ in range(TRIES):
            text = ""
            stream = handle.answer.remote(question, names, client.name)
            try:
                async for item in stream:
                    if isinstance(item, tuple):
                        asked.begun, held = True, item[1]
                    elif isinstance(item, str):
                        text += item
                        if not (text.startswith(sent) or sent.startswith(text)):
                            raise APIError(503, "another replica answers otherwise: ask again", code="replica_lost")
                        if len(text) > len(sent):
                            on_text(text[len(sent) :])
                            sent = text
                    elif isinstance(item, Reply):
                        self.metrics.count(item, replica=str(item.replica))
                        self._held.labels(replica=item.replica).inc(held)
                        return item
                    else:
                        raise APIError(item.pop("status"), item.pop("message"), **item)
                reason = "its answer has no end"
            except RayTaskError:
                raise
            except RayError as error:
                reason = str(error).splitlines()[0]
            except asyncio.CancelledError:
                stream.cancel()
                raise
            self.deaths.inc()
            log.warning("replica", extra={"fields": {"memory": names[0], "reason": reason}})
        raise APIError(503, f"{TRIES} replicas died of this question", code="replica_lost")


def _stop_file(folder: Path, record: MemoryRecord) -> Path:
    """Return the file that tells the replica which ingests a memory to stop."""
    return folder / ".jobs" / f"{record.id}.stop"


def _mark(folder: Path) -> str:
    """Return what tells a library from another one at the same path, or "" where it has none."""
    with contextlib.suppress(OSError):
        return (folder / ".jobs" / _MARK).read_text(encoding="ascii")
    return ""


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Be connected to a Ray cluster; one that was not there before is left again. Raises SettingsError."""
    try:
        more = {"include_dashboard": False} if address == "local" else {}
        ray.init(address=address, log_to_driver=False, logging_level="error", **more)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise SettingsError(f"no Ray cluster at '{address}': {str(error).splitlines()[0]}") from None
    try:
        serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
        yield
    finally:
        ray.shutdown()


def deploy(model: str, loading: LoadOptions, options: ServeOptions, *, anew: bool = False) -> tuple[Any, str]:
    """Start replicas, or replace those of other options or of another release one after the other, or with `anew` all.

    Replicas that are there already, such as of a server that was killed, stay. Returns their handle, and the name of
    their application, which is that of the library. Raises ModelError.
    """
    folder = Path(options.library).resolve()
    (folder / ".jobs").mkdir(parents=True, exist_ok=True, mode=0o700)
    mark = _mark(folder) or secrets.token_hex(16)
    (folder / ".jobs" / _MARK).write_text(mark, encoding="ascii")
    name = f"x2l-{mark[:8]}"
    made_of = (model, loading, replace(options, library=folder), mark)
    version = hashlib.sha256(repr((__version__, made_of)).encode()).hexdigest()
    app = serve.status().applications.get(name)
    if app is not None and app.status == "RUNNING" and not anew:
        handle = serve.get_app_handle(name)
        if handle.about.remote().result()[1] == version:
            return handle, name
    low, high = options.replica_bounds()
    scale: dict[str, Any] = {"num_replicas": low}
    if low < high:
        bounds = {"min_replicas": low, "max_replicas": high}
        scale = {"autoscaling_config": {**bounds, "target_ongoing_requests": options.batch / 2}}
    deployment = serve.deployment(
        Replica,
        name="replica",
        max_ongoing_requests=options.batch + WAITING,
        graceful_shutdown_timeout_s=options.timeout,
        graceful_shutdown_wait_loop_s=0.5,
        max_constructor_retry_count=3,
        ray_actor_options={"num_cpus": 1, "num_gpus": options.gpus},
        request_router_config=RequestRouterConfig(request_router_class=ByMemory),
        **scale,
    )
    try:
        return serve.run(deployment.bind(*made_of, version), name=name, route_prefix=None), name
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ModelError(f"no replica starts: {lines[-1] if lines else error}") from None
