"""Everything that a server holds besides HTTP: the model, its scheduler, files, memories, keys and counters."""

from __future__ import annotations

import base64
import binascii
import logging
import shutil
import tempfile
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from videox2l.engine.decode import TokenGenerator
from videox2l.errors import SettingsError
from videox2l.memory import Memory
from videox2l.memory.resident import set_device_kv
from videox2l.options import ServeOptions
from videox2l.pipeline import VideoX2L
from videox2l.serve.catalog import Catalog, MemoryRecord, VideoFile
from videox2l.serve.chat import ChatQuestion, Reply
from videox2l.serve.errors import APIError
from videox2l.serve.fetch import Fetcher
from videox2l.serve.files import FileRecord, FileStore
from videox2l.serve.keys import LOCAL, Client, KeyFile
from videox2l.serve.scheduler import Pending, Scheduler, Steps, Ticket
from videox2l.serve.schema import SubtitlesRequest
from videox2l.units import Cue
from videox2l.video.files import admit, content_hash
from videox2l.video.subtitles import EMBEDDED, parse_subtitles, read_subtitles, subtitles_in

log = logging.getLogger("videox2l.serve")


class Metrics:
    """Counters of one server."""

    def __init__(self, service: Service, labels: Sequence[str] = ()) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("x2l_requests_total", "Requests.", ["method", "status"], registry=self.registry)
        self.answers = Counter("x2l_answers_total", "Answers.", labels, registry=self.registry)
        self.tokens = Counter("x2l_generated_tokens_total", "Tokens of answers.", labels, registry=self.registry)
        told = "KVs finer than H that were read."
        self.reloaded = Counter("x2l_reloaded_bytes_total", told, labels, registry=self.registry)
        self.seconds = Histogram("x2l_answer_seconds", "Seconds from question to answer.", registry=self.registry)
        waiting = Gauge("x2l_queue_length", "Questions that wait.", registry=self.registry)
        waiting.set_function(lambda: service.scheduler.waiting)
        ingests = Gauge("x2l_ingests", "Ingests that run or wait.", registry=self.registry)
        ingests.set_function(lambda: service.scheduler.ingesting)

    def count(self, reply: Reply, **labels: str) -> None:
        """Count an answer; `labels` are the values of those that the counters have."""
        cost = reply.answer.cost
        found = ((self.answers, 1), (self.tokens, cost.new_tokens), (self.reloaded, cost.reloaded_bytes))
        for counter, amount in found:
            (counter.labels(**labels) if labels else counter).inc(amount)


class Service:
    """What the routes of the API call. `start` begins to work, `stop` ends it so that the next start goes on."""

    def __init__(self, x2l: VideoX2L, model: str, options: ServeOptions) -> None:
        self.x2l, self.model, self.options = x2l, model, options
        folder = Path(options.library)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder.resolve()
        for half in self.folder.glob(".export-*"):  # of a server that was killed
            shutil.rmtree(half, ignore_errors=True)
        self.keys = None if options.api_key_file is None else KeyFile(Path(options.api_key_file))
        self.roots = [Path(root).resolve(strict=True) for root in options.allow_files]
        self.scheduler = Scheduler(options.queue, options.timeout, options.batch)
        self.files = FileStore(self.folder / ".files", options.max_upload, self.room)
        self.catalog = Catalog(self.folder, x2l, self.scheduler, self.room)
        self.fetcher = Fetcher(options.allow_hosts, options.max_upload)
        self.metrics = Metrics(self)
        self.stopping = threading.Event()
        set_device_kv(options.device_kv)

    def start(self) -> None:
        """Begin to answer, and go on with ingests that were stopped."""
        self.scheduler.start()
        self.catalog.resume()

    def stop(self) -> None:
        """Finish the answer that is written, stop ingests behind their last whole chunk."""
        self.stopping.set()
        self.catalog.close()
        self.scheduler.stop()

    def ready(self) -> bool:
        """Return whether questions are taken now."""
        return self.scheduler.waiting < self.options.queue and not self.stopping.is_set()

    def room(self, size: int) -> None:
        """Raise APIError 507 where `size` more bytes are beyond the quota."""
        quota = self.options.quota
        if quota is None:
            return
        used = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        if used + size > quota:
            raise APIError(507, f"the library has {used} of {quota} bytes (--quota): delete something", code="quota")

    def video(self, url: str, client: Client) -> VideoFile:
        """Return the video at a URL: https of allowed hosts, file in allowed folders, or data. Raises APIError."""
        if url.startswith("data:"):
            return self._upload(self._data(url, client))
        if url.startswith("file:"):
            return self._local(url)
        client.need("ingest")
        with tempfile.NamedTemporaryFile(dir=self.files.folder, prefix=".fetch-") as kept:
            target = Path(kept.name).with_suffix(".video")
            try:
                self.fetcher.fetch(url, target)
                return self._upload(self.files.take(urlsplit(url).path, target, client))
            finally:
                target.unlink(missing_ok=True)

    def upload(self, name: str, client: Client) -> VideoFile:
        """Return an uploaded video. Raises APIError."""
        record = self.files.get(name, client)
        if record.status != "processed":
            raise APIError(409, "the upload of this file is not over", code="upload")
        return self._upload(record)

    def subtitles(self, record: MemoryRecord, wanted: SubtitlesRequest, client: Client) -> list[Cue]:
        """Return the lines that a request names: a text, an uploaded file, or the track of the memory's own video.

        Raises APIError, VideoError.
        """
        if wanted.text is not None:
            return parse_subtitles(wanted.text.encode(), "the text")
        if wanted.file_id is not None:
            file = self.upload(wanted.file_id, client)
            return subtitles_in(file.path, file.name)
        if record.video is None or not Path(record.video).is_file():
            raise APIError(404, "the video of this memory is not here: send its subtitles", code="video")
        return read_subtitles(EMBEDDED, record.video)

    def _upload(self, record: FileRecord) -> VideoFile:
        return VideoFile(self.files.path(record), record.filename, record.sha256 or "", record.id)

    def _data(self, url: str, client: Client) -> FileRecord:
        head, _, body = url.partition(",")
        if not head.startswith("data:video/") or not head.endswith(";base64"):
            raise APIError(400, "a data URL must begin with data:video/mp4;base64,", param="video_url")
        client.need("ingest")
        try:
            data = base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError):
            raise APIError(400, "the data URL is no valid base64", param="video_url") from None
        with tempfile.NamedTemporaryFile(dir=self.files.folder, prefix=".data-") as kept:
            target = Path(kept.name).with_suffix(".video")
            target.write_bytes(data)
            try:
                return self.files.take("video.mp4", target, client)
            finally:
                target.unlink(missing_ok=True)

    def _local(self, url: str) -> VideoFile:
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise APIError(400, "a file URL names a file of the server: file:///folder/video.mp4", param="video_url")
        try:
            path = Path(unquote(parts.path)).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            path = None
        if path is None or not any(path.is_relative_to(root) for root in self.roots):
            text = "this file is not served: it is not there, or outside of the folders of --allow-files"
            raise APIError(403, text, param="video_url", code="file")
        return VideoFile(admit(path), path.name, content_hash(path))

    def records_of(self, question: ChatQuestion, client: Client) -> list[MemoryRecord]:
        """Return the memories that a question is about; one of a new video is begun. "all" are those that are complete.

        Raises APIError.
        """
        if question.memories == "all":
            found = [record for record in reversed(self.catalog.of(client)) if record.state == "complete"]
            if not found:
                raise APIError(404, "there is no complete memory", param="x2l.memories", code="memory_not_found")
            return found
        if question.memories:
            return [self.catalog.get(name, client) for name in dict.fromkeys(question.memories)]
        return [self._record_of(question, client)]

    def _record_of(self, question: ChatQuestion, client: Client) -> MemoryRecord:
        url = question.video or ""
        if url.startswith("memory:"):
            return self.catalog.get(url.removeprefix("memory:").removeprefix("//"), client)
        video = self.video(url, client) if question.file_id is None else self.upload(question.file_id, client)
        keywords = {name: value for name, value in question.ingest.items() if value is not None}
        return self.catalog.create(video, keywords, client)

    def ask(
        self, question: ChatQuestion, records: Sequence[MemoryRecord], client: Client, on_text: Callable[[str], None]
    ) -> Pending:
        """Put a question in the queue; `on_text` gets pieces of the answer, in the model's thread."""

        def steps(ticket: Ticket) -> Steps:
            memories = {record.id: self.catalog.memory(record).snapshot() for record in records}

            def piece(text: str) -> None:
                ticket.check()
                on_text(text)

            reply = yield from reply_steps(self.x2l, question, memories, piece)
            self.metrics.count(reply)
            return reply

        return self.scheduler.ask(client.name, steps)

    def client_of(self, key: str | None) -> Client | None:
        """Return who has a key, or None where it is none; everybody is `local` where no keys are used."""
        if self.keys is None:
            return LOCAL
        return None if key is None else self.keys.client_of(key)


def reply_steps(
    x2l: VideoX2L, question: ChatQuestion, memories: Mapping[str, Memory], on_text: Callable[[str], None]
) -> Generator[TokenGenerator, None, Reply]:
    """Answer a question about memories, by their ids. Raises SettingsError for what does not go with them."""
    try:
        opened = x2l.open(list(memories.values()), list(memories))
        text, history = question.behind(opened)
        begun = x2l.answering(opened, text, question.options, history=history, on_text=on_text)
        answer = (yield from begun).answer
    except ValueError as error:
        raise error if isinstance(error, SettingsError) else SettingsError(str(error)) from error
    return Reply.of(answer, memories, question)
