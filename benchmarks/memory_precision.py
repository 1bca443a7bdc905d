"""What 8 and 4 bits cost in accuracy: the demo model on held-out synthetic videos, the same questions for all.

    python benchmarks/memory_precision.py [--frames 64] [--questions 400] [--split heldout] [--out FILE.md]

Intervals are 95 % bootstrap intervals over videos; p is McNemar's exact test against the model's own dtype (float32);
"same" is the share of answers that are word for word those at the model's own dtype.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import numpy as np
import torch
import transformers

from videox2l import ArraySource, VideoX2L
from videox2l.demo.questions import make_questions
from videox2l.demo.world import make_video
from videox2l.evaluate.statistics import cluster_bootstrap, mcnemar
from videox2l.version import __version__

PER_VIDEO = 4
PRECISIONS: dict[str, tuple[int | None, int | None]] = {
    "float32 (the model's own)": (None, None),
    "L 8, H 8": (8, 8),
    "L 4, H 8": (4, 8),
    "L 8, H 4": (8, 4),
    "L 4, H 4": (4, 4),
}


def measure(x2l: VideoX2L, frames: int, questions: int, split: str) -> list[str]:
    """Return the table."""
    answers: dict[str, list[str]] = {name: [] for name in PRECISIONS}
    truths: list[str] = []
    for seed in range(questions // PER_VIDEO):
        video = make_video(10_000 + seed, frames, split)
        pictures = video.render()
        batch = make_questions(video, np.random.default_rng([frames, seed]), PER_VIDEO)
        for name, (l_bits, h_bits) in PRECISIONS.items():
            memory = x2l.ingest(ArraySource(pictures), l_bits=l_bits, h_bits=h_bits)
            answers[name] += [x2l.ask(memory, question.question, max_new_tokens=6).text for question in batch]
        truths += [question.answer for question in batch]
    base = next(iter(PRECISIONS))
    right = {name: [a == b for a, b in zip(found, truths, strict=True)] for name, found in answers.items()}
    lines = ["| precision | accuracy | p | same |", "| --- | --- | --- | --- |"]
    for name, found in answers.items():
        hits = [float(x) for x in right[name]]
        mean = cluster_bootstrap([hits[i : i + PER_VIDEO] for i in range(0, len(hits), PER_VIDEO)])
        p = "" if name == base else f"{mcnemar(right[name], right[base]):.2f}"
        same = np.mean([a == b for a, b in zip(found, answers[base], strict=True)])
        lines.append(f"| {name} | {mean.mean:.1%} [{mean.low:.1%}, {mean.high:.1%}] | {p} | {same:.1%} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--split", default="heldout")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = measure(VideoX2L.from_pretrained("demo"), args.frames, args.questions, args.split)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}"
    lines += [
        "",
        f"Demo model, {args.frames} frames, {args.questions} questions ({args.split}), ratios 2 and 32, keydiff, 3 of "
        f"{args.frames // 8} chunks re-loaded; videox2l {__version__}, {versions}.",
    ]
    print("\n".join(lines))
    if args.out is not None:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
