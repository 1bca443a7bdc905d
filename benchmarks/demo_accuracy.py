"""Accuracy of the demo model on held-out synthetic videos: full KV, no video, one level, two levels.

    python benchmarks/demo_accuracy.py [--frames 64 180] [--questions 200] [--split heldout] [--out FILE.md]

All methods answer the same questions about the same videos. Intervals are 95 % bootstrap intervals over videos; p is
McNemar's exact test against full KV. "recall" is the share of questions whose events (those that the question names)
all lie in re-loaded chunks.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers

from videox2l import Answer, ArraySource, Memory, VideoX2L
from videox2l.demo.questions import KINDS, Question, ask
from videox2l.demo.world import make_video
from videox2l.evaluate.statistics import cluster_bootstrap, mcnemar
from videox2l.select import ManualSelector, RandomSelector, TopK
from videox2l.version import __version__

PER_VIDEO = 4
NOTHING = "no video"
FULL = "full KV"


@dataclass(frozen=True)
class Setting:
    """What is compared: compression settings of the two-level memory, and chunks to re-load."""

    frames: int
    ratios: tuple[float, float]
    compressor: str
    history: str
    reload: int


@dataclass(frozen=True)
class Row:
    """One answer of one method."""

    method: str
    frames: int
    video: int
    kind: str
    question: str
    truth: str
    answer: str
    tokens: int
    full_tokens: int
    recalled: bool | None

    @property
    def right(self) -> bool:
        """Exact match, as the demo model's answers are single words."""
        return self.answer == self.truth


def moments(question: Question) -> list[tuple[float, float]]:
    """Return the times of all events that a question needs; a frame is a second."""
    return [(float(start), float(end)) for start, end in question.moments]


def methods(
    x2l: VideoX2L, source: Callable[[], ArraySource], setting: Setting
) -> dict[str, Callable[[str, list[tuple[float, float]], int], Answer]]:
    """Ingest a video as each method needs it; return what answers a question (text, true moments, number)."""
    two = x2l.ingest(source(), ratios=setting.ratios, compressor=setting.compressor, history=setting.history)
    full = x2l.ingest(source(), ratios=(1,), history="L")
    none = dataclasses.replace(two, chunks=[], next_position=two.prefix[0].shape[2])
    attended = x2l.ask(two, "which ?", reload=setting.reload, max_new_tokens=1).cost.tokens
    equal = (full.full_tokens - full.prefix[0].shape[2]) / (attended - full.prefix[0].shape[2])
    strided = x2l.ingest(source(), ratios=(equal,), compressor="uniform", history="L")

    def plain(memory: Memory, reload: str = "all") -> Callable[[str, list[tuple[float, float]], int], Answer]:
        return lambda text, _, __: x2l.ask(memory, text, reload=reload, max_new_tokens=6)

    def oracle(text: str, true: list[tuple[float, float]], _: int) -> Answer:
        chunks = {i for start, end in true for i in two.chunks_within(start, end)}
        return x2l.ask(two, text, reload=TopK(len(chunks)), selector=ManualSelector(true), max_new_tokens=6)

    def chosen(text: str, _: list[tuple[float, float]], __: int) -> Answer:
        return x2l.ask(two, text, reload=setting.reload, max_new_tokens=6)

    def drawn(text: str, _: list[tuple[float, float]], number: int) -> Answer:
        return x2l.ask(two, text, reload=setting.reload, selector=RandomSelector(number), max_new_tokens=6)

    return {
        NOTHING: plain(none),
        FULL: plain(full),
        "L only": plain(two),
        "H only": plain(two, "none"),
        "uniform, equal tokens": plain(strided),
        "two levels, true chunks": oracle,
        "two levels, default selector": chosen,
        "two levels, random chunks": drawn,
    }


def run(x2l: VideoX2L, setting: Setting, questions: int, split: str) -> list[Row]:
    """Answer `questions` questions about fresh videos with every method."""
    rows = []
    asked = 0
    seed = 0
    while asked < questions:
        video = make_video(10_000 + seed, setting.frames, split)
        batch = ask(video, np.random.default_rng([setting.frames, seed]), PER_VIDEO)[: questions - asked]
        pictures = video.render()
        answer = methods(x2l, lambda pictures=pictures: ArraySource(pictures), setting)  # type: ignore[misc]
        for number, question in enumerate(batch):
            true = moments(question)
            for name, method in answer.items():
                found = method(question.question, true, PER_VIDEO * seed + number)
                inside = [any(m.start < end and start < m.end for m in found.reloaded) for start, end in true]
                rows.append(
                    Row(
                        method=name,
                        frames=setting.frames,
                        video=seed,
                        kind=question.kind,
                        question=question.question,
                        truth=question.answer,
                        answer=found.text,
                        tokens=found.cost.tokens,
                        full_tokens=full_tokens(found),
                        recalled=all(inside) if true and name.startswith("two") else None,
                    )
                )
        asked += len(batch)
        seed += 1
    return rows


def full_tokens(answer: Answer) -> int:
    """Return the tokens of full KV that the answer was compared with."""
    return answer.cost.full_tokens


def table(rows: Sequence[Row]) -> list[str]:
    """Return the Markdown table of one video length."""
    names = list(dict.fromkeys(row.method for row in rows))
    base = [row.right for row in rows if row.method == FULL]
    most = max(row.full_tokens for row in rows)
    lines = [
        f"| method | tokens attended | all kinds | {' | '.join(KINDS)} | recall | p vs. full KV |",
        "|" + " --- |" * (5 + len(KINDS)),
    ]
    for name in names:
        mine = [row for row in rows if row.method == name]
        cells = [_accuracy(mine)] + [_accuracy([row for row in mine if row.kind == kind], False) for kind in KINDS]
        known = [row.recalled for row in mine if row.recalled is not None]
        recall = f"{np.mean(known):.0%}" if known else ""
        p = "" if name == FULL else f"{mcnemar([row.right for row in mine], base):.2g}"
        tokens = np.mean([row.tokens for row in mine])
        lines.append(f"| {name} | {tokens:.0f} ({tokens / most:.0%}) | {' | '.join(cells)} | {recall} | {p} |")
    return lines


def _accuracy(rows: Sequence[Row], interval: bool = True) -> str:
    groups: dict[int, list[float]] = {}
    for row in rows:
        groups.setdefault(row.video, []).append(float(row.right))
    found = cluster_bootstrap(list(groups.values()))
    ends = f" ({100 * found.low:.0f}-{100 * found.high:.0f})" if interval else ""
    return f"{100 * found.mean:.0f}{ends}" if rows else "-"


def main() -> None:
    """Run the benchmark and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[64, 180])
    parser.add_argument("--questions", type=int, default=200, help="per video length")
    parser.add_argument("--split", default="heldout", choices=["dev", "heldout"])
    parser.add_argument("--ratios", default="2,32")
    parser.add_argument("--compressor", default="keydiff")
    parser.add_argument("--history", default="H")
    parser.add_argument("--reload", type=int, default=3)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write the report here")
    parser.add_argument("--rows", type=Path, help="write every answer here, one JSON object a line")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    x2l = VideoX2L.from_pretrained(args.model)
    fine, coarse = (float(part) for part in args.ratios.split(","))
    report, rows = [], []
    for frames in args.frames:
        setting = Setting(frames, (fine, coarse), args.compressor, args.history, args.reload)
        found = run(x2l, setting, args.questions, args.split)
        rows += found
        report += ["", f"### {frames} frames, {args.questions} questions", "", *table(found)]
    head = (
        f"Model {args.model}, split {args.split}, chunks of {x2l.backbone.default_chunk_frames} frames, L 1/{fine:g}, "
        f"H 1/{coarse:g}, compressor {args.compressor}, history {args.history}, {args.reload} chunks re-loaded. "
        f"videox2l {__version__}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{platform.machine()} CPU, float32."
    )
    text = "\n".join([head, *report, ""])
    print(text)
    if args.out is not None:
        args.out.write_text(f"# Accuracy on the demo model\n\n{INTRO}\n{text}", encoding="utf-8")
    if args.rows is not None:
        args.rows.write_text("".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows), encoding="utf-8")


INTRO = """Written by `python benchmarks/demo_accuracy.py --out FILE`. The same questions and videos for every method;
percent right, with 95 % bootstrap intervals over videos; p is McNemar's exact test, paired, against full KV; recall is
the share of questions whose events all lie in re-loaded chunks. A model of this size says nothing about 7B models.
"""

if __name__ == "__main__":
    main()
