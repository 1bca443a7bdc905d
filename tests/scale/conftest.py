"""A Ray cluster of this machine."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

# Ray reads these once per process, when it is imported: all clusters of a run have the same.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = uuid.uuid4().hex * 2


@pytest.fixture
def cluster() -> Iterator[str]:
    """The address of a Ray cluster of this machine with four CPUs, whose workers know the environment of now."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed: make test-scale")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="x2l-ray-", dir="/tmp")  # sockets have short names
    source = str(Path(__file__).parents[2])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": f"{source}/src"}
    command = [
        *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=4", f"--port={port}"),
        *("--node-ip-address=127.0.0.1", "--include-dashboard=false", f"--temp-dir={folder}"),
        "--object-store-memory=100000000",
    ]
    server = subprocess.Popen(
        command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()  # it stops the cluster's other processes
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        shutil.rmtree(folder, ignore_errors=True)
