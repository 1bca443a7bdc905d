"""Nothing is lost: an ingest that is stopped at any instant goes on, and ends with the same bytes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.disk.helpers import ASK, QUESTION, content, ingest, small_model
from videox2l import Memory, MemoryFileError, VideoX2L
from videox2l.errors import MemoryWarning
from videox2l.memory.disk.folder import verify
from videox2l.memory.disk.source import is_memory

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::videox2l.errors.MemoryWarning")]

CHANGING = ("open", "write", "fsync", "replace", "ftruncate", "rename", "mkdir", "unlink", "pwrite")


class Killed(BaseException):
    """The process is gone: nothing of it runs any more."""


class FaultyOs:
    """The os module up to its nth call that changes something; from there on `fault` is raised at each.

    `tear`: half of what is written then reaches the disk. `power`: what was not flushed is lost, data as well as names.
    `once`: later calls succeed again. Nothing is really flushed, which would take most of the time.
    """

    def __init__(self, calls: int, fault: Callable[[], BaseException] = Killed, mode: str = "", once: bool = False):
        self.left, self.fault, self.mode, self.once = calls, fault, mode, once
        self.files: dict[int, Path] = {}
        self.flushed: dict[Path, int] = {}  # bytes that would survive a power cut
        self.names: set[Path] = set()  # new names in folders that were not flushed

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CHANGING:
            return real

        def call(*args: Any, **options: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:
                handle = real(*args, **options)
                self.files[handle] = Path(args[0])
                return handle
            self.left -= 1
            if self.left < 0 and not (self.once and self.left < -1):
                if name == "write" and self.mode == "tear":
                    real(args[0], bytes(args[1])[: max(1, len(args[1]) // 2)])
                raise self.fault()
            existed = name == "open" and Path(args[0]).exists()
            found = None if name == "fsync" else real(*args, **options)
            if name == "open":
                self.files[found] = Path(args[0])
                self.flushed.setdefault(Path(args[0]), 0 if args[1] & os.O_TRUNC else Path(args[0]).stat().st_size)
                if not existed:
                    self.names.add(Path(args[0]))
            elif name == "ftruncate":
                path = self.files[args[0]]
                self.flushed[path] = min(self.flushed[path], args[1])
            elif name == "replace":
                self.flushed[Path(args[1])] = self.flushed.pop(Path(args[0]))
                self.names = (self.names - {Path(args[0])}) | {Path(args[1])}
            elif name == "fsync":
                path = self.files[args[0]]
                if path.is_dir():
                    self.names = {new for new in self.names if new.parent != path}
                else:
                    self.flushed[path] = path.stat().st_size
            return found

        return call

    def cut_power(self) -> None:
        """Lose what was not flushed."""
        for path, size in self.flushed.items():
            if path.exists() and path.stat().st_size > size:
                os.truncate(path, size)
        for path in self.names:
            path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def x2l() -> VideoX2L:
    return small_model()


def sabotage(patch: pytest.MonkeyPatch, faulty: Any) -> None:
    patch.setattr("videox2l.memory.disk.stores.os", faulty)


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("mode", ["", "tear", "power"], ids=["nothing written", "half written", "power cut"])
def test_killed_between_any_two_file_operations(
    x2l: VideoX2L, tmp_path: Path, mode: str, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ingest(x2l, tmp_path / "whole", n=10, window_chunks=window)
    expected, answer = content(tmp_path / "whole"), x2l.ask(whole, QUESTION, **ASK)
    seen = set()
    for calls in range(1000):
        path = tmp_path / f"{calls}"
        faulty = FaultyOs(calls, mode=mode)
        sabotage(monkeypatch, faulty)
        try:
            ingest(x2l, path, n=10, window_chunks=window)
            break
        except Killed:
            if mode == "power":
                faulty.cut_power()
        sabotage(monkeypatch, FaultyOs(1 << 30))
        chunks = 0
        if is_memory(path):
            assert verify(path) == []
            chunks = len(memory := Memory.load(path))
            if chunks and calls % 5 == 0:
                x2l.ask(memory, QUESTION, reload=1, max_new_tokens=1)
        seen.add(chunks)
        again = ingest(x2l, path, n=10, window_chunks=window)
        assert content(path) == expected, calls
        if calls % 5 == 0:
            assert x2l.ask(again, QUESTION, **ASK).ids == answer.ids
    assert calls > 40
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("code", "text"), [(errno.ENOSPC, "No space left"), (errno.EACCES, "Permission denied"), (errno.EROFS, "Read-only")]
)
def test_a_disk_that_fails_is_named_and_nothing_is_lost(
    x2l: VideoX2L, tmp_path: Path, code: int, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(x2l, tmp_path / "whole", n=10)
    expected = content(tmp_path / "whole")
    for calls in range(5, 60, 4):
        path = tmp_path / f"{calls}"
        fault = FaultyOs(calls, lambda: OSError(code, os.strerror(code)), "tear", once=calls % 8 == 1)
        sabotage(monkeypatch, fault)
        with pytest.raises(MemoryFileError, match=f"{calls}': {text}.*goes on from there"):
            ingest(x2l, path, n=10)
        sabotage(monkeypatch, FaultyOs(1 << 30))
        assert not is_memory(path) or verify(path) == []
        ingest(x2l, path, n=10)
        assert content(path) == expected


KILL = """
import os, random, signal, sys, time, warnings
import torch
torch.set_num_threads(1)
from pathlib import Path
from tests.disk.helpers import ASK, QUESTION, content, ingest, small_model
from videox2l import Memory
from videox2l.memory.disk.folder import verify
from videox2l.memory.disk.source import is_memory

warnings.simplefilter("ignore")
folder, kills = Path(sys.argv[1]), int(sys.argv[2])
x2l = small_model()
begin = time.perf_counter()
whole = ingest(x2l, folder / "whole", history="recent:1", l_bits=8)
taken = time.perf_counter() - begin
expected, answer = content(folder / "whole"), x2l.ask(whole, QUESTION, **ASK).ids
rng = random.Random(3)
stores, stopped, killed = 0, set(), 0
while killed < kills:
    path = folder / f"store-{stores}"
    child = os.fork()
    if not child:
        try:
            ingest(x2l, path, history="recent:1", l_bits=8)
        finally:
            os._exit(0)
    time.sleep(rng.uniform(0, 0.9 * taken))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    killed += os.WIFSIGNALED(status)
    if is_memory(path):
        assert verify(path) == [], verify(path)
        memory = Memory.load(path)
        stopped.add(len(memory))
        if len(memory):
            x2l.ask(memory, QUESTION, reload=1, max_new_tokens=1)
    if os.WIFEXITED(status) or rng.random() < 0.3:
        again = ingest(x2l, path, history="recent:1", l_bits=8)
        assert content(path) == expected
        assert x2l.ask(again, QUESTION, **ASK).ids == answer
        stores += 1
print(killed, stores, sorted(stopped))
"""


def run(code: str, *args: object) -> str:
    """Run a program with a model of its own; return what it prints."""
    folder = Path(__file__).parents[2]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], env=env, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_killed_at_fifty_random_instants(tmp_path: Path) -> None:
    killed, stores, *stopped = run(KILL, tmp_path, 50).replace(",", "").replace("[", "").replace("]", "").split()
    assert int(killed) == 50
    assert int(stores) >= 5
    assert len(stopped) >= 4  # at least so many different numbers of whole chunks were seen


def test_a_half_written_line_is_left_out_with_a_notice(x2l: VideoX2L, tmp_path: Path) -> None:
    ingest(x2l, tmp_path / "a")
    journal = tmp_path / "a" / "journal.jsonl"
    expected = journal.read_bytes()
    lines = expected.splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:3]) + lines[3][:100])
    with pytest.warns(MemoryWarning, match="its 100 bytes are left out, 3 chunks are whole"):
        memory = Memory.load(tmp_path / "a")
    assert len(memory) == 3
    assert not memory.complete
    journal.write_bytes(b"".join(lines[:3]) + bytes(50) + b"\n")  # the file grew, its content had not been flushed
    with pytest.warns(MemoryWarning, match="3 chunks are whole"):
        Memory.load(tmp_path / "a")
    ingest(x2l, tmp_path / "a")
    assert journal.read_bytes() == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratios": (2, 16)}, r"settings\.ratios: memory \[2\.0, 8\.0\], now \[2\.0, 16\.0\]"),
        ({"history": "L"}, r"settings\.history: memory H, now L"),
        ({"h_bits": 8}, r"settings\.h_bits: memory nothing, now 8"),
        ({"n": 18}, r"content\.sha256: memory \w{12}\.\.\., now \w{12}"),
    ],
)
def test_another_ingest_into_a_memory_is_refused(
    x2l: VideoX2L, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    ingest(x2l, tmp_path / "a")
    before = content(tmp_path / "a")
    with pytest.raises(MemoryFileError, match=message):
        ingest(x2l, tmp_path / "a", **changes)
    assert content(tmp_path / "a") == before


def test_another_model_cannot_go_on(x2l: VideoX2L, tmp_path: Path) -> None:
    from tests.conftest import make_qwen25

    ingest(x2l, tmp_path / "a")
    with pytest.raises(MemoryFileError, match=r"identity\.weights: memory \w{12}\.\.\., now"):
        ingest(VideoX2L.from_model(*make_qwen25(seed=5)), tmp_path / "a")


def test_a_finished_ingest_is_not_done_again(x2l: VideoX2L, tmp_path: Path) -> None:
    from tests.disk.helpers import frames
    from videox2l import ArraySource

    ingest(x2l, tmp_path / "a")
    source = ArraySource(frames(), fps=2.0)
    again = x2l.ingest(source, store=tmp_path / "a", ratios=(2, 8), chunk_frames=4)
    assert len(again) == 5
    assert source.manifest.pts == ()  # nothing was read


def test_other_files_are_left_alone(x2l: VideoX2L, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("mine")
    with pytest.raises(MemoryFileError, match=r"holds other files, such as 'thesis\.txt'"):
        ingest(x2l, tmp_path / "a")
    with pytest.raises(MemoryFileError, match="it is a file; name a folder"):
        ingest(x2l, tmp_path / "a" / "thesis.txt")
    with pytest.raises(MemoryFileError, match=r"folder '.*none' does not exist"):
        ingest(x2l, tmp_path / "none" / "a")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["thesis.txt"]  # not even a lock


def test_a_second_writer_is_refused_and_a_dead_one_is_not_waited_for(x2l: VideoX2L, tmp_path: Path) -> None:
    ready, done = os.pipe(), os.pipe()
    ingest(x2l, tmp_path / "a")
    child = os.fork()
    if not child:
        from videox2l.memory.disk.writer import continue_writer

        memory = Memory.load(tmp_path / "a")
        assert memory.source is not None
        with continue_writer(memory.source):
            os.write(ready[1], b".")
            os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    try:
        with pytest.raises(MemoryFileError, match="is being written to by another process"):
            ingest(x2l, tmp_path / "a")
        assert len(Memory.load(tmp_path / "a")) == 5  # readers need not wait
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert (tmp_path / "a" / ".lock").exists()
    ingest(x2l, tmp_path / "a")
    for handle in (*ready, *done):
        os.close(handle)
