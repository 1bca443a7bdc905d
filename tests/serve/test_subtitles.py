"""Subtitles that come after the ingest: they are searched, and stand in the prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from tests.disk.test_subtitles import SRT, muxed
from tests.serve.conftest import Served, start
from videox2l import Memory
from videox2l.cli.app import app

pytestmark = pytest.mark.slow

VTT = "WEBVTT\n\n00:06.500 --> 00:07.500\nA green lamp blinks.\n"


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return muxed(tmp_path_factory.mktemp("film"))


@pytest.fixture(scope="module")
def memory(served: Served, film: Path) -> str:
    sent = send(served, film)
    made = httpx.post(f"{served.url}/v1/memories", json={"file_id": sent, "options": {"fps": 4}}).json()["id"]
    assert served.memory(made)["state"] == "complete"
    return str(made)


def send(served: Served, file: Path) -> str:
    with file.open("rb") as data:
        return str(httpx.post(f"{served.url}/v1/files", files={"file": (file.name, data)}).json()["id"])


def found(served: Served, memory: str, question: str) -> list[float]:
    """When the chunks start that are re-loaded for the words of the subtitles."""
    x2l = {"memory": memory, "selector": "text", "reload": 1}
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": 1, "x2l": x2l}
    reply = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60).json()
    return [moment["start"] for moment in reply["x2l"]["evidence"] if moment["reloaded"]]


def test_from_a_text_a_file_an_upload_and_the_videos_own_track(served: Served, memory: str, film: Path) -> None:
    where = f"{served.url}/v1/memories/{memory}/subtitles"
    body = {"messages": [{"role": "user", "content": "lamp ?"}], "x2l": {"memory": memory, "selector": "text"}}
    none = httpx.post(f"{served.url}/v1/chat/completions", json=body)
    assert (none.status_code, "subtitles add" in none.text) == (400, True)
    ways: list[dict[str, Any]] = [
        {"json": {"text": VTT}},
        {"files": {"file": ("a.srt", SRT.encode())}},
        {"files": {"file": ("a.vtt", VTT.encode())}},
        {"json": {"embedded": True}},
        {"json": {"file_id": send(served, film.with_name("a.srt"))}},
        {"json": {"file_id": send(served, film)}},
    ]
    for way, lines in zip(ways, (1, 4, 1, 4, 4, 4), strict=True):
        reply = httpx.post(where, **way)
        assert (reply.status_code, reply.json().get("subtitles")) == (200, lines), reply.text
        words, begins = ("which lamp blinks ?", 6.0) if lines == 1 else ("is it a red star ?", 8.0)
        chunks = httpx.get(f"{served.url}/v1/memories/{memory}/timeline").json()["chunks"]
        spans = {chunk["start"]: chunk["end"] for chunk in chunks}
        (start,) = found(served, memory, words)
        assert start <= begins + 0.5 < spans[start] or start < begins + 1 <= spans[start]
    assert len(Memory.load(served.library / memory).subtitles) == 4  # on disk too


@pytest.mark.parametrize(
    ("way", "status", "told"),
    [
        ({"json": {"text": "nothing"}}, 400, "subtitle"),
        ({"json": {}}, 400, "give one of"),
        ({"json": {"text": VTT, "embedded": True}}, 400, "give one of"),
        ({"json": {"file_id": "file-0"}}, 404, "no file"),
        ({"files": {"file": ("a.srt", b"\x00\x01" * 20)}}, 400, "a.srt"),
        ({"files": {"other": ("a.srt", b"x")}}, 400, "no file"),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "JSON"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_changed(
    served: Served, memory: str, way: dict[str, Any], status: int, told: str
) -> None:
    before = httpx.get(f"{served.url}/v1/memories/{memory}").json()
    reply = httpx.post(f"{served.url}/v1/memories/{memory}/subtitles", **way)
    assert (reply.status_code, told in reply.json()["error"]["message"]) == (status, True), reply.text
    assert httpx.get(f"{served.url}/v1/memories/{memory}").json() == before


def test_the_command_line_sends_them(served: Served, memory: str, film: Path) -> None:
    def run(file: object) -> Any:
        return CliRunner().invoke(app, ["--server", served.url, "memory", "subtitles", "add", memory, str(file)])

    for file in (film.with_name("a.srt"), film, "embedded"):
        done = run(file)
        assert (done.exit_code, done.output) == (0, f"{memory}: 4 lines of subtitles\n")
    done = run("none.srt")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)


def test_only_their_one_owner_changes_them(tmp_path: Path, clip: Path) -> None:
    from videox2l.serve.keys import add_key

    file = tmp_path / "keys"
    anna, ben = (httpx.Headers({"Authorization": f"Bearer {add_key(file, name)}"}) for name in ("anna", "ben"))
    server = start(tmp_path / "library", "--api-key-file", str(file), "--allow-files", str(clip.parent))
    try:
        new = {"url": clip.as_uri(), "options": {"fps": 0.2}}
        where = f"{server.url}/v1/memories"
        name = httpx.post(where, json=new, headers=anna).json()["id"]
        while httpx.get(f"{where}/{name}", headers=anna).json()["state"] != "complete":
            pass
        give = lambda who: httpx.post(f"{where}/{name}/subtitles", json={"text": VTT}, headers=who).status_code  # noqa: E731
        assert (give(anna), give(ben)) == (200, 404)
        assert httpx.post(where, json=new, headers=ben).json()["id"] == name  # the same video: it is his too now
        assert (give(anna), give(ben)) == (403, 403)
    finally:
        server.stop()
