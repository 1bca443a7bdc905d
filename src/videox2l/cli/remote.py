"""The commands that use a running server in place of a model: `x2l --server URL ...`.

Neither torch nor transformers is imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videox2l.cli.console import Screen
from videox2l.errors import SettingsError, X2LError
from videox2l.options import AskOptions, IngestOptions, OptionSet
from videox2l.video.files import content_hash
from videox2l.video.subtitles import EMBEDDED, ENDINGS

if TYPE_CHECKING:
    import httpx

SERVER: ContextVar[tuple[str | None, Path | None]] = ContextVar("SERVER", default=(None, None))
"""URL of the server, and the file of its key: set by the options that stand before all commands."""
_ACTIVE = ("queued", "ingesting")


def server_client() -> ServerClient | None:
    """Return a client of the server that --server or X2L_SERVER names, or None where neither is given."""
    url, key_file = SERVER.get()
    return ServerClient(url, key_file) if url else None


class ServerClient:
    """Requests to a server at `url`, with the key in a file, if one is given.

    All methods raise X2LError with what the server says; SettingsError where the request is wrong.
    """

    def __init__(self, url: str, key_file: Path | None = None) -> None:
        try:
            import httpx
        except ImportError:
            raise SettingsError("--server needs 'httpx': pip install 'videox2l[client]'") from None
        if not url.startswith(("http://", "https://")):
            raise SettingsError(f"server must be a URL such as http://127.0.0.1:8000, got '{url}'")
        headers = {}
        if key_file is not None:
            try:
                headers["Authorization"] = f"Bearer {key_file.read_text(encoding='ascii').strip()}"
            except (OSError, UnicodeError) as error:
                raise SettingsError(f"cannot read a key from '{key_file}': {error}") from None
        self.url, self._headers = url.rstrip("/"), headers
        self._timeout = httpx.Timeout(30.0, read=600.0)

    @contextlib.contextmanager
    def send(self, method: str, path: str, **more: Any) -> Iterator[httpx.Response]:
        """Send a request; yield its response, whose body is not read yet."""
        import httpx

        try:
            with httpx.stream(method, self.url + path, headers=self._headers, timeout=self._timeout, **more) as reply:
                if reply.status_code >= 400:
                    reply.read()
                    raise _told(reply)
                yield reply
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            told = str(error) or type(error).__name__
            raise X2LError(f"the server at {self.url} cannot be reached: {told}") from None

    def get(self, path: str, method: str = "GET", **more: Any) -> Any:
        """Return the JSON value of a response."""
        with self.send(method, path, **more) as reply:
            try:
                return json.loads(reply.read())
            except ValueError:
                raise X2LError(f"{self.url} is no videox2l server: {path} is no JSON") from None

    def events(self, path: str, method: str = "GET", **more: Any) -> Iterator[Any]:
        """Yield the JSON values of server-sent events."""
        with self.send(method, path, **more) as reply:
            for line in reply.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                value = json.loads(line.removeprefix("data: "))
                error = value.get("error")
                if isinstance(error, dict):  # of a memory that failed, it is a text
                    wrong_use = error.get("type") == "invalid_request_error"
                    raise (SettingsError if wrong_use else X2LError)(error.get("message", "the server failed"))
                yield value

    def memory_of(self, video: str, options: IngestOptions, screen: Screen) -> str:
        """Return the id of the memory of a video: ingested now, or `video` is the id of one. Waits for an ingest."""
        path = Path(video)
        if path.is_dir():
            raise SettingsError(f"'{video}' is a folder here: name a memory of the server (x2l memory ls) or a video")
        if path.is_file():
            body: dict[str, Any] = {"file_id": self._upload(path, screen)}
        elif "://" in video:
            body = {"url": video}
        else:
            name = video.removeprefix("memory:")
            self.get(f"/v1/memories/{name}")
            changed = ", ".join(changed for changed in changes(options) if changed != "system")  # it is compared
            if changed:
                raise SettingsError(f"{changed}: no effect on '{name}', which is a memory already; leave it out")
            return name
        wanted = changes(options)
        made = self.get("/v1/memories", "POST", json={**body, "options": wanted})
        with screen.ingest_bar(path.name) as update:
            for event in self.events(f"/v1/memories/{made['id']}/events"):
                made, progress = event, event["progress"]
                update(progress["frames"], progress["expected_frames"], progress["reached"])
        if made["state"] in _ACTIVE:
            raise X2LError("the server stopped before the ingest was over; it goes on when the server starts again")
        if made["state"] == "failed":
            raise X2LError(f"the video cannot be ingested: {made['error']}")
        return str(made["id"])

    def _upload(self, path: Path, screen: Screen) -> str:
        """Send a file, unless the server has its bytes already; return its id."""
        with screen.waiting(f"sending {path.name}"):
            sha = content_hash(path)
            for known in self.get("/v1/files")["data"]:
                if known["sha256"] == sha:
                    return str(known["id"])
            with path.open("rb") as file:
                return str(self.get("/v1/files", "POST", files={"file": (path.name, file)}, data={})["id"])

    def summary(self, memory: str) -> dict[str, Any]:
        """Return `Memory.summary()` of a memory."""
        return dict(self.get(f"/v1/memories/{memory}/summary"))

    def report(self, memory: str, answers: Sequence[dict[str, Any]]) -> bytes:
        """Return answers about a memory as one page."""
        with self.send("POST", f"/v1/memories/{memory}/report", json={"answers": list(answers)}) as reply:
            return reply.read()

    def add_subtitles(self, memory: str, file: str, screen: Screen) -> int:
        """Send subtitles, or a video with some, or name the track of the memory's own; return how many lines it has."""
        where, path = f"/v1/memories/{memory.removeprefix('memory:')}/subtitles", Path(file)
        if file == EMBEDDED:
            made = self.get(where, "POST", json={"embedded": True})
        elif not path.is_file():
            raise SettingsError(f"'{file}' does not exist: name a subtitle file, a video, or {EMBEDDED}")
        elif path.suffix.lower() in ENDINGS:
            with path.open("rb") as data:
                made = self.get(where, "POST", files={"file": (path.name, data)})
        else:
            made = self.get(where, "POST", json={"file_id": self._upload(path, screen)})
        return int(made["subtitles"])

    def ask(self, memory: str, question: str, model: str | None, options: AskOptions, screen: Screen) -> dict[str, Any]:
        """Ask a question and show its answer as it is written; return what `x2l ask --json` prints of it."""
        body = {
            "messages": [{"role": "user", "content": question}],
            "stream": True,
            "model": model,
            "x2l": {**changes(options), "memory": memory, "detail": True},
        }
        screen.question(question)
        for event in self.events("/v1/chat/completions", "POST", json=body):
            screen.piece((event["choices"][0]["delta"] or {}).get("content") or "")
            if "x2l" in event:
                ours = event["x2l"]
                from videox2l.ask.answer import Answer

                screen.answer(Answer.from_dict(ours["answer"]))
                for why in ours["why"]:
                    screen.why(why.pop("lines"))
                return {**ours["answer"], "why": ours["why"]}
        raise X2LError("the server broke off before the answer was whole: ask again")


def _told(reply: httpx.Response) -> X2LError:
    try:
        text = str(reply.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        text = f"{reply.url} answered {reply.status_code}"
    return SettingsError(text) if reply.status_code == 400 else X2LError(text)


def changes(options: OptionSet) -> dict[str, Any]:
    """Return the fields that differ from their defaults. What is no plain value is refused where it is sent."""
    fields = dataclasses.fields(options)  # type: ignore[arg-type]
    return {field.name: value for field in fields if (value := getattr(options, field.name)) != field.default}
