"""The server with its model in replicas: one that dies, or is replaced, fails no answer and changes none."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from tests.disk.helpers import content
from tests.serve.conftest import Served, start
from videox2l import Memory, SettingsError, VideoX2L
from videox2l.demo.render import render_video
from videox2l.options import LoadOptions, ServeOptions
from videox2l.serve.catalog import MemoryRecord
from videox2l.serve.chat import Reply
from videox2l.serve.errors import APIError
from videox2l.serve.keys import LOCAL

if importlib.util.find_spec("ray") is None:
    pytest.skip("ray is not installed: make test-scale", allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

MEMORIES = 8
ASKS = 15
"""Of each memory."""
QUESTIONS = ("the blue square has what digit ?", "what is in the video ?", "what colour has the square ?")
LONG = {"temperature": 20.0, "top_p": 1.0, "max_new_tokens": 400}
"""So hot that the demo model writes many words."""


class Handle:
    """A handle of replicas, each of which yields what it was given, or dies where that is an exception."""

    def __init__(self, *replicas: list[Any]) -> None:
        self.replicas = list(replicas)
        self.about = self.answer = self

    def options(self, **_: Any) -> Handle:
        return self

    def result(self) -> Any:
        return {}, ""

    def remote(self, *asked: Any) -> Any:
        return Stream(self.replicas.pop(0)) if asked else self


class Stream:
    """What a replica answers."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    async def __aiter__(self) -> AsyncIterator[Any]:
        for item in self.items:
            await asyncio.sleep(0)
            if isinstance(item, Exception):
                raise item
            yield item


def ask(tmp_path: Path, *replicas: list[Any]) -> tuple[str, Any, Any]:
    """Ask through a server with such replicas; return the pieces that were sent, the result, and the counters."""
    from videox2l.serve.cluster import ClusterService

    async def run() -> tuple[str, Any, Any]:
        service = ClusterService(Handle(*replicas), "x2l", "demo", ServeOptions(library=tmp_path, ray="local"))
        question: Any = None
        sent: list[str] = []
        ticket = service.ask(question, [MemoryRecord("m", "m", 0)], LOCAL, sent.append)
        assert service.scheduler.waiting == 1
        try:
            found: Any = await asyncio.wrap_future(ticket.future)
        except APIError as error:
            found = error
        assert service.scheduler.waiting == 0
        return "".join(sent), found, service.metrics.registry

    return asyncio.run(run())


def test_a_stream_goes_on_behind_what_was_sent(tmp_path: Path) -> None:
    from ray.exceptions import ActorDiedError

    cost: Any = SimpleNamespace(cost=SimpleNamespace(new_tokens=3, reloaded_bytes=0))
    first = ["yellow ", "circle , yel", ActorDiedError()]
    second = ["yellow", " circle ,", " yellow square", Reply(cost, {}, True, replica="b")]
    text, reply, counted = ask(tmp_path, [("a", False), *first], [("b", True), *second])
    assert text == "yellow circle , yellow square"
    assert reply.replica == "b"
    assert counted.get_sample_value("x2l_replica_deaths_total") == 1
    assert counted.get_sample_value("x2l_answers_total", {"replica": "b"}) == 1
    # a replica that answers otherwise is no continuation, and one that goes without a word is asked again
    text, error, _ = ask(tmp_path, [("a", False), *first], [("b", True), "red", *second])
    assert text == "yellow circle , yel"
    assert error.status == 503
    assert ask(tmp_path, [("a", False)], [("b", True), *second])[0] == text + "low square"
    error = ask(tmp_path, *[[("a", False), ActorDiedError()]] * 9)[1]
    assert (error.status, error.code) == (503, "replica_lost")
    # what is wrong with a question is told as on one machine, and not asked again
    told = {"status": 409, "message": "no", "param": None, "code": "not_ready"}
    assert ask(tmp_path, [("a", False), told])[1].code == "not_ready"


def test_memories_stay_where_they_are_when_a_replica_goes() -> None:
    from videox2l.serve.cluster import ByMemory

    def order(memory: str, names: str) -> str:
        request: Any = SimpleNamespace(
            metadata=SimpleNamespace(multiplexed_model_id=memory), routing_context=SimpleNamespace()
        )
        found = [SimpleNamespace(replica_id=SimpleNamespace(unique_id=name)) for name in names]
        ranks = asyncio.run(ByMemory.choose_replicas(SimpleNamespace(), found, request))
        return "".join(replica.replica_id.unique_id for (replica,) in ranks)

    orders = {memory: order(memory, "abcd") for memory in map(str, range(100))}
    assert {found[0] for found in orders.values()} == set("abcd")
    for memory, found in orders.items():
        assert order(memory, "dbac") == found
        assert order(memory, "abd") == found.replace("c", "")


def test_options_of_replicas() -> None:
    assert ServeOptions(ray="local", replicas="1:4").replica_bounds() == (1, 4)
    for wrong in ({"replicas": "2"}, {"gpus": 1}, {"ray": "local", "replicas": "4:1"}, {"library": "s3://bucket/lib"}):
        with pytest.raises(SettingsError, match=r"replicas|library"):
            ServeOptions(**wrong)


@pytest.fixture
def joined(cluster: str) -> Iterator[str]:
    """The address of a Ray cluster that this process has joined."""
    import ray
    from ray import serve

    def joins() -> bool:
        try:
            ray.init(address=cluster, log_to_driver=False, logging_level="error", namespace="serve")
        except ConnectionError:  # it has not begun yet
            return False
        return True

    wait_for(joins)
    yield cluster
    serve.shutdown()
    ray.shutdown()


def wait_for(true: Callable[[], object]) -> None:
    """Wait until something is true."""
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def kill(replica: str) -> None:
    import ray

    name = next(name for name in ray.util.list_named_actors() if name.endswith(replica))
    ray.kill(ray.get_actor(name))


def replicas() -> list[str]:
    """The names of the replicas that live."""
    import ray

    return [name.rpartition("#")[2] for name in ray.util.list_named_actors() if name.startswith("SERVE_REPLICA::x2l")]


def home(memory: str) -> str:
    """The replica that a memory belongs to."""
    return min(replicas(), key=lambda name: hashlib.sha256(f"{memory}/{name}".encode()).digest())


def asked(server: Served, memory: str, text: str, stream: bool, **options: Any) -> tuple[str, str]:
    """Ask the server; return the answer and the replica."""
    tokens = {"max_tokens": options.pop("max_new_tokens", 32)}
    body = {"messages": [{"role": "user", "content": text}], "x2l": {"memory": memory, **options}, **tokens}
    if not stream:
        reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=300)
        assert reply.status_code == 200, reply.text
        return reply.json()["choices"][0]["message"]["content"], reply.json()["x2l"]["replica"]
    pieces = list(events(server, body))
    assert pieces[-1].get("x2l"), pieces
    return "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces), pieces[-1]["x2l"]["replica"]


def events(server: Served, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the pieces of a stream, which has its end."""
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json={**body, "stream": True}, timeout=300) as reply:
        for line in reply.iter_lines():
            if line == "data: [DONE]":
                return
            if line.startswith("data: "):
                yield json.loads(line[6:])
    raise AssertionError("the stream has no end")


def counted(server: Served, name: str) -> float:
    """The sum of a counter over all replicas."""
    found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", httpx.get(f"{server.url}/metrics").text, re.MULTILINE)
    return sum(map(float, found))


def test_replicas_die_and_are_replaced(joined: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from videox2l.serve.cluster import deploy

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "src"))
    x2l, library, videos = VideoX2L.from_pretrained("demo"), tmp_path / "library", tmp_path / "videos"
    videos.mkdir()
    library.mkdir()
    for number in range(MEMORIES):
        render_video(videos / f"m{number}.mp4", seed=number, minutes=0.3, fps=2)
        x2l.ingest(videos / f"m{number}.mp4", store=library / f"m{number}")
    names = [f"m{number}" for number in range(MEMORIES)]
    opened = {name: Memory.load(library / name) for name in names}
    right = {(name, text): x2l.ask(opened[name], text, max_new_tokens=32).text for name in names for text in QUESTIONS}
    log = tmp_path / "log"
    server = start(library, "--ray", joined, "--replicas", "2", "--allow-files", str(videos), log=log)
    try:
        load(server, names, right)
        long_stream(server, x2l, opened)
        ingest(server, x2l, videos)
        with ThreadPoolExecutor(2) as pool:  # all replicas are replaced under questions
            old, ends = set(replicas()), threading.Event()
            jobs = [pool.submit(until, ends, server, names[i], right[names[i], QUESTIONS[1]]) for i in range(2)]
            options = ServeOptions(library=library, ray=joined, replicas="2")
            deploy("demo", LoadOptions(), options, anew=True)
            ends.set()
            assert all(job.result() for job in jobs)
            wait_for(lambda: not old & set(replicas()))  # each goes behind its last answer
        assert httpx.get(f"{server.url}/ready").status_code == 200
    except BaseException:
        print(log.read_text()[-4000:])  # noqa: T201
        raise
    finally:
        server.stop()
    assert replicas() == []


def load(server: Served, names: list[str], right: dict[tuple[str, str], str]) -> None:
    """Ask from eight threads, streamed and not, while a replica is killed."""
    lock, seen, moved = threading.Lock(), {name: list[str]() for name in names}, list[bool]()
    killed = ""

    def one(number: int) -> None:
        nonlocal killed
        name, text = names[number % MEMORIES], QUESTIONS[number % len(QUESTIONS)]
        answer, replica = asked(server, name, text, stream=number % 2 == 0)
        assert answer == right[name, text]
        with lock:
            if seen[name]:
                moved.append(replica not in seen[name])
            seen[name].append(replica)
            if not killed and len(moved) == ASKS * MEMORIES // 3:
                assert [len(set(found)) for found in seen.values()] == [1] * MEMORIES  # each has its replica
                assert len({found[0] for found in seen.values()}) == 2
                killed = replica
                kill(replica)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(ASKS * MEMORIES)))
    assert killed
    assert len(moved) == (ASKS - 1) * MEMORIES
    assert sum(moved) <= len(moved) / 10
    assert counted(server, "x2l_answers_total") == ASKS * MEMORIES
    assert counted(server, "x2l_answers_held_total") >= 0.8 * ASKS * MEMORIES  # the first of each are not


def long_stream(server: Served, x2l: VideoX2L, opened: dict[str, Memory]) -> None:
    """Kill the replica that writes, when its first words have come."""
    name = "m0"
    seed = next(seed for seed in range(100) if len(x2l.ask(opened[name], "why ?", seed=seed, **LONG).ids) > 80)
    text = x2l.ask(opened[name], "why ?", seed=seed, **LONG).text
    _, replica = asked(server, name, "why ?", stream=False)
    before, words = counted(server, "x2l_replica_deaths_total"), list[str]()
    hot = {key: value for key, value in LONG.items() if key != "max_new_tokens"}
    body = {
        "messages": [{"role": "user", "content": "why ?"}],
        "max_tokens": 400,
        "x2l": {"memory": name, "seed": seed},
    }
    for piece in events(server, {**body, **hot}):
        words.append(piece["choices"][0]["delta"].get("content", ""))
        if len(words) == 5:
            kill(replica)
    assert len(words) > 20
    assert "".join(words) == text
    assert counted(server, "x2l_replica_deaths_total") == before + 1
    assert piece["x2l"]["replica"] != replica


def ingest(server: Served, x2l: VideoX2L, videos: Path) -> None:
    """Kill the replica that ingests, once the one that died before has been replaced and has its share of memories."""
    names = [f"m{number}" for number in range(MEMORIES)]
    wait_for(lambda: {asked(server, name, QUESTIONS[0], stream=False)[1] for name in names} == set(replicas()))
    render_video(videos / "new.mp4", seed=77, minutes=4.0)
    before = counted(server, "x2l_replica_deaths_total")
    begun = httpx.post(f"{server.url}/v1/memories", json={"url": (videos / "new.mp4").as_uri()})
    assert begun.status_code == 202, begun.text
    name = begun.json()["id"]
    wait_for(lambda: httpx.get(f"{server.url}/v1/memories/{name}").json()["chunks"])
    kill(home(name))
    assert server.memory(name)["state"] == "complete"
    assert counted(server, "x2l_replica_deaths_total") == before + 1
    x2l.ingest(videos / "new.mp4", store=videos / "new")
    assert content(server.library / name) == content(videos / "new")
    assert asked(server, name, QUESTIONS[0], stream=True)[0] == x2l.ask(Memory.load(videos / "new"), QUESTIONS[0]).text


def until(ends: threading.Event, server: Served, name: str, right: str) -> int:
    """Ask again and again; return how often."""
    number = 0
    while not ends.is_set():
        assert asked(server, name, QUESTIONS[1], stream=number % 2 == 0)[0] == right
        number += 1
    return number
