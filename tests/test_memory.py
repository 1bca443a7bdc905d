"""The memory object, mixing, and the file."""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load, load_file

from tests.conftest import make_llava_onevision, make_qwen25
from videox2l import ArraySource, Memory, MemoryFileError, Plan, SettingsError, VideoX2L
from videox2l.engine.rope import rotate, unrotate
from videox2l.memory import build_cache
from videox2l.memory.disk.source import is_memory

Made = tuple[VideoX2L, Memory]


@pytest.fixture(scope="module")
def made() -> Made:
    rng = np.random.default_rng(1)
    x2l = VideoX2L.from_model(*make_qwen25())
    source = ArraySource(rng.integers(0, 255, (19, 32, 32, 3), np.uint8), fps=2.0)
    return x2l, x2l.ingest(source, ratios=(2, 8, 32), chunk_frames=4)


def test_chunks_cover_the_video_in_order(made: Made) -> None:
    _, memory = made
    assert [(chunk.start, chunk.end, chunk.frames) for chunk in memory.chunks] == [
        (0.0, 2.0, 4), (2.0, 4.0, 4), (4.0, 6.0, 4), (6.0, 8.0, 4), (8.0, 9.5, 3),
    ]  # fmt: skip
    assert [chunk.tokens for chunk in memory.chunks] == [32, 32, 32, 32, 32]
    assert memory.duration == 9.5
    assert [memory.level_name(ratio) for ratio in memory.ratios] == ["L", "8x", "H"]
    assert memory.full_tokens == memory.prefix[0].shape[2] + 5 * 32
    assert memory.manifest["sha256"]
    assert len(memory.manifest["pts"]) == 19


def test_mix_lays_levels_out_in_order_of_time(made: Made) -> None:
    x2l, memory = made
    plan = Plan.at([32, 2, 8, 32, 2])
    mixed = build_cache(memory, plan, x2l.backbone, room=7)
    cache, offsets = mixed.cache, mixed.offsets
    sizes = [1, 16, 4, 1, 16]
    prefix = memory.prefix[0].shape[2]
    assert offsets == [prefix + sum(sizes[:i]) for i in range(6)]
    keys, values = cache.columns(0)
    for i, ratio in enumerate(plan.ratios):
        level = memory.chunks[i].level(ratio)
        assert torch.equal(keys[:, :, offsets[i] : offsets[i + 1]], level.keys)  # bitwise the original keys
        assert torch.equal(values[:, :, offsets[i] : offsets[i + 1]], level.values)
    assert torch.equal(keys[:, :, :prefix], memory.prefix[0])
    assert cache.stores[0].capacity == offsets[-1] + 7
    with pytest.raises(SettingsError, match="plan is for 2 chunks, the memory has 5"):
        build_cache(memory, Plan.at([2, 2]), x2l.backbone)


def test_any_coarser_ratio_of_a_ranked_level_can_be_read(made: Made) -> None:
    _, memory = made
    chunk = memory.chunks[0]
    level = chunk.level(5)
    assert len(level) == 6
    assert torch.equal(level.keys, chunk.level(2).keys[:, :, :6])
    with pytest.raises(SettingsError, match=r"no level at ratio 1\.5: this memory keeps 2, 8, 32"):
        chunk.level(1.5)


def test_unranked_levels_give_only_their_own_ratios(video: np.ndarray) -> None:
    x2l = VideoX2L.from_model(*make_qwen25())
    memory = x2l.ingest(ArraySource(video), ratios=(2, 8), compressor="pool")
    with pytest.raises(SettingsError, match="no level at ratio 4: this memory keeps 2, 8"):
        memory.chunks[0].level(4)


def test_bytes_count_what_is_stored_once(made: Made) -> None:
    _, memory = made
    token = memory.shape.token_bytes
    assert token == 2 * 3 * 2 * 16 * 4
    # Of two layers: bounds and mean of the keys, and L's keys in bytes with a scale; of two groups: visual means.
    features = 3 * 2 * 2 * 16 * 4 + 2 * 2 * len(memory.chunks[0].level(2)) * (16 + 4) + 2 * 64 * 4
    assert memory.nbytes() == (memory.prefix[0].shape[2] + 5 * 16) * token + 5 * features  # H and 8x are part of L


def test_chunks_within(made: Made) -> None:
    _, memory = made
    assert memory.chunks_within(1.9, 4.0) == [0, 1]
    assert memory.chunks_within(100, 200) == []
    with pytest.raises(SettingsError, match="time range 5-5 is empty"):
        memory.chunks_within(5, 5)


@pytest.mark.parametrize("compressor", ["keydiff", "pool"])
def test_a_saved_memory_answers_the_same(compressor: str, tmp_path: Path, video: np.ndarray) -> None:
    x2l = VideoX2L.from_model(*make_qwen25())
    memory = x2l.ingest(ArraySource(video), ratios=(2, 8), compressor=compressor, chunk_frames=4)
    path = tmp_path / "clip.x2l"
    memory.save(path)
    again = Memory.load(path)
    assert is_memory(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.rglob("*") if file.is_file()} == {0o600}
    assert again.summary() == memory.summary()
    for one, two in zip(memory.chunks, again.chunks, strict=True):
        assert torch.equal(one.positions, two.positions)
        for ratio in (2, 8):
            assert torch.equal(one.level(ratio).keys, two.level(ratio).keys)
            assert torch.equal(one.level(ratio).values, two.level(ratio).values)
            assert torch.equal(one.level(ratio).index, two.level(ratio).index)
    ask = {"reload": 1, "max_new_tokens": 8}
    assert x2l.ask(again, "What happens?", **ask).ids == x2l.ask(memory, "What happens?", **ask).ids


def test_the_folder_is_readable_without_this_package(made: Made, tmp_path: Path) -> None:
    _, memory = made
    path = tmp_path / "clip.x2l"
    memory.save(path)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["ratios"] == [2.0, 8.0, 32.0]
    lines = [json.loads(line) for line in (path / "journal.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["chunk"] * 5 + ["end"]
    fine, coarse = lines[3]["fine"], lines[3]["coarse"]
    assert hashlib.sha256((path / fine["name"]).read_bytes()).hexdigest() == fine["sha256"]
    tensors = load_file(path / fine["name"])
    keys = np.concatenate([tensors[f"{part[0]}.keys"] for part in fine["parts"]], axis=2)
    assert np.array_equal(keys, memory.chunks[3].level(2).keys.numpy())
    piece = (path / coarse["name"]).read_bytes()[coarse["start"] :][: coarse["bytes"]]
    assert np.array_equal(load(piece)["coarse.values"], memory.chunks[3].level(32).values.numpy())
    assert (path / lines[3]["thumb"]["name"]).read_bytes()[:3] == b"\xff\xd8\xff"


def test_other_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MemoryFileError, match="no such folder"):
        Memory.load(tmp_path / "none.x2l")
    with pytest.raises(MemoryFileError, match="the folder holds none"):
        Memory.load(tmp_path)
    other = tmp_path / "weights.safetensors"
    other.write_bytes(b"x")
    assert not is_memory(other)
    with pytest.raises(MemoryFileError, match="it is a file; an exported memory is brought back"):
        Memory.load(other)
    (tmp_path / "manifest.json").write_text('{"format": "something else"}')
    with pytest.raises(MemoryFileError, match="is not a memory's"):
        Memory.load(tmp_path)


def test_a_newer_format_is_named(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made[1].save(tmp_path / "new.x2l")
    manifest = tmp_path / "new.x2l" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 2', '"version": 99'))
    with pytest.raises(MemoryFileError, match="format version 99, this release reads version 2"):
        Memory.load(tmp_path / "new.x2l")


@pytest.mark.parametrize("name", ["os.replace", "replace_folder"])
def test_a_failed_save_leaves_the_old_one(
    name: str, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "clip.x2l"
    made[1].save(path)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    module = "videox2l.memory.disk.stores." if name == "os.replace" else "videox2l.memory.disk.folder."
    monkeypatch.setattr(module + name, full)
    with pytest.raises(MemoryFileError, match="No space left on device"):
        made[1].save(path)
    monkeypatch.undo()
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["clip.x2l"]
    with pytest.raises(MemoryFileError, match=r"folder .* does not exist"):
        made[1].save(tmp_path / "nowhere" / "clip.x2l")
    with pytest.raises(MemoryFileError, match="holds other files"):
        made[1].save(tmp_path)
    made[1].save(path)
    assert len(Memory.load(path)) == 5


def test_another_model_is_refused_with_the_difference(made: Made) -> None:
    _, memory = made
    other = VideoX2L.from_model(*make_qwen25(seed=9))
    with pytest.raises(MemoryFileError, match=r"made by another model \(weights: memory \w{12}, model \w{12}\)"):
        other.ask(memory, "What happens?")
    model, processor = make_qwen25()
    processor.video_processor["image_mean"] = [0.1, 0.2, 0.3]
    with pytest.raises(MemoryFileError, match=r"\(processor: "):
        VideoX2L.from_model(model, processor).ask(memory, "What happens?")


def test_fingerprint_covers_content_settings_and_model(video: np.ndarray) -> None:
    x2l = VideoX2L.from_model(*make_qwen25())

    def fingerprint(frames: np.ndarray = video, fps: float = 1.0, **settings: Any) -> str:
        return x2l.ingest(ArraySource(frames, fps=fps), **settings).fingerprint()

    other = video.copy()
    other[3, 3, 3, 0] ^= 1
    base = fingerprint()
    assert base == fingerprint()
    assert len(base) == 64
    changed = [
        fingerprint(other),
        fingerprint(fps=2.0),
        fingerprint(ratios=(2, 16)),
        fingerprint(history="L"),
        fingerprint(compressor="snap"),
        fingerprint(chunk_frames=4),
    ]
    assert len({base, *changed}) == 7


@torch.no_grad()
def test_compact_mixing_equals_prefill_at_the_new_positions(video: np.ndarray) -> None:
    """Keys rotated on to their column are the keys that layer 0 would have written there; a shift by one is not."""
    x2l = VideoX2L.from_model(*make_llava_onevision())
    backbone: Any = x2l.backbone
    memory = x2l.ingest(ArraySource(video), ratios=(2, 8), chunk_frames=4)
    memory.reposition = "compact"
    plan = Plan.at([8, 2, 8])
    mixed = build_cache(memory, plan, backbone)
    assert mixed.next_position == mixed.offsets[-1] < memory.next_position
    keys, _ = mixed.cache.columns(0)
    for i, ratio in enumerate(plan.ratios):
        chunk = memory.chunks[i]
        level = chunk.level(ratio)
        got = keys[:, :, mixed.offsets[i] : mixed.offsets[i + 1]]
        old = chunk.positions[0][level.index.long()]
        new = mixed.offsets[i] + level.index.argsort(-1).argsort(-1)
        for layer, head in [(0, 0), (2, 1)]:
            plain = unrotate(level.keys[layer, head], *backbone.rotation(old[layer, head][None]))
            expect = rotate(plain, *backbone.rotation(new[layer, head][None]))
            torch.testing.assert_close(got[layer, head], expect, atol=1e-4, rtol=1e-4)
            wrong = rotate(plain, *backbone.rotation(new[layer, head][None] + 1))
            assert (got[layer, head] - wrong).abs().max() > 0.1
    other = VideoX2L.from_model(*make_qwen25())
    memory = other.ingest(ArraySource(video), ratios=(2, 8), chunk_frames=4)
    memory.reposition = "compact"
    with pytest.raises(SettingsError, match="reposition='compact' is not possible for qwen2_5_vl"):
        build_cache(memory, plan, other.backbone)


def test_levels_of_separate_passes_are_each_kept(tmp_path: Path, video: np.ndarray) -> None:
    """With history="own" H comes from a pass of its own and is no part of L, though both are ranked."""
    x2l = VideoX2L.from_model(*make_qwen25())
    memory = x2l.ingest(ArraySource(video), ratios=(2, 8), history="own", chunk_frames=4)
    alone = x2l.ingest(ArraySource(video), ratios=(8,), history="L", chunk_frames=4)
    memory.save(tmp_path / "own.x2l")
    again = Memory.load(tmp_path / "own.x2l")
    for i in range(len(memory)):
        assert torch.equal(memory.chunks[i].level(8).keys, alone.chunks[i].level(8).keys)
        assert torch.equal(again.chunks[i].level(8).keys, alone.chunks[i].level(8).keys)
    assert not torch.equal(memory.chunks[2].level(8).keys, memory.chunks[2].level(2).first(4).keys)
    nested = x2l.ingest(ArraySource(video), ratios=(2, 8), history="H", chunk_frames=4)
    assert memory.nbytes() > nested.nbytes()
