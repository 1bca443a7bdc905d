"""The routes of the API and of the page."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import secrets
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from fastapi import APIRouter, FastAPI, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from prometheus_client import generate_latest
from pydantic import ValidationError
from starlette.background import BackgroundTask
from starlette.datastructures import UploadFile as StarletteUpload
from starlette.exceptions import HTTPException

from videox2l.errors import X2LError
from videox2l.memory.disk import library
from videox2l.serve.catalog import ACTIVE, MemoryRecord
from videox2l.serve.chat import ChatQuestion, ChatRequest, Completion, Reply, question_of
from videox2l.serve.errors import APIError, api_error
from videox2l.serve.files import plain_name
from videox2l.serve.guard import COOKIE, Guard
from videox2l.serve.keys import Client
from videox2l.serve.reports import report_of_answers
from videox2l.serve.scheduler import CancelledError, Pending
from videox2l.serve.schema import (
    CONTENT_RANGE,
    ERRORS,
    EVENTS,
    REPORT,
    REPORT_TYPES,
    SUBTITLES,
    DeletedReply,
    FileList,
    FileReply,
    MemoryList,
    MemoryReply,
    MemoryRequest,
    ReportRequest,
    SeveralReportRequest,
    SubtitlesRequest,
    UploadRequest,
    content,
)
from videox2l.serve.service import Service
from videox2l.version import __version__
from videox2l.video.subtitles import parse_subtitles

log = logging.getLogger("videox2l.serve")
PAGE = Path(__file__).parent / "page"
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_SSE = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


router = APIRouter(responses=ERRORS)


def make_app(service: Service) -> Any:
    """Return the ASGI application that serves `service`."""

    @contextlib.asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await run_in_threadpool(service.stop)

    app = FastAPI(title="videox2l", version=__version__, lifespan=life, docs_url=None, redoc_url=None)
    app.state.service = service
    app.include_router(router)

    async def refused(_: Request, error: Exception) -> Response:
        told = api_error(error)
        if told.status == 500:
            log.error("request failed", exc_info=error)
        return JSONResponse(told.to_dict(), told.status, told.headers)

    async def invalid(_: Request, error: Exception) -> Response:
        first = cast("RequestValidationError", error).errors()[0]
        param = ".".join(str(part) for part in first["loc"][1:]) or None
        return JSONResponse(APIError(400, f"{param or 'the request'}: {first['msg']}", param=param).to_dict(), 400)

    async def missing(request: Request, error: Exception) -> Response:
        if isinstance(error.__cause__, (X2LError, OSError)):  # on the way of a form
            return await refused(request, error.__cause__)
        found = cast("HTTPException", error)
        told = APIError(found.status_code, str(found.detail), headers=dict(found.headers or {}))
        if told.status == 405:  # of all routes with this path; the header that is there tells of the first one alone
            told.headers["allow"] = ", ".join(sorted(methods_of(request.url.path)))
        return JSONResponse(told.to_dict(), told.status, told.headers)

    for kind in (X2LError, OSError, Exception):
        app.add_exception_handler(kind, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, missing)
    guard = Guard(app, service)
    app.state.sessions = guard.sessions
    return guard


def methods_of(path: str) -> set[str]:
    """Return the methods that a path is served with."""
    routes = [route for route in router.routes if isinstance(route, APIRoute) and route.path_regex.match(path)]
    return {method for route in routes for method in route.methods or ()}


def _service(request: Request) -> Service:
    return cast("Service", request.app.state.service)


def _client(request: Request, scope: str) -> Client:
    client = cast("Client", request.state.client)
    client.need(scope)
    return client


@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """The page."""
    return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})


@router.get("/page/{name}", include_in_schema=False)
async def part_of_page(name: str) -> FileResponse:
    """A part of the page."""
    if name not in ("app.js", "server.js", "style.css"):
        raise APIError(404, "there is no such page")
    return FileResponse(PAGE / name, headers={"Cache-Control": "no-cache"})


@router.get("/health")
async def health() -> dict[str, str]:
    """Whether the process lives."""
    return {"status": "ok", "version": __version__}


@router.get("/ready", responses={503: {"description": "Not now.", "content": {"application/json": {}}}})
async def ready(request: Request) -> Response:
    """Whether questions are taken now."""
    free = await run_in_threadpool(_service(request).ready)
    return JSONResponse({"status": "ready" if free else "busy"}, 200 if free else 503)


@router.get("/metrics", response_class=Response, responses={200: content("text/plain", "Counters.", type="string")})
async def metrics(request: Request) -> Response:
    """Counters for Prometheus."""
    _client(request, "admin")
    return Response(generate_latest(_service(request).metrics.registry), media_type="text/plain; version=0.0.4")


@router.post("/v1/session", status_code=204, response_class=Response)
async def session(request: Request) -> Response:
    """Give the page a cookie in place of its key, which pictures and videos cannot send."""
    _client(request, "ask")
    reply = Response(status_code=204)
    key = request.headers.get("authorization", "").partition(" ")[2].strip()
    if key:
        token = secrets.token_urlsafe(32)
        request.app.state.sessions[token] = key
        reply.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=request.url.scheme == "https")
    return reply


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The model that is served."""
    _client(request, "ask")
    model = {"id": _service(request).model, "object": "model", "created": 0, "owned_by": "videox2l"}
    return {"object": "list", "data": [model]}


@router.post(
    "/v1/chat/completions",
    responses={200: content("text/event-stream", "The answer, or its pieces with `stream`.", **EVENTS)},
)
async def chat(request: Request, body: ChatRequest) -> Response:
    """Answer a question about a video, streamed or whole."""
    service, client = _service(request), _client(request, "ask")
    if body.model not in (None, service.model):
        text = f"the model '{str(body.model)[:100]}' is not served, but '{service.model}'"
        raise APIError(404, text, param="model", code="model_not_found")
    question = question_of(body, service.options.max_answer)
    records = await run_in_threadpool(service.records_of, question, client)
    conversation = Conversation(service, question, records, client)
    wait = not question.memories and not (question.video or "").startswith("memory:")
    if not wait or all(record.state == "complete" for record in records):
        for record in records:
            await run_in_threadpool(service.catalog.check, record)  # what is wrong has a status while nothing is sent
        conversation.begin()
    completion = Completion(service.model)
    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage
        stream = _stream(conversation, completion, usage)
        return StreamingResponse(stream, media_type="text/event-stream", headers=_SSE)
    task = asyncio.ensure_future(conversation.reply())
    try:
        while not task.done():
            await asyncio.wait([task], timeout=0.5)
            if await request.is_disconnected():
                task.cancel()
                return Response(status_code=499)
        return JSONResponse(completion.whole(task.result()))
    finally:
        conversation.cancel()


class Conversation:
    """One question on its way: the ingest that it waits for, and the pieces of its answer."""

    def __init__(self, service: Service, question: ChatQuestion, records: list[MemoryRecord], client: Client) -> None:
        self.service, self.question, self.records, self.client = service, question, records, client
        self.pieces: asyncio.Queue[str | None] = asyncio.Queue()
        self.ticket: Pending | None = None
        self._loop = asyncio.get_running_loop()

    def begin(self) -> None:
        """Put the question in the queue. Raises APIError where that is full."""
        self.ticket = self.service.ask(self.question, self.records, self.client, self._put)
        self.ticket.future.add_done_callback(lambda _: self._put(None))

    def _put(self, piece: str | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self.pieces.put_nowait, piece)

    def cancel(self) -> None:
        """Give up."""
        if self.ticket is not None:
            self.ticket.cancel()

    async def ingested(self) -> AsyncIterator[str]:
        """Wait until the video is ingested; yield how far it is."""
        (record,) = self.records  # memories that are there are not waited for
        while record.state in ACTIVE:
            if self.service.stopping.is_set():
                raise APIError(503, "the server is stopping", code="stopping")
            progress = self.service.catalog.show(record)["progress"]
            yield f": ingesting, {progress['frames']} of {progress['expected_frames'] or '?'} frames\n\n"
            await asyncio.sleep(0.5)
        if record.state == "failed":
            raise APIError(400, f"the video cannot be ingested: {record.error}", code="ingest_failed")

    async def reply(self) -> Reply:
        """Return the whole reply."""
        if self.ticket is None:
            async for _ in self.ingested():
                pass
            self.begin()
        assert self.ticket is not None
        return cast("Reply", await asyncio.wrap_future(self.ticket.future))


async def _stream(conversation: Conversation, completion: Completion, usage: bool) -> AsyncIterator[str]:
    """Yield the server-sent events of an answer."""
    try:
        yield _event(completion.chunk({"role": "assistant", "content": ""}))
        if conversation.ticket is None:
            async for comment in conversation.ingested():
                yield comment
            conversation.begin()
        while True:
            try:
                piece = await asyncio.wait_for(conversation.pieces.get(), 10)
            except TimeoutError:
                yield ": waiting\n\n"
                continue
            if piece is None:
                break
            yield _event(completion.chunk({"content": piece}))
        reply = await conversation.reply()
        yield _event(completion.last_chunk(reply))
        if usage:
            yield _event(completion.usage_chunk(reply))
        yield "data: [DONE]\n\n"
    except (CancelledError, asyncio.CancelledError):
        raise
    except Exception as error:
        told = api_error(error)
        if told.status == 500:
            log.error("answer failed", exc_info=error)
        yield _event(told.to_dict())
    finally:
        conversation.cancel()


def _event(value: Any) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


@router.post("/v1/files", response_model=FileReply)
async def upload(request: Request, file: UploadFile) -> dict[str, Any]:
    """Take a whole file, as OpenAI's clients send it."""
    service, client = _service(request), _client(request, "ingest")
    size = file.size or 0
    if size == 0:
        raise APIError(400, "the file is empty", param="file")
    record = service.files.create(file.filename, size, client)

    async def pieces() -> AsyncIterator[bytes]:
        while piece := await file.read(1 << 20):
            yield piece

    await service.files.write(record, 0, size, pieces())
    return (await run_in_threadpool(service.files.seal, record)).to_dict()


@router.post("/v1/uploads", response_model=FileReply)
async def begin_upload(request: Request, body: UploadRequest) -> dict[str, Any]:
    """Begin a file that comes in pieces, by PUT with Content-Range to its content."""
    client = _client(request, "ingest")
    return _service(request).files.create(body.filename, body.bytes, client, body.purpose).to_dict()


@router.put(
    "/v1/files/{name}/content",
    response_model=FileReply,
    responses={308: {"description": "How much is here, as Range."}},
    openapi_extra=CONTENT_RANGE,
)
async def put_content(request: Request, name: str) -> Response:
    """Take a piece of a file. 308 with Range tells how much is here; `bytes */N` only asks."""
    service, client = _service(request), _client(request, "ingest")
    record = service.files.get(name, client)
    asked = request.headers.get("content-range", "")
    found = _RANGE.fullmatch(asked)
    if found is not None:
        await service.files.write(record, int(found[1]), int(found[3]), request.stream())
    elif not asked.startswith("bytes */"):
        raise APIError(400, "Content-Range must be such as bytes 0-1048575/9000000", param="Content-Range")
    done = service.files.received(record)
    if done == record.size and record.status != "processed":
        record = await run_in_threadpool(service.files.seal, record)
    if record.status == "processed":
        return JSONResponse(record.to_dict())
    return Response(status_code=308, headers={"Range": f"bytes=0-{done - 1}"} if done else {})


@router.get("/v1/files", response_model=FileList)
async def files(request: Request) -> dict[str, Any]:
    """All files."""
    found = _service(request).files.of(_client(request, "ask"))
    return {"object": "list", "data": [record.to_dict() for record in found], "has_more": False}


@router.get("/v1/files/{name}", response_model=FileReply)
async def file(request: Request, name: str) -> dict[str, Any]:
    """One file."""
    return _service(request).files.get(name, _client(request, "ask")).to_dict()


@router.get(
    "/v1/files/{name}/content",
    response_class=Response,
    responses={status: content("application/octet-stream", "The bytes, or a range of them.") for status in (200, 206)},
)
async def file_content(request: Request, name: str) -> FileResponse:
    """The bytes of a file, also in ranges."""
    files = _service(request).files
    record = files.get(name, _client(request, "ask"))
    return FileResponse(files.path(record), media_type="application/octet-stream", filename=record.filename)


@router.delete("/v1/files/{name}", response_model=DeletedReply)
async def delete_file(request: Request, name: str) -> dict[str, Any]:
    """Remove a file; memories made of it stay."""
    files, client = _service(request).files, _client(request, "ingest")
    files.delete(files.get(name, client))
    return {"id": name, "object": "file", "deleted": True}


@router.post("/v1/memories", status_code=202, response_model=MemoryReply, response_model_exclude_unset=True)
async def create_memory(request: Request, body: MemoryRequest) -> dict[str, Any]:
    """Begin the ingest of a video, or return the memory that there is."""
    service, client = _service(request), _client(request, "ingest")
    if (body.file_id is None) == (body.url is None):
        raise APIError(400, "give file_id or url", param="file_id")
    if body.file_id is not None:
        video = service.upload(body.file_id, client)
    else:
        video = await run_in_threadpool(service.video, body.url or "", client)
    record = await run_in_threadpool(service.catalog.create, video, body.options, client)
    return service.catalog.show(record)


@router.get("/v1/memories", response_model=MemoryList, response_model_exclude_unset=True)
def memories(request: Request) -> dict[str, Any]:
    """All memories."""
    catalog, client = _service(request).catalog, _client(request, "ask")
    return {"object": "list", "data": [catalog.show(record) for record in catalog.of(client)]}


@router.get("/v1/memories/{name}", response_model=MemoryReply, response_model_exclude_unset=True)
def memory(request: Request, name: str) -> dict[str, Any]:
    """One memory: its state, progress, levels and warnings."""
    catalog = _service(request).catalog
    return catalog.show(catalog.get(name, _client(request, "ask")))


@router.get("/v1/memories/{name}/summary")
def summary(request: Request, name: str) -> dict[str, Any]:
    """What a memory holds, as `x2l ask --json` tells it."""
    catalog = _service(request).catalog
    return catalog.memory(catalog.get(name, _client(request, "ask"))).snapshot().summary()


@router.get("/v1/library")
def entries(request: Request) -> dict[str, Any]:
    """All memories as they lie on disk, oldest use first, as `x2l memory ls --json` tells them."""
    catalog, client = _service(request).catalog, _client(request, "ask")
    seen = {record.id for record in catalog.of(client)}
    found = [{**entry.to_dict(), "path": entry.path.name} for entry in library.find(catalog.folder)[0]]
    return {"object": "list", "data": [entry for entry in found if entry["path"] in seen]}


@router.get(
    "/v1/memories/{name}/events",
    response_class=Response,
    responses={200: content("text/event-stream", "The memory, each time that it changed.", **EVENTS)},
)
async def events(request: Request, name: str) -> StreamingResponse:
    """The states of a memory as server-sent events, until its ingest is over."""
    service = _service(request)
    record = service.catalog.get(name, _client(request, "ask"))

    async def stream() -> AsyncIterator[str]:
        told = None
        while not service.stopping.is_set():
            now = await run_in_threadpool(service.catalog.show, record)
            if now != told:
                yield _event(now)
                told = now
            if now["state"] not in ACTIVE:
                return
            await asyncio.sleep(0.25)

    return StreamingResponse(stream(), media_type="text/event-stream", headers=_SSE)


@router.post(
    "/v1/memories/{name}/subtitles",
    response_model=MemoryReply,
    response_model_exclude_unset=True,
    openapi_extra=SUBTITLES,
)
async def subtitles(request: Request, name: str) -> dict[str, Any]:
    """Give a memory subtitles, in place of those that it has."""
    service, client = _service(request), _client(request, "ingest")
    record = service.catalog.get(name, client)
    if request.headers.get("content-type", "").startswith("multipart/"):
        async with request.form(max_files=1, max_fields=0) as form:
            file = form.get("file")
            if not isinstance(file, StarletteUpload):
                raise APIError(400, "the form has no file", param="file")
            data = await file.read()
        lines = await run_in_threadpool(parse_subtitles, data, plain_name(file.filename))
    else:
        try:
            wanted = SubtitlesRequest.model_validate_json(await request.body())
        except ValidationError as error:
            raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in error.errors()]) from None
        lines = await run_in_threadpool(service.subtitles, record, wanted, client)
    await run_in_threadpool(service.catalog.set_subtitles, record, lines, client)
    return await run_in_threadpool(service.catalog.show, record)


@router.post("/v1/memories/{name}/cancel", response_model=MemoryReply, response_model_exclude_unset=True)
def cancel(request: Request, name: str) -> dict[str, Any]:
    """Stop an ingest; what is there can be asked."""
    catalog = _service(request).catalog
    record = catalog.get(name, _client(request, "ingest"))
    catalog.cancel(record)
    return catalog.show(record)


@router.delete("/v1/memories/{name}", response_model=DeletedReply)
def delete_memory(request: Request, name: str) -> dict[str, Any]:
    """Remove a memory."""
    catalog, client = _service(request).catalog, _client(request, "ingest")
    catalog.delete(catalog.get(name, client), client)
    return {"id": name, "object": "memory", "deleted": True}


@router.get("/v1/memories/{name}/timeline")
def timeline(request: Request, name: str) -> dict[str, Any]:
    """The chunks of a memory, with their times, frames and raw visual tokens; and the holes of its video."""
    catalog = _service(request).catalog
    memory = catalog.memory(catalog.get(name, _client(request, "ask"))).snapshot()
    chunks = [
        {"chunk": i, "start": chunk.start, "end": chunk.end, "frames": chunk.frames, "tokens": chunk.tokens}
        for i, chunk in enumerate(memory.chunks)
    ]
    facts = memory.manifest
    told = {"duration": facts.get("duration"), "holes": facts.get("holes") or [], "complete": memory.complete}
    return {"id": name, **told, "chunks": chunks}


@router.get(
    "/v1/memories/{name}/thumbnails/{chunk}.jpg",
    response_class=Response,
    responses={200: content("image/jpeg", "The picture.")},
)
def thumbnail(request: Request, name: str, chunk: int) -> Response:
    """A picture of a chunk."""
    catalog = _service(request).catalog
    memory = catalog.memory(catalog.get(name, _client(request, "ask")))
    picture = memory.thumbnail(chunk) if 0 <= chunk < len(memory) else None
    if picture is None:
        raise APIError(404, f"there is no picture of chunk {chunk}")
    return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


@router.get(
    "/v1/memories/{name}/video",
    response_class=Response,
    responses={status: content("video/mp4", "The video, or a range of it.") for status in (200, 206)},
)
def video(request: Request, name: str) -> FileResponse:
    """The video that a memory was made of, also in ranges."""
    record = _service(request).catalog.get(name, _client(request, "ask"))
    if record.video is None or not Path(record.video).is_file():
        raise APIError(404, "the video of this memory is not here")
    return FileResponse(record.video, media_type="video/mp4")


@router.post("/v1/memories/{name}/report", response_class=Response, responses=REPORT)
def report(request: Request, name: str, body: ReportRequest) -> Response:
    """Answers as a page that stands alone, with links to their moments on the page of the server, or as a list of them.

    Of answers about several memories the moments of this one are taken.
    """
    return _report(request, [name], body)


@router.post("/v1/report", response_class=Response, responses=REPORT)
def report_of_several(request: Request, body: SeveralReportRequest) -> Response:
    """The same of answers about several memories. Of lists of moments csv and edl have room for the names of videos."""
    return _report(request, list(dict.fromkeys(body.memories)), body)


def _report(request: Request, names: list[str], body: ReportRequest) -> Response:
    catalog, client = _service(request).catalog, _client(request, "ask")
    records = [catalog.get(name, client) for name in names]
    memories = [catalog.memory(record).snapshot() for record in records]
    text = report_of_answers(body.answers, body.format, records, memories, quote(str(request.base_url), safe=":/[]"))
    headers = {"Content-Disposition": f'attachment; filename="report.{body.format}"'}
    return Response(text, media_type=REPORT_TYPES[body.format], headers=headers)


@router.get(
    "/v1/memories/{name}/export",
    response_class=Response,
    responses={200: content("application/octet-stream", "The memory.")},
)
def export(request: Request, name: str) -> FileResponse:
    """A memory as one file, for `x2l memory import`."""
    service = _service(request)
    record = service.catalog.get(name, _client(request, "ask"))
    target = Path(tempfile.mkdtemp(dir=service.folder, prefix=".export-")) / "memory.x2lz"
    library.export(service.folder / record.id, target)

    def clean() -> None:
        target.unlink(missing_ok=True)
        target.parent.rmdir()

    return FileResponse(target, filename=f"{record.id}.x2lz", background=BackgroundTask(clean))
