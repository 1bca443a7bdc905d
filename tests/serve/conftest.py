"""A real server process with the demo model and its video."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from videox2l.demo.render import render_video


@dataclass
class Served:
    """A running server."""

    url: str
    process: subprocess.Popen[str]
    library: Path

    def stop(self, sent: int = signal.SIGTERM) -> None:
        """End the server by a signal."""
        self.process.send_signal(sent)
        assert self.process.wait(60) in (0, -sent)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def memory(self, name: str, until: tuple[str, ...] = ("complete", "failed")) -> dict[str, Any]:
        """Return a memory once its ingest is over."""
        end = time.monotonic() + 120
        while time.monotonic() < end:
            found: dict[str, Any] = httpx.get(f"{self.url}/v1/memories/{name}").json()
            if found["state"] in until:
                return found
            time.sleep(0.1)
        raise AssertionError(f"{found['state']} after two minutes")


def start(library: Path, *more: str, log: Path | None = None) -> Served:
    """Start a server on a free port and wait until it answers; `log` gets its standard error."""
    command = [sys.executable, "-m", "videox2l.cli.app", "serve", "--library", str(library), "--port", "0", *more]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (log or Path(os.devnull)).open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=env)
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://\S+", line)
    assert found, line
    url = found[0]
    for _ in range(200):
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return Served(url, process, library)
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("the server does not answer")


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    render_video(path, 5, 1.0)
    return path


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Iterator[Served]:
    library = tmp_path_factory.mktemp("library")
    server = start(library, "--demo", "--allow-files", str(clip.parent))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def demo(served: Served) -> str:
    """The id of the demo video's memory."""
    name: str = httpx.get(f"{served.url}/v1/memories").json()["data"][-1]["id"]
    assert served.memory(name)["state"] == "complete"
    return name
