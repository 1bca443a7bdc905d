"""Reading is lazy, bounded and checked; answers do not depend on where a memory lies."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.disk.helpers import ASK, ONE_LOOK, QUESTION, content, ingest, small_model
from tests.disk.test_crash import run
from videox2l import Memory, MemoryFileError, VideoX2L
from videox2l.compress import compressor_by_name
from videox2l.compress.history import ChunkEncoder, History
from videox2l.memory import Plan, build_cache
from videox2l.memory.disk import reader
from videox2l.memory.disk.folder import load, verify
from videox2l.select import AttentionSelector

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("qwen2_5_vl", {}),
    ("qwen2_5_vl", {"ratios": (2, 4, 16), "history": "recent:2"}),
    ("qwen2_5_vl", {"ratios": (2, 4, 16), "history": "own"}),
    ("qwen2_5_vl", {"compressor": "pool", "history": "L"}),
    ("qwen2_5_vl", {"l_tier": "lazy"}),
    ("qwen2_5_vl", {"l_bits": 8, "h_bits": 8, "history": "L"}),
    ("qwen2_5_vl", {"l_bits": 4}),
    ("qwen2_5_vl", {"ratios": (8,)}),
    ("qwen2_5_vl", {"l_tier": "none"}),
    ("video_xl", {"compressor": "summary"}),
    ("video_xl", {"compressor": "summary", "l_tier": "lazy", "h_bits": 8}),
]


@pytest.fixture(scope="module")
def x2l() -> VideoX2L:
    return small_model()


@pytest.fixture(scope="module")
def stored(x2l: VideoX2L, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "clip.x2l"
    ingest(x2l, path, ratios=(2, 8, 32))
    return path


def same_answers(x2l: VideoX2L, one: Memory, two: Memory) -> None:
    for reload in (2, "all", "none"):
        a, b = (x2l.ask(memory, QUESTION, reload=reload, max_new_tokens=6) for memory in (one, two))
        assert a.ids == b.ids
        assert a.evidence == b.evidence
        assert dataclasses.replace(a.cost, seconds={}) == dataclasses.replace(b.cost, seconds={})


@pytest.mark.parametrize(("family", "settings"), KINDS, ids=lambda value: str(value))
def test_answers_are_the_same_from_disk_and_after_a_stop(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    x2l = small_model(family)
    ram, disk = ingest(x2l, **settings), ingest(x2l, tmp_path / "a", **settings)
    ram.save(tmp_path / "saved")
    saved, loaded = Memory.load(tmp_path / "saved"), Memory.load(tmp_path / "a")
    for memory in (disk, saved, loaded):
        same_answers(x2l, ram, memory)
        assert memory.summary() == ram.summary()
        assert memory.thumbnail(2) == ram.thumbnail(2) is not None
    expected = content(tmp_path / "a")
    kept = {name: data for name, data in content(tmp_path / "saved").items() if name not in ("manifest.json",)}
    assert set(kept) == set(expected) - {"manifest.json"}
    journal = tmp_path / "a" / "journal.jsonl"
    for chunks in range(5):  # stopped behind each of the chunks
        journal.write_bytes(b"".join(expected["journal.jsonl"].splitlines(keepends=True)[:chunks]))
        ingest(x2l, tmp_path / "a", **settings)
        assert content(tmp_path / "a") == expected


@pytest.mark.slow
def test_opening_two_thousand_chunks_reads_no_fine_level(
    x2l: VideoX2L, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = ingest(x2l)
    chunks = [
        dataclasses.replace(short.chunks[i % 5], start=2.0 * i, end=2.0 * i + 2, frames=4, thumbnail=None)
        for i in range(2000)
    ]
    facts = {"pts": [0.5 * i for i in range(8000)], "indices": list(range(8000))}
    memory = dataclasses.replace(short, chunks=chunks, manifest={**short.manifest, **facts})
    monkeypatch.setattr("videox2l.memory.disk.stores.os.fsync", lambda _: None)
    memory.save(tmp_path / "long")
    opened = Memory.load(tmp_path / "long")
    place = opened.source.place
    small = {"manifest.json", "journal.jsonl", "prefix.safetensors", "coarse.pack"}
    assert set(place.reads) == small
    assert all(place.reads[name] == place.size(name) for name in ("manifest.json", "journal.jsonl", "coarse.pack"))
    place.reads.clear()
    answer = x2l.ask(opened, QUESTION, reload=3, max_new_tokens=2)
    fine = {opened.source.journal.chunks[int(moment.start // 2)].fine.name for moment in answer.reloaded}
    assert set(place.reads) == fine
    assert len(fine) == 3
    assert all(place.reads[name] == place.size(name) for name in fine)  # each once
    assert answer.ids == x2l.ask(memory, QUESTION, reload=3, max_new_tokens=2).ids
    place.reads.clear()
    look_twice = AttentionSelector()  # the second look is over a shortlist at L
    answer = x2l.ask(opened, QUESTION, reload=3, selector=look_twice, max_new_tokens=2)
    assert len(place.reads) == look_twice.shortlist
    assert answer.ids == x2l.ask(memory, QUESTION, reload=3, selector=look_twice, max_new_tokens=2).ids


def test_a_coarser_level_reads_the_first_parts_alone(x2l: VideoX2L, stored: Path) -> None:
    memory, ram = Memory.load(stored), ingest(x2l, ratios=(2, 8, 32))
    sizes = {}
    for ratio in (2, 3, 4, 6, 8, 16):
        memory.source.place.reads.clear()
        one, two = memory.chunks[1].level(ratio), ram.chunks[1].level(ratio)
        assert torch.equal(one.keys, two.keys)
        assert torch.equal(one.index, two.index)
        sizes[ratio] = sum(memory.source.place.reads.values())
    assert sizes[8] < sizes[4] < sizes[3] == sizes[2]
    full = memory.chunks[1].tokens // 2 * memory.shape.token_bytes
    assert sizes[4] < 0.5 * full + 4096
    plan = Plan.at([8, 3, 32, 2, 4])
    a, b = (build_cache(m, plan, x2l.backbone).cache.columns(0) for m in (memory, ram))
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])


def test_levels_go_straight_into_the_cache(x2l: VideoX2L, stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory.load(stored)
    whole = build_cache(memory, Plan.at([2.0] * 5), x2l.backbone).cache.columns(0)
    monkeypatch.setattr("videox2l.memory.disk.reader.read_levels", None)  # the way with a copy
    again = build_cache(memory, Plan.at([2.0] * 5), x2l.backbone).cache.columns(0)
    assert torch.equal(whole[0], again[0])
    assert len(memory.source.cache) == 0


def test_layer_by_layer_through_staging_is_the_same(
    x2l: VideoX2L, stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way to another device, here without one: the copies are the same, only not asynchronous."""
    memory = Memory.load(stored)
    expected = build_cache(memory, Plan.at([2.0, 4.0] * 2 + [2.0]), x2l.backbone).cache.columns(0)
    monkeypatch.setattr("videox2l.memory.disk.reader._straight", reader._staged)
    other = Memory.load(stored)
    got = build_cache(other, Plan.at([2.0, 4.0] * 2 + [2.0]), x2l.backbone).cache.columns(0)
    assert torch.equal(expected[0], got[0])
    assert torch.equal(expected[1], got[1])


def test_reloaded_levels_are_kept_up_to_a_limit(x2l: VideoX2L, stored: Path) -> None:
    one = Memory.load(stored).chunks[0].level(2).nbytes()
    memory = load(stored, cache_bytes=2 * one)
    first = x2l.ask(memory, QUESTION, selector=ONE_LOOK, **ASK)
    memory.source.place.reads.clear()
    second = x2l.ask(memory, QUESTION, selector=ONE_LOOK, **ASK)
    assert not memory.source.place.reads
    assert first.ids == second.ids
    x2l.ask(memory, QUESTION, reload="all", max_new_tokens=1)
    assert memory.source.cache.nbytes() <= 2 * one


def test_a_selector_that_reads_l_works_from_disk(x2l: VideoX2L, stored: Path) -> None:
    ram = ingest(x2l, ratios=(2, 8, 32))
    prompt = x2l.backbone.suffix(QUESTION)
    one, two = (AttentionSelector(shortlist=3).score(prompt, m, x2l.backbone) for m in (ram, Memory.load(stored)))
    assert torch.equal(one, two)


def damages(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file with one byte changed: at the ends, in the middle, and at steps between; and cut short."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name in (".lock", ".used"):
            continue
        data = path.read_bytes()
        for at in {0, 1, 8, 60, len(data) // 3, len(data) // 2, len(data) - 2, len(data) - 1}:
            if at < len(data):
                yield path, data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
        yield path, data[: len(data) // 2]
        if path.name != "journal.jsonl":  # one that is cut at a line is that of an unfinished memory
            yield path, b""


def test_a_changed_byte_anywhere_is_found_and_named(x2l: VideoX2L, stored: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "clip.x2l"
    shutil.copytree(stored, folder)
    for path, data in list(damages(folder)):
        whole = path.read_bytes()
        path.write_bytes(data)
        name = path.relative_to(folder).as_posix()
        dropped = name == "journal.jsonl" and not data.endswith(b"\n")  # looks like a line that was being written
        if dropped:
            with pytest.warns(match="left out"):
                found = verify(folder)
        else:
            found = verify(folder)
            assert found, (name, len(data))
            assert all(name in line for line in found)
        if name.endswith(".safetensors") or name in ("coarse.pack", "manifest.json"):
            with pytest.raises(MemoryFileError, match=name):
                x2l.ask(Memory.load(folder), QUESTION, reload="all", max_new_tokens=1)
        path.write_bytes(whole)
    assert verify(folder) == []


def test_a_missing_object_is_named(x2l: VideoX2L, tmp_path: Path) -> None:
    ingest(x2l, tmp_path / "a")
    (tmp_path / "a" / "chunks" / "000003.safetensors").unlink()
    assert [line.split(" of ")[0] for line in verify(tmp_path / "a")] == ["'chunks/000003.safetensors'"]
    with pytest.raises(MemoryFileError, match=r"cannot read 'chunks/000003\.safetensors'"):
        x2l.ask(Memory.load(tmp_path / "a"), QUESTION, reload="all", max_new_tokens=1)


def test_names_that_lead_outside_are_refused(x2l: VideoX2L, tmp_path: Path) -> None:
    """A forged journal with right hashes cannot make the reader open other files."""
    from videox2l.memory.disk.journal import Journal

    ingest(x2l, tmp_path / "a", n=4)
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    journal = tmp_path / "a" / "journal.jsonl"
    lines = journal.read_text().splitlines()
    for name in ("../secret.safetensors", "/etc/passwd", "chunks/../../secret", ""):
        forged = json.loads(lines[0])
        forged.pop("check")
        forged["fine"]["name"] = name
        journal.write_bytes(Journal(manifest["check"]).line(forged))
        with pytest.raises(MemoryFileError, match="outside of it"):
            x2l.ask(Memory.load(tmp_path / "a"), QUESTION, reload="all", max_new_tokens=1)
        assert "outside of it" in verify(tmp_path / "a")[0]


def test_going_on_reads_only_what_the_history_needs(x2l: VideoX2L, stored: Path) -> None:
    for history, fine in (("H", 0), ("recent:2", 2), ("L", 5)):
        memory = Memory.load(stored)
        memory.source.place.reads.clear()
        encoder = ChunkEncoder(x2l.backbone, compressor_by_name("keydiff"), memory.ratios, History.parse(history))
        encoder.restore(memory.prefix, memory.chunks)
        assert len(memory.source.place.reads) == fine


MANY = """
import json, sys, time
import torch
torch.set_num_threads(1)
from pathlib import Path
from tests.disk.helpers import ASK, QUESTION, frames, ingest, small_model
from videox2l import ArraySource, Memory

path, role = Path(sys.argv[1]), sys.argv[2]
known, x2l = path.parent / "answers.json", small_model()
if role == "writer":
    class Slow(ArraySource):
        def __iter__(self):
            while sum((path.parent / str(i)).exists() for i in range(3)) < 3:  # all have read the first five chunks
                time.sleep(0.01)
            for frame in super().__iter__():
                time.sleep(0.02)
                yield frame
    x2l.append(Memory.load(path), Slow(frames(20, seed=2), fps=2.0))
elif role != "first":
    answers, seen = json.loads(known.read_text()), set()
    while True:
        memory = Memory.load(path)
        seen.add(len(memory))
        assert [c.start for c in memory.chunks] == [2.0 * i for i in range(len(memory))]
        assert list(x2l.ask(memory, QUESTION, **ASK).ids) == answers[str(len(memory))]
        (path.parent / role).touch()
        if memory.complete and len(memory) == 10:
            break
        time.sleep(0.02)  # else three busy readers may leave the writer no time on two cores
    assert len(seen) > 1
else:
    whole = ingest(x2l, n=20)
    x2l.append(whole, ArraySource(frames(20, seed=2), fps=2.0))
    answers = {n: x2l.ask(whole, QUESTION, as_of=whole.chunks[n - 1].end, **ASK).ids for n in range(5, 11)}
    known.write_text(json.dumps(answers))
    ingest(x2l, path, n=20)
"""


@pytest.mark.slow
def test_three_readers_see_whole_chunks_while_a_fourth_process_appends(tmp_path: Path) -> None:
    run(MANY, tmp_path / "a", "first")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda role: run(MANY, tmp_path / "a", role), ("writer", "0", "1", "2")))
    assert verify(tmp_path / "a") == []
