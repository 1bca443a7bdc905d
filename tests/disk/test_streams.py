"""Memories that grow: appended to, followed, asked meanwhile, and asked about a part."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from typer.testing import CliRunner

from tests.disk.helpers import ASK, ONE_LOOK, QUESTION, content, frames, ingest, small_model
from videox2l import ArraySource, Memory, MemoryFileError, SettingsError, VideoError, VideoX2L
from videox2l.cli.app import app
from videox2l.video import FollowSource


@pytest.fixture(scope="module")
def x2l() -> VideoX2L:
    return small_model()


def more(n: int = 8, seed: int = 2) -> ArraySource:
    return ArraySource(frames(n, seed), fps=2.0, name="more")


def whole_source() -> ArraySource:
    return ArraySource(np.concatenate([frames(20), frames(8, 2)]), fps=2.0, name="clip")


@pytest.mark.parametrize("settings", [{}, {"history": "recent:2", "l_bits": 8}, {"l_tier": "lazy"}], ids=str)
def test_appending_equals_one_ingest(x2l: VideoX2L, tmp_path: Path, settings: dict[str, Any]) -> None:
    once = x2l.ingest(whole_source(), ratios=(2, 8), chunk_frames=4, **settings)
    ram = ingest(x2l, n=20, **settings)
    x2l.append(ram, more())
    disk = ingest(x2l, tmp_path / "a", n=20, **settings)
    assert x2l.append(disk, more()) is disk
    for memory in (ram, disk, Memory.load(tmp_path / "a")):
        assert [(c.start, c.end) for c in memory.chunks] == [(c.start, c.end) for c in once.chunks]
        for reload in (2, "all"):
            one, two = (x2l.ask(m, QUESTION, reload=reload, max_new_tokens=6) for m in (once, memory))
            assert one.ids == two.ids
            assert one.evidence == two.evidence
    assert disk.manifest["pts"] == once.manifest["pts"]
    assert disk.complete


def test_an_append_that_was_stopped_goes_on(x2l: VideoX2L, tmp_path: Path) -> None:
    x2l.append(ingest(x2l, tmp_path / "a", n=20), more(12))
    expected = content(tmp_path / "a")
    lines = expected["journal.jsonl"].splitlines(keepends=True)
    assert len(lines) == 5 + 1 + 1 + 3 + 1  # chunks, end, source, chunks, end
    for kept in range(6, len(lines)):
        (tmp_path / "a" / "journal.jsonl").write_bytes(b"".join(lines[:kept]))
        memory = Memory.load(tmp_path / "a")
        if kept > 6:
            with pytest.raises(MemoryFileError, match="waits for the rest of another source"):
                x2l.append(memory, more(12, seed=3))
        x2l.append(memory, more(12))
        assert content(tmp_path / "a") == expected


def test_questions_see_whole_chunks_while_it_grows(x2l: VideoX2L, tmp_path: Path) -> None:
    memory = ingest(x2l, tmp_path / "a", n=20)
    seen, late = set(), []

    def look(*_: object) -> None:
        seen.add(len(Memory.load(tmp_path / "a")))
        late.append(x2l.ask(memory, QUESTION, **ASK).ids)

    x2l.append(memory, more(12), progress=look)
    assert seen == {6, 7, 8}
    for chunks, ids in zip((6, 7, 8), late, strict=True):
        assert x2l.ask(memory, QUESTION, as_of=memory.chunks[chunks - 1].end, **ASK).ids == ids


@pytest.mark.parametrize("settings", [{}, {"l_tier": "lazy"}, {"compressor": "pool"}], ids=str)
def test_as_of_sees_what_was_over(x2l: VideoX2L, settings: dict[str, Any]) -> None:
    short, long = ingest(x2l, n=8, **settings), ingest(x2l, n=20, **settings)
    for reload in (1, "all", "none"):
        one = x2l.ask(short, QUESTION, reload=reload, max_new_tokens=6)
        two = x2l.ask(long, QUESTION, reload=reload, max_new_tokens=6, as_of=5.9)
        assert one.ids == two.ids
        assert one.evidence == two.evidence
        assert dataclasses.replace(one.cost, seconds={}) == dataclasses.replace(two.cost, seconds={})


@pytest.mark.parametrize("settings", [{}, {"l_tier": "lazy"}], ids=str)
def test_within_sees_the_chunks_that_overlap(x2l: VideoX2L, settings: dict[str, Any]) -> None:
    memory = ingest(x2l, n=20, **settings)
    answer = x2l.ask(memory, QUESTION, within=(3, 7), reload="all", max_new_tokens=6)
    assert [moment.start for moment in answer.evidence] == [2.0, 4.0, 6.0]
    part = memory.only([1, 2, 3])
    assert part.thumbnail(0) == memory.thumbnail(1) != memory.thumbnail(0)
    assert part.next_position == memory.chunks[3].next_position < memory.next_position
    both = x2l.ask(memory, QUESTION, within=(3, 7), as_of=6, reload="all", max_new_tokens=6)
    assert [moment.start for moment in both.evidence] == [2.0, 4.0]
    if not settings:
        stored = ingest(x2l, n=20)
        assert x2l.ask(stored, QUESTION, within=(3, 7), reload="all", max_new_tokens=6).ids == answer.ids
    with pytest.raises(SettingsError, match=r"as_of=1 leaves no chunk .* the memory covers 0-10 s, the first chunk"):
        x2l.ask(memory, QUESTION, as_of=1)
    with pytest.raises(SettingsError, match="within=20-30 leaves no chunk"):
        x2l.ask(memory, QUESTION, within=(20, 30))


def test_a_part_of_a_memory_on_disk_cannot_be_saved_as_the_whole(x2l: VideoX2L, tmp_path: Path) -> None:
    part = ingest(x2l, tmp_path / "a", n=20).only([1, 3])
    assert part.thumbnail(1) == Memory.load(tmp_path / "a").thumbnail(3)
    with pytest.raises(MemoryFileError, match="this is a part of a memory on disk"):
        part.save(tmp_path / "b")


def test_lazy_levels_of_a_part_are_those_of_the_whole(x2l: VideoX2L) -> None:
    stored, lazy = ingest(x2l, n=20), ingest(x2l, n=20, l_tier="lazy")
    for question in (QUESTION, "Who rings the bell?"):
        ask = {"within": (4, 9), "reload": 2, "selector": ONE_LOOK, "max_new_tokens": 8}
        one, two = (x2l.ask(m, question, **ask) for m in (stored, lazy))
        assert one.ids == two.ids


def test_an_endless_memory_of_summary_tokens_has_no_last_chunk(tmp_path: Path) -> None:
    """Video-XL gives a video's last chunk the ratio 2; a stream's chunks are alike whatever comes after them."""
    x2l = small_model("video_xl")
    once = x2l.ingest(whole_source(), ratios=(2, 8), chunk_frames=4, live=True)
    grown = ingest(x2l, tmp_path / "a", n=20, live=True)
    x2l.append(grown, more())
    assert [chunk.size(8) for chunk in grown.chunks] == [chunk.size(8) for chunk in once.chunks]
    assert x2l.ask(once, QUESTION, **ASK).ids == x2l.ask(grown, QUESTION, **ASK).ids
    ended = ingest(x2l, n=20)
    assert ended.chunks[-1].size(8) > grown.chunks[4].size(8)


def render(path: Path, seconds: int = 12) -> bytes:
    with av.open(str(path), "w", format="mpegts") as box:
        stream = box.add_stream("libx264", rate=4, options={"preset": "ultrafast", "g": "8"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.thread_count = 1
        for i in range(4 * seconds):
            picture = np.random.default_rng(i).integers(0, 255, (48, 64, 3), np.uint8)
            box.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        box.mux(stream.encode(None))
    return path.read_bytes()


@pytest.mark.slow
def test_a_growing_file_is_followed_and_followed_on(x2l: VideoX2L, tmp_path: Path) -> None:
    data = render(tmp_path / "whole.ts")
    growing = tmp_path / "growing.ts"
    growing.write_bytes(data[: len(data) // 3])

    def grow() -> None:
        with growing.open("ab", buffering=0) as file:
            for at in range(len(data) // 3, 2 * len(data) // 3, 4096):
                time.sleep(0.01)
                file.write(data[at : min(at + 4096, 2 * len(data) // 3)])

    seen: list[int] = []

    def look(*_: object) -> None:
        seen.append(len(Memory.load(tmp_path / "a")))

    settings: dict[str, Any] = {"ratios": (2, 8), "chunk_frames": 2, "store": tmp_path / "a", "live": True}
    thread = threading.Thread(target=grow)
    thread.start()
    first = x2l.ingest(FollowSource(str(growing), idle=0.6), progress=look, **settings)
    thread.join()
    assert seen == list(range(1, len(first) + 1))
    assert 4 <= first.duration < 12
    growing.write_bytes(data)
    again = x2l.ingest(FollowSource(str(growing), idle=0.1), **settings)
    pts = again.manifest["pts"]
    assert pts == sorted(set(pts))
    assert len(again) > len(first)
    assert [chunk.start for chunk in again.chunks[: len(first)]] == [chunk.start for chunk in first.chunks]
    before = content(tmp_path / "a")
    x2l.ingest(FollowSource(str(growing), idle=0.1), **settings)  # nothing new
    assert content(tmp_path / "a") == before


def test_pipes_are_followed_by_the_command(tmp_path: Path) -> None:
    data = render(tmp_path / "whole.ts")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def feed() -> None:
        with pipe.open("wb") as file:
            file.write(data)

    for chunks in (2, 4):
        thread = threading.Thread(target=feed)
        thread.start()
        done = CliRunner().invoke(app, ["ingest", "--follow", str(pipe), str(tmp_path / "a")])
        thread.join()
        assert done.exit_code == 0, done.output
        memory = Memory.load(tmp_path / "a")
        assert len(memory) == chunks
    assert memory.manifest["pts"] == [float(i) for i in range(24)]
    assert memory.complete


def test_what_cannot_be_followed_is_named(tmp_path: Path) -> None:
    for where in ("file:///etc/passwd", "concat://a|b", "subfile://x"):
        with pytest.raises(VideoError, match="cannot be followed"):
            FollowSource(where)
    (tmp_path / "evil.mp4").write_text("ffconcat version 1.0\nfile 'secret.mp4'\n" + "#" * 100)
    with pytest.raises(VideoError, match=r"'evil\.mp4' cannot be followed"):
        list(FollowSource(str(tmp_path / "evil.mp4"), idle=0))
    with pytest.raises(VideoError, match="does not exist"):
        FollowSource(str(tmp_path / "none.ts"))
    with pytest.raises(SettingsError, match="idle=-1"):
        FollowSource("-", idle=-1)
    done = CliRunner().invoke(
        app, ["ingest", "--follow", str(tmp_path / "evil.mp4"), str(tmp_path / "a"), "--end", "3"]
    )
    assert "do not go with --follow" in done.stderr
