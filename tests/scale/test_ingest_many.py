"""Many videos by many workers: what is killed loses nothing, and what is there is what one machine would have made."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.disk.helpers import content
from tests.disk.test_remote import objects
from videox2l import Memory, SettingsError, VideoX2L
from videox2l.demo.render import render_video
from videox2l.memory.disk.folder import verify
from videox2l.memory.disk.stores import RamStore
from videox2l.scale import IngestRecord, videos_in
from videox2l.scale.ingest import REPORT, Report, named

pytestmark = pytest.mark.slow

VIDEOS = 6


def test_videos_are_found_and_named(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.MKV", "notes.md", "more/b.mp4", "more/c.webm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    listed = tmp_path / "list.txt"
    listed.write_text(f"# all\n{tmp_path}/b.mp4\n\n/elsewhere/d.mp4\n")
    found = videos_in([str(tmp_path / "more"), str(listed), str(tmp_path / "b.mp4")])
    assert found == [f"{tmp_path}/more/b.mp4", f"{tmp_path}/more/c.webm", f"{tmp_path}/b.mp4", "/elsewhere/d.mp4"]
    assert videos_in([str(tmp_path)])[0].endswith("/a.MKV")
    names = list(named(found).values())
    assert names[1::2] == ["c", "d"]
    assert names[0] != names[2]
    assert all(name.startswith("b-") and len(name) == 10 for name in names[::2])
    assert list(named(found[::-1]).values()) == names[::-1]  # whatever the order
    (tmp_path / "empty").mkdir()
    for wrong, message in ((tmp_path / "none.mp4", "is not there"), (tmp_path / "empty", "names no video")):
        with pytest.raises(SettingsError, match=message):
            videos_in([str(wrong)])
    with pytest.raises(SettingsError, match="videos is empty"):
        named([])


def test_a_report_that_was_cut_short_goes_on() -> None:
    place, record = RamStore(), IngestRecord("/a.mp4", "a", "complete", 1)
    with Report(place) as report:
        report.add(record)
    place.objects[REPORT] += b'{"video": "/b.m'
    with Report(place) as report:
        report.add(record)
    lines = [json.loads(line) for line in place.read(REPORT).splitlines()]
    assert [line["video"] for line in lines] == ["/a.mp4", "/a.mp4"]


def report_of(library: str) -> list[dict[str, Any]]:
    """The report of a library at a URL so far, pieces included."""
    from videox2l.memory.disk.stores import open_store

    try:
        data = open_store(library).read(REPORT)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in data.splitlines()]


def wait_for(driver: subprocess.Popen[bytes], library: str, lines: int) -> list[dict[str, Any]]:
    """Wait until the report has so many lines."""
    while len(found := report_of(library)) < lines:
        if driver.poll() is not None:
            raise AssertionError(f"it ended with {driver.returncode}: {driver.communicate()[1].decode()}")
        time.sleep(0.2)
    return found


@pytest.mark.filterwarnings("ignore")
def test_a_worker_and_the_driver_are_killed(bucket: str, cluster: str, tmp_path: Path) -> None:
    library, videos = f"{bucket}/library", tmp_path / "videos"
    videos.mkdir()
    for number in range(VIDEOS):
        render_video(videos / f"clip-{number}.mp4", seed=number, minutes=0.6, fps=2)
    (videos / "broken.mp4").write_bytes(b"no video")
    source = str(Path(__file__).parents[2])
    code = "from videox2l.cli import main; main()"
    command = [sys.executable, "-W", "ignore", "-c", code, "ingest", "--library", library, str(videos)]
    command += ["--ray", cluster, "--workers", "2", "--json"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{source}/src"}

    driver = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        first = next(line for line in wait_for(driver, library, 2) if line["state"] == "complete")
        os.kill(int(first["worker"].rpartition(":")[2]), signal.SIGKILL)
        wait_for(driver, library, 4)
    finally:
        driver.kill()
        driver.communicate()
    assert driver.returncode == -signal.SIGKILL

    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr  # one video is none
    records = {record["memory"]: record for record in json.loads(done.stdout)}
    assert records.pop("broken")["error"].startswith("VideoError: ")
    assert set(records) == {f"clip-{number}" for number in range(VIDEOS)}
    assert {record["state"] for record in records.values()} == {"complete"}
    tries = report_of(library)
    assert any(line["state"] == "retry" and "the worker died" in line["error"] for line in tries)

    x2l = VideoX2L.from_pretrained("demo")
    for name in records:
        x2l.ingest(videos / f"{name}.mp4", store=tmp_path / name)
        assert verify(f"{library}/{name}") == []
        assert objects(f"{library}/{name}") == content(tmp_path / name)
    memory = Memory.load(f"{library}/clip-0")
    assert x2l.ask(memory, "what is in the video ?", max_new_tokens=2).ids
