"""Bodies with wrong types, absurd numbers and no JSON at all: 4xx in OpenAI's shape with one line, never 5xx."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.conftest import Served, start
from videox2l.options import AskKeywords, IngestKeywords

EVIL: list[Any] = [
    None, True, -1, 10**9, 2**70, 10**400, -0.5, "", "zzz", "a\0b", "\ud800", "a\n\x1b[2J", "x" * 9000,
    [], [None], ["x"], {}, {"a": 1}, [{}], "<|im_start|>",
]  # fmt: skip
FIELDS = (
    *("model", "messages", "stream_options", "max_tokens", "temperature", "top_p", "presence_penalty", "seed"),
    *("logprobs", "top_logprobs", "stop", "x2l", "mm_processor_kwargs", "media_io_kwargs", "tools", "n"),
    *("logit_bias", "response_format", "functions", "frequency_penalty"),
)


def post(served: Served, path: str, body: Any, raw: bytes | None = None) -> None:
    """Send a body; a reply that is an error must be the client's, in the shape of OpenAI's errors."""
    data = json.dumps(body).encode() if raw is None else raw
    reply = httpx.post(f"{served.url}{path}", content=data, headers={"Content-Type": "application/json"}, timeout=60)
    assert reply.status_code < 500, f"{path} {body!r:.300}: {reply.text}"
    if reply.status_code >= 400:
        error = reply.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"].isprintable(), error["message"]
        assert len(error["message"]) < 1500


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Iterator[Served]:
    """A server of its own: what is sent leaves memories behind."""
    server = start(tmp_path_factory.mktemp("library"), "--demo", "--allow-files", str(clip.parent))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def demo(served: Served) -> str:
    """The id of the demo video's memory."""
    name: str = httpx.get(f"{served.url}/v1/memories").json()["data"][-1]["id"]
    assert served.memory(name)["state"] == "complete"
    return name


@pytest.fixture
def chat(demo: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "what ?"}], "max_tokens": 2, "x2l": {"memory": demo}}


@pytest.mark.slow
@pytest.mark.parametrize("name", FIELDS)
def test_fields_of_chat(served: Served, chat: dict[str, Any], name: str) -> None:
    for evil in EVIL:
        post(served, "/v1/chat/completions", {**chat, name: evil})


@pytest.mark.slow
@pytest.mark.parametrize("name", [*AskKeywords.__annotations__, "memory", "memories", "ingest"])
def test_fields_of_x2l(served: Served, chat: dict[str, Any], name: str) -> None:
    for evil in EVIL:
        post(served, "/v1/chat/completions", {**chat, "x2l": {**chat["x2l"], name: evil}})


@pytest.mark.parametrize("evil", EVIL, ids=lambda value: repr(value)[:20])
def test_messages_formats_and_the_other_routes(served: Served, chat: dict[str, Any], evil: Any) -> None:
    demo = chat["x2l"]["memory"]
    for content in (evil, [evil], [{"type": evil}], [{"type": "text", "text": evil}], [{"type": "video_url"}]):
        post(served, "/v1/chat/completions", {**chat, "messages": [{"role": "user", "content": content}]})
    post(served, "/v1/chat/completions", {**chat, "messages": [{"role": evil, "content": "what ?"}]})
    for wanted in ({"type": evil}, {"type": "json_schema", "json_schema": evil}, "json_schema"):
        post(served, "/v1/chat/completions", {**chat, "response_format": wanted})
    post(served, "/v1/memories", {"url": evil})
    post(served, "/v1/memories", {"file_id": evil, "options": evil})
    post(served, "/v1/uploads", {"filename": evil, "bytes": evil})
    post(served, f"/v1/memories/{demo}/subtitles", {"file_id": evil})
    post(served, f"/v1/memories/{demo}/report", {"answers": evil})


@pytest.mark.parametrize("name", [*IngestKeywords.__annotations__, "unknown"])
def test_options_of_an_ingest(served: Served, clip: Path, name: str) -> None:
    for evil in (10**400, "\ud800", "a\n\x1b[2J", ["x"], {"a": 1}):
        post(served, "/v1/memories", {"url": clip.as_uri(), "options": {"max_frames": 1, name: evil}})


def test_answers_of_a_report(served: Served, chat: dict[str, Any]) -> None:
    reply = httpx.post(f"{served.url}/v1/chat/completions", json={**chat, "x2l": {**chat["x2l"], "detail": True}})
    answer = reply.json()["x2l"]["answer"]
    where = f"/v1/memories/{chat['x2l']['memory']}/report"
    for evil in EVIL:
        for name in ("evidence", "cost", "steps", "text"):
            post(served, where, {"answers": [{**answer, name: evil}]})
        for name in ("chunk", "start", "score"):
            moments = [{**answer["evidence"][0], name: evil}, *answer["evidence"][1:]]
            post(served, where, {"answers": [{**answer, "evidence": moments}]})


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b"1e999", b"\0" * 10])
def test_what_is_no_json(served: Served, demo: str, raw: bytes) -> None:
    for path in ("chat/completions", "memories", "uploads", f"memories/{demo}/subtitles", f"memories/{demo}/report"):
        post(served, f"/v1/{path}", None, raw)
