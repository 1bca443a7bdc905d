"""Does escalation save re-loaded bytes at equal accuracy? Thresholds against fixed numbers of chunks.

    python benchmarks/escalation.py [--frames 64 256] [--questions 300] [--split dev] [--most 5] [--out FILE.md]

Every question (of the haystack) is answered with 0, 1, ... chunks re-loaded, best first; each such answer is one step
of an escalation, and the answer of a fixed number of chunks. What a threshold would have done follows from them; the
first questions are also asked with `escalate=` itself, which must agree. Bytes: KVs finer than H that are brought to
the device. Prefills: how often the question is read. p compares with the fixed number of chunks that re-loads at least
as much on average, by flipping whole videos; intervals are 95 % bootstrap intervals over videos.
"""

from __future__ import annotations

import argparse
import platform
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import torch
import transformers

from videox2l import Escalation, VideoX2L
from videox2l.ask.run import QuestionRun, run_question
from videox2l.ask.view import View
from videox2l.evaluate.base import BenchmarkOptions
from videox2l.evaluate.haystack import Haystack
from videox2l.evaluate.statistics import cluster_bootstrap, sign_flip
from videox2l.options import DEFAULT_SELECTOR, AskOptions
from videox2l.version import __version__

THRESHOLDS = (0.01, 0.03, 0.1, 0.3, 0.5, 1.0)
WAYS = ((0, "first"), (0, "mean"), (1, "first"), (1, "mean"))
CHECKED = 20


@dataclass(frozen=True)
class Rung:
    """One question with so many chunks re-loaded: whether the answer is right, and its entropies by measure."""

    text: str
    right: float
    entropy: dict[str, float]
    bytes: int


@dataclass(frozen=True)
class Asked:
    """One question, and its answers with 0, 1, ... chunks re-loaded."""

    frames: int
    video: str
    rungs: tuple[Rung, ...]


Policy = Callable[[Sequence[Rung]], int]


def stop_at(measure: str, below: float, start: int = 0, unchanged: bool = False) -> Policy:
    """Return which rung an escalation ends on that begins with `start` chunks."""

    def policy(rungs: Sequence[Rung]) -> int:
        for i, rung in enumerate(rungs[start:], start):
            same = unchanged and i > start and rungs[i - 1].text == rung.text
            if rung.entropy[measure] <= below or (same and rung.entropy[measure] < rungs[i - 1].entropy[measure]):
                return i
        return len(rungs) - 1

    return policy


def ask_all(x2l: VideoX2L, frames: int, questions: int, split: str, most: int) -> list[Asked]:
    """Answer the questions of one video length with every number of chunks."""
    bench = Haystack(BenchmarkOptions(split=split, frames=frames, questions=questions))
    found: list[Asked] = []
    memory, at = None, ""
    for sample in bench.samples():
        if sample.video != at:
            with bench.open(sample.video) as source:
                memory, at = x2l.ingest(source), sample.video
        assert memory is not None
        rungs: list[Rung] = []
        for k in range(min(most, len(memory)) + 1):
            # A threshold that is always met: one step, whose entropies are looked at.
            wish = Escalation(below=1e9, start=k, measure="mean")
            options = AskOptions(reload=k, escalate=wish, max_new_tokens=bench.max_new_tokens)
            outcome = run_question(QuestionRun.of(x2l.backbone, View.of(memory), sample.question, options))
            answer = outcome.answer
            first = Escalation(measure="first")
            entropy = {"mean": wish.entropy(outcome.generator), "first": first.entropy(outcome.generator)}
            right = bench.score(sample, answer.text) or 0.0
            rungs.append(Rung(answer.text, right, entropy, answer.cost.reloaded_bytes))
        if len(found) < CHECKED:
            wish = Escalation(below=0.1, start=0)
            answer = x2l.ask(
                memory, sample.question, reload=len(rungs) - 1, escalate=wish, max_new_tokens=bench.max_new_tokens
            )
            expect = rungs[stop_at(wish.measure, wish.below)(rungs)]
            if (answer.text, answer.cost.reloaded_bytes) != (expect.text, expect.bytes):
                raise SystemExit(f"escalation disagrees with its steps: {sample.question!r}: {answer.steps}")
        found.append(Asked(frames, sample.video, tuple(rungs)))
    return found


def table(asked: Sequence[Asked], most: int) -> list[str]:
    """Return the Markdown table of one video length."""
    fixed = {k: _outcomes(asked, lambda rungs, k=k: min(k, len(rungs) - 1)) for k in range(most + 1)}
    mean_bytes = {k: fmean(o[1] for o in outcomes) for k, outcomes in fixed.items()}
    lines = ["| | right | chunks | kB re-loaded | prefills | p |", "|" + " --- |" * 6]
    for k, outcomes in fixed.items():
        lines.append(_line(f"fixed: {k}", asked, outcomes, prefills=1.0, p=""))
    policies = {
        f"from {start}, {m} below {t:g}": (start, stop_at(m, t, start)) for start, m in WAYS for t in THRESHOLDS
    }
    policies |= {f"from 1, mean below {t:g}, or unchanged": (1, stop_at("mean", t, 1, True)) for t in THRESHOLDS[:3]}
    for name, (start, policy) in policies.items():
        outcomes = _outcomes(asked, policy)
        spent = fmean(o[1] for o in outcomes)
        rival = next((k for k in range(most + 1) if mean_bytes[k] >= spent), most)
        by_video: dict[str, float] = defaultdict(float)
        for one, mine, theirs in zip(asked, outcomes, fixed[rival], strict=True):
            by_video[one.video] += mine[0] - theirs[0]
        p = f"{sign_flip(list(by_video.values())):.2g} against {rival}"
        lines.append(_line(name, asked, outcomes, prefills=fmean(o[2] - start + 1 for o in outcomes), p=p))
    return lines


def _outcomes(asked: Sequence[Asked], policy: Policy) -> list[tuple[float, int, int]]:
    """Return right, bytes and rung of each question."""
    ends = [(one, policy(one.rungs)) for one in asked]
    return [(one.rungs[end].right, one.rungs[end].bytes, end) for one, end in ends]


def _line(
    name: str, asked: Sequence[Asked], outcomes: Sequence[tuple[float, int, int]], prefills: float, p: str
) -> str:
    groups: dict[str, list[float]] = defaultdict(list)
    for one, (right, _, _) in zip(asked, outcomes, strict=True):
        groups[one.video].append(right)
    found = cluster_bootstrap(list(groups.values()))
    chunks, size = fmean(o[2] for o in outcomes), fmean(o[1] for o in outcomes) / 1000
    share = f"{100 * found.mean:.1f} ({100 * found.low:.0f}-{100 * found.high:.0f})"
    return f"| {name} | {share} | {chunks:.2f} | {size:.1f} | {prefills:.2f} | {p} |"


def right_by_doubt(asked: Sequence[Asked]) -> str:
    """Return how entropy goes with being right, over H alone."""
    sure = sorted(((one.rungs[0].entropy["first"], one.rungs[0].right) for one in asked), key=lambda pair: pair[0])
    third = len(sure) // 3
    parts = [sure[:third], sure[third : 2 * third], sure[2 * third :]]
    told = ", ".join(
        f"{100 * fmean(r for _, r in part):.0f} % right (median {median(e for e, _ in part):.2g} nats)"
        for part in parts
    )
    return f"From H, the surest, middle and least sure third of the questions: {told}."


def main() -> None:
    """Run the benchmark and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--questions", type=int, default=300, help="per video length")
    parser.add_argument("--split", default="dev", choices=["dev", "heldout"])
    parser.add_argument("--most", type=int, default=5, help="chunks to re-load at most")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    x2l = VideoX2L.from_pretrained(args.model)
    lines = [
        f"Model {args.model}, split {args.split}, levels 1/2 and 1/32, selector {DEFAULT_SELECTOR}. "
        f"videox2l {__version__}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{platform.machine()} CPU, float32."
    ]
    for frames in args.frames:
        asked = ask_all(x2l, frames, args.questions, args.split, args.most)
        lines += ["", f"### {frames} frames, {len(asked)} questions", "", right_by_doubt(asked), ""]
        lines += table(asked, args.most)
    text = "\n".join([*lines, ""])
    print(text)
    if args.out is not None:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
