"""Windows: several chunks prefilled in one forward, each compressed, written and resumed as a chunk of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from tests.conftest import make_qwen25, make_video_xl
from tests.disk.helpers import QUESTION, content, frames, ingest
from tests.families.models import MAKERS, needs
from tests.test_holes import Holed
from videox2l import ArraySource, Memory, MemoryFileError, SettingsError, VideoX2L
from videox2l.cli.app import app
from videox2l.compress import COMPRESSORS, PairCompressor, SummaryTokenCompressor, compressor_by_name
from videox2l.compress.lazy import with_planned_levels
from videox2l.conformance.case import TestCase, made_up_clip, stock_attention
from videox2l.engine import attention
from videox2l.evaluate.encode import EncodedVideo
from videox2l.ingest import IngestSettings, finished, ingest_steps
from videox2l.memory import Plan
from videox2l.memory.disk.journal import Journal
from videox2l.memory.disk.writer import MemoryWriter
from videox2l.options import IngestOptions
from videox2l.video import Manifest

RANKED = sorted(set(COMPRESSORS) - {"summary"})


@pytest.fixture(scope="module")
def x2l() -> VideoX2L:
    return VideoX2L.from_model(*make_qwen25())


# --- exactness ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def stock_kv(case: TestCase) -> tuple[Tensor, Tensor]:
    """Keys and values (layers, heads, tokens, head_dim) of the stock model's own forward of the whole prompt."""
    with stock_attention(case.stock):
        seen = torch.ones(case.inputs["input_ids"].shape, dtype=torch.long)
        cache = case.stock.model(**case.inputs, attention_mask=seen, use_cache=True).past_key_values
    layers = [layer for layer in cache.layers if layer.keys is not None]
    return torch.cat([layer.keys for layer in layers]), torch.cat([layer.values for layer in layers])


def gap_to(stock: tuple[Tensor, Tensor], memory: Memory, chunks: list[int]) -> float:
    """The largest difference between what some chunks keep at L and the stock model's KVs of the same tokens."""
    start, gap = memory.prefix[0].shape[2], 0.0
    for number, chunk in enumerate(memory.chunks):
        level = chunk.level(memory.finest)
        at = (start + level.index.long())[..., None].expand_as(level.keys)
        for ours, theirs in zip((level.keys, level.values), stock, strict=True):
            gap = max(gap, float((ours - theirs.gather(2, at)).abs().max())) if number in chunks else gap
        start += chunk.tokens
    return gap


@pytest.mark.parametrize("family", [*sorted(MAKERS), "video_xl"])
def test_ratio_one_equals_the_stock_model(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if family != "video_xl":
        needs(family)
    model = make_video_xl() if family == "video_xl" else MAKERS[family]()
    case = TestCase(VideoX2L.from_model(*model).backbone, made_up_clip(23))
    stock = case.stock_run[0][0]
    for window in (1, 2, 4):
        memory = case.memory((1,), history="H", window_chunks=window)
        whole, rest = divmod(len(memory), window)
        sizes = [window] * (whole * window) + [rest] * rest
        assert [chunk.window[1] for chunk in memory.chunks] == sizes
        assert len(set(sizes)) == 1 + (window == 4)
        assert float((case.logits(memory) - stock).abs().max()) < case.tolerance
        assert float((case.logits(memory, shift=1) - stock).abs().max()) > case.tolerance
        if family != "video_xl":  # whose stand-in takes embeddings
            assert gap_to(stock_kv(case), memory, list(range(len(memory)))) < case.tolerance
    case.memories.clear()
    with monkeypatch.context() as patch:  # the negative control: what sees the rest of its window is another memory
        patch.setattr(attention, "causal", lambda q, k, v, scale, dropout=0.0: attention.attend(q, k, v, scale))
        wrong = case.memory((1,), history="H", window_chunks=4)
    assert float((case.logits(wrong) - stock).abs().max()) > case.tolerance


def test_a_chunk_sees_its_window_in_full_and_the_rest_as_history() -> None:
    """Whatever the ratios, the first window's L holds the stock model's own KVs; behind it H is seen."""
    case = TestCase(VideoX2L.from_model(*make_qwen25()).backbone, made_up_clip(23))
    stock = stock_kv(case)
    for compressor in ("keydiff", "snap", "echo", "uniform"):
        memory = case.memory((2, 8), compressor=compressor, history="H", window_chunks=3)
        assert [chunk.window for chunk in memory.chunks] == [(0, 3), (1, 3), (2, 3)] * 2
        assert gap_to(stock, memory, [0, 1, 2]) < case.tolerance
        assert gap_to(stock, memory, [3, 4, 5]) > case.tolerance
        alone = case.memory((2, 8), compressor=compressor, history="H")
        assert gap_to(stock, alone, [0]) < case.tolerance < gap_to(stock, alone, [1, 2])


@pytest.mark.parametrize("compressor", [*RANKED, "pair"])
@pytest.mark.parametrize("history", ["H", "L", "recent:2", "own"])
def test_at_ratio_one_windows_change_nothing(x2l: VideoX2L, compressor: str, history: str) -> None:
    """What scorers are given of a chunk is cut out of the window: chunks rank their tokens as they do alone."""
    pair = PairCompressor(compressor_by_name("keydiff"), compressor_by_name("uniform"))
    options: dict[str, Any] = {"history": history, "compressor": pair if compressor == "pair" else compressor}
    one, two = (ingest(x2l, ratios=(1,), window_chunks=window, **options) for window in (1, 3))
    for alone, together in zip(one.chunks, two.chunks, strict=True):
        a, b = alone.level(1), together.level(1)
        order = [level.index.long().argsort(-1)[..., None].expand_as(level.keys) for level in (a, b)]
        torch.testing.assert_close(a.keys.gather(2, order[0]), b.keys.gather(2, order[1]), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(a.values.gather(2, order[0]), b.values.gather(2, order[1]), atol=1e-4, rtol=1e-4)
        same = (a.index == b.index).float().mean()  # but for ties within rounding
        assert float(same) > 0.97
        assert alone.features.keys() == together.features.keys()
        torch.testing.assert_close(alone.features["keys"], together.features["keys"], atol=1e-4, rtol=1e-4)
    wrong = (one.chunks[1].level(1).index == two.chunks[2].level(1).index).float().mean()
    assert compressor in ("uniform", "pool", "pair") or float(wrong) < 0.5


SEEN = {"H": (8, 8, 8), "L": (2, 2, 2), "recent:2": (8, 2, 2), "fused": (8, 8, 8)}


@pytest.mark.parametrize("history", [*SEEN, "own"])
def test_earlier_windows_are_seen_as_the_history_says(x2l: VideoX2L, history: str) -> None:
    """The second window against a plain forward behind the levels of the first one's chunks."""
    memory = ingest(x2l, n=20, history=history, window_chunks=3)
    assert [chunk.window for chunk in memory.chunks] == [(0, 3), (1, 3), (2, 3), (0, 2), (1, 2)]
    encoded = EncodedVideo(x2l, ArraySource(frames(20), fps=2.0), chunk_frames=4)
    for ratio in (2.0, 8.0):
        right = SEEN.get(history, (int(ratio),) * 3)
        wrong = (2, 8, 8) if right == (8, 8, 8) else (8, 8, 8)
        assert gap_behind(memory, encoded, right, ratio) < 1e-4
        assert gap_behind(memory, encoded, wrong, ratio) > 1e-3


@torch.no_grad()
def gap_behind(memory: Memory, encoded: EncodedVideo, seen: tuple[int, ...], ratio: float) -> float:
    """The largest difference between a level of chunks 3 and 4 and what one forward behind chunks 0 to 2 gives."""
    backbone = encoded.backbone
    cache, tokens = backbone.new_cache(), [chunk.tokens for chunk in encoded.chunks[3:]]
    cache.append(*memory.prefix)
    for chunk, at in zip(memory.chunks, seen, strict=False):
        cache.append(chunk.level(at).keys, chunk.level(at).values)
    start = len(cache)
    positions = torch.cat([chunk.positions for chunk in tokens], 1)
    backbone.forward(torch.cat([chunk.embeds for chunk in tokens]), positions, cache)
    gap = 0.0
    for chunk in memory.chunks[3:]:
        level = chunk.level(ratio)
        at = (start + level.index.long())[..., None].expand_as(level.keys)
        for ours, theirs in zip((level.keys, level.values), cache.columns(0), strict=True):
            gap = max(gap, float((ours - theirs.gather(2, at)).abs().max()))
        start += chunk.tokens
    return gap


@pytest.mark.parametrize("compressor", ["keydiff", "pool"])
def test_levels_made_later_are_those_of_the_window(x2l: VideoX2L, tmp_path: Path, compressor: str) -> None:
    """Whichever chunks of a window are wanted; and not those of chunks that were prefilled alone."""
    options: dict[str, Any] = {"window_chunks": 3, "compressor": compressor}
    stored, alone = ingest(x2l, **options), ingest(x2l, compressor=compressor)
    ingest(x2l, tmp_path / "a", l_tier="lazy", **options)
    for wanted in ([0, 1, 2, 3, 4], [1], [2, 3], [0, 4], [1, 2]):
        lazy = Memory.load(tmp_path / "a")
        plan = Plan.at([2.0 if i in wanted else 8.0 for i in range(5)])
        full = with_planned_levels(lazy, plan, x2l.backbone, compressor_by_name(compressor))
        for i in wanted:
            one, two, other = (memory.chunks[i].level(2) for memory in (full, stored, alone))
            torch.testing.assert_close(one.keys, two.keys, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(one.values, two.values, atol=1e-5, rtol=1e-5)
            assert torch.equal(one.index, two.index)
            assert i == 0 or float((one.values[-1] - other.values[-1]).abs().max()) > 1e-3
    part = lazy.only([1, 3, 4])  # a window of which the beginning is left out is what is there
    assert len(x2l.ask(part, QUESTION, reload="all", max_new_tokens=4).evidence) == 3


# --- on disk ------------------------------------------------------------------------------------------------------

SETTINGS: list[dict[str, Any]] = [
    {"window_chunks": 2, "l_tier": "lazy"},
    {"window_chunks": 3},
    {"window_chunks": 2, "history": "recent:2", "l_bits": 8, "h_bits": 4},
    {"window_chunks": 4, "compressor": "echo", "history": "own", "ratios": (1, 4)},
]


def cut(folder: Path, lines: list[bytes]) -> None:
    """Take an ingest back to where the journal had so many lines; objects of later chunks stay."""
    (folder / "journal.jsonl").write_bytes(b"".join(lines))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_an_ingest_that_was_stopped_ends_with_the_same_bytes(
    x2l: VideoX2L, tmp_path: Path, settings: dict[str, Any]
) -> None:
    ingest(x2l, tmp_path / "a", **settings)
    expected = content(tmp_path / "a")
    lines = expected["journal.jsonl"].splitlines(keepends=True)
    assert len(lines) == 5 + 1
    for kept in range(len(lines)):
        cut(tmp_path / "a", lines[:kept])
        assert ingest(x2l, tmp_path / "a", **settings).complete
        assert content(tmp_path / "a") == expected
    ram = ingest(x2l, **settings)
    ram.save(tmp_path / "b")
    windows = [[chunk.window for chunk in Memory.load(tmp_path / name).chunks] for name in "ab"]
    assert windows[0] == windows[1] == [chunk.window for chunk in ram.chunks]
    assert max(size for _, size in windows[0]) == settings["window_chunks"]


def test_a_writer_that_fails_in_a_window_is_gone_on_with(
    x2l: VideoX2L, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(x2l, tmp_path / "a", window_chunks=3)
    add = MemoryWriter.add
    for number in range(5):

        def failing(self: MemoryWriter, *args: Any, number: int = number) -> Any:
            if len(self.journal.chunks) == number:
                raise KeyboardInterrupt
            return add(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(MemoryWriter, "add", failing)
            with pytest.raises(KeyboardInterrupt):
                ingest(x2l, tmp_path / f"{number}", window_chunks=3)
        assert len(Memory.load(tmp_path / f"{number}")) == number
        ingest(x2l, tmp_path / f"{number}", window_chunks=3)
        assert content(tmp_path / f"{number}") == content(tmp_path / "a")


def test_a_window_ends_at_a_hole(x2l: VideoX2L, tmp_path: Path) -> None:
    options: dict[str, Any] = {"chunk_frames": 4, "window_chunks": 2, "ratios": (2, 8)}
    memory = x2l.ingest(Holed(), store=tmp_path / "a", **options)
    assert [chunk.frames for chunk in memory.chunks] == [4, 4, 2, 4, 3]
    assert [chunk.window for chunk in memory.chunks] == [(0, 2), (1, 2), (0, 1), (0, 2), (1, 2)]
    expected = content(tmp_path / "a")
    lines = expected["journal.jsonl"].splitlines(keepends=True)
    for kept in range(len(lines)):
        cut(tmp_path / "a", lines[:kept])
        x2l.ingest(Holed(), store=tmp_path / "a", **options)
        assert content(tmp_path / "a") == expected


def test_an_append_begins_a_window(x2l: VideoX2L, tmp_path: Path) -> None:
    """Behind a window that the end of the video cut short; stopped anywhere, it ends with the same bytes."""

    def more() -> ArraySource:
        return ArraySource(frames(13, seed=2), fps=2.0, name="more")

    ram = ingest(x2l, n=19, window_chunks=3)
    disk = ingest(x2l, tmp_path / "a", n=19, window_chunks=3)
    for memory in (ram, disk):
        x2l.append(memory, more())
        windows = [chunk.window for chunk in memory.chunks]
        assert windows == [(0, 3), (1, 3), (2, 3), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3), (0, 1)]
    assert x2l.ask(ram, QUESTION, max_new_tokens=6).ids == x2l.ask(disk, QUESTION, max_new_tokens=6).ids
    expected = content(tmp_path / "a")
    lines = expected["journal.jsonl"].splitlines(keepends=True)
    for kept in range(6, len(lines)):
        cut(tmp_path / "a", lines[:kept])
        x2l.append(Memory.load(tmp_path / "a"), more())
        assert content(tmp_path / "a") == expected


class Growing(ArraySource):
    """A stream that is known by its name alone, as a file that is followed: it may have more frames later on."""

    @property
    def manifest(self) -> Manifest:
        return replace(super().manifest, sha256="5" * 64, duration=None)

    @manifest.setter
    def manifest(self, value: Manifest) -> None:
        pass


def test_a_stream_goes_on_behind_a_short_window(x2l: VideoX2L, tmp_path: Path) -> None:
    def follow(n: int) -> Memory:
        options = IngestOptions(ratios=(2, 8), chunk_frames=4, window_chunks=3, live=True)
        source = Growing(frames(n), fps=2.0, name="stream")
        return x2l.ingest(source, options, store=tmp_path / "a")

    assert [chunk.window for chunk in follow(18).chunks] == [(0, 3), (1, 3), (2, 3), (0, 2), (1, 2)]
    before = content(tmp_path / "a")
    assert [chunk.frames for chunk in follow(18).chunks] == [4, 4, 4, 4, 2]  # nothing new
    assert content(tmp_path / "a") == before
    grown = follow(27)
    assert [chunk.frames for chunk in grown.chunks] == [4, 4, 4, 4, 2, 4, 4, 1]
    assert [chunk.window for chunk in grown.chunks[5:]] == [(0, 3), (1, 3), (2, 3)]
    expected = content(tmp_path / "a")
    lines = expected["journal.jsonl"].splitlines(keepends=True)
    for kept in range(6, len(lines)):
        cut(tmp_path / "a", lines[:kept])
        follow(27)
        assert content(tmp_path / "a") == expected
    cut(tmp_path / "a", lines[:4])  # stopped in a window that has become longer meanwhile
    assert [chunk.window for chunk in follow(27).chunks[3:]] == [(0, 2), (1, 3), (2, 3), (0, 1)]


def test_other_windows_are_refused(x2l: VideoX2L, tmp_path: Path) -> None:
    ingest(x2l, tmp_path / "one")
    ingest(x2l, tmp_path / "three", window_chunks=3)
    assert "window_chunks" not in Memory.load(tmp_path / "one").settings
    assert Memory.load(tmp_path / "three").settings["window_chunks"] == 3
    for name, window, told in (("one", 3, "memory 1, now 3"), ("three", 1, "memory 3, now 1")):
        with pytest.raises(MemoryFileError, match=f"window_chunks: {told}.*same settings"):
            ingest(x2l, tmp_path / name, window_chunks=window)
        again = ingest(x2l, tmp_path / name)  # without a word of windows it keeps its own
        assert again.settings == Memory.load(tmp_path / name).settings
    one, three = (Memory.load(tmp_path / name).fingerprint() for name in ("one", "three"))
    assert one != three
    ingest(x2l, tmp_path / "one", window_chunks=1)


# --- options ------------------------------------------------------------------------------------------------------


def test_what_cannot_be_windows_is_refused(x2l: VideoX2L) -> None:
    xl = VideoX2L.from_model(*make_video_xl())
    with pytest.raises(SettingsError, match=r"SummaryTokenCompressor prefills each chunk .* use window_chunks=1"):
        ingest(xl, window_chunks=2)
    assert ingest(xl, window_chunks=1).complete
    with pytest.raises(SettingsError, match="use window_chunks=1"):
        ingest(x2l, window_chunks=2, compressor=PairCompressor(compressor_by_name("keydiff"), SummaryTokenCompressor()))
    for wrong in (0, -1, 1.5, True, "2"):
        with pytest.raises(SettingsError, match="window_chunks must be a whole number of 1 or more"):
            ingest(x2l, window_chunks=wrong)


def test_windows_by_tokens_on_cuda(x2l: VideoX2L) -> None:
    def settings(device: str, backbone: Any = x2l.backbone, **options: Any) -> tuple[int, int]:
        found = IngestSettings.of(IngestOptions(**options), backbone, device=device)
        return found.window_chunks, found.window_tokens

    assert settings("cpu") == (1, 0)
    assert settings("cuda") == (1, 2048)
    assert settings("cuda", window_chunks=4) == (4, 0)
    assert settings("cuda", window_chunks=1) == (1, 0)
    assert settings("cuda", live=True) == (1, 0)
    assert settings("cuda", VideoX2L.from_model(*make_video_xl()).backbone) == (1, 0)
    rule = IngestSettings((1,), "H", "keydiff", 8, window_tokens=2048)
    assert not rule.window_full([1024])
    assert rule.window_full([1025])
    assert not rule.window_full([128] * 15)
    assert rule.window_full([128] * 16)


def test_an_ingest_by_tokens(x2l: VideoX2L, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA; a memory that was begun there is gone on with elsewhere as it was begun."""
    of = IngestSettings.of

    def on_cuda(*args: Any, **options: Any) -> IngestSettings:
        return of(*args, **{**options, "device": "cuda"})

    each = ingest(x2l, n=4).chunks[0].tokens
    with monkeypatch.context() as patch:
        patch.setattr(IngestSettings, "of", on_cuda)
        patch.setattr("videox2l.ingest.WINDOW_TOKENS", 3 * each + 1)
        ingest(x2l, tmp_path / "a")
        expected = content(tmp_path / "a")
    memory = Memory.load(tmp_path / "a")
    assert memory.settings["window_tokens"] == 3 * each + 1
    assert [chunk.window for chunk in memory.chunks] == [(0, 3), (1, 3), (2, 3), (0, 2), (1, 2)]
    lines = expected["journal.jsonl"].splitlines(keepends=True)
    for kept in range(len(lines)):
        cut(tmp_path / "a", lines[:kept])
        ingest(x2l, tmp_path / "a")
        assert content(tmp_path / "a") == expected
    cut(tmp_path / "a", lines[:2])
    with pytest.raises(MemoryFileError, match="window_tokens"):
        ingest(x2l, tmp_path / "a", window_chunks=1)


def test_the_command_and_what_it_tells(tmp_path: Path) -> None:
    def run(*args: str) -> str:
        done = CliRunner().invoke(app, list(args))
        assert done.exit_code == 0, done.output
        return done.stdout

    media = str(Path(__file__).parent / "media" / "nasa_13013.mp4")
    options = ["--fps", "2", "--chunk-frames", "4"]
    run("ingest", media, str(tmp_path / "a"), *options, "--window-chunks", "3")
    run("ingest", media, str(tmp_path / "b"), *options)
    assert "at most 3 in a forward" in run("memory", "inspect", str(tmp_path / "a"))
    assert "at most 1 in a forward" in run("memory", "inspect", str(tmp_path / "b"))
    assert json.loads(run("memory", "inspect", str(tmp_path / "a"), "--json"))["window_chunks"] == 3
    assert "every byte as it was written" in run("memory", "verify", str(tmp_path / "a"))
    done = CliRunner().invoke(app, ["ingest", media, str(tmp_path / "a"), *options, "--window-chunks", "2"])
    assert done.exit_code != 0
    assert "window_chunks: memory 3, now 2" in " ".join(done.stderr.split())
    assert "4 in a forward" in run("plan", media, *options, "--gpu", "cpu", "--window-chunks", "4")


def test_a_server_bounds_windows() -> None:
    from videox2l.serve.catalog import ingest_options

    assert ingest_options({"window_chunks": 4}).window_chunks == 4
    with pytest.raises(SettingsError, match="window_chunks must be at most 64 here, got 65"):
        ingest_options({"window_chunks": 65})


@pytest.mark.parametrize("window", [[2, 3], [-1, 2], [2, 2], [1, 0], [3, 9], [0, 1 << 40], ["a", 2], [0], 7], ids=str)
def test_windows_that_cannot_be_are_refused(x2l: VideoX2L, tmp_path: Path, window: Any) -> None:
    """A memory that someone sends is untrusted, also where its hashes are right."""
    ingest(x2l, tmp_path / "a", n=12, window_chunks=3)
    journal = Journal(unpack_seal(tmp_path / "a"))
    lines = (tmp_path / "a" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    made = []
    for number, line in enumerate(lines):
        values = json.loads(line)
        values.pop("check")
        made.append(journal.line(values | ({"window": window} if number == 2 else {})))
        journal.check = json.loads(made[-1])["check"]
    cut(tmp_path / "a", made)
    if window == [2, 3]:  # as it was: it is not the rewriting that is refused
        assert made == lines
        return
    with pytest.raises(MemoryFileError, match="damaged"):
        Memory.load(tmp_path / "a")


def unpack_seal(folder: Path) -> str:
    """The seal of a memory's manifest, to which the journal belongs."""
    return str(json.loads((folder / "manifest.json").read_text())["check"])


def test_the_model_is_free_between_windows(x2l: VideoX2L) -> None:
    """A server asks between the steps of an ingest: chunks show window after window."""
    options = IngestOptions(ratios=(2, 8), chunk_frames=4, window_chunks=2)
    told: list[tuple[int, int | None, float]] = []
    source = ArraySource(frames(19), fps=2.0)
    steps = ingest_steps(source, x2l.backbone, options, x2l.identity, progress=lambda *at: told.append(at))
    seen = [len(memory) for memory in steps]
    assert seen == [0] * 8 + [2] * 8 + [4] * 3 + [5]
    assert [frames for frames, _, _ in told] == [8, 16, 19]


def test_stopping_leaves_whole_windows(x2l: VideoX2L, tmp_path: Path) -> None:
    from videox2l.memory.disk.stores import open_store

    options = IngestOptions(ratios=(2, 8), chunk_frames=4, window_chunks=2)

    def steps() -> Iterator[Memory]:
        source, store = ArraySource(frames(19), fps=2.0, name="clip"), open_store(tmp_path / "a")
        return ingest_steps(source, x2l.backbone, options, x2l.identity, store=store)

    begun = steps()
    for _ in range(15):
        next(begun)
    begun.close()  # type: ignore[attr-defined]
    assert len(Memory.load(tmp_path / "a")) == 2
    finished(steps())
    ingest(x2l, tmp_path / "b", window_chunks=2)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_evaluation_stays_at_one_chunk(x2l: VideoX2L) -> None:
    encoded = EncodedVideo(x2l, ArraySource(frames(19), fps=2.0), chunk_frames=4)
    memory, _ = encoded.memory(compressor_by_name("keydiff"), (2, 8), "H", "keydiff")
    assert {chunk.window for chunk in memory.chunks} == {(0, 1)}
    alone = ingest(x2l)
    np.testing.assert_array_equal(memory.chunks[3].level(8).keys, alone.chunks[3].level(8).keys)
