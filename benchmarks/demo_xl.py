"""Accuracy under summary tokens: demo-xl on held-out videos, for every mode of the prefill.

    python benchmarks/demo_xl.py [--frames 64] [--questions 300] [--out FILE.md]

All modes and methods answer the same questions about the same videos. Intervals are 95 % bootstrap intervals over
videos; p is McNemar's exact test against the same method in mode own.
"""

from __future__ import annotations

import argparse
import platform
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from videox2l import ArraySource, Memory, VideoX2L
from videox2l.demo.questions import MIX, WorldQuestion, make_questions
from videox2l.demo.world import make_video
from videox2l.evaluate.statistics import cluster_bootstrap, mcnemar
from videox2l.select import AttentionSelector, ManualSelector, RandomSelector, TopK
from videox2l.version import __version__

PER_VIDEO = 4

MODES: dict[str, dict[str, Any]] = {
    "own": {"history": "own"},
    "H": {"history": "H"},
    "fused": {"history": "fused"},
    "lazy": {"history": "H", "l_tier": "lazy"},
}
METHODS = (
    "H only",
    "L only",
    "two levels, true chunks",
    "two levels, default selector",
    "two levels, attention at H alone",
    "two levels, random chunks",
)
Outcome = tuple[int, str, bool, int]  # video, kind, right, tokens attended


def moments(question: WorldQuestion) -> list[tuple[float, float]]:
    """Return the seconds of all events that a question needs; a frame is a second."""
    return [(float(start), float(end)) for start, end in question.moments]


def answer(
    x2l: VideoX2L, memory: Memory, method: str, text: str, true: list[tuple[float, float]], reload: int, seed: int
) -> Any:
    """Ask one question in the way of a method."""
    how: dict[str, Any] = {"reload": reload}
    if method == "H only":
        how = {"reload": "none"}
    elif method == "L only":
        how = {"reload": "all"}
    elif method.endswith("true chunks"):
        chunks = {i for start, end in true for i in memory.chunks_within(start, end)}
        how = {"reload": TopK(len(chunks)), "selector": ManualSelector(true)}
    elif method.endswith("attention"):
        how["selector"] = "attention"
    elif method.endswith("at H alone"):
        how["selector"] = AttentionSelector(shortlist=0)
    elif method.endswith("random chunks"):
        how["selector"] = RandomSelector(seed)
    return x2l.ask(memory, text, max_new_tokens=6, **how)


def run(frames: int, questions: int, ratios: tuple[float, float], reload: int) -> dict[tuple[str, str], list[Outcome]]:
    """Answer `questions` questions with every method in every mode, and with the demo model's full KV."""
    x2l, demo = VideoX2L.from_pretrained("demo-xl"), VideoX2L.from_pretrained("demo")
    found: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    seed = asked = 0
    while asked < questions:
        video = make_video(10_000 + seed, frames, "heldout")
        batch = make_questions(video, np.random.default_rng([frames, seed]), PER_VIDEO)[: questions - asked]
        pictures = video.render()
        full = demo.ingest(ArraySource(pictures), ratios=(1,), history="L")
        memories = {mode: x2l.ingest(ArraySource(pictures), ratios=ratios, **how) for mode, how in MODES.items()}
        for number, question in enumerate(batch):

            def note(mode: str, method: str, said: Any, seed: int = seed, question: Any = question) -> None:
                found[mode, method].append((seed, question.kind, said.text == question.answer, said.cost.tokens))

            note("", "demo model, full KV", demo.ask(full, question.question, reload="all", max_new_tokens=6))
            true = moments(question)
            for mode, memory in memories.items():
                for method in METHODS:
                    said = answer(x2l, memory, method, question.question, true, reload, PER_VIDEO * seed + number)
                    note(mode, method, said)
        asked += len(batch)
        seed += 1
    return found


def table(found: dict[tuple[str, str], list[Outcome]]) -> list[str]:
    """Return the Markdown table."""
    lines = [
        f"| method | mode | tokens attended | all kinds | {' | '.join(MIX)} | p vs. own |",
        "|" + " --- |" * (5 + len(MIX)),
    ]
    keys = [("", "demo model, full KV"), *((mode, method) for method in METHODS for mode in MODES)]
    for mode, method in keys:
        mine = found[mode, method]
        cells = [accuracy(mine)] + [accuracy([row for row in mine if row[1] == kind], False) for kind in MIX]
        own = found.get(("own", method), [])
        p = f"{mcnemar([row[2] for row in mine], [row[2] for row in own]):.2g}" if mode not in ("", "own") else ""
        tokens = np.mean([row[3] for row in mine])
        lines.append(f"| {method} | {mode} | {tokens:.0f} | {' | '.join(cells)} | {p} |")
    return lines


def accuracy(rows: Sequence[Outcome], interval: bool = True) -> str:
    groups: dict[int, list[float]] = defaultdict(list)
    for video, _, right, _ in rows:
        groups[video].append(float(right))
    share = cluster_bootstrap(list(groups.values()))
    ends = f" ({100 * share.low:.0f}-{100 * share.high:.0f})" if interval else ""
    return f"{100 * share.mean:.0f}{ends}" if rows else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[64])
    parser.add_argument("--questions", type=int, default=300, help="per video length")
    parser.add_argument("--ratios", default="2,32")
    parser.add_argument("--reload", type=int, default=2)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    fine, coarse = (float(part) for part in given.ratios.split(","))
    lines = [
        f"demo-xl, held-out videos, chunks of 8 frames, L 1/{fine:g}, H 1/{coarse:g}, first and last chunk 1/2, "
        f"{given.reload} chunks re-loaded. videox2l {__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, {platform.machine()} CPU, float32."
    ]
    for frames in given.frames:
        lines += ["", f"### {frames} frames, {given.questions} questions", ""]
        lines += table(run(frames, given.questions, (fine, coarse), given.reload))
    text = "\n".join([*lines, ""])
    print(text)
    if given.out is not None:
        given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
