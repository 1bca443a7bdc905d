"""Compressors for L and for H apart: which token a level keeps, on the worlds where it matters. Development split.

    python benchmarks/compressors.py [--bench boards dense haystack] [--questions 120] [--budget 1/4] [--out DIR]

Every row is the package's method with one compressor for L (at 1/2, or whole where said) and one for H, its chunks
chosen by the default selector or told (true). The run goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from videox2l import VideoX2L
from videox2l.cli.console import Screen
from videox2l.cli.evaluate import MADE_FOR
from videox2l.compress import PairCompressor, compressor_by_name
from videox2l.evaluate.base import BenchmarkOptions, Method, parse_budget
from videox2l.evaluate.methods.two_levels import TwoLevelMethod, x2l_method
from videox2l.evaluate.registry import benchmark_by_name
from videox2l.evaluate.runner import Run, run

NAMES = ("keydiff", "snap", "uniform", "echo")
FRAMES = {"boards": 32, "dense": 64, "haystack": 64}


def pairs() -> list[Method]:
    """Return the rows: L by every compressor, H by every compressor, and L whole; with found and with true chunks."""
    methods: list[Method] = []
    for selector in ("", "oracle"):
        ours = x2l_method(selector)
        methods.append(_named(replace(ours, finest=1.0), "L 1/1, H keydiff", selector))
        for fine, coarse in dict.fromkeys([*((name, "keydiff") for name in NAMES), *(("uniform", n) for n in NAMES)]):
            pair = compressor_by_name(fine)
            if fine != coarse:
                pair = PairCompressor(pair, compressor_by_name(coarse))
            methods.append(_named(replace(ours, compressor=pair), f"L {fine}, H {coarse}", selector))
    return methods


def _named(method: TwoLevelMethod, name: str, selector: str) -> TwoLevelMethod:
    return replace(method, name=f"{name}{', true chunks' if selector else ''}", about="two levels")


def main() -> None:
    """Run the comparison and print what is right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", nargs="+", default=list(FRAMES), choices=list(FRAMES))
    parser.add_argument("--questions", type=int, default=120)
    parser.add_argument("--budget", default="1/4")
    parser.add_argument("--out", type=Path, default=Path("runs/compressors"))
    args = parser.parse_args()
    screen = Screen()
    for name in args.bench:
        options = BenchmarkOptions(split="dev", seed=2, questions=args.questions, frames=FRAMES[name])
        x2l = VideoX2L.from_pretrained(MADE_FOR.get(name, "demo"))
        with screen.bar(name) as update:
            summary = run(
                x2l,
                Run(benchmark_by_name(name, options), pairs(), [parse_budget(args.budget)]),
                args.out / name,
                update,
            )
        for row, cell in summary.items():
            if row != "tests":
                screen.line(f"{name} | {row} | {100 * cell['accuracy']:.0f} | recall {cell['recall']}")


if __name__ == "__main__":
    main()
