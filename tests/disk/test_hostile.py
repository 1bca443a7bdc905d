"""Memories made in bad faith: every field of manifest and journal is changed, and its hash made again."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import random
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.disk.helpers import ASK, QUESTION, frames, ingest, small_model
from videox2l import ArraySource, Memory, MemoryFileError, VideoX2L, X2LError
from videox2l.memory.disk.folder import verify
from videox2l.memory.disk.journal import _sealed
from videox2l.memory.disk.library import export, find, import_
from videox2l.units import Cue

pytestmark = pytest.mark.slow

EVIL: tuple[Any, ...] = (
    None, -1, 0, 1, 7, 10**9, 2**70, 1e400, float("nan"), -0.5,
    "", "zzz", "../x", "\udc80", "a\n\x1b[2J", "x" * 9000, [], [[]], {}, True, [1, 2, 3],
)  # fmt: skip


@pytest.fixture(scope="module")
def x2l() -> VideoX2L:
    return small_model()


@pytest.fixture(
    scope="module", params=[{}, {"l_tier": "lazy"}, {"l_bits": 8, "h_bits": 4}], ids=["plain", "lazy", "bits"]
)
def stored(request: pytest.FixtureRequest, x2l: VideoX2L, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory") / "m.x2l"
    ingest(x2l, folder, n=8, **request.param)
    return folder


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All places in nested JSON values."""
    if at:
        yield at
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inside:
        if key not in ("check", "format", "version"):
            yield from paths(child, (*at, key))


def changed(values: Any, at: tuple[Any, ...], evil: Any) -> Any:
    """The values with another one at a place; without it for `...`."""
    new = copy.deepcopy(values)
    inner = new
    for key in at[:-1]:
        inner = inner[key]
    if evil is ...:
        del inner[at[-1]]
    else:
        inner[at[-1]] = evil
    return new


def write(folder: Path, manifest: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    """Write manifest and journal with hashes that fit."""

    def plain(values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key != "check"}

    text = _sealed(json.dumps(plain(manifest), indent=1).encode(), "")
    (folder / "manifest.json").write_bytes(text)
    check, journal = json.loads(text)["check"], b""
    for values in lines:
        line = _sealed(json.dumps(plain(values), separators=(",", ":")).encode(), check)
        journal, check = journal + line, json.loads(line)["check"]
    (folder / "journal.jsonl").write_bytes(journal)


def parts(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    lines = (folder / "journal.jsonl").read_text().splitlines()
    return json.loads((folder / "manifest.json").read_text()), [json.loads(line) for line in lines]


def tried(x2l: VideoX2L, folder: Path) -> str:
    """Open, ask and verify; return what came out besides an answer and errors of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            memory = Memory.load(folder)
            x2l.ask(memory, QUESTION, **ASK)
        except X2LError as error:
            if not str(error).isprintable() or len(str(error)) > 1300:
                return f"{str(error)!r:.80} is no line"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        try:
            verify(folder)
        except Exception as error:
            return f"verify: {type(error).__name__}: {error}"
    return ""


def test_every_field_changed(x2l: VideoX2L, stored: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m.x2l"
    shutil.copytree(stored, folder)
    manifest, lines = parts(stored)
    targets = (
        [(None, at) for at in paths(manifest)]
        + [(0, at) for at in paths(lines[0])]
        + [(-1, at) for at in paths(lines[-1])]
    )
    seen: set[Any] = set()
    wrong: list[str] = []
    rng = random.Random(str(sorted(manifest["settings"].items())))
    for line, at in targets:
        kind = (line, tuple("#" if isinstance(key, int) and key > 1 else key for key in at))
        if kind in seen:
            continue  # long lists: the first two and one more
        seen.add(kind)
        for evil in (*rng.sample(EVIL, 5), ...):
            if line is None:
                write(folder, changed(manifest, at, evil), lines)
            else:
                write(folder, manifest, [changed(x, at, evil) if x is lines[line] else x for x in lines])
            told = tried(x2l, folder)
            if told:
                wrong.append(f"{'manifest' if line is None else 'journal'} {at} = {evil!r:.40}: {told}")
    assert not wrong, "\n".join(wrong)
    write(folder, manifest, lines)
    assert verify(folder) == []


def test_uninitialised_memory_is_never_attended_to(x2l: VideoX2L, tmp_path: Path) -> None:
    folder = tmp_path / "m.x2l"
    ingest(x2l, folder, n=8)
    manifest, lines = parts(folder)
    lines[0]["fine"]["parts"] = lines[0]["fine"]["parts"][:1]
    write(folder, manifest, lines)
    with pytest.raises(MemoryFileError, match=r"chunk 0: parts of level"):
        Memory.load(folder)


def test_nested_brackets_links_and_pipes(x2l: VideoX2L, tmp_path: Path) -> None:
    folder = tmp_path / "lib" / "m.x2l"
    folder.parent.mkdir()
    ingest(x2l, folder, n=8)
    good = tmp_path / "lib" / "good.x2l"
    ingest(x2l, good, n=8)
    whole = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(b"[" * 100_000)
    with pytest.raises(MemoryFileError):
        Memory.load(folder)
    (folder / "manifest.json").write_bytes(whole)
    for name in ("journal.jsonl", "coarse.pack"):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(MemoryFileError):
            Memory.load(folder)
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/zero")
        with pytest.raises(MemoryFileError):
            Memory.load(folder)
        (folder / name).unlink()
        (folder / name).write_bytes(kept)
    outside = tmp_path / "outside"
    outside.mkdir()
    (folder / "chunks").rename(tmp_path / "chunks")
    (folder / "chunks").symlink_to(outside)
    with pytest.raises(MemoryFileError, match="link"):
        x2l.append(Memory.load(folder), ArraySource(frames(8, seed=2), fps=2.0))
    assert list(outside.iterdir()) == []
    assert verify(good) == []


def test_verify_finds_what_the_journal_does_not_name(x2l: VideoX2L, tmp_path: Path) -> None:
    folder = tmp_path / "m.x2l"
    ingest(x2l, folder, n=8)
    (folder / "chunks" / "stranger.bin").write_bytes(b"x")
    assert any("in no line of its journal" in line for line in verify(folder))


def test_thumbnails_are_small_jpegs_or_refused(stored: Path, tmp_path: Path) -> None:
    """Their hashes fit; the first one, as it was written, is the control."""

    import io

    from PIL import Image

    def encoded(side: int, kind: str) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (side, 200)).save(file, kind)
        return file.getvalue()

    manifest, lines = parts(stored)
    name = lines[0]["thumb"]["name"]
    cases = {
        (stored / name).read_bytes(): None,
        encoded(320, "JPEG"): None,
        encoded(321, "JPEG"): "321 x 200 is no thumbnail",
        encoded(160, "PNG"): "it is no JPEG",
        b"<svg onload='alert(1)'/>": "it is no JPEG",
    }
    for number, (data, told) in enumerate(cases.items()):
        folder = tmp_path / f"{number}.x2l"
        shutil.copytree(stored, folder)
        (folder / name).write_bytes(data)
        changed_lines = copy.deepcopy(lines)
        changed_lines[0]["thumb"] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        write(folder, manifest, changed_lines)
        if told is None:
            assert Memory.load(folder).thumbnail(0) == data
            assert verify(folder) == []
            continue
        with pytest.raises(MemoryFileError, match=told):
            Memory.load(folder).thumbnail(0)
        assert [told in line for line in verify(folder)] == [True]


def test_files_that_are_larger_than_any_of_their_kind(x2l: VideoX2L, tmp_path: Path) -> None:
    """A sparse file takes no room on disk; read whole it would take all memory there is."""
    good = tmp_path / "good.x2l"
    ingest(x2l, good, n=8)
    for name in ("manifest.json", "journal.jsonl"):
        folder = tmp_path / f"large-{name}"
        shutil.copytree(good, folder)
        with (folder / name).open("r+b") as file:
            file.truncate(1 << 40)
        with pytest.raises(MemoryFileError, match="1,099,511,627,776 bytes"):
            Memory.load(folder)
        assert "1,099,511,627,776 bytes" in verify(folder)[0]
    found, _ = find(tmp_path)
    assert [entry.path for entry in found] == [good]


def test_the_time_of_use_is_not_written_through_a_link(x2l: VideoX2L, tmp_path: Path) -> None:
    folder, outside = tmp_path / "m.x2l", tmp_path / "outside"
    ingest(x2l, folder, n=8)
    Memory.load(folder)
    assert (folder / ".used").is_file()  # control
    (folder / ".used").unlink()
    (folder / ".used").symlink_to(outside)
    Memory.load(folder)
    assert not outside.exists()
    (folder / ".used").unlink()
    os.mkfifo(folder / ".used")
    Memory.load(folder)


LINES: list[bytes] = [
    b"", b"null", b"{}", b"[1]", b"[{}]", b"[" * 100_000, b"\xff\xfe",
    b'[{"start": "x", "end": 1, "text": "a"}]', b'[{"start": NaN, "end": 1, "text": "a"}]',
    b'[{"start": 0, "end": 1, "text": 5}]', b'[{"start": 0, "end": 1, "text": "' + b"bell " * 5000 + b'"}]',
]  # fmt: skip


@pytest.mark.parametrize("data", LINES, ids=lambda data: repr(data)[:24])
def test_subtitles_that_are_none(x2l: VideoX2L, tmp_path: Path, data: bytes) -> None:
    """Their hashes fit; a library goes on with its other memories."""
    folder, good = tmp_path / "lib" / "a.x2l", tmp_path / "lib" / "b.x2l"
    folder.parent.mkdir()
    for place in (folder, good):
        ingest(x2l, place, n=8, subtitles=[Cue(0.0, 1.0, "the bell")])
    manifest, lines = parts(folder)
    (line,) = (line for line in lines if line["kind"] == "subtitles")
    (folder / line["at"]["name"]).write_bytes(data)
    line["at"] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write(folder, manifest, lines)
    with pytest.raises(MemoryFileError) as caught:
        Memory.load(folder)
    assert str(caught.value).isprintable()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answer = x2l.ask_library(tmp_path / "lib", QUESTION, max_new_tokens=2, said="bell")
    assert [moment.memory for moment in answer.moments] == ["b.x2l"] * len(answer.moments)


def test_archives_with_flipped_bits_and_what_is_none(x2l: VideoX2L, tmp_path: Path) -> None:
    ingest(x2l, tmp_path / "m.x2l", n=8)
    export(tmp_path / "m.x2l", tmp_path / "m.zip")
    whole, rng = (tmp_path / "m.zip").read_bytes(), random.Random(0)
    directory = whole.index(b"PK\x01\x02")
    cases = [(directory + 6, 0x80)]  # the version that is needed to unpack it
    cases += [(rng.randrange(directory, len(whole)), 1 << rng.randrange(8)) for _ in range(60)]
    for number, (at, bit) in enumerate(cases):
        changed_bytes = bytearray(whole)
        changed_bytes[at] ^= bit
        (tmp_path / "bad.zip").write_bytes(changed_bytes)
        with contextlib.suppress(MemoryFileError):  # any other error fails
            import_(tmp_path / "bad.zip", tmp_path / f"{number}.x2l")
            assert verify(tmp_path / f"{number}.x2l") == []
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(MemoryFileError, match="no regular file"):
            import_(path, tmp_path / "new.x2l")
