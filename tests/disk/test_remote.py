"""Memories at fsspec locations: the same answers, and only what a plan wants is fetched."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disk.helpers import ASK, ONE_LOOK, QUESTION, ingest, small_model
from videox2l import Memory, MemoryFileError, SettingsError, VideoX2L
from videox2l.memory.disk.folder import is_memory, verify
from videox2l.memory.disk.library import export, import_

SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""


@pytest.fixture(scope="module")
def x2l() -> VideoX2L:
    return small_model()


@pytest.fixture
def ram_url() -> Iterator[str]:
    import fsspec

    url = f"memory://{uuid.uuid4().hex}/clip.x2l"
    yield url
    fsspec.filesystem("memory").rm(url.rsplit("/", 1)[0], recursive=True)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket at an S3-compatible server on this machine."""
    if not all(importlib.util.find_spec(name) for name in ("s3fs", "moto", "flask")):
        pytest.skip("s3fs and moto[server] are not installed")
    import s3fs

    keep = {name: os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL")}
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{int(server.stdout.readline())}",
        }
        s3fs.S3FileSystem.clear_instance_cache()
        for _ in range(50):
            try:
                s3fs.S3FileSystem().mkdir("memories")
                break
            except Exception:  # the server is starting
                time.sleep(0.1)
        yield "s3://memories"
    finally:
        server.stdin.close()
        server.wait(20)
        server.stdout.close()
        for name, value in keep.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def round_trip(x2l: VideoX2L, url: str, tmp_path: Path) -> Memory:
    """Save a memory of RAM, of a folder, and of an export to `url`; return the last one, opened."""
    ram = ingest(x2l, ratios=(2, 8, 32))
    disk = ingest(x2l, tmp_path / "a", ratios=(2, 8, 32))
    export(tmp_path / "a", tmp_path / "a.zip")
    import_(tmp_path / "a.zip", tmp_path / "b")
    answer = x2l.ask(ram, QUESTION, **ASK)
    for number, memory in enumerate((ram, disk, Memory.load(tmp_path / "b"))):
        memory.save(f"{url}{number}")
        assert is_memory(f"{url}{number}")
        again = Memory.load(f"{url}{number}")
        asked = x2l.ask(again, QUESTION, **ASK)
        assert asked.ids == answer.ids
        assert asked.evidence == answer.evidence
        assert verify(f"{url}{number}") == []
    again.save(tmp_path / "back")
    assert x2l.ask(Memory.load(tmp_path / "back"), QUESTION, **ASK).ids == answer.ids
    return again


def test_a_memory_in_fsspecs_memory(x2l: VideoX2L, ram_url: str, tmp_path: Path) -> None:
    memory = round_trip(x2l, ram_url, tmp_path)
    assert memory.source is not None
    place = memory.source.place
    fresh = Memory.load(str(place))
    assert fresh.source is not None
    reads = fresh.source.place.reads
    assert set(reads) == {"manifest.json", "journal.jsonl", "prefix.safetensors", "coarse.pack"}
    reads.clear()
    answer = x2l.ask(fresh, QUESTION, reload=2, selector=ONE_LOOK, max_new_tokens=4)
    assert len(reads) == 2 == len(answer.reloaded)
    reads.clear()
    x2l.ask(fresh, QUESTION, reload=2, selector=ONE_LOOK, max_new_tokens=4)
    assert not reads  # kept in host memory


def test_damage_and_absence_are_named(x2l: VideoX2L, ram_url: str) -> None:
    import fsspec

    ingest(x2l).save(ram_url)
    with pytest.raises(MemoryFileError, match=r"it holds 'chunks/000000\.safetensors' already"):
        ingest(x2l).save(ram_url)
    fs = fsspec.filesystem("memory")
    path = f"{ram_url}/chunks/000002.safetensors"
    data = fs.cat_file(path)
    fs.pipe_file(path, data[:-3] + b"xyz")
    with pytest.raises(MemoryFileError, match=r"'chunks/000002\.safetensors' of the memory 'memory://.*damaged"):
        x2l.ask(Memory.load(ram_url), QUESTION, reload="all", max_new_tokens=1)
    assert len(verify(ram_url)) == 1
    fs.rm(path)
    with pytest.raises(MemoryFileError, match=r"chunks/000002"):
        x2l.ask(Memory.load(ram_url), QUESTION, reload="all", max_new_tokens=1)
    with pytest.raises(MemoryFileError, match="no memory at 'memory://"):
        Memory.load(ram_url + "none")


@pytest.mark.parametrize("url", ["https://example.org/a", "file:///tmp/a", "zip://a::memory://b.zip", "ftp://x/y"])
def test_other_kinds_of_urls_are_not_opened(url: str) -> None:
    with pytest.raises(MemoryFileError, match="no place for a memory: use a folder, or a URL of s3, gs"):
        Memory.load(url)
    assert not is_memory(url)


def test_ingest_needs_a_folder(x2l: VideoX2L) -> None:
    with pytest.raises(SettingsError, match="store='memory://a' is not possible: ingest into a local folder"):
        ingest(x2l, "memory://a")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_memory_in_s3(x2l: VideoX2L, bucket: str, tmp_path: Path) -> None:
    memory = round_trip(x2l, f"{bucket}/clip.x2l", tmp_path)
    assert memory.source is not None
    memory.source.place.reads.clear()
    x2l.ask(Memory.load(str(memory.source.place)), QUESTION, reload="all", max_new_tokens=2)
    with pytest.raises(MemoryFileError, match="no memory at"):
        Memory.load(f"{bucket}/none")
