"""Choosing settings: one change at a time to the package's own method and to its rivals, on the development split.

    python benchmarks/settings.py [--frames 64 256] [--density 0 4] [--questions 200] [--out DIR]
                                  [--write docs/demo-settings.md]

Every row answers the same questions about the same videos at three budgets. The run goes on where it was stopped. What
stands in the code as defaults was chosen from this table; the held-out split is never looked at here.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

from videox2l import VideoX2L
from videox2l.cli.console import Screen
from videox2l.evaluate.base import BenchmarkOptions, Method
from videox2l.evaluate.document import Block, Heading, Text, to_markdown
from videox2l.evaluate.haystack import Haystack
from videox2l.evaluate.methods.evict import EvictMethod
from videox2l.evaluate.methods.infinipot import InfiniPotMethod
from videox2l.evaluate.methods.plain import LevelMethod
from videox2l.evaluate.methods.snapkv import window_scores
from videox2l.evaluate.methods.two_levels import TwoLevelMethod, x2l_method, xl2_method
from videox2l.evaluate.registry import method_by_name
from videox2l.evaluate.runfile import RunData
from videox2l.evaluate.runner import Run, run
from videox2l.evaluate.tables import accuracy_table

BUDGETS = (Fraction(1, 4), Fraction(1, 8), Fraction(1, 16))


def ours(name: str, **changes: object) -> TwoLevelMethod:
    """Return the package's method with some settings changed."""
    return replace(x2l_method(), name=name, about="two levels", **changes)  # type: ignore[arg-type]


def evicting(name: str, **changes: int) -> EvictMethod:
    """Return SnapKV with some settings changed."""
    return EvictMethod(name, "SnapKV", partial(window_scores, **changes))


METHODS: list[Method] = [
    method_by_name("full"),
    x2l_method(),
    ours("gist 1/8", gist=1 / 8),
    ours("gist 1/4", gist=1 / 4),
    ours("gist 3/4", gist=3 / 4),
    ours("gist 1/1", gist=1.0),
    ours("L 1/1", finest=1.0),
    ours("L 1/4", finest=4.0),
    ours("chunks of 8", split=1),
    ours("chunks of 2", split=4),
    ours("history recent:2", history="recent:2"),
    ours("history L", history="L"),
    ours("compressor echo", compressor="echo"),
    ours("echo, L 1/1", compressor="echo", finest=1.0),
    ours("compressor snap", compressor="snap"),
    ours("compressor uniform", compressor="uniform"),
    method_by_name("x2l:keys"),
    method_by_name("x2l:attention"),
    method_by_name("x2l:oracle"),
    replace(x2l_method("oracle"), name="x2l:oracle, L 1/1", finest=1.0),
    method_by_name("retrieval"),
    LevelMethod("H", "one level"),
    LevelMethod("H, chunks of 4", "one level", split=2),
    LevelMethod("H, history L", "one level", history="L"),
    LevelMethod("H, compressor echo", "one level", compressor="echo"),
    LevelMethod("H, compressor snap", "one level", compressor="snap"),
    xl2_method(),
    replace(xl2_method(), name="xl2, gist 1/4", gist=1 / 4),
    replace(xl2_method(), name="xl2, chunks of 4", split=2),
    evicting("snapkv"),
    evicting("snapkv, pooling over 5", kernel=5),
    evicting("snapkv, window 4", most=4),
    InfiniPotMethod(),
    InfiniPotMethod(name="infinipot, values alone", tar=0.0),
    InfiniPotMethod(name="infinipot, novelty alone", tar=1.0),
    method_by_name("keydiff"),
]

INTRO = """Written by `python benchmarks/settings.py`, on the development split. Percent right, 95 % bootstrap
intervals over videos; columns are shares of full KV attended. Unnamed settings are the defaults: `x2l` with selector
exact, gist 1/2 (the share of the budget that H takes at most), L 1/2, chunks of 4 frames (`H`, `xl2` and `infinipot`
8), history H, compressor keydiff. A model of this size says nothing about 7B models."""


def main() -> None:
    """Run the sweep and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--density", type=int, nargs="+", default=[0, 4], help="askable facts in 8 frames; 0: sparse")
    parser.add_argument("--questions", type=int, default=200, help="per video length and density")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--out", type=Path, default=Path("runs/settings"))
    parser.add_argument("--write", type=Path, help="write the tables here")
    args = parser.parse_args()
    x2l, screen = VideoX2L.from_pretrained(args.model), Screen()
    blocks: list[Block] = [Heading(1, "Settings on the demo model"), Text(INTRO)]
    for frames, density in itertools.product(args.frames, args.density):
        asked = BenchmarkOptions(split="dev", questions=args.questions, frames=frames, density=density)
        name = f"{frames} frames, {density} facts in 8 frames" if density else f"{frames} frames, sparse"
        folder = args.out / f"{frames}-{density}"
        with screen.bar(name) as update:
            run(x2l, Run(Haystack(asked), METHODS, BUDGETS), folder, update)
        blocks += [Heading(2, f"{name}, {args.questions} questions"), accuracy_table(RunData.load(folder))]
    text = to_markdown(blocks, args.out)
    screen.line(text)
    if args.write is not None:
        args.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
