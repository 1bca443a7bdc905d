"""Can an answer tell that the video does not show what is asked? Signals, a threshold, and risk against coverage.

    python benchmarks/abstain.py [--model demo] [--frames 64] [--questions 150] [--out FILE.md] [--plot FILE.png]

Questions of the haystack (digit, colour, shape), and for each one of the same kind about the same video that it cannot
answer: about a thing that is not in it (most share a colour or a shape with one that is), or a digit that nothing
carries. Signals of the answer that the model gives to each, all per token: entropy and log likelihood; what the
log likelihood gains against the same prompt without the video, against H alone, and against chunks re-loaded at random;
and the best score of the selector. AUROC: how often a signal puts a question with an answer above one without.
The threshold is the one with most right decisions on the development split: a right answer, or none where there is
none. Risk: the share of wrong answers among those that are given, the surest first; `--plot` draws it over the share
that is given. Intervals are 95 % bootstrap intervals over videos.
"""

from __future__ import annotations

import argparse
import platform
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import numpy.typing as npt
import torch
import transformers

from videox2l import Memory, VideoX2L
from videox2l.demo.cast import all_things, near_misses
from videox2l.demo.questions import PHRASES
from videox2l.demo.world import WorldVideo
from videox2l.evaluate.base import BenchmarkOptions, Sample
from videox2l.evaluate.generated import said
from videox2l.evaluate.haystack import Haystack
from videox2l.evaluate.plots import COLOURS, INK, OURS_COLOUR, PALE, figure
from videox2l.evaluate.statistics import cluster_bootstrap
from videox2l.version import __version__

OTHER = "? ?"  # a second choice, so that the answer can be weighed
SIGNALS = ("log likelihood", "entropy", "against no video", "against H alone", "against random chunks", "best score")


@dataclass(frozen=True)
class Asked:
    """One question: whether the video shows its answer, whether the model gave it, and the signals."""

    video: str
    shown: bool
    right: bool
    signals: dict[str, float]


def impossible(sample: Sample, video: WorldVideo, rng: np.random.Generator) -> str:
    """Return a question of the same kind that the video cannot answer, or nothing."""
    if sample.kind == "digit":
        near = near_misses(video.things)
        absent = near if near and rng.random() < 0.7 else [thing for thing in all_things() if thing not in video.things]
        names = [" ".join(thing) for thing in absent]
    else:
        carried = {event.digit for event in video.events}
        names = [str(digit) for digit in range(10) if digit not in carried]
    phrases = PHRASES[sample.kind]
    return phrases[int(rng.integers(len(phrases)))].format(names[int(rng.integers(len(names)))]) if names else ""


def signals_of(x2l: VideoX2L, memory: Memory, question: str) -> tuple[str, dict[str, float]]:
    """Return the answer to a question, and its signals."""
    answer = x2l.ask(memory, question, reload=3, max_new_tokens=8)
    if answer.confidence is None:
        return "", {}

    def weighed(reload: int, selector: str, calibrate: bool = False) -> tuple[float, float]:
        options = {"reload": reload, "selector": selector, "calibrate": calibrate}
        choice = x2l.ask(memory, question, choices=[answer.text, OTHER], **options).choices[0]
        return choice.mean, (choice.calibrated or 0.0) / choice.tokens

    here, gain = weighed(3, "exact", calibrate=True)
    found = (
        answer.confidence.log_likelihood,
        -answer.confidence.entropy,
        gain,
        here - weighed(0, "exact")[0],
        here - weighed(3, "random")[0],
        max(moment.score or 0.0 for moment in answer.evidence),
    )
    return answer.text, dict(zip(SIGNALS, found, strict=True))


def ask_all(x2l: VideoX2L, split: str, frames: int, questions: int) -> list[Asked]:
    """Ask what has an answer, and what has none, in equal number."""
    options = BenchmarkOptions(split=split, frames=frames, questions=questions, tasks=("digit", "colour", "shape"))
    bench, found, memories = Haystack(options), list[Asked](), dict[str, Memory]()
    for number, sample in enumerate(bench.samples()):
        if sample.video not in memories:
            with bench.open(sample.video) as source:
                memories = {sample.video: x2l.ingest(source)}
        script = bench.script(int(sample.video.rpartition("-")[2]))
        other = impossible(sample, script, np.random.default_rng([frames, number]))
        if not other:
            continue
        for question, shown in ((sample.question, True), (other, False)):
            text, signals = signals_of(x2l, memories[sample.video], question)
            if signals:
                found.append(Asked(sample.video, shown, shown and said(sample, text), signals))
    return found


def auroc(asked: Sequence[Asked], signal: str) -> float:
    """Return how often a question with an answer stands above one without; ties count half."""
    with_one, without = (np.array([a.signals[signal] for a in asked if a.shown is shown]) for shown in (True, False))
    return float(((with_one[:, None] > without).mean() + (with_one[:, None] >= without).mean()) / 2)


def resampled(asked: Sequence[Asked], draws: int = 500) -> Iterator[list[Asked]]:
    """Yield bootstrap samples over videos."""
    videos = defaultdict(list)
    for one in asked:
        videos[one.video].append(one)
    groups, rng = list(videos.values()), np.random.default_rng(0)
    for _ in range(draws):
        yield [one for i in rng.integers(0, len(groups), len(groups)) for one in groups[i]]


def interval(asked: Sequence[Asked], measure: Callable[[Sequence[Asked]], float]) -> str:
    """Return a figure with its bootstrap interval over videos."""
    low, high = np.percentile([measure(sample) for sample in resampled(asked)], [2.5, 97.5])
    return f"{measure(asked):.3f} ({low:.3f}-{high:.3f})"


def decided(asked: Asked, signal: str, least: float) -> float:
    """Return whether a threshold decides rightly: a right answer, or none where there is none."""
    return float(asked.right if asked.signals[signal] >= least else not asked.shown)


def threshold(asked: Sequence[Asked], signal: str) -> float:
    """Return the threshold with most right decisions."""
    values = sorted({one.signals[signal] for one in asked})
    return max(values, key=lambda least: sum(decided(one, signal, least) for one in asked))


def risks(asked: Sequence[Asked], signal: str) -> list[float]:
    """Return the share of wrong answers among the surest 1, 2, ..."""
    order = sorted(asked, key=lambda one: -one.signals[signal])
    wrong = np.cumsum([not one.right for one in order])
    return list(wrong / np.arange(1, len(order) + 1))


def plot(asked: Sequence[Asked], least: float, file: Path, title: str) -> None:
    """Draw risk over coverage: by each signal, by chance, by a signal that knew which answers are right."""
    made, (ax,) = figure(8, 5.6)
    grid = np.linspace(0.02, 1, 99)

    def curve(sample: Sequence[Asked], signal: str) -> npt.NDArray[np.float64]:
        found = risks(sample, signal)
        return 100 * np.array([found[max(0, round(share * len(found)) - 1)] for share in grid])

    best, chance = SIGNALS[0], 100 * fmean(float(not one.right) for one in asked)
    low, high = np.percentile([curve(sample, best) for sample in resampled(asked)], [2.5, 97.5], axis=0)
    ax.fill_between(100 * grid, low, high, color=OURS_COLOUR, alpha=0.15, linewidth=0)
    for number, signal in enumerate(name for name in SIGNALS if name not in (best, "entropy")):
        ax.plot(100 * grid, curve(asked, signal), color=COLOURS[number], linewidth=1.2, label=signal)
    ax.plot(100 * grid, curve(asked, best), color=OURS_COLOUR, linewidth=2.6, label=f"{best} (entropy: nearly equal)")
    knows = 100 * np.maximum(0, 1 - (1 - chance / 100) / grid)
    ax.plot(100 * grid, knows, color=INK, linewidth=1, linestyle=(0, (4, 2)), label="if it were known what is right")
    ax.axhline(chance, color=PALE, linewidth=1, label="by chance")
    given = [one for one in asked if one.signals[best] >= least]
    risk = 100 * fmean(float(not one.right) for one in given)
    at = 100 * len(given) / len(asked)
    ax.plot(at, risk, "o", color=OURS_COLOUR, markersize=8)
    ax.annotate(
        f"--abstain {-least:.1g}: {at:.0f} % given, {risk:.0f} % of them wrong", (at, risk), xytext=(7, 4),
        color=OURS_COLOUR, fontsize=9, arrowprops={"arrowstyle": "-", "color": OURS_COLOUR, "linewidth": 0.8},
    )  # fmt: skip
    ax.set_xlim(0, 100)
    ax.set_ylim(0, 103)
    ax.set_xlabel("coverage: answers given, %, the surest first", color=INK)
    ax.set_ylabel("risk: wrong answers among them, %", color=INK)
    ax.set_title(title, loc="left", color=INK, fontsize=11)
    made.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    made.savefig(file)


def kept_of_all(x2l: VideoX2L, frames: int, nats: float) -> str:
    """Return how many right answers a threshold keeps, by kind, where every question has an answer."""
    bench, at = Haystack(BenchmarkOptions(split="heldout", frames=frames, questions=300)), ""
    kept = defaultdict[str, list[float]](list)
    for sample in bench.samples():
        if sample.video != at:
            with bench.open(sample.video) as source:
                memory, at = x2l.ingest(source), sample.video
        answer = x2l.ask(memory, sample.question, reload=3, max_new_tokens=bench.max_new_tokens, abstain=nats)
        if said(sample, answer.text if answer.draft is None else answer.draft):
            kept[sample.kind].append(float(answer.draft is None))
    told = ", ".join(f"{kind} {100 * fmean(outcomes):.0f}" for kind, outcomes in kept.items())
    return f"Right answers kept (%) on the heldout split of all kinds, where every question has an answer: {told}."


def _share(asked: Sequence[Asked], outcome: Callable[[Asked], float]) -> str:
    videos = defaultdict(list)
    for one in asked:
        videos[one.video].append(outcome(one))
    found = cluster_bootstrap(list(videos.values()))
    return f"{100 * found.mean:.1f} ({100 * found.low:.0f}-{100 * found.high:.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--questions", type=int, default=150)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path, help="draw risk over coverage, heldout, into this file (matplotlib)")
    args = parser.parse_args()
    x2l = VideoX2L.from_pretrained(args.model)
    dev, test = (ask_all(x2l, split, args.frames, args.questions) for split in ("dev", "heldout"))
    lines = [
        f"{args.model}, {args.frames} frames, {len(dev)} questions (dev) and {len(test)} (heldout), half without an "
        f"answer; videox2l {__version__}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{platform.machine()}",
        "",
        "| signal | AUROC, dev | AUROC, heldout | threshold | right decisions, heldout | area under risk, heldout |",
        "|" + " --- |" * 6,
    ]
    for signal in SIGNALS:
        least = threshold(dev, signal)
        figures = [interval(asked, lambda a, s=signal: auroc(a, s)) for asked in (dev, test)]
        right = _share(test, lambda one, s=signal, t=least: decided(one, s, t))
        lines.append(f"| {signal} | {' | '.join(figures)} | {least:.3g} | {right} | {fmean(risks(test, signal)):.3f} |")
    never = _share(test, lambda one: float(one.right))
    best = SIGNALS[0]
    least = threshold(dev, best)
    kept = _share([one for one in test if one.right], lambda one: float(one.signals[best] >= least))
    refused = _share([one for one in test if not one.shown], lambda one: float(one.signals[best] < least))
    if args.plot is not None:
        title = f"{args.model}, {args.frames} frames: {len(test)} questions, half of them without an answer"
        plot(test, least, args.plot, title)
    lines += [
        "",
        f"Heldout, right decisions without a threshold: {never}. With {best} at {least:.3g}: {kept} of the right "
        f"answers are kept, and {refused} of the questions without an answer get none.",
        kept_of_all(x2l, args.frames, -least),
        "",
        "| answers given, heldout | risk by log likelihood | by chance |",
        "| --- | --- | --- |",
    ]
    curve, chance = risks(test, best), fmean(float(not one.right) for one in test)
    lines += [
        f"| {share} % | {100 * curve[max(0, len(curve) * share // 100 - 1)]:.1f} | {100 * chance:.1f} |"
        for share in (10, 20, 30, 40, 50, 60, 80, 100)
    ]
    text = "\n".join(lines)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
