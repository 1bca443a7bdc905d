"""The API as its clients use it."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from tests.serve.conftest import Served, start
from videox2l import Memory, Turn, VideoX2L
from videox2l.cli.serve import listen
from videox2l.memory.disk import library

pytestmark = pytest.mark.slow

QUESTIONS = ("which digit does the blue cross carry ?", "what is in the video ?", "is there a red star ?")


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def video(url: str, question: str) -> list[dict[str, object]]:
    return [
        {
            "role": "user",
            "content": [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": question}],
        }
    ]


def ask(served: Served, memory: str, question: str, **more: object) -> dict[str, object]:
    body = {"messages": video(f"memory:{memory}", question), **more}
    reply = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    return reply.json()  # type: ignore[no-any-return]


def test_answers_equal_the_library_with_openais_client(served: Served, demo: str, client: openai.OpenAI) -> None:
    x2l, memory = VideoX2L.from_pretrained("demo"), Memory.load(served.library / demo)
    for question in QUESTIONS:
        truth = x2l.ask(memory, question, max_new_tokens=8)
        reply = client.chat.completions.create(
            model="demo",
            messages=video(f"memory:{demo}", question),
            max_tokens=8,  # type: ignore[arg-type]
        )
        assert reply.choices[0].message.content == truth.text
        assert reply.choices[0].finish_reason == truth.finish
        assert reply.usage is not None
        assert reply.usage.completion_tokens == truth.cost.new_tokens
        ours = reply.model_extra["x2l"]  # type: ignore[index]
        assert [bool(moment["reason"]) for moment in ours["evidence"]] == [bool(m.reason) for m in truth.evidence]
        stream = client.chat.completions.create(
            model="demo",
            messages=video(f"memory:{demo}", question),  # type: ignore[arg-type]
            max_tokens=8,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices).strip() == truth.text
        assert chunks[-1].usage is not None


def test_forty_questions_at_once_equal_those_alone(served: Served, demo: str) -> None:
    alone = {question: ask(served, demo, question)["choices"] for question in QUESTIONS}
    wanted = [QUESTIONS[i % 3] for i in range(40)]
    with ThreadPoolExecutor(40) as pool:
        found = list(pool.map(lambda question: ask(served, demo, question)["choices"], wanted))
    assert found == [alone[question] for question in wanted]


def test_a_video_that_was_seen_uses_its_memory(served: Served, clip: Path) -> None:
    data = "data:video/mp4;base64," + base64.b64encode(clip.read_bytes()).decode()
    messages = video(clip.as_uri(), QUESTIONS[1])
    first = httpx.post(f"{served.url}/v1/chat/completions", json={"messages": messages}, timeout=120).json()
    second = httpx.post(
        f"{served.url}/v1/chat/completions", json={"messages": video(data, QUESTIONS[1])}, timeout=120
    ).json()
    assert first["x2l"]["memory"] == second["x2l"]["memory"]
    assert first["choices"] == second["choices"]
    assert not first["x2l"]["incomplete"]


def test_options_turns_and_stop(served: Served, demo: str) -> None:
    pinned = ask(served, demo, QUESTIONS[0], x2l={"pinned": [[8, 16]], "reload": 1})["x2l"]
    assert any(moment["reason"] == "pinned" for moment in pinned["evidence"])  # type: ignore[index]
    reply = ask(served, demo, QUESTIONS[0])
    text = reply["choices"][0]["message"]["content"]  # type: ignore[index]
    stopped = ask(served, demo, QUESTIONS[0], stop=[text[:1]])
    assert stopped["choices"][0]["message"]["content"] == ""  # type: ignore[index]
    messages = [*video(f"memory:{demo}", QUESTIONS[0]), {"role": "assistant", "content": text}]
    messages.append({"role": "user", "content": QUESTIONS[1]})
    truth = VideoX2L.from_pretrained("demo")
    answer = truth.ask(Memory.load(served.library / demo), QUESTIONS[1], history=[Turn(QUESTIONS[0], text)])
    said = httpx.post(f"{served.url}/v1/chat/completions", json={"messages": messages}).json()
    assert said["choices"][0]["message"]["content"] == answer.text


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": video("memory:nothing", "what ?")}, 404, "no memory"),
        ({"messages": video("memory:../../etc", "what ?")}, 404, "no memory"),
        ({"messages": video("file:///etc/passwd", "what ?")}, 403, "not served"),
        ({"messages": video("https://example.org/a.mp4", "what ?")}, 403, "allow"),
        ({"messages": video("http://169.254.169.254/latest", "what ?")}, 400, "https"),
        ({"messages": video("memory:x", "what ?"), "model": "gpt"}, 404, "not served"),
        ({"messages": video("memory:x", "what ?"), "x2l": {"relod": 3}}, 400, "relod"),
        ({"messages": video("memory:x", "what ?"), "temperature": -1}, 400, "temperature"),
    ],
)
def test_errors_have_openais_shape(served: Served, body: dict[str, object], status: int, told: str) -> None:
    reply = httpx.post(f"{served.url}/v1/chat/completions", json=body)
    error = reply.json()["error"]
    assert told in error["message"], error
    assert reply.status_code == status
    assert {"message", "type", "param", "code"} <= set(error)


def test_uploads_in_pieces_then_memory_events_thumbnails_and_ranges(served: Served, clip: Path) -> None:
    data = clip.read_bytes()
    with httpx.Client(base_url=served.url, timeout=60) as http:
        uploaded(http, data)


def uploaded(http: httpx.Client, data: bytes) -> None:
    begun = http.post("/v1/uploads", json={"filename": "clip.mp4", "bytes": len(data)}).json()
    half = len(data) // 2
    where = f"/v1/files/{begun['id']}/content"
    first = http.put(where, content=data[:half], headers={"Content-Range": f"bytes 0-{half - 1}/{len(data)}"})
    assert (first.status_code, first.headers["range"]) == (308, f"bytes=0-{half - 1}")
    asked = http.put(where, headers={"Content-Range": f"bytes */{len(data)}"})
    assert asked.headers["range"] == f"bytes=0-{half - 1}"
    last = http.put(where, content=data[half:], headers={"Content-Range": f"bytes {half}-{len(data) - 1}/{len(data)}"})
    assert last.json()["status"] == "processed"
    part = http.get(where, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, data[10:20])
    memory = http.post("/v1/memories", json={"file_id": begun["id"], "options": {"fps": 0.5}})
    assert memory.status_code == 202
    name = memory.json()["id"]
    with http.stream("GET", f"/v1/memories/{name}/events") as stream:
        states = [json.loads(line[6:])["state"] for line in stream.iter_lines() if line.startswith("data: ")]
    assert states[-1] == "complete"
    chunks = http.get(f"/v1/memories/{name}/timeline").json()["chunks"]
    assert chunks[0]["start"] == 0
    assert http.get(f"/v1/memories/{name}/thumbnails/0.jpg").content[:2] == b"\xff\xd8"
    assert http.get(f"/v1/memories/{name}/thumbnails/99.jpg").status_code == 404
    assert http.delete(f"/v1/memories/{name}").json()["deleted"]
    assert http.get(f"/v1/memories/{name}").status_code == 404


def test_headers_and_foreign_pages(served: Served) -> None:
    page = httpx.get(served.url)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert httpx.get(f"{served.url}/v1/models", headers={"Origin": "https://evil.example"}).status_code == 403
    assert httpx.get(f"{served.url}/v1/models", headers={"Host": "evil.example"}).status_code == 403
    assert "x2l_requests_total" in httpx.get(f"{served.url}/metrics").text


def test_a_killed_ingest_goes_on_at_the_next_start(tmp_path: Path, clip: Path) -> None:
    first = start(tmp_path / "library", "--allow-files", str(clip.parent))
    made = httpx.post(f"{first.url}/v1/memories", json={"url": clip.as_uri(), "options": {"fps": 4}}).json()
    first.memory(made["id"], ("ingesting", "complete"))
    first.stop(signal.SIGKILL)
    second = start(tmp_path / "library", "--allow-files", str(clip.parent))
    try:
        assert second.memory(made["id"])["state"] == "complete"
        frames = sum(chunk.frames for chunk in Memory.load(second.library / made["id"]).chunks)
        assert frames == 240
    finally:
        second.stop()


def test_keys_and_scopes(tmp_path: Path) -> None:
    from videox2l.serve.keys import add_key

    file = tmp_path / "keys"
    reader, owner = add_key(file, "anna:ask"), add_key(file, "ben:ask,ingest,admin")
    assert reader not in file.read_text()
    server = start(tmp_path / "library", "--api-key-file", str(file))
    try:
        get = lambda path, key: httpx.get(f"{server.url}{path}", headers={"Authorization": f"Bearer {key}"})  # noqa: E731
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        assert get("/v1/models", "wrong").status_code == 401
        assert get("/v1/models", reader).status_code == 200
        assert get("/metrics", reader).status_code == 403
        assert get("/metrics", owner).status_code == 200
    finally:
        server.stop()


def test_too_many_questions_are_refused_and_the_others_answered(tmp_path: Path, clip: Path) -> None:
    server = start(tmp_path / "library", "--allow-files", str(clip.parent), "--queue", "1")
    try:
        body = {"messages": video(clip.as_uri(), QUESTIONS[1]), "max_tokens": 200}
        first = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120).json()
        with ThreadPoolExecutor(16) as pool:
            asked = [
                pool.submit(httpx.post, f"{server.url}/v1/chat/completions", json=body, timeout=120) for _ in range(32)
            ]
            replies = [call.result() for call in asked]
        answered = [reply for reply in replies if reply.status_code == 200]
        refused = [reply for reply in replies if reply.status_code == 429]
        assert len(answered) + len(refused) == 32
        assert answered
        assert refused
        assert all(reply.json()["choices"] == first["choices"] for reply in answered)
        assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)
    finally:
        server.stop()


def test_an_ingest_is_cancelled_and_what_is_there_answers(served: Served, clip: Path) -> None:
    options = {"fps": 10, "chunk_frames": 2}
    made = httpx.post(f"{served.url}/v1/memories", json={"url": clip.as_uri(), "options": options}).json()
    with httpx.stream("GET", f"{served.url}/v1/memories/{made['id']}/events", timeout=60) as events:
        next(line for line in events.iter_lines() if line.startswith("data: ") and json.loads(line[6:])["chunks"])
    stopped = httpx.post(f"{served.url}/v1/memories/{made['id']}/cancel")
    assert stopped.status_code == 200, stopped.text
    assert served.memory(made["id"], ("cancelled", "complete"))["state"] == "cancelled"
    assert httpx.post(f"{served.url}/v1/memories/{made['id']}/cancel").status_code == 409
    assert ask(served, made["id"], QUESTIONS[1])["x2l"]["incomplete"]  # type: ignore[index]


def test_an_export_is_a_memory_again(served: Served, demo: str, tmp_path: Path) -> None:
    file = tmp_path / "demo.x2lz"
    file.write_bytes(httpx.get(f"{served.url}/v1/memories/{demo}/export").content)
    until = time.monotonic() + 10
    while list(served.library.glob(".export-*")) and time.monotonic() < until:
        time.sleep(0.05)  # it is removed once all was sent
    assert not list(served.library.glob(".export-*"))
    library.import_(file, tmp_path / "demo.x2l")
    truth = Memory.load(served.library / demo)
    assert Memory.load(tmp_path / "demo.x2l").fingerprint() == truth.fingerprint()


def test_nothing_is_added_beyond_the_quota(tmp_path: Path, clip: Path) -> None:
    server = start(tmp_path / "library", "--quota", "1K")
    try:
        reply = httpx.post(f"{server.url}/v1/files", files={"file": ("clip.mp4", clip.read_bytes())})
        assert (reply.status_code, reply.json()["error"]["code"]) == (507, "quota")
        assert httpx.get(f"{server.url}/v1/files").json()["data"] == []
    finally:
        server.stop()


def test_several_memories_in_one_question(served: Served, demo: str, clip: Path) -> None:
    made = httpx.post(f"{served.url}/v1/memories", json={"url": clip.as_uri(), "options": {"fps": 0.5}}).json()["id"]
    assert served.memory(made)["state"] == "complete"
    url, told = f"{served.url}/v1/chat/completions", [{"role": "user", "content": QUESTIONS[0]}]
    body = {"messages": told, "max_tokens": 6, "x2l": {"memories": [demo, made]}}
    reply = httpx.post(url, json=body, timeout=60).json()
    x2l = VideoX2L.from_pretrained("demo")
    truth = x2l.ask([served.library / demo, served.library / made], QUESTIONS[0], max_new_tokens=6)
    assert reply["choices"][0]["message"]["content"] == truth.text
    ours = reply["x2l"]
    assert [moment["memory"] for moment in ours["evidence"]] == [
        str(Path(moment.memory).name) for moment in truth.evidence
    ]
    assert (ours["memory"], ours["memories"], set(ours["covers"])) == (None, [demo, made], {demo, made})
    every = httpx.post(url, json={**body, "x2l": {"memories": "all"}}, timeout=60).json()["x2l"]["memories"]
    assert {demo, made} <= set(every)
    for wrong in ([], "some", [1]):
        assert httpx.post(url, json={**body, "x2l": {"memories": wrong}}).status_code == 400
    assert httpx.post(url, json={**body, "x2l": {"memories": [demo, "none"]}}).status_code == 404
    both = {**body, "messages": video(f"memory:{demo}", "what ?")}
    assert httpx.post(url, json=both).status_code == 400


def test_system_texts_stand_before_the_video_or_say_so(served: Served, demo: str, clip: Path) -> None:
    """A system message is exact where the memory was made with it; elsewhere it stands before the question, told."""
    told, question = "look at the digit", QUESTIONS[0]
    messages = video(clip.as_uri(), question)

    def post(**body: object) -> httpx.Response:
        return httpx.post(f"{served.url}/v1/chat/completions", json={"messages": messages, **body}, timeout=120)

    made = post(x2l={"system": told}).json()["x2l"]["memory"]
    assert made != post().json()["x2l"]["memory"]
    x2l = VideoX2L.from_pretrained("demo")
    memories = {name: Memory.load(served.library / name) for name in (made, demo)}
    assert (memories[made].system, memories[demo].system) == (told, None)
    for name, place, text in (
        (made, "before the video", question),
        (demo, "before the question", f"{told}\n{question}"),
    ):
        body = {"messages": [{"role": "system", "content": told}, *video(f"memory:{name}", question)]}
        reply = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60).json()
        assert reply["x2l"]["system"] == place
        assert reply["choices"][0]["message"]["content"] == x2l.ask(memories[name], text).text
    messages = video(f"memory:{demo}", question)
    wrong = post(x2l={"system": told})
    assert (wrong.status_code, "made without a system text" in wrong.text) == (400, True)
    turns, template = [["which color ?", "red"]], "now : {question}"
    asked = post(x2l={"turns": turns, "prompt_template": template, "detail": True}).json()["x2l"]["answer"]["ids"]
    wanted = x2l.ask(memories[demo], question, turns=[("which color ?", "red")], prompt_template=template)
    assert asked == list(wanted.ids)
    assert post(x2l={"turns": "/etc/passwd"}).status_code == 400
    assert httpx.delete(f"{served.url}/v1/memories/{made}").status_code == 200  # other tests ask all memories at once


def test_choices_confidence_and_schemas(served: Served, demo: str) -> None:
    x2l, memory = VideoX2L.from_pretrained("demo"), Memory.load(served.library / demo)
    truth = x2l.ask(memory, QUESTIONS[0], choices="3,7,red star", calibrate=True)
    reply = ask(served, demo, QUESTIONS[0], x2l={"choices": ["3", "7", "red star"], "calibrate": True})
    assert reply["choices"][0]["message"]["content"] == truth.text  # type: ignore[index]
    ours, told = reply["x2l"], truth.to_dict()
    assert [choice["text"] for choice in ours["choices"]] == ["3", "7", "red star"]  # type: ignore[index]
    for found, wanted in zip(ours["choices"], told["choices"], strict=True):  # type: ignore[index]
        assert {**found, "text": 0} == pytest.approx({**wanted, "text": 0}, abs=1e-5)
    assert ours["confidence"] == pytest.approx(told["confidence"], abs=1e-5)  # type: ignore[index]
    assert ours["entropy"] == ours["confidence"]["entropy"]  # type: ignore[index]

    def told_by(wanted: object) -> tuple[int, str]:
        body = {"messages": video(f"memory:{demo}", QUESTIONS[0]), "response_format": wanted}
        reply = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60)
        return reply.status_code, reply.text

    assert told_by({"type": "text"})[0] == 200
    assert told_by({"type": "grammar"}) == (400, told_by({"type": "json_schema"})[1])
    pytest.importorskip("llguidance")
    status, text = told_by({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}})
    assert (status, "none that llguidance reads" in text) == (400, True)


def test_response_formats_are_the_option() -> None:
    from videox2l.serve.chat import ChatRequest, question_of

    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for wanted, option in (
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}, schema),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "text"}, None),
    ):
        request = ChatRequest(messages=video("memory:x", "what ?"), response_format=wanted)  # type: ignore[call-arg]
        assert question_of(request, 4096).options.json_schema == option


def test_log_likelihoods_are_those_of_the_models_own_logits(
    served: Served, demo: str, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    x2l, memory, rows = VideoX2L.from_pretrained("demo"), Memory.load(served.library / demo), list[torch.Tensor]()
    made = x2l.backbone.logits

    def noted(hidden: torch.Tensor) -> torch.Tensor:
        rows.append(made(hidden)[-1])
        return rows[-1][None]

    monkeypatch.setattr(x2l.backbone, "logits", noted)
    truth = x2l.ask(memory, QUESTIONS[1], max_new_tokens=5, reload="all")
    create: Any = client.chat.completions.create
    asked = {"model": "demo", "messages": video(f"memory:{demo}", QUESTIONS[1]), "max_tokens": 5}
    asked["extra_body"] = {"x2l": {"reload": "all"}}
    told = create(logprobs=True, top_logprobs=4, **asked).choices[0].logprobs.content
    assert "".join(token.token for token in told).strip() == truth.text
    assert len(told) == len(truth.ids) > 1
    for token, row, id_ in zip(told, rows, truth.ids, strict=False):
        expected = row.double().log_softmax(-1)
        assert token.logprob == pytest.approx(float(expected[id_]), abs=1e-4)
        best = expected.sort(descending=True).values[:4].tolist()
        assert [top.logprob for top in token.top_logprobs] == pytest.approx(best, abs=1e-4)
        assert bytes(token.bytes).decode() == token.token
    parts = [part.choices[0].logprobs for part in create(logprobs=True, top_logprobs=4, stream=True, **asked)]
    assert [token for part in parts if part for token in part.content] == told
    plain = create(**asked).choices[0]
    assert (plain.logprobs, plain.message.content) == (None, truth.text)
    bare = create(logprobs=True, **asked).choices[0].logprobs.content
    assert [(token.logprob, token.top_logprobs) for token in bare] == [(token.logprob, []) for token in told]
    for wrong in ({"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 21}):
        with pytest.raises(openai.BadRequestError, match="logprobs"):
            create(**asked, **wrong)


@pytest.mark.parametrize("named", [True, False])
def test_pieces_of_a_response_are_sent_at_once(named: bool) -> None:
    """The control: a socket without a protocol, of which asyncio leaves Nagle's delay on."""

    async def delay_is_off() -> bool:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there = writer.get_extra_info("socket")
            found.set_result(there.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = listen("127.0.0.1", 0) if named else socket.create_server(("127.0.0.1", 0))
        async with await asyncio.start_server(accepted, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            off = bool(await found)
            writer.close()
            await writer.wait_closed()
        return off

    assert asyncio.run(delay_is_off()) == named
