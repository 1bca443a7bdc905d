"""CPU seconds and operations of an ingest and of questions with the model that ships, at several lengths.

    OMP_NUM_THREADS=1 python benchmarks/cpu_cost.py --frames 64 256 1024

Two versions are compared in pairs: run it from one and from the other in turn, and take medians.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from videox2l import ArraySource, VideoX2L

QUESTION = "what digit appears with the red star ?"


class Operations(TorchDispatchMode):
    """Counts the operations that reach the device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one."""
        self.count += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def timed(x2l: VideoX2L, taken: dict[str, float]) -> Iterator[None]:
    """Add the CPU seconds of the vision tower and of the decoder's forwards to `taken`."""
    kind = type(x2l.backbone)
    own = {name: getattr(kind, name) for name in ("visual_tokens", "forward")}

    def wrapped(name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            start = time.process_time()
            found = own[name](*args, **options)
            taken[name] += time.process_time() - start
            return found

        return call

    try:
        for name in own:
            setattr(kind, name, wrapped(name))
        yield
    finally:
        for name, function in own.items():
            setattr(kind, name, function)


def shares(x2l: VideoX2L, source: ArraySource) -> str:
    """Ingest; return which part of the CPU seconds the vision tower and the decoder take."""
    taken = {"visual_tokens": 0.0, "forward": 0.0}
    with timed(x2l, taken):
        start = time.process_time()
        x2l.ingest(source)
        whole = time.process_time() - start
    return f"vision {taken['visual_tokens'] / whole:.0%}, decoder {taken['forward'] / whole:.0%}"


def main() -> None:
    """Print one line per length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[64, 256, 1024])
    args = parser.parse_args()
    torch.set_num_threads(1)
    x2l = VideoX2L.from_pretrained("demo", device="cpu")
    few = np.random.default_rng(0).integers(0, 255, (64, 96, 96, 3), np.uint8)
    x2l.ingest(ArraySource(few[:16], fps=1.0))  # warm
    for frames in args.frames:
        source = ArraySource(few[np.arange(frames) % 64], fps=1.0)
        start = time.process_time()
        memory = x2l.ingest(source)
        ingest = time.process_time() - start
        parts = shares(x2l, ArraySource(few[np.arange(frames) % 64], fps=1.0))
        seconds = []
        for _ in range(12):
            start = time.process_time()
            x2l.ask(memory, QUESTION, reload=4, max_new_tokens=4)
            seconds.append(time.process_time() - start)
        with Operations() as counted:
            x2l.ask(memory, QUESTION, reload=4, max_new_tokens=4)
        first, *later = seconds
        print(
            f"{frames} frames, {len(memory)} chunks: ingest {ingest:.2f} s ({parts}); "
            f"first question {1e3 * first:.1f} ms, each later one {1e3 * median(later):.1f} ms, "
            f"{counted.count} operations"
        )


if __name__ == "__main__":
    main()
