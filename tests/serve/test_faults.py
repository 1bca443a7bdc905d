"""What goes wrong around a server: kills, full disks, slow and endless clients, and files that are no videos."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import io
import json
import os
import resource
import signal
import socket
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.serve.conftest import Served, start
from tests.serve.test_server import QUESTIONS, ask, video
from videox2l.memory.disk.folder import verify

pytestmark = pytest.mark.slow

CONNECTIONS = int(os.environ.get("VIDEOX2L_CONNECTIONS", "1200"))
"""Connections that are opened at once; the server takes 1,000."""
ENDLESS = int(os.environ.get("VIDEOX2L_UPLOAD", str(32 << 20)))
"""Bytes of an upload that tells no length."""


def tree(folder: Path) -> dict[str, str]:
    """Return all files of a library with their hashes, without locks and times of use."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", ".used"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def test_kills_during_an_upload_and_an_answer_lose_nothing_and_leave_nothing_half(tmp_path: Path, clip: Path) -> None:
    data, library = clip.read_bytes(), tmp_path / "library"
    first = start(library, "--allow-files", str(clip.parent))
    whole = httpx.post(f"{first.url}/v1/memories", json={"url": clip.as_uri(), "options": {"fps": 0.5}}).json()["id"]
    first.memory(whole)
    answer = ask(first, whole, QUESTIONS[1])["choices"]
    begun = httpx.post(f"{first.url}/v1/uploads", json={"filename": "clip.mp4", "bytes": len(data)}).json()["id"]
    half = len(data) // 2

    def pieces() -> Iterator[bytes]:
        yield data[:half]
        time.sleep(0.5)
        first.process.send_signal(signal.SIGKILL)
        yield data[half:-1]

    (library / ".files" / ".fetch-half.video").write_bytes(b"half")
    (library / ".export-half").mkdir()
    body = {"messages": video(f"memory:{whole}", QUESTIONS[1]), "max_tokens": 300, "stream": True}
    with httpx.stream("POST", f"{first.url}/v1/chat/completions", json=body) as stream:
        next(stream.iter_lines())
        where = {"Content-Range": f"bytes 0-{len(data) - 1}/{len(data)}"}
        with pytest.raises(httpx.TransportError):
            httpx.put(f"{first.url}/v1/files/{begun}/content", content=pieces(), headers=where)
    first.stop(signal.SIGKILL)
    second = start(library, "--allow-files", str(clip.parent))
    try:
        where = f"{second.url}/v1/files/{begun}/content"
        there = httpx.put(where, headers={"Content-Range": f"bytes */{len(data)}"})
        done = int(there.headers.get("range", "bytes=0--1").rpartition("-")[2]) + 1 if "range" in there.headers else 0
        assert there.status_code == 308
        assert done <= len(data)
        assert (library / ".files" / begun / "content").read_bytes() == data[:done]
        rest = {"Content-Range": f"bytes {done}-{len(data) - 1}/{len(data)}"}
        sealed = httpx.put(where, content=data[done:], headers=rest).json()
        assert (sealed["status"], sealed["sha256"]) == ("processed", hashlib.sha256(data).hexdigest())
        assert ask(second, whole, QUESTIONS[1])["choices"] == answer
        assert verify(library / whole) == []
        assert not [path for path in library.rglob("*") if "half" in path.name or path.name.endswith(".tmp")]
    finally:
        second.stop()


def test_a_full_disk_is_told_and_what_was_there_still_answers(tmp_path: Path, clip: Path) -> None:
    """A limit on the size of files stands for the full disk: writes fail in the same places."""
    library = tmp_path / "library"
    first = start(library, "--allow-files", str(clip.parent))
    kept = httpx.post(f"{first.url}/v1/memories", json={"url": clip.as_uri(), "options": {"fps": 0.5}}).json()["id"]
    first.memory(kept)
    answer = ask(first, kept, QUESTIONS[1])["choices"]
    resource.prlimit(first.process.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
    before = tree(library)
    try:
        reply = httpx.post(f"{first.url}/v1/files", files={"file": ("a.mp4", bytes(200_000))})
        assert (reply.status_code, reply.json()["error"]["code"]) == (507, "disk_full"), reply.text
        new = {"url": clip.as_uri(), "options": {"fps": 4}}
        failed = first.memory(httpx.post(f"{first.url}/v1/memories", json=new).json()["id"])
        assert failed["state"] == "failed"
        assert ask(first, kept, QUESTIONS[1])["choices"] == answer
        assert before.items() <= tree(library).items()
    finally:
        first.stop(signal.SIGKILL)
    second = start(library, "--allow-files", str(clip.parent))
    try:
        assert httpx.post(f"{second.url}/v1/memories", json=new).json()["id"] == failed["id"]
        assert second.memory(failed["id"])["state"] == "complete"  # goes on where it stopped
        assert verify(library / failed["id"]) == []
    finally:
        second.stop()


def test_a_record_that_cannot_be_written_does_not_end_the_models_thread(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from videox2l import VideoX2L
    from videox2l.options import ServeOptions
    from videox2l.serve import catalog
    from videox2l.serve.keys import LOCAL
    from videox2l.serve.service import Service

    service = Service(
        VideoX2L.from_pretrained("demo"), "demo", ServeOptions(library=tmp_path, allow_files=[clip.parent])
    )
    service.start()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    made = service.catalog.create(service.video(clip.as_uri(), LOCAL), {"fps": 0.2}, LOCAL)
    monkeypatch.setattr(catalog, "write_json", full)
    while made.state in catalog.ACTIVE:
        time.sleep(0.02)
    time.sleep(0.1)
    assert service.scheduler._thread.is_alive()
    monkeypatch.undo()
    service.stop()


def test_a_client_that_reads_a_byte_a_second_holds_up_nobody(served: Served, demo: str) -> None:
    parts = urlsplit(served.url)
    body = json.dumps({"messages": video(f"memory:{demo}", QUESTIONS[1]), "stream": True, "max_tokens": 300}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
    alone = ask(served, demo, QUESTIONS[0])["choices"]
    with socket.create_connection((parts.hostname, parts.port)) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        slow.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert slow.recv(1) == b"H"
        time.sleep(1)
        assert slow.recv(1) == b"T"
        assert ask(served, demo, QUESTIONS[0])["choices"] == alone
    assert ask(served, demo, QUESTIONS[0])["choices"] == alone


def test_too_many_connections_are_refused_politely(tmp_path: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = start(tmp_path / "library")
    parts = urlsplit(server.url)
    connections: list[socket.socket] = []
    try:
        where = (parts.hostname, parts.port)
        connections += [socket.create_connection(where, timeout=30) for _ in range(CONNECTIONS)]
        last = connections[-1]
        last.sendall(f"GET /v1/models HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
        assert last.recv(100).startswith(b"HTTP/1.1 503 ")
        for connection in connections:
            connection.close()
        end = time.monotonic() + 30
        while httpx.get(f"{server.url}/v1/models").status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.1)
    finally:
        server.stop()


def test_an_upload_without_a_length_ends_at_the_limit(tmp_path: Path) -> None:
    server = start(tmp_path / "library", "--max-upload", "1M")
    sent = 0

    def endless(head: bytes = b"") -> Iterator[bytes]:
        nonlocal sent
        sent = 0
        yield head
        while sent < ENDLESS:
            sent += 1 << 16
            yield bytes(1 << 16)

    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    try:
        begun = httpx.post(f"{server.url}/v1/uploads", json={"filename": "a.mp4", "bytes": 1000}).json()["id"]
        for method, path, content, headers in (
            ("POST", "/v1/files", endless(form), kind),
            ("PUT", f"/v1/files/{begun}/content", endless(), {"Content-Range": "bytes 0-999/1000"}),
            ("POST", "/v1/chat/completions", endless(), {"Content-Type": "application/json"}),
        ):
            status = None
            with contextlib.suppress(httpx.TransportError):  # it answered, and closed while we were still sending
                status = httpx.request(method, server.url + path, content=content, headers=headers).status_code
            assert status in ((None, 413) if path == "/v1/files" else (None, 400, 413))
            assert path.endswith("completions") or sent < 16 << 20
        assert httpx.get(f"{server.url}/v1/files").json()["data"][0]["status"] == "uploading"
        assert (tmp_path / "library" / ".files" / begun / "content").stat().st_size <= 1000
        assert httpx.get(f"{server.url}/health").status_code == 200
    finally:
        server.stop()


def zipped() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("../../escape.mp4", bytes(1000))
    return data.getvalue()


SECRET = "secret-line-of-a-file"


def test_what_is_no_video_is_refused_and_opens_no_other_file(served: Served, clip: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(SECRET)
    files = {
        "zip.mp4": zipped(),
        "playlist.mp4": f"#EXTM3U\n#EXTINF:1,\n{clip.as_uri()}\n{other.as_uri()}\n".encode(),
        "concat.mp4": f"ffconcat version 1.0\nfile '{clip}'\n".encode(),
        "mpd.mp4": f"<?xml version='1.0'?><MPD><Period><BaseURL>{other}</BaseURL></Period></MPD>".encode(),
        "sdp.mp4": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
        "html.mp4": b"<html><script>alert(1)</script></html>",
    }

    def made(name: str, data: bytes) -> dict[str, object]:
        sent = httpx.post(f"{served.url}/v1/files", files={"file": (name, data)}).json()["id"]
        begun = httpx.post(f"{served.url}/v1/memories", json={"file_id": sent, "options": {"fps": 0.1}}).json()
        state = served.memory(begun["id"])
        content = httpx.get(f"{served.url}/v1/files/{sent}/content")
        assert content.headers["content-disposition"].startswith("attachment")
        assert content.headers["x-content-type-options"] == "nosniff"
        httpx.delete(f"{served.url}/v1/memories/{begun['id']}")
        httpx.delete(f"{served.url}/v1/files/{sent}")
        return state

    with ThreadPoolExecutor(4) as pool:
        states = list(pool.map(lambda item: made(*item), files.items()))
    assert [state["state"] for state in states] == ["failed"] * len(files)
    assert all(state["error"] and SECRET not in str(state) for state in states)
    polyglot = made("both.mp4", clip.read_bytes() + zipped())  # a video is read as a video, whatever stands behind it
    assert (polyglot["state"], polyglot["chunks"]) == ("complete", made("clip.mp4", clip.read_bytes())["chunks"])


def test_a_reply_that_did_not_want_the_body_is_read_whole(served: Served) -> None:
    """A small body is read before the reply, so that the connection stays; of a large one the rest is not."""
    host, port = served.url.removeprefix("http://").split(":")
    local = set()
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=30)) as connection:
        for size, kept in [(100_000, True)] * 20 + [(2_000_000, False)]:
            connection.putrequest("POST", "/v1/files")
            connection.putheader("Content-Type", "text/plain")
            connection.putheader("Content-Length", str(size))
            connection.endheaders(bytes(100_000))
            local.add(connection.sock.getsockname())
            with connection.getresponse() as reply:
                assert reply.status == 400
                assert "error" in json.loads(reply.read())
                assert (reply.getheader("Connection") != "close") is kept
    assert len(local) == 1


def test_records_that_are_damaged_are_left_out_and_nothing_is_lost(tmp_path: Path) -> None:
    from tests.disk.test_hostile import changed, paths
    from videox2l.serve.catalog import MemoryRecord
    from videox2l.serve.files import FileRecord, read_record

    memory = {"id": "a", "name": "n", "created": 5, "state": "complete", "owners": ["local"], "options": {"fps": 1.0}}
    file = {"id": "file-" + "0" * 32, "filename": "a.mp4", "size": 5, "created": 5}
    for kind, plain in ((MemoryRecord, memory), (FileRecord, file)):
        path = tmp_path / "record.json"
        path.write_text(json.dumps(plain))
        assert read_record(kind, path, plain["id"]).created == 5
        for at in paths(plain):
            for evil in (None, -1, 2**70, "x\n", [], {}, [1], 1.5, ...):
                path.write_text(json.dumps(changed(plain, at, evil)))
                with contextlib.suppress(ValueError):
                    record = read_record(kind, path, plain["id"])
                    assert isinstance(record.created, int)
                    assert all(isinstance(owner, str) for owner in record.owners)
        for text in (
            "",
            "{",
            "[" * 100_000,
            "null",
            '"x"',
            '{"id": "b"}',
            "\udcff".encode("latin1", "replace").decode(),
        ):
            path.write_text(text)
            with pytest.raises(ValueError):  # noqa: PT011 - of pydantic or ours
                read_record(kind, path, plain["id"])


def test_a_server_starts_beside_records_that_are_damaged(tmp_path: Path) -> None:
    from videox2l import VideoX2L
    from videox2l.options import ServeOptions
    from videox2l.serve.keys import LOCAL
    from videox2l.serve.service import Service

    upload = tmp_path / ".files" / ("file-" + "1" * 32)
    upload.mkdir(parents=True)
    (upload / "content").write_bytes(b"all that is left of a video")
    (upload / "file.json").write_text('{"id": 3}')
    (tmp_path / ".jobs").mkdir()
    for number, text in enumerate(('{"id": "x"', '{"id": ["a"], "name": 1, "created": "x"}', "[" * 100_000)):
        (tmp_path / ".jobs" / f"r{number}.json").write_text(text)
    service = Service(VideoX2L.from_pretrained("demo"), "demo", ServeOptions(library=tmp_path))
    assert service.catalog.of(LOCAL) == []
    assert service.files.of(LOCAL) == []
    assert service.catalog.resume() == 0
    assert (upload / "content").read_bytes().startswith(b"all that is left")
    service.catalog.close()
