"""Promise 3: peak memory of an ingest does not grow with the length of the video, the kept levels aside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

pytestmark = pytest.mark.slow

# Peak RSS of the command itself, as the operating system counts it for the one child of this small process.
MEASURE = """
import json, resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "videox2l.cli.app", *sys.argv[1:]], capture_output=True, text=True)
assert done.returncode == 0, done.stderr
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
print(json.dumps({"peak": peak, "memory": json.loads(done.stdout)["memory"]}))
"""

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def render(path: Path, seconds: int, fps: int = 4) -> None:
    """A moving gradient; every frame differs."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        y, x = np.mgrid[0:120, 0:160]
        for i in range(seconds * fps):
            picture = np.stack([(x + 3 * i) % 256, (y + i) % 256, (x + y + 2 * i) % 256], -1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def ingest(video: Path) -> tuple[int, int]:
    """Run `x2l ask` on a file; return its peak RSS and the bytes of the levels it kept."""
    args = ["ask", str(video), "what digit appears with the red star ?", "--max-new-tokens", "1", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *args], capture_output=True, text=True, check=True, env=ONE_THREAD
    )
    found = json.loads(done.stdout)
    assert len(found["memory"]["manifest"]["pts"]) >= 180
    return found["peak"], found["memory"]["bytes"]["kept"]


@pytest.mark.timeout(600)
def test_thirty_minutes_need_no_more_memory_than_three(tmp_path: Path) -> None:
    render(tmp_path / "short.mp4", 3 * 60)
    render(tmp_path / "long.mp4", 30 * 60)
    short, _ = ingest(tmp_path / "short.mp4")
    long, kept = ingest(tmp_path / "long.mp4")
    sizes = f"3 min: {short / 1e6:.0f} MB, 30 min: {long / 1e6:.0f} MB, kept: {kept / 1e6:.1f} MB"
    assert long <= 1.1 * short + kept, sizes
