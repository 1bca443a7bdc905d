"""What sampling a video costs: CPU time and memory of the reader's modes.

    python benchmarks/video_sampling.py                        # 5 minutes of 1280x720, takes several minutes
    python benchmarks/video_sampling.py --seconds 20 --size 640x360
    python benchmarks/video_sampling.py --video lecture.mp4    # a video of yours

Makes an H.264 video with x264's default settings (B-frames that other frames refer to, key frames up to 250 frames
apart), then reads it in each mode, each in a fresh process. CPU time includes all threads, and the opening of the file
(scan of the packets, SHA-256). "decoded" counts the frames that the decoder gave out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np

from videox2l.video import FrameSampling, VideoReader


def make_video(path: Path, seconds: float, width: int, height: int, rate: int) -> None:
    """A scrolling texture with two moving boxes and light noise; a new scene every 20 seconds."""
    rng = np.random.default_rng(0)
    noise = rng.integers(-4, 5, (height + 64, width + 64, 1), dtype=np.int8)
    with av.open(str(path), "w") as box:
        stream = box.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(round(seconds * rate)):
            if index % (20 * rate) == 0:
                cells = rng.integers(0, 200, (height // 16, width // 16, 3), dtype=np.uint8)
                texture = np.tile(cells.repeat(32, 0).repeat(32, 1), (2, 2, 1))
            y, x = index % height, index * 2 % width
            picture = texture[y : y + height, x : x + width].astype(np.int16)
            dy, dx = rng.integers(0, 64, 2)
            picture += noise[dy : dy + height, dx : dx + width]
            for k, speed in enumerate((5, 9)):
                left = index * speed % (width - width // 8)
                top = height * (k + 1) // 4
                picture[top : top + height // 6, left : left + width // 8] = (40 + 150 * k, index % 200, 220 - 90 * k)
            image = picture.clip(0, 255).astype(np.uint8)
            box.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        box.mux(stream.encode())


def measure(path: Path, sampling: FrameSampling) -> None:
    """Read a video once and print what it cost; runs in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    with VideoReader(path, sampling) as reader:
        frames = sum(1 for _ in reader)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    unit = 2**20 if sys.platform == "darwin" else 2**10
    print(
        json.dumps(
            {
                "frames": frames,
                "cpu": cpu,
                "wall": wall,
                "rss": after.ru_maxrss / unit,
                "decoded": reader.frames_decoded,
                "shift": reader.manifest.shift,
                "used": reader.manifest.mode_used,
            }
        )
    )


def table(path: Path, samplings: list[FrameSampling], repeats: int) -> None:
    with VideoReader(path) as reader:
        facts = reader.manifest
    print(
        f"{facts.width}x{facts.height} {facts.codec}, {facts.duration:.1f} s, {facts.frames} frames, "
        f"{path.stat().st_size / 1e6:.1f} MB; best of {repeats}"
    )
    print(f"PyAV {av.__version__}, Python {platform.python_version()}, {os.cpu_count()} CPUs {platform.machine()}\n")
    print("| samples | mode (used) | CPU s | wall s | peak RSS MB | decoded | largest move s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for sampling in samplings:
        wish = f"{sampling.fps:g} fps" if sampling.fps else f"{sampling.max_frames} spread"
        command = [sys.executable, __file__, "--video", str(path), "--measure", json.dumps(asdict(sampling))]
        runs = [
            json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            for _ in range(repeats)
        ]
        best = min(runs, key=lambda run: run["cpu"])
        print(
            f"| {best['frames']} ({wish}) | {sampling.mode} ({best['used']}) | {best['cpu']:.2f} | {best['wall']:.1f} "
            f"| {best['rss']:.0f} | {best['decoded']} | {best['shift']:.3f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--video", type=Path, help="a video to read, instead of a generated one")
    parser.add_argument("--seconds", type=float, default=300.0, help="length of the generated video")
    parser.add_argument("--size", default="1280x720", help="its width x height")
    parser.add_argument("--rate", type=int, default=30, help="its frames per second")
    parser.add_argument("--fps", type=float, default=1.0, help="samples per second")
    parser.add_argument("--max-frames", type=int, default=64, help="and as a second case: so many, spread evenly")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.video, FrameSampling(**json.loads(options.measure)))
        return
    wishes = [{"fps": options.fps}, {"fps": None, "max_frames": options.max_frames}]
    samplings = [FrameSampling(**wish, mode=mode) for wish in wishes for mode in ("exact", "auto", "fast")]
    with tempfile.TemporaryDirectory() as folder:
        path = options.video or Path(folder) / "generated.mp4"
        if not options.video:
            width, height = map(int, options.size.split("x"))
            make_video(path, options.seconds, width, height, options.rate)
        table(path, samplings, options.repeats)


if __name__ == "__main__":
    main()
