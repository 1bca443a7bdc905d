"""Libraries of memories, one-file exports, and the commands for them."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.disk.helpers import ASK, QUESTION, content, ingest, small_model
from videox2l import Memory, MemoryFileError, VideoX2L
from videox2l.cli.app import app
from videox2l.memory.disk.library import collect, export, find, import_, inspect, remove

NASA = Path(__file__).parents[1] / "media" / "nasa_13013.mp4"


def command(*args: object) -> Any:
    group = ["memory"] * (args[0] in ("ls", "inspect", "verify", "rm", "gc", "export", "import"))
    return CliRunner().invoke(app, [*group, *(str(arg) for arg in args)])


@pytest.fixture(scope="module")
def x2l() -> VideoX2L:
    return small_model()


@pytest.fixture
def library(x2l: VideoX2L, tmp_path: Path) -> Path:
    """Three memories, used 1, 2 and 3 seconds after the epoch."""
    folder = tmp_path / "library"
    folder.mkdir()
    for age, name in enumerate("abc", 1):
        ingest(x2l, folder / name, n=4 * age)
        Memory.load(folder / name)
        os.utime(folder / name / ".used", (age, age))
    (folder / "notes.txt").write_text("mine")
    return folder


def test_export_and_import_give_the_same_memory(x2l: VideoX2L, tmp_path: Path) -> None:
    memory = ingest(x2l, tmp_path / "a")
    first, second = tmp_path / "one.zip", tmp_path / "two.zip"
    export(tmp_path / "a", first)
    import_(first, tmp_path / "b")
    assert content(tmp_path / "b") == content(tmp_path / "a")
    assert x2l.ask(Memory.load(tmp_path / "b"), QUESTION, **ASK).ids == x2l.ask(memory, QUESTION, **ASK).ids
    export(tmp_path / "b", second)
    assert first.read_bytes() == second.read_bytes()
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "b").rglob("*.safetensors")} == {0o600}
    with pytest.raises(MemoryFileError, match="not empty"):
        import_(first, tmp_path / "b")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("../outside.jpg", {}),
        ("/etc/cron.d/x", {}),
        ("chunks/../../x.safetensors", {}),
        ("chunks/000000.safetensors", {"compress_type": zipfile.ZIP_DEFLATED}),
        ("chunks/000000.safetensors", {"external_attr": 0o120777 << 16}),
    ],
)
def test_hostile_archives_are_refused(name: str, options: dict[str, int], tmp_path: Path) -> None:
    member = zipfile.ZipInfo(name)
    for key, value in options.items():
        setattr(member, key, value)
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr(member, b"data" * 1000)
    with pytest.raises(MemoryFileError, match="is no exported memory"):
        import_(tmp_path / "evil.zip", tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["evil.zip"]


def test_damaged_exports_are_refused(x2l: VideoX2L, tmp_path: Path) -> None:
    ingest(x2l, tmp_path / "a")
    file = tmp_path / "a.zip"
    export(tmp_path / "a", file)
    data = file.read_bytes()
    for at in (35, len(data) // 2, len(data) - 10):
        file.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
        with pytest.raises(MemoryFileError, match=r"a\.zip"):
            import_(file, tmp_path / "b")
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(MemoryFileError, match=r"a\.zip"):
        import_(file, tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.zip"]
    (tmp_path / "a" / "chunks" / "000001.safetensors").write_bytes(b"short")
    with pytest.raises(MemoryFileError, match=r"chunks/000001\.safetensors"):
        export(tmp_path / "a", file)
    assert file.read_bytes() == data[: len(data) // 2]  # the older file is as it was


def test_find_and_collect_by_last_use(library: Path) -> None:
    entries, wrong = find(library)
    assert [entry.path.name for entry in entries] == ["a", "b", "c"]
    assert [entry.chunks for entry in entries] == [1, 2, 3]
    assert not wrong
    assert collect(library, sum(entry.nbytes for entry in entries)) == []
    gone = collect(library, entries[1].nbytes + entries[2].nbytes)
    assert [entry.path.name for entry in gone] == ["a"]
    os.utime(library / "b" / ".used", (9, 9))
    assert [entry.path.name for entry in collect(library, entries[1].nbytes)] == ["c"]
    assert sorted(path.name for path in library.iterdir()) == ["b", "notes.txt"]
    (library / "b" / "manifest.json").write_text('{"format": "videox2l-memory", "version": 2}')
    assert len(find(library)[1]) == 1


def test_remove_deletes_the_memory_alone(library: Path) -> None:
    (library / "a" / "mine.txt").write_text("keep")
    remove(library / "a")
    assert [path.name for path in (library / "a").iterdir()] == ["mine.txt"]
    remove(library / "b")
    assert not (library / "b").exists()
    for path in (library, library / "a", library / "none"):
        with pytest.raises(MemoryFileError, match="nothing was deleted"):
            remove(path)
    (library / "link").symlink_to(library / "c")
    with pytest.raises(MemoryFileError, match="nothing was deleted"):
        remove(library / "link")
    assert len(Memory.load(library / "c")) == 3


def test_the_commands_from_ingest_to_gc(tmp_path: Path) -> None:
    path, file, copy = tmp_path / "nasa.x2l", tmp_path / "nasa.zip", tmp_path / "copy.x2l"
    question = "what digit appears with the red star ?"
    done = command("ingest", NASA, path, "--fps", 4)
    assert done.exit_code == 0, done.output
    assert "52 frames, 7 chunks" in done.stdout
    assert f"saved to {path}" in done.stdout
    before = content(path)
    assert command("ingest", NASA, path, "--fps", 4).exit_code == 0
    assert content(path) == before
    refused = command("ingest", NASA, path, "--fps", 2)
    assert refused.exit_code in (1, 2)
    assert "content.fps: memory 4.0, now 2.0" in refused.stderr

    direct = json.loads(command("ask", NASA, question, "--fps", 4, "--max-new-tokens", 4, "--json").stdout)
    asked = json.loads(command("ask", path, question, "--max-new-tokens", 4, "--json").stdout)
    assert direct["answers"][0]["ids"] == asked["answers"][0]["ids"]
    early = json.loads(command("ask", path, question, "--as-of", "0:05", "--json").stdout)
    assert [moment["end"] <= 5 for moment in early["answers"][0]["evidence"]] == [True, True]
    part = json.loads(command("ask", path, question, "--within", "0:03-0:05", "--json").stdout)
    assert [moment["start"] < 5 for moment in part["answers"][0]["evidence"]] == [True, True]

    assert "7 chunks, every byte as it was written" in command("verify", path).stdout
    found = json.loads(command("inspect", path, "--json").stdout)
    assert found["bytes"]["all"] == sum(len(data) for data in content(path).values())
    assert found == inspect(path)
    assert "level 1/32" in command("inspect", path).stdout
    assert command("export", path, file).exit_code == 0
    assert "7 chunks" in command("import", file, copy).stdout
    assert [entry["chunks"] for entry in json.loads(command("ls", tmp_path, "--json").stdout)] == [7, 7]
    assert "copy.x2l" in command("ls", tmp_path).stdout

    fine = copy / "chunks" / "000002.safetensors"
    fine.write_bytes(fine.read_bytes()[:-1] + b"x")
    broken = command("verify", copy)
    assert broken.exit_code in (1, 2)
    assert broken.stderr.startswith("error: 'chunks/000002.safetensors' of the memory")
    assert "deleted" in command("rm", copy).stdout
    assert command("gc", tmp_path, "--quota", "1TB").stdout == "nothing to delete\n"
    assert "nasa.x2l" in command("gc", tmp_path, "--quota", "0").stdout
    assert [entry.name for entry in tmp_path.iterdir()] == ["nasa.zip"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["verify", "none"], "'none' holds no memory: make one"),
        (["inspect", NASA], "it is a file"),
        (["ls", "none"], "'none' is no folder"),
        (["rm", "none"], "'none' holds no memory"),
        (["gc", ".", "--quota", "lots"], "quota must be a size such as 500MB or 20GB, got 'lots'"),
        (["import", NASA, "none/a"], "folder 'none' does not exist"),
        (["export", "none", "a.zip"], "'none' holds no memory"),
        (["ingest", NASA, "none/a"], "folder 'none' does not exist"),
        (["ingest", NASA, "a", "--l-bits", "3"], "l_bits must be one of 8, 4, got 3"),
        (["verify", "https://example.org/a"], "no place for a memory"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(
    args: list[object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command(*args)
    assert done.exit_code in (1, 2)
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
