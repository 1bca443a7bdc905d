"""Load on a server with the demo model: many asks at once over many memories, while videos are ingested.

    python benchmarks/serve_load.py [--asks 200] [--memories 20] [--minutes 10] [--write FILE.md]

Every answer is compared with that of the same question asked alone. The same load runs with and without batching, on
the same memories. First token and whole answer of the server are measured in pairs with the library's own, in this
process: one after the other, in turn. No GPU and no network are needed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import torch

from videox2l import Memory, VideoX2L
from videox2l.demo.render import render_video
from videox2l.version import __version__

QUESTIONS = ("what is in the video ?", "which digit does the blue cross carry ?", "is there a red star ?")
TOKENS = 16


@dataclass
class Asked:
    """What came of a question: its text, and seconds to the first token and to the end; how often it was refused."""

    text: str
    tokens: int
    first: float
    whole: float
    refused: int = 0


@dataclass
class Server:
    """A server process at `url`."""

    url: str
    process: subprocess.Popen[str]
    http: httpx.Client = field(
        default_factory=lambda: httpx.Client(timeout=600, limits=httpx.Limits(max_connections=900))
    )

    def ask(self, memory: str, question: str) -> Asked:
        """Ask once; wait and ask again where too many wait."""
        body = {"messages": [{"role": "user", "content": question}], "x2l": {"memory": memory}, "stream": True,
                "max_tokens": TOKENS, "stream_options": {"include_usage": True}}  # fmt: skip
        for refused in itertools.count():
            begun, first, text, tokens = time.perf_counter(), 0.0, "", 0
            with self.http.stream("POST", f"{self.url}/v1/chat/completions", json=body) as reply:
                if reply.status_code == 429:
                    time.sleep(float(reply.headers["retry-after"]))
                    continue
                reply.raise_for_status()
                for line in reply.iter_lines():
                    if not line.startswith("data: {"):
                        continue
                    piece = json.loads(line[6:])
                    if "error" in piece:
                        raise RuntimeError(piece["error"])
                    if piece.get("usage"):
                        tokens = piece["usage"]["completion_tokens"]
                    new = piece["choices"][0]["delta"].get("content") if piece["choices"] else None
                    if new:
                        first, text = first or time.perf_counter() - begun, text + new
            return Asked(text.strip(), tokens, first, time.perf_counter() - begun, refused)
        raise AssertionError

    def ingest(self, video: Path, fps: float) -> str:
        """Begin an ingest; return the id of its memory."""
        made = self.http.post(f"{self.url}/v1/memories", json={"url": video.as_uri(), "options": {"fps": fps}})
        return str(made.raise_for_status().json()["id"])

    def state(self, memory: str) -> str:
        """Return the state of a memory."""
        return str(self.http.get(f"{self.url}/v1/memories/{memory}").json()["state"])

    def resident(self) -> float:
        """Return the MiB of host memory that the process has."""
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(found[1]) / 1024 if found else 0.0


@contextmanager
def serving(library: Path, videos: Path, *more: str) -> Iterator[Server]:
    """Run a server."""
    command = [sys.executable, "-m", "videox2l.cli.app", "serve", "--library", str(library), "--port", "0", *more]
    command += ["--allow-files", str(videos), "--queue", "400"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)
    assert process.stdout is not None
    found = re.search(r"http://\S+", process.stdout.readline())
    assert found
    server = Server(found[0], process)
    try:
        while True:
            try:
                server.http.get(f"{server.url}/health").raise_for_status()
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        process.wait(60)


def together(server: Server, work: list[tuple[str, str]]) -> tuple[list[Asked], float]:
    """Ask all at once, a thread each; return what came of them, and the seconds of all."""
    found: dict[int, Asked] = {}

    def run(number: int, memory: str, question: str) -> None:
        found[number] = server.ask(memory, question)

    threads = [threading.Thread(target=run, args=(i, *one)) for i, one in enumerate(work)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[i] for i in range(len(work))], time.perf_counter() - begun


def load(server: Server, work: list[tuple[str, str]], truth: list[str], videos: list[Path], seconds: float) -> str:
    """Run rounds of all asks with ingests beside them for so long; return a row of the table."""
    asked, took, resident, rates = list[Asked](), 0.0, list[float](), itertools.count(1)
    ingests, memories = list[str](), 0
    begun = time.perf_counter()
    while not asked or time.perf_counter() - begun < seconds:
        fps = 1.0 + next(rates) / 1000  # a memory of its own
        ingests = [server.ingest(video, fps) for video in videos[:4]]
        done, spent = together(server, work)
        asked, took = asked + done, took + spent
        for name in ingests:
            while server.state(name) in ("queued", "ingesting"):
                time.sleep(0.05)
            memories += server.state(name) == "complete"
            server.http.delete(f"{server.url}/v1/memories/{name}")
        resident.append(server.resident())
    wrong = sum(one.text != truth[i % len(truth)] for i, one in enumerate(asked))
    firsts, wholes = sorted(one.first for one in asked), sorted(one.whole for one in asked)
    return (
        f"{len(asked)} | {wrong} | {sum(one.refused for one in asked)} | {memories} | {quantile(firsts, 0.5):.2f} / "
        f"{quantile(firsts, 0.99):.2f} | {quantile(wholes, 0.5):.2f} / {quantile(wholes, 0.99):.2f} | "
        f"{len(asked) / took:.1f} | {resident[0]:.0f}, {resident[len(resident) // 2]:.0f}, {resident[-1]:.0f}"
    )


def quantile(values: list[float], share: float) -> float:
    """Return a quantile of sorted values."""
    return values[min(len(values) - 1, int(share * len(values)))]


def pairs(server: Server, library: Path, work: list[tuple[str, str]]) -> str:
    """Ask the library and the server in turn; return medians of both, and of their ratios."""
    x2l, memories = VideoX2L.from_pretrained("demo"), dict[str, Memory]()
    ours, theirs = list[Asked](), list[Asked]()
    for memory, question in [*work[:10], *work]:  # the first ten only warm both up
        times = list[float]()
        opened = memories.setdefault(memory, Memory.load(library / memory))
        begun = time.perf_counter()
        answer = x2l.ask(
            opened,
            question,
            max_new_tokens=TOKENS,
            on_text=lambda _, t=times, b=begun: t.append(time.perf_counter() - b),
        )
        ours.append(Asked(answer.text, answer.cost.new_tokens, times[0], time.perf_counter() - begun))
        theirs.append(server.ask(memory, question))
        assert theirs[-1].text == answer.text
    rows = []
    for name in ("first", "whole"):
        one, two = [[getattr(asked, name) for asked in side[10:]] for side in (ours, theirs)]
        ratio = statistics.median(b / a for a, b in zip(one, two, strict=True))
        rows.append(f"{statistics.median(one) * 1e3:.1f} | {statistics.median(two) * 1e3:.1f} | {ratio:.2f}")
    speed = [sum(a.tokens for a in side[10:]) / sum(a.whole for a in side[10:]) for side in (ours, theirs)]
    return (
        f"| first token, ms | {rows[0]} |\n| whole answer, ms | {rows[1]} |\n"
        f"| tokens/s, whole answers | {speed[0]:.1f} | {speed[1]:.1f} | {speed[1] / speed[0]:.2f} |\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--asks", type=int, default=200)
    parser.add_argument("--memories", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=10.0, help="of load, with and without batching each")
    parser.add_argument("--write", type=Path, help="write the tables there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        videos = [Path(folder) / f"{seed}.mp4" for seed in range(args.memories)]
        for seed, video in enumerate(videos):
            render_video(video, seed, 1.0)
        library, told = Path(folder) / "library", list[str]()
        for batch in ("8", "1"):
            with serving(library, Path(folder), "--batch", batch) as server:
                names = [server.ingest(video, 0.5) for video in videos]
                while any(server.state(name) != "complete" for name in names):
                    time.sleep(0.1)
                each = itertools.islice(itertools.cycle(itertools.product(QUESTIONS, names)), args.asks)
                work = [(name, question) for question, name in each]
                truth = [server.ask(*one).text for one in work]
                if batch == "8":
                    paired = pairs(server, library, work)
                told.append(f"| {batch} | {load(server, work, truth, videos, args.minutes * 60)} |")
    where = f"videox2l {__version__}, torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} CPUs"
    table = (
        f"{args.asks} asks at once over {args.memories} memories, ingests beside them ({where}):\n\n"
        "| `--batch` | asks | other answers | refused (429), then answered | ingests | first token p50 / p99, s | "
        "answer p50 / p99, s | answers/s | resident MiB: first, middle, last round |\n|"
        + " --- |" * 9
        + "\n"
        + "\n".join(told)
        + f"\n\nOne ask at a time, {args.asks} pairs:\n\n| | library | server | ratio (of pairs: median) |\n"
        "| --- | --- | --- | --- |\n" + paired
    )
    print(table)
    if args.write is not None:
        args.write.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
