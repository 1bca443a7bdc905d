"""Prefill windows: CPU seconds of an ingest and answers, with windows of 1, 4 and 16 chunks, on the same videos.

    OMP_NUM_THREADS=1 python benchmarks/windows.py [--questions 400] [--split heldout] [--write docs/performance.md]

Each video is ingested with every length of window, in an order that changes from video to video, and the same questions
are asked of each memory. Seconds are CPU time of the process; factors are medians over videos of pairs with windows of
one chunk.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from cpu_cost import timed

from videox2l import VideoX2L
from videox2l.evaluate.base import BenchmarkOptions
from videox2l.evaluate.document import Table, Text, to_markdown
from videox2l.evaluate.haystack import Haystack
from videox2l.evaluate.statistics import cluster_bootstrap, mcnemar
from videox2l.version import __version__

WINDOWS = (1, 4, 16)
RELOADS: tuple[Any, ...] = ("all", 4, "none")
CHUNK, RATIOS = 4, (2, 12)
BEGIN, END = "<!-- written by benchmarks/windows.py -->\n", "<!-- end of windows -->"


class Measured:
    """What is measured with windows of one length: seconds of each video, and which answers are right."""

    def __init__(self) -> None:
        self.seconds: list[dict[str, float]] = []
        self.right: dict[Any, dict[str, list[float]]] = {reload: defaultdict(list) for reload in RELOADS}

    def outcomes(self, reload: Any) -> list[float]:
        """Return 1 for each right answer and 0 for each other, in the order of the questions."""
        return [one for video in self.right[reload].values() for one in video]


def measure(x2l: VideoX2L, benchmark: Haystack) -> dict[int, Measured]:
    """Ingest every video with every length of window, and ask its questions."""
    found = {window: Measured() for window in WINDOWS}
    samples = benchmark.samples()
    videos = list(dict.fromkeys(sample.video for sample in samples))
    for number, video in enumerate([videos[0], *videos]):  # the first one once more: to warm up
        turn = number % len(WINDOWS)
        for window in WINDOWS[turn:] + WINDOWS[:turn]:
            taken: dict[str, float] = defaultdict(float)
            with benchmark.open(video) as source, timed(x2l, taken):
                start = time.process_time()
                memory = x2l.ingest(source, ratios=RATIOS, chunk_frames=CHUNK, window_chunks=window)
                taken["whole"] = time.process_time() - start
            if not number:
                continue
            found[window].seconds.append(taken)
            for sample in (sample for sample in samples if sample.video == video):
                for reload in RELOADS:
                    text = x2l.ask(memory, sample.question, reload=reload, max_new_tokens=12).text
                    found[window].right[reload][video].append(benchmark.score(sample, text) or 0.0)
    return found


def table(found: dict[int, Measured]) -> Table:
    """Return a row per length of window."""
    names = {"whole": "ingest", "visual_tokens": "vision", "forward": "decoder"}
    header = ["chunks per window", *(f"{name}, ms" for name in names.values()), "factor of decoder", "of ingest"]
    header += [f"right, reload {reload}" for reload in RELOADS]
    rows, one = [], found[1]
    for window, here in found.items():
        row = [str(window)]
        row += [f"{1e3 * median(taken[name] for taken in here.seconds):.1f}" for name in names]
        for name in ("forward", "whole"):
            pairs = zip(here.seconds, one.seconds, strict=True)
            row.append(f"{median(after[name] / before[name] for after, before in pairs):.2f}")
        for reload in RELOADS:
            share = cluster_bootstrap(list(here.right[reload].values()))
            right = f"{100 * share.mean:.1f} % ({100 * share.low:.0f} to {100 * share.high:.0f})"
            if window > 1:
                p = mcnemar([x > 0 for x in one.outcomes(reload)], [x > 0 for x in here.outcomes(reload)])
                right += f", p = {p:.2f}" if p >= 0.01 else ", p < 0.01"
            row.append(right)
        rows.append(row)
    return Table(header, rows)


def main() -> None:
    """Measure, print the table, and write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--split", default="heldout", choices=("dev", "heldout"))
    parser.add_argument("--write", type=Path, help="put the table into this page, between its marks")
    args = parser.parse_args()
    torch.set_num_threads(1)
    x2l = VideoX2L.from_pretrained("demo", device="cpu")
    asked = BenchmarkOptions(split=args.split, questions=args.questions, frames=args.frames)
    found = measure(x2l, Haystack(asked))
    said = (
        f"Model `demo`, haystack, split {args.split}, {args.frames} frames in chunks of {CHUNK}, ratios "
        f"{','.join(str(ratio) for ratio in RATIOS)}, {len(found[1].seconds)} videos, {args.questions} questions; one "
        f"thread of {platform.machine()}, torch {torch.__version__}, videox2l {__version__}. Medians over videos; "
        "95 % bootstrap intervals over videos; p: McNemar's test against windows of one chunk."
    )
    text = to_markdown([Text(said), table(found)], Path())
    print(text)
    if args.write is not None:
        page = args.write.read_text(encoding="utf-8")
        if BEGIN not in page or END not in page:
            raise SystemExit(f"{args.write} has no line {BEGIN.strip()!r} with {END!r} behind it: add both")
        before, _, rest = page.partition(BEGIN)
        args.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
