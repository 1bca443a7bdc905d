"""Videos in ten containers, with stretches of bytes flipped or zeroed: what is lost is told, near where it lies.

Frames carry their number, so that a frame at a wrong time counts as lost. X2L_FUZZ_ROUNDS=50 tries more.
"""

from __future__ import annotations

import os
import random
import re
import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from videox2l.errors import X2LError
from videox2l.video import FrameSampling, open_video

ROUNDS = int(os.environ.get("X2L_FUZZ_ROUNDS", "4"))
NEAR = 0.5  # seconds
KINDS = {
    "mp4": ("libx264", "mp4", 10),
    "mov": ("libx264", "mov", 10),
    "mkv": ("libx264", "matroska", 10),
    "ts": ("libx264", "mpegts", 10),
    "flv": ("libx264", "flv", 10),
    "avi": ("mpeg4", "avi", 10),
    "mpg": ("mpeg2video", "mpeg", 25),
    "webm": ("libvpx", "webm", 10),
    "3gp": ("mpeg4", "3gp", 10),
    "asf": ("mpeg4", "asf", 10),
}
SECONDS = 10
HEAD = 0.45
"""The share of a file that stays whole: headers, and the first frame. AVI files have a gap behind the header."""


def numbered(number: int) -> np.ndarray:
    """A picture with its number in eight columns, dark or bright."""
    image = np.full((64, 64, 3), 40, np.uint8)
    for bit in range(8):
        image[8:56, 8 * bit : 8 * bit + 8] = 220 if number >> bit & 1 else 40
    return image


def number_of(image: np.ndarray) -> int:
    grey = image.mean(2)
    return sum(int(grey[20:44, 8 * bit + 2 : 8 * bit + 6].mean() > 130) << bit for bit in range(8))


def write(path: Path, codec: str, container: str, rate: int) -> None:
    with av.open(str(path), "w", format=container) as box:
        stream = box.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.gop_size, stream.bit_rate = 10, 400_000
        for number in range(rate * SECONDS):
            frame = av.VideoFrame.from_ndarray(numbered(number % 256), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            box.mux(stream.encode(frame))
        box.mux(stream.encode())


def read(path: Path) -> tuple[list[tuple[float, int]], list[tuple[float, float]]]:
    """Return times and numbers of all frames, and the holes that are told; from where the file's own times begin."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_video(path, FrameSampling(fps=None)) as source:
            frames = [(frame.pts, number_of(frame.image)) for frame in source]
            told = (re.match(r"the first frame stands at ([\d.]+) s", text) for text in source.manifest.warnings)
            late = next((float(found[1]) for found in told if found), 0.0)
            holes = [(start + late, end + late) for start, end in source.manifest.holes]
            return [(pts + late, n) for pts, n in frames], [(0.0, late)] * bool(late) + holes


def untold(frames: list[tuple[float, int]], holes: list[tuple[float, float]], first: float, rate: int) -> list[float]:
    """Return the seconds of which no frame came that belongs there, and that no hole is near."""

    def belongs(pts: float, number: int) -> bool:
        off = (round((pts - first) * rate) - number) % 256
        return min(off, 256 - off) <= NEAR * rate

    good = np.array([pts for pts, number in frames if belongs(pts, number)] or [-1e9])
    times = first + np.arange(rate * SECONDS) / rate
    lost = [t for t in times if np.abs(good - t).min() > NEAR + 1 / rate]
    return [t for t in lost if not any(start - NEAR <= t <= end + NEAR for start, end in holes)]


def damaged(data: bytes, draw: random.Random, flip: bool, low: float = HEAD, high: float = 0.7) -> bytes:
    """Flip or zero one or two stretches that begin between two shares of a file, and end before its last fifth."""
    found, size = bytearray(data), len(data)
    for _ in range(draw.choice((1, 2))):
        start = draw.randrange(int(size * low), int(size * high))
        for at in range(start, min(start + draw.choice((64, 600, 3000, size // 12)), size * 8 // 10)):
            found[at] = found[at] ^ draw.randrange(256) if flip else 0
    return bytes(found)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_lost_is_told_where_it_lies(kind: str, tmp_path: Path) -> None:
    codec, container, rate = KINDS[kind]
    path = tmp_path / f"whole.{kind}"
    write(path, codec, container, rate)
    whole, holes = read(path)
    first = whole[0][0]
    assert holes == []
    assert [number for _, number in whole] == [number % 256 for number in range(rate * SECONDS)]
    # negative control: frames that stand too early, and a hole at the end alone, are found
    shifted = [(pts, number) for pts, number in whole if number % 256 < 30] + [
        (pts - 3.0, number) for pts, number in whole if number % 256 >= 30 + 3 * rate
    ]
    assert untold(shifted, [(first + SECONDS - 3, first + SECONDS)], first, rate)
    data, told = path.read_bytes(), 0
    for seed in range(ROUNDS):
        broken = tmp_path / f"broken-{seed}.{kind}"
        broken.write_bytes(damaged(data, random.Random(seed), flip=seed % 2 == 0))
        try:
            frames, holes = read(broken)
        except X2LError:
            told += 1
            continue
        told += bool(holes)
        # an MPEG program stream does not say where it ends
        end = first + SECONDS - (2 * NEAR if kind == "mpg" else 0)
        assert [t for t in untold(frames, holes, first, rate) if t < end] == [], f"seed {seed}: {holes}"
    assert told > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_beginning_that_is_lost_is_told_at_the_beginning(kind: str, tmp_path: Path) -> None:
    codec, container, rate = KINDS[kind]
    path = tmp_path / f"whole.{kind}"
    write(path, codec, container, rate)
    first, data = read(path)[0][0][0], path.read_bytes()
    tried = 0
    for seed in range(3 * ROUNDS):
        broken = tmp_path / f"broken-{seed}.{kind}"
        broken.write_bytes(damaged(data, random.Random(seed), seed % 2 == 0, 0.02, 0.3))
        try:
            frames, holes = read(broken)
        except X2LError:
            continue
        tried += 1
        end = first + SECONDS - (2 * NEAR if kind == "mpg" else 0)
        assert [t for t in untold(frames, holes, first, rate) if t < end] == [], f"seed {seed}: {holes}"
    assert tried > 0


@pytest.mark.parametrize("place", ["time", "composition"])
@pytest.mark.parametrize("byte", [0, 1])
def test_an_flv_whose_times_are_flipped(byte: int, place: str, tmp_path: Path) -> None:
    """One byte of the time of one tag, in the order of its bytes: 65536 and 256 ms."""
    path = tmp_path / "whole.flv"
    write(path, "libx264", "flv", 10)
    data, (whole, _) = bytearray(path.read_bytes()), read(path)
    at, tags = 13, []
    while at < len(data) - 15:
        size = int.from_bytes(data[at + 1 : at + 4])
        tags += [at] if data[at] == 9 and data[at + 12] == 1 else []
        at += 11 + size + 4
    assert len(tags) == len(whole)
    for number in (1, 40, 41, 77):
        changed = bytearray(data)
        changed[tags[number] + (4 if place == "time" else 13) + byte] ^= 0x21
        path.write_bytes(changed)
        frames, holes = read(path)
        assert untold(frames, holes, whole[0][0], 10) == []
        assert len(frames) >= len(whole) - (place == "composition")
        off = [abs(pts - number / 10 - whole[0][0]) for pts, number in frames]
        assert max(off) <= NEAR
