"""A memory on disk at the shapes of a 7B model: bytes per hour of video, and how fast it is written and read.

    python benchmarks/memory_disk.py [--chunks 32] [--folder DIR] [--out FILE.md]

Qwen2.5-VL-7B: 28 layers, 4 KV heads of size 128, bfloat16, width 3584; 224 x 224 pixels at 1 frame per second is 32
visual tokens per second; chunks of 8 frames. The KVs are random: sizes do not depend on them, and nothing here
compresses. Bytes are those of the files written, for 8 chunks, scaled to 450. Throughput counts bytes on disk; "cold"
drops the file cache before (posix_fadvise), "again" reads the same levels a second time, when their hashes are known to
be right; "copy" is shutil.copyfile of one file of the same size.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch

from videox2l.engine.cache import BufferCache
from videox2l.ingest import IngestSettings
from videox2l.memory.disk.folder import load, verify
from videox2l.memory.disk.reader import StoredLevels, fetch_into
from videox2l.memory.disk.stores import LocalStore
from videox2l.memory.disk.writer import Head, open_writer
from videox2l.memory.levels import Chunk, LevelKV, Levels
from videox2l.types import KVShape, VisualTokens

SHAPE = KVShape(28, 4, 128, torch.bfloat16)
WIDTH, FRAMES, TOKENS = 3584, 8, 256
RATIOS = (2.0, 32.0)
HOUR = 3600 // FRAMES
TIERS: dict[str, tuple[str, int | None, int | None]] = {
    "L and H at bfloat16": ("stored", None, None),
    "L and H in 8 bits": ("stored", 8, 8),
    "L in 4 bits, H in 8": ("stored", 4, 8),
    "L and H in 4 bits": ("stored", 4, 4),
    "L lazy (visual tokens), H at bfloat16": ("lazy", None, None),
    "L lazy, H in 8 bits": ("lazy", None, 8),
    "H alone at bfloat16 (one ratio)": ("none", None, None),
    "H alone in 8 bits": ("none", None, 8),
}


def chunk(number: int, tier: str) -> Chunk:
    """Return a chunk of random KVs."""
    n = TOKENS // int(RATIOS[0] if tier == "stored" else RATIOS[1])
    shape = (SHAPE.layers, SHAPE.heads, n, SHAPE.head_dim)
    index = torch.rand(shape[:3]).argsort(-1).int()
    level = LevelKV(torch.randn(shape).bfloat16(), torch.randn(shape).bfloat16(), index, ranked=True)
    levels = {RATIOS[1]: level} if tier != "stored" else {RATIOS[0]: level, RATIOS[1]: level.first(8)}
    positions = torch.arange(3 * TOKENS).reshape(3, -1)
    visual = VisualTokens(torch.randn(TOKENS, WIDTH).bfloat16(), positions, (4, 8, 8)) if tier == "lazy" else None
    at = float(FRAMES * number)
    return Chunk(at, at + FRAMES, FRAMES, positions, Levels(levels), visual, thumbnail=bytes(3000))


def write(folder: Path, chunks: list[Chunk], tier: str, l_bits: int | None, h_bits: int | None) -> float:
    """Write a memory; return the seconds."""
    ratios = RATIOS if tier != "none" else RATIOS[1:]
    stored = "lazy" if tier == "lazy" else "stored"
    settings = IngestSettings(ratios, "H", "keydiff", FRAMES, stored, l_bits, h_bits).to_dict()
    prefix = (torch.zeros(28, 4, 16, 128).bfloat16(), torch.zeros(28, 4, 16, 128).bfloat16())
    head = Head({}, settings, {"sha256": "0" * 64}, {"source": "random"}, SHAPE, ratios, "keep", prefix)
    begin = perf_counter()
    with open_writer(LocalStore(folder), head) as writer:
        for number, each in enumerate(chunks):
            frames = range(FRAMES * number, FRAMES * (number + 1))
            writer.add(each, [float(frame) for frame in frames], list(frames))
        writer.finish({"source": "random"})
    return perf_counter() - begin


def size_of(folder: Path) -> int:
    """Return the bytes of the files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def forget(folder: Path) -> None:
    """Drop files from the operating system's cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def read_all(folder: Path) -> tuple[float, float]:
    """Open a memory and bring every chunk's L into a cache, twice; return the seconds of both times."""
    memory = load(folder, cache_bytes=0)
    cache = BufferCache(SHAPE.layers, capacity=16 + 128 * len(memory))
    cache.append(*memory.prefix)
    jobs = []
    for each in memory.chunks:
        assert isinstance(each.levels, StoredLevels)
        jobs.append((each.levels, RATIOS[0], each.size(RATIOS[0]), cache.extend(each.size(RATIOS[0]))))
    for store in cache.stores:  # touch the pages first: a question's cache is warm as well
        store.keys.zero_()
        store.values.zero_()
    return timed(lambda: fetch_into(jobs)), timed(lambda: fetch_into(jobs))


def timed(work: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    begin = perf_counter()
    work()
    return perf_counter() - begin


def copy(source: Path, target: Path) -> None:
    """Copy a file and flush it."""
    shutil.copyfile(source, target)
    handle = os.open(target, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def throughput(root: Path, chunks: list[Chunk], repeats: int) -> list[str]:
    """Return rows: what, MB/s (median of the repeats, and the range)."""
    found: dict[str, list[float]] = {}

    def note(what: str, size: float, seconds: float) -> None:
        found.setdefault(what, []).append(size / 1e6 / seconds)

    for _ in range(repeats):
        for name in ("16", "8"):
            folder = root / name
            shutil.rmtree(folder, ignore_errors=True)
            bits = None if name == "16" else 8
            seconds = write(folder, chunks, "stored", bits, bits)
            size = size_of(folder)
            label = "bfloat16" if bits is None else "8 bits"
            note(f"write chunk by chunk, flushed ({label})", size, seconds)
            forget(folder)
            note(f"read all L into a cache, cold, hashed ({label})", size, read_all(folder)[0])
            first, again = read_all(folder)
            note(f"read all L into a cache, warm, hashed ({label})", size, first)
            note(f"read all L into a cache, again ({label})", size, again)
            note(f"verify, warm ({label})", size, timed(lambda folder=folder: verify(folder)))
        whole = root / "whole.bin"
        whole.write_bytes(b"".join(path.read_bytes() for path in sorted((root / "16").rglob("*.safetensors"))))
        size = whole.stat().st_size
        note("copy: one file of the size, flushed", size, timed(lambda whole=whole: copy(whole, root / "copy.bin")))
        note("copy: the same, not flushed", size, timed(lambda whole=whole: shutil.copyfile(whole, root / "copy.bin")))
        buffer = bytearray(size)
        with whole.open("rb", buffering=0) as file:
            note("read one file, warm, not hashed", size, timed(lambda file=file, buffer=buffer: file.readinto(buffer)))
    return [
        f"| {what} | {statistics.median(rates):.0f} | {min(rates):.0f}-{max(rates):.0f} |"
        for what, rates in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; by default a temporary folder")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lines = ["| kept | MB per hour of video | of full KV |", "| --- | --- | --- |"]
    full = HOUR * TOKENS * SHAPE.token_bytes
    lines.append(f"| (full KV) | {full / 1e6:,.0f} | 100 % |")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        root = Path(name)
        for label, (tier, l_bits, h_bits) in TIERS.items():
            few = [chunk(number, tier) for number in range(8)]
            write(root / "a", few, tier, l_bits, h_bits)
            hour = size_of(root / "a") * HOUR / len(few)
            lines.append(f"| {label} | {hour / 1e6:,.0f} | {hour / full:.1%} |")
            shutil.rmtree(root / "a")
        chunks = [chunk(number, "stored") for number in range(args.chunks)]
        lines += ["", "| what | MB/s, median | range |", "| --- | --- | --- |", *throughput(root, chunks, args.repeats)]
    lines += [
        "",
        f"torch {torch.__version__}, 1 thread, {platform.machine()}, {os.cpu_count()} cores, {args.repeats} runs.",
    ]
    text = "\n".join(lines)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
