"""Which selector finds what a question needs, what that costs, and what it does to the answer.

    python benchmarks/selection.py [--frames 64 256 1024] [--questions 600] [--split heldout] [--out FILE]

All selectors score the same memories (levels 1/2 and 1/32, chunks of 8 frames); each video is ingested once and asked
all its questions. Recall: the share of what a question needs (the haystack says so) that lies in the 1, 3 or 5 best
chunks; questions that need nothing are left out of it. Accuracy: with so many chunks re-loaded, so that all selectors
read equally many tokens. Intervals are 95 % bootstrap intervals over videos; p compares with the default, by flipping
whole videos. What each costs: `benchmarks/selection_cost.py`.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median
from time import perf_counter

import numpy as np
import torch
import transformers

from videox2l import Memory, VideoX2L
from videox2l.evaluate.base import BenchmarkOptions, Sample
from videox2l.evaluate.haystack import Haystack
from videox2l.evaluate.statistics import cluster_bootstrap, sign_flip
from videox2l.flops import QWEN2_7B, early_look, key_lookup, text
from videox2l.memory import Plan
from videox2l.options import DEFAULT_SELECTOR
from videox2l.select import (
    AttentionSelector,
    Budget,
    FusionSelector,
    KeysSelector,
    MassBudget,
    RandomSelector,
    Selector,
    TokenBudget,
    TopK,
    UniformSelector,
    selector_by_name,
)
from videox2l.version import __version__

KINDS = ("digit", "colour", "shape", "order", "count", "pair")
TASKS = {"digit": "retrieval", "colour": "retrieval", "shape": "retrieval"}
TOP = (1, 3, 5)
TRUE = "true chunks"
SELECTORS: dict[str, Selector] = {
    **{
        name: selector_by_name(name)
        for name in ("exact", "keys", "attention", "attention:keys", "attention:H", "attention:L")
    },
    "keys, layer 0": KeysSelector(layers=(0,)),
    "keys, means": KeysSelector("mean"),
    "embed-dot": selector_by_name("embed-dot"),
    "uniform": UniformSelector(),
}
ABLATIONS: dict[str, Selector] = {
    "keys, last token": KeysSelector(tokens="last"),
    "keys, best token": KeysSelector(tokens="max"),
    "keys, layers 0 and 1": KeysSelector(layers=(0, 1)),
    "attention:H, best and last token": AttentionSelector("max+last", shortlist=0),
    "attention:H, layers 0 and 1": AttentionSelector("max+last", shortlist=0, layers=(0, 1)),
}
"""On the development split alone, where settings are chosen."""
FUSED = {
    "fuse:keys+attention:H": ("rank", "keys", "attention:H"),
    "fuse-share:keys+attention:H": ("share", "keys", "attention:H"),
    "fuse:keys+attention": ("rank", "keys", "attention"),
    "fuse-zscore:keys+attention": ("zscore", "keys", "attention"),
    "fuse:keys+embed-dot": ("rank", "keys", "embed-dot"),
}
NAMES = (*SELECTORS, *FUSED, *ABLATIONS)
ANSWERED_AT_ALL = (DEFAULT_SELECTOR, "attention", "uniform", "random", TRUE)
"""Selectors whose answers are wanted at all of TOP; of the others at 3."""
MASSES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Row:
    """One selector, one question: recall and accuracy by number of chunks, milliseconds, chunks (of budgets).

    `prefill`, `reload`: milliseconds of the question's answers, in the default selector's row.
    """

    frames: int
    video: str
    kind: str
    selector: str
    recall: dict[str, float] | None
    right: dict[str, float]
    ms: float
    chunks: int = 0
    prefill: float = 0.0
    reload: float = 0.0


@dataclass
class Asked:
    """Answers to one question by plan: selectors that choose the same chunks get the same answer."""

    x2l: VideoX2L
    bench: Haystack
    memory: Memory
    sample: Sample
    known: dict[tuple[float, ...], float]
    seconds: list[dict[str, float]]

    def right(self, budget: Budget, scores: torch.Tensor) -> float:
        """Return how right the answer is with what a budget makes of scores."""
        plan = budget.plan(scores, self.memory)
        if plan.ratios not in self.known:
            answer = self.x2l.ask(self.memory, self.sample.question, reload=_Fixed(plan), max_new_tokens=12)
            self.known[plan.ratios] = self.bench.score(self.sample, answer.text) or 0.0
            self.seconds.append(answer.cost.seconds)
        return self.known[plan.ratios]


@dataclass(frozen=True)
class _Fixed:
    made: Plan
    needs_scores: bool = False

    def plan(self, scores: torch.Tensor | None, memory: Memory) -> Plan:
        return self.made


@dataclass(frozen=True)
class _Given:
    scores: torch.Tensor

    def score(self, question: object, memory: Memory, backbone: object) -> torch.Tensor:
        return self.scores


def recall(sample: Sample, memory: Memory, best: Sequence[int]) -> float:
    """Return the share of what is needed of which one event lies in a chunk of `best`."""
    chosen = set(best)
    met = [any(chosen & set(memory.chunks_within(*span)) for span in need) for need in sample.needs]
    return fmean(met)


def truth(sample: Sample, memory: Memory) -> torch.Tensor:
    """Return scores of the true chunks: one event of everything needed first, then other events, then spread."""
    scores = UniformSelector().score(None, memory, None) * 1e-3  # type: ignore[arg-type]
    for need in sample.needs:
        for number, span in enumerate(need):
            inside = memory.chunks_within(*span)
            scores[inside] = torch.maximum(scores[inside], torch.tensor(1.0 if number else 2.0))
    return scores


def scored(asked: Asked, frames: int, selector: str, scores: torch.Tensor, ms: float) -> Row:
    """Return the row of a selector that gave a question these scores."""
    sample, memory = asked.sample, asked.memory
    order = scores.argsort(descending=True, stable=True).tolist()
    found = {str(k): recall(sample, memory, order[:k]) for k in TOP} if sample.needs else None
    tops = TOP if selector in ANSWERED_AT_ALL else (3,)
    right = {str(k): asked.right(TopK(k), scores) for k in tops}
    return Row(frames, sample.video, sample.kind, selector, found, right, ms)


def measure(x2l: VideoX2L, frames: int, questions: int, split: str, seed: int, done: int = 0) -> Iterator[list[Row]]:
    """Yield the rows of all selectors and budgets, question by question, without the first `done` ones."""
    bench = Haystack(BenchmarkOptions(split=split, seed=seed, questions=questions, frames=frames, tasks=KINDS))
    selectors = SELECTORS | (ABLATIONS if split == "dev" else {})
    name = ""
    for number, sample in enumerate(bench.samples()):
        if number < done:
            continue
        rows: list[Row] = []
        seconds: list[dict[str, float]] = []
        if sample.video != name:
            name = sample.video
            with bench.open(name) as source:
                memory = x2l.ingest(source)
            for selector in selectors.values():  # what is made once per memory is not the question's
                selector.score(x2l.backbone.suffix(sample.question), memory, x2l.backbone)
        prompt = x2l.backbone.suffix(sample.question)
        asked = Asked(x2l, bench, memory, sample, {}, seconds)

        found: dict[str, tuple[torch.Tensor, float]] = {}
        for label, selector in selectors.items():
            start = perf_counter()
            scores = selector.score(prompt, memory, x2l.backbone)
            ms = 1000 * (perf_counter() - start)
            rows.append(scored(asked, frames, label, scores, ms))
            found[label] = scores, ms
        chosen = found[DEFAULT_SELECTOR][0]
        for label, (how, *parts) in FUSED.items():
            fused = FusionSelector([_Given(found[part][0]) for part in parts], how=how)
            scores = fused.score(prompt, memory, x2l.backbone)
            rows.append(scored(asked, frames, label, scores, sum(found[part][1] for part in parts)))
        drawn = RandomSelector(number).score(prompt, memory, x2l.backbone)
        rows.append(scored(asked, frames, "random", drawn, 0.0))
        rows.append(scored(asked, frames, TRUE, truth(sample, memory), 0.0))
        budgets: dict[str, Budget] = {f"mass:{share}": MassBudget(share) for share in MASSES}
        base = sum(chunk.size(memory.coarsest) for chunk in memory.chunks)
        extra = memory.chunks[0].size(memory.finest) - memory.chunks[0].size(memory.coarsest)
        budgets |= {f"tokens of {k} chunks": TokenBudget(base + k * extra) for k in (3, 5)}
        for label, budget in budgets.items():
            plan = budget.plan(chosen, memory)
            tokens = sum(c.size(r) for c, r in zip(memory.chunks, plan.ratios, strict=True))
            right = {"budget": asked.right(budget, chosen), "chunks": (tokens - base) / extra}
            rows.append(Row(frames, name, sample.kind, label, None, right, 0.0, sum(map(bool, plan.reasons))))
        first, again = (1000 * median(cost[stage] for cost in seconds) for stage in ("prefill", "reload"))
        yield [replace(row, prefill=first, reload=again) if row.selector == DEFAULT_SELECTOR else row for row in rows]


def interval(rows: Sequence[Row], value: str, key: str) -> str:
    """Return a mean with its interval, in percent."""
    groups: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        found = getattr(row, value)
        if found is not None and key in found:
            groups[row.video].append(found[key])
    x = cluster_bootstrap(list(groups.values()))
    return f"{100 * x.mean:.0f} ({100 * x.low:.0f}-{100 * x.high:.0f})" if groups else ""


def p_value(rows: Sequence[Row], other: Sequence[Row], key: str = "3") -> str:
    """Return p of the difference in accuracy of two selectors, pairs of questions flipped video by video."""
    totals: dict[str, float] = defaultdict(float)
    for one, two in zip(rows, other, strict=True):
        totals[one.video] += next(iter(one.right.values())) if key not in one.right else one.right[key]
        totals[two.video] -= two.right[key]
    return f"{sign_flip(list(totals.values())):.3f}"


def kept_of_truth(true: Sequence[Row], base: Sequence[Row], resamples: int = 4000) -> tuple[float, float, float]:
    """Return the accuracy of `base` in percent of that of `true`, with 3 chunks: low end, value, high end."""
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for one, two in zip(true, base, strict=True):
        totals[one.video][0] += one.right["3"]
        totals[two.video][1] += two.right["3"]
    pairs = np.array(list(totals.values()))
    draws = pairs[np.random.default_rng(0).integers(0, len(pairs), (resamples, len(pairs)))].sum(1)
    low, high = np.percentile(100 * draws[:, 1] / draws[:, 0], (2.5, 97.5))
    whole = pairs.sum(0)
    return float(low), float(100 * whole[1] / whole[0]), float(high)


def flops_7b(name: str, frames: int) -> float | None:
    """Return a selector's FLOPs as a share of the question's own prefill, at 7B shapes (64 tokens per frame pair)."""
    shape, rows, chunks = QWEN2_7B, 32, frames // 8
    low, high = 14 + 8 * chunks, 14 + 8 * chunks + 3 * 120
    own = text(shape, rows, high).total
    wide = text(shape, rows, 14 + 8 * chunks + min(12, chunks) * 120, logits=0).total
    products = 2 * 2 * rows * shape.heads * 2 * shape.head_dim * chunks
    keys = early_look(shape, rows, 14, 2).total + products
    known = {
        "exact": key_lookup(shape, rows, low, 256 * chunks, last=11, heads=8).total,  # as doctor finds them
        "keys": keys,
        "keys, layer 0": early_look(shape, rows, 14, 0).total + products // 2,
        "attention": text(shape, rows, low, logits=0).total + wide,
        "attention:keys": keys + wide,
        "attention:H": text(shape, rows, low, logits=0).total,
        "attention:L": text(shape, rows, 14 + 128 * chunks, logits=0).total,
        "embed-dot": 2 * 4 * chunks * shape.hidden,
    }
    return known[name] / own if name in known else None


def report(rows: Sequence[Row], frames: int, split: str) -> list[str]:
    """Return the tables of one length."""
    by: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by[row.selector].append(row)
    base = by[DEFAULT_SELECTOR]
    lines = [
        "",
        f"### {frames} frames: {len(base)} questions about {len({row.video for row in base})} videos, split {split}",
        "",
        "| selector | recall at 1 | at 3 | at 5 | right at 1 | at 3 | at 5 | p |",
        "|" + " --- |" * 8,
    ]
    for name in (TRUE, *NAMES, "random"):
        found = by.get(name, [])
        if not found:
            continue
        cells = [interval(found, "recall", str(k)) for k in TOP] + [interval(found, "right", str(k)) for k in TOP]
        cells.append("" if name == DEFAULT_SELECTOR else p_value(found, base))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    compared = (TRUE, DEFAULT_SELECTOR, "attention", "random")
    lines += ["", "| task | questions | " + " | ".join(f"{name} at 3" for name in compared) + " |"]
    lines.append("|" + " --- |" * 6)
    for task in dict.fromkeys(TASKS.get(kind, kind) for kind in KINDS):
        mine = {name: [row for row in by[name] if TASKS.get(row.kind, row.kind) == task] for name in compared}
        cells = [interval(found, "right", "3") for found in mine.values()]
        lines.append(f"| {task} | {len(mine[TRUE])} | " + " | ".join(cells) + " |")
    low, share, high = kept_of_truth(by[TRUE], base)
    kept = f"{share:.1f} % ({low:.1f}-{high:.1f})"
    lines += ["", f"With 3 chunks, {DEFAULT_SELECTOR} keeps {kept} of the accuracy that the true chunks give."]
    lines += ["", f"| budget (selector {DEFAULT_SELECTOR}) | chunks | L tokens spent, in chunks | right | p |"]
    lines.append("|" + " --- |" * 5)
    for k in TOP:
        lines.append(f"| top-{k} | {k} | {k} | {interval(base, 'right', str(k))} | |")
    for name, found in by.items():
        if found[0].right.get("budget") is not None:
            spent = fmean(row.right["chunks"] for row in found)
            lines.append(
                f"| {name} | {fmean(row.chunks for row in found):.1f} | {spent:.1f} | "
                f"{interval(found, 'right', 'budget')} | {p_value(found, base)} |"
            )
    return lines


def kept_rows(path: Path | None, frames: int) -> list[Row]:
    """Return the rows of one length that an earlier run left."""
    if path is None or not path.exists():
        return []
    rows = [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row.frames == frames]


def main() -> None:
    """Run the benchmark and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--questions", type=int, default=600, help="per video length")
    parser.add_argument("--split", default="heldout", choices=["dev", "heldout"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rows", type=Path, help="keep all rows here (JSONL), and go on with them")
    parser.add_argument("--out", type=Path, help="write the tables here (Markdown)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    x2l = VideoX2L.from_pretrained(args.model, device="cpu", dtype="float32")
    lines: list[str] = []
    for frames in args.frames:
        known = kept_rows(args.rows, frames)
        done = sum(row.selector == DEFAULT_SELECTOR for row in known)
        for rows in measure(x2l, frames, args.questions, args.split, args.seed, done):
            known += rows
            if args.rows is not None:
                with args.rows.open("a", encoding="utf-8") as file:
                    file.write("".join(json.dumps(asdict(row)) + "\n" for row in rows))
        lines += report(known, frames, args.split)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}, 1 thread"
    lines += ["", f"{args.model} model, weights {x2l.identity['weights'][:12]}; videox2l {__version__}, {versions}."]
    print("\n".join(lines))
    if args.out is not None:
        args.out.write_text("\n".join(lines).strip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
