"""What compressor, history and ratio do to accuracy on the demo model: one table for choosing defaults.

    python benchmarks/settings.py [--frames 64 180] [--questions 200] [--split dev] [--out FILE.md]

Every row answers the same questions about the same videos: all chunks at L, all at H, and two levels with the default
selector. Settings are chosen on the development split only.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from demo_accuracy import PER_VIDEO

from videox2l import ArraySource, VideoX2L
from videox2l.demo.questions import ask
from videox2l.demo.world import make_video
from videox2l.evaluate.statistics import cluster_bootstrap

# compressor, history, ratios
ROWS: list[tuple[str, str, tuple[float, float]]] = [
    ("keydiff", "H", (2, 32)),
    ("keydiff", "recent:2", (2, 32)),
    ("keydiff", "L", (2, 32)),
    ("keydiff", "own", (2, 32)),
    ("keydiff", "H", (2, 16)),
    ("keydiff", "H", (4, 32)),
    ("snap", "H", (2, 32)),
    ("pool", "H", (2, 32)),
    ("uniform", "H", (2, 32)),
    ("uniform", "L", (2, 32)),
]
RELOADS: dict[str, int | str] = {"L only": "all", "H only": "none", "two levels": 3}


def measure(x2l: VideoX2L, frames: int, questions: int, split: str) -> list[str]:
    """Return the table of one video length."""
    right: dict[tuple[int, str], list[list[float]]] = {}
    for seed in range(questions // PER_VIDEO):
        video = make_video(10_000 + seed, frames, split)
        pictures = video.render()
        asked = ask(video, np.random.default_rng([frames, seed]), PER_VIDEO)
        for row, (compressor, history, ratios) in enumerate(ROWS):
            memory = x2l.ingest(ArraySource(pictures), compressor=compressor, history=history, ratios=ratios)
            for name, reload in RELOADS.items():
                answers = [x2l.ask(memory, q.question, reload=reload, max_new_tokens=6).text for q in asked]
                outcomes = [float(text == q.answer) for text, q in zip(answers, asked, strict=True)]
                right.setdefault((row, name), []).append(outcomes)
    lines = [
        f"| compressor | history | ratios | {' | '.join(RELOADS)} |",
        "|" + " --- |" * (3 + len(RELOADS)),
    ]
    for row, (compressor, history, ratios) in enumerate(ROWS):
        cells = []
        for name in RELOADS:
            found = cluster_bootstrap(right[row, name])
            cells.append(f"{100 * found.mean:.0f} ({100 * found.low:.0f}-{100 * found.high:.0f})")
        pair = "/".join(f"{ratio:g}" for ratio in ratios)
        lines.append(f"| {compressor} | {history} | {pair} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Run the benchmark and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[64, 180])
    parser.add_argument("--questions", type=int, default=200, help="per video length")
    parser.add_argument("--split", default="dev", choices=["dev", "heldout"])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    x2l = VideoX2L.from_pretrained(args.model)
    lines = []
    for frames in args.frames:
        lines += ["", f"### {frames} frames, {args.questions} questions, split {args.split}", ""]
        lines += measure(x2l, frames, args.questions, args.split)
    text = "\n".join([*lines, ""])
    print(text)
    if args.out is not None:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
