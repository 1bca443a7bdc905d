"""Memories at fsspec locations: the same answers, and only what a plan wants is fetched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.disk.helpers import ASK, ONE_LOOK, QUESTION, content, frames, ingest, small_model
from videox2l import ArraySource, Memory, MemoryFileError, SettingsError, VideoX2L
from videox2l.cli.app import app
from videox2l.memory.disk.folder import verify
from videox2l.memory.disk.library import export, import_
from videox2l.memory.disk.source import is_memory, open_source
from videox2l.memory.disk.stores import RemoteStore
from videox2l.memory.disk.writer import MemoryWriter, continue_writer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def x2l() -> VideoX2L:
    return small_model()


@pytest.fixture
def ram_url() -> Iterator[str]:
    import fsspec

    url = f"memory://{uuid.uuid4().hex}/clip.x2l"
    yield url
    fsspec.filesystem("memory").rm(url.rsplit("/", 1)[0], recursive=True)


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


class Killed(BaseException):
    """The process is gone: nothing of it runs any more."""


class FaultyFs:
    """A file system up to its nth call that changes something: that one is done or not, and then nothing any more."""

    def __init__(self, fs: Any, calls: int, done: bool) -> None:
        self.fs, self.left, self.done = fs, calls, done

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.fs, name)
        if name not in ("pipe_file", "rm_file"):
            return real

        def call(*args: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                if self.left == -1 and self.done:
                    real(*args, **options)
                raise Killed
            return real(*args, **options)

        return call


def objects(url: str) -> dict[str, bytes]:
    """The objects of a memory at a URL, the lease left out."""
    import fsspec

    fs, root = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    names = [path for path in fs.find(root) if "/.lease/" not in path]
    return {path[len(root) + 1 :]: fs.cat_file(path) for path in names}


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_killed_at_any_change_of_a_store(
    x2l: VideoX2L, ram_url: str, tmp_path: Path, done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("videox2l.memory.disk.lease._runs", lambda pid: False)
    ingest(x2l, tmp_path / "whole", n=10)
    expected, seen = content(tmp_path / "whole"), set()
    real = RemoteStore.__init__
    for calls in range(1000):
        url, fault = f"{ram_url}{calls}", [calls]

        def broken(store: RemoteStore, url: str, fault: list[int] = fault) -> None:
            real(store, url)
            store.fs = FaultyFs(store.fs, fault.pop(), done) if fault else store.fs

        monkeypatch.setattr(RemoteStore, "__init__", broken)
        try:
            ingest(x2l, url, n=10)
            break
        except Killed:
            pass
        chunks = 0
        if is_memory(url):
            assert verify(url) == []
            chunks = len(Memory.load(url))
        seen.add(chunks)
        ingest(x2l, url, n=10)
        assert objects(url) == expected, calls
    assert objects(url) == expected
    assert calls > 15
    assert seen == {0, 1, 2, 3}


def test_two_writers_of_a_store(x2l: VideoX2L, ram_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest(x2l, ram_url, n=10)
    memory, late = Memory.load(ram_url), Memory.load(ram_url)
    assert memory.source is not None
    assert late.source is not None
    with continue_writer(memory.source) as writer:
        with pytest.raises(MemoryFileError, match=rf"is being written to by process {os.getpid()} on .*: wait until"):
            ingest(x2l, ram_url, n=10)
        assert len(Memory.load(ram_url)) == 3  # readers need not wait
        slow = MemoryWriter(open_source(RemoteStore(ram_url)))  # whose lease was lost without its notice
        writer.begin({"sha256": "a"}, 5.0)
        with pytest.raises(MemoryFileError, match=r"another writer (put|went on with) '.*journal\.jsonl"):
            slow.begin({"sha256": "b"}, 6.0)
        assert open_source(RemoteStore(ram_url)).journal.begun["content"] == {"sha256": "a"}
        lease: Any = writer.place.lease  # type: ignore[attr-defined]
        lease._renewed -= 100  # the store could not be reached
        with pytest.raises(MemoryFileError, match=r"the lease of .* could not be renewed for 60 s"):
            writer.begin({"sha256": "c"}, 7.0)
    monkeypatch.setattr("videox2l.memory.disk.lease._runs", lambda pid: False)
    with continue_writer(late.source) as writer:  # the lease was not released, but its process is gone
        assert writer.journal.begun["content"] == {"sha256": "a"}


def test_a_memory_in_a_store_grows(x2l: VideoX2L, ram_url: str, tmp_path: Path) -> None:
    for store in (tmp_path / "a", ram_url):
        x2l.append(ingest(x2l, store), ArraySource(frames(9, seed=2), fps=2.0, name="more"))
    assert objects(ram_url) == content(tmp_path / "a")
    assert len(Memory.load(ram_url)) == 8


def test_the_command_line_writes_to_a_store(ram_url: str) -> None:
    video = str(Path(__file__).parents[1] / "media" / "nasa_13013.mp4")
    made = CliRunner().invoke(app, ["ingest", video, ram_url, "--fps", "1"])
    assert made.exit_code == 0, made.output
    assert len(Memory.load(ram_url)) == 2
    saved = CliRunner().invoke(app, ["ask", video, "how many ?", "--fps", "1", "--save", f"{ram_url}2"])
    assert saved.exit_code == 0, saved.output
    assert objects(f"{ram_url}2") == objects(ram_url)
    refused = CliRunner().invoke(app, ["ingest", video, "https://example.org/a"])
    assert (refused.exit_code, "is no place for a memory" in refused.stderr) == (1, True)
    several = CliRunner().invoke(app, ["ingest", video, ram_url, "more"])
    assert (several.exit_code, "more: only with --library" in several.stderr) == (2, True)


def test_what_is_read_is_kept_on_this_machine(
    x2l: VideoX2L, ram_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(x2l, ram_url)
    monkeypatch.setenv("VIDEOX2L_CACHE", str(tmp_path))
    monkeypatch.setenv("VIDEOX2L_DISK_CACHE", "1MB")

    def fetched() -> set[str]:
        memory = Memory.load(ram_url)
        assert memory.source is not None
        asked.append(x2l.ask(memory, QUESTION, **ASK).ids)
        return set(memory.source.place.reads) - {"manifest.json", "journal.jsonl"}

    asked: list[Any] = []
    first = fetched()
    assert {"coarse.pack", "prefix.safetensors"} < first
    assert fetched() == set()
    files = [path for path in (tmp_path / "objects").iterdir() if path.is_file()]
    files[0].write_bytes(b"damaged" + files[0].read_bytes()[7:])
    assert fetched() != set()  # what was damaged is fetched again
    kept = sum(path.stat().st_size for path in files)
    monkeypatch.setenv("VIDEOX2L_DISK_CACHE", str(kept // 2))
    ingest(x2l, f"{ram_url}2", n=12)
    x2l.ask(Memory.load(f"{ram_url}2"), QUESTION, reload="all", max_new_tokens=1)
    assert sum(path.stat().st_size for path in (tmp_path / "objects").iterdir()) <= kept // 2
    assert len(set(asked)) == 1
    monkeypatch.setenv("VIDEOX2L_DISK_CACHE", "much")
    with pytest.raises(SettingsError, match="VIDEOX2L_DISK_CACHE must be a size such as 500MB"):
        Memory.load(ram_url)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_memory_in_s3(x2l: VideoX2L, bucket: str, tmp_path: Path) -> None:
    memory = round_trip(x2l, f"{bucket}/clip.x2l", tmp_path)
    assert memory.source is not None
    memory.source.place.reads.clear()
    x2l.ask(Memory.load(str(memory.source.place)), QUESTION, reload="all", max_new_tokens=2)
    with pytest.raises(MemoryFileError, match="no memory at"):
        Memory.load(f"{bucket}/none")


KILL = """
import os, signal, sys
from tests.disk.helpers import ingest, small_model
from videox2l.memory.disk.stores import RemoteStore

left = [int(sys.argv[2])]

def put(self, name, data, real=RemoteStore.put):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, name, data)

RemoteStore.put = put
ingest(small_model(), sys.argv[1])
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_ingest_to_s3_is_killed_and_goes_on(x2l: VideoX2L, bucket: str, tmp_path: Path) -> None:
    url, folder = f"{bucket}/killed", Path(__file__).parents[2]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", KILL, url, "9"], env=env, cwd=folder, check=False)
    assert done.returncode == -signal.SIGKILL
    assert verify(url) == []
    assert 0 < len(Memory.load(url)) < 5
    ingest(x2l, url)
    ingest(x2l, tmp_path / "whole")
    assert objects(url) == content(tmp_path / "whole")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_s3_refuses_the_slower_of_two_writers(bucket: str) -> None:
    store = RemoteStore(f"{bucket}/raced")
    store.create("a", b"one")
    store.create("a", b"one")  # a request that was sent twice
    with pytest.raises(FileExistsError):
        store.create("a", b"two")
    with pytest.raises(OSError, match=r"none-such|NoSuchBucket|does not exist"):
        RemoteStore("s3://none-such/x").fetch("a")
