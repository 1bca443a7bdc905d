"""Does the selector find the chunk? Recall of the chunks that hold a question's events, and drift.

    python benchmarks/selection.py [--frames 64 180] [--questions 200] [--split dev] [--out FILE.md]

For each variant: the share of events among the top 1, 3 and 5 chunks (a question may have several events), and whether
scores drift: the mean score of the last third of the chunks over that of the first third, chunks with events left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from demo_accuracy import PER_VIDEO, moments

from videox2l import ArraySource, VideoX2L
from videox2l.demo.questions import ask
from videox2l.demo.world import make_video
from videox2l.select import AttentionSelector, RandomSelector, Selector

TOP = (1, 3, 5)
# variant: compressor, ratios, selector
KEYDIFF = ("keydiff", (2.0, 32.0))
VARIANTS: dict[str, tuple[str, tuple[float, float], Callable[[], Selector]]] = {
    "last token, two looks (default)": (*KEYDIFF, AttentionSelector),
    "... shortlist of 6": (*KEYDIFF, lambda: AttentionSelector(shortlist=6)),
    "... one look, over H alone": (*KEYDIFF, lambda: AttentionSelector(shortlist=0)),
    "... one look, all chunks at L": (*KEYDIFF, lambda: AttentionSelector(shortlist=10**6)),
    "... plain mass, not shares per head": (*KEYDIFF, lambda: AttentionSelector(per_head=False)),
    "... without layer 0": (*KEYDIFF, lambda: AttentionSelector(layers=(1, 2, 3))),
    "best token": (*KEYDIFF, lambda: AttentionSelector("max")),
    "best and last token": (*KEYDIFF, lambda: AttentionSelector("max+last")),
    "mean of all tokens": (*KEYDIFF, lambda: AttentionSelector("mean")),
    "default, H = 1/16": ("keydiff", (2, 16), AttentionSelector),
    "default, snap": ("snap", (2, 32), AttentionSelector),
    "default, pool": ("pool", (2, 32), AttentionSelector),
    "default, uniform stride": ("uniform", (2, 32), AttentionSelector),
    "random": (*KEYDIFF, RandomSelector),
}


def measure(x2l: VideoX2L, frames: int, questions: int, split: str, crowded: bool) -> list[str]:
    """Return the table of one video length."""
    found: dict[str, list[list[float]]] = {name: [] for name in VARIANTS}
    drift: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for seed in range(questions // PER_VIDEO):
        # Crowded: as in the files that `x2l demo` renders, always as many events as fit, one thing repeated.
        options = {"gap": 4, "lead": 3, "repeats": 0.9, "spread": True} if crowded else {}
        video = make_video(10_000 + seed, frames, split, **options)  # type: ignore[arg-type]
        pictures = video.render()
        asked = ask(video, np.random.default_rng([frames, seed]), PER_VIDEO)
        kinds = {(compressor, ratios) for compressor, ratios, _ in VARIANTS.values()}
        memories = {
            kind: x2l.ingest(ArraySource(pictures), compressor=kind[0], ratios=kind[1]) for kind in sorted(kinds)
        }
        for number, question in enumerate(asked):
            true = moments(question)
            if not true:
                continue
            prompt = x2l.backbone.suffix(question.question)
            for name, (compressor, ratios, make) in VARIANTS.items():
                memory = memories[compressor, ratios]
                selector = RandomSelector(PER_VIDEO * seed + number) if name == "random" else make()
                scores = selector.score(prompt, memory, x2l.backbone)
                order = scores.argsort(descending=True).tolist()
                events = [set(memory.chunks_within(*moment)) for moment in true]
                found[name].append([float(np.mean([bool(e & set(order[:k])) for e in events])) for k in TOP])
                drift[name].append(_drift(scores, set().union(*events)))
    lines = ["| variant | " + " | ".join(f"top {k}" for k in TOP) + " | drift |", "|" + " --- |" * (2 + len(TOP))]
    for name, rows in found.items():
        cells = " | ".join(f"{100 * x:.0f} %" for x in np.mean(rows, 0))
        lines.append(f"| {name} | {cells} | {np.nanmedian(drift[name]):.2f} |")
    return lines


def _drift(scores: torch.Tensor, events: set[int]) -> float:
    third = len(scores) // 3
    early = [float(scores[i]) for i in range(third) if i not in events]
    late = [float(scores[i]) for i in range(len(scores) - third, len(scores)) if i not in events]
    return float(np.mean(late) / np.mean(early)) if early and late else float("nan")


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
    for crowded in (False, True):
        for frames in args.frames:
            kind = "as many events as fit" if crowded else "2 to 8 events"
            lines += ["", f"### {frames} frames, {kind}, {args.questions} questions, split {args.split}", ""]
            lines += measure(x2l, frames, args.questions, args.split, crowded)
    text = "\n".join([*lines, ""])
    print(text)
    if args.out is not None:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
