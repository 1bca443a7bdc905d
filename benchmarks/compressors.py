"""Compressors for L and for H apart: which token a level keeps, on the worlds where it matters. Development split.

    python benchmarks/compressors.py [--bench boards dense haystack sparse] [--rows one|pairs] [--questions 160]

Every row is the package's method with one compressor for L (at 1/2, or whole where said) and one for H, its chunks
chosen by the default selector or told (true). `one`: a single ranking for both; `pairs`: rankings of their own. Boards
at 1/4 of full KV, the others at 1/8; haystack with four facts in a chunk, or sparse. The run goes on where it was
stopped.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from videox2l import VideoX2L
from videox2l.cli.console import Screen
from videox2l.cli.evaluate import MADE_FOR
from videox2l.compress import ChunkKV, Compressor, KeyDiffScorer, PairCompressor, RankedCompressor, compressor_by_name
from videox2l.evaluate.base import BenchmarkOptions, Method, parse_budget
from videox2l.evaluate.methods.two_levels import TwoLevelMethod, x2l_method
from videox2l.evaluate.registry import benchmark_by_name
from videox2l.evaluate.runner import Run, run

NAMES = ("keydiff", "snap", "uniform", "echo")
WORLDS: dict[str, tuple[str, str, dict[str, int]]] = {
    "boards": ("boards", "1/4", {"frames": 32}),
    "dense": ("dense", "1/8", {"frames": 64}),
    "haystack": ("haystack", "1/8", {"frames": 64, "density": 4}),
    "sparse": ("haystack", "1/8", {"frames": 64}),
}


@dataclass(frozen=True)
class OneOfTwoScorer:
    """KeyDiff's scores, but of each two tokens that are next to each other in space or time the better one comes first.

    So half of the tokens are spread over the whole chunk, and the best of them are still those that differ most.
    """

    axis: str
    window: int = 0
    echo: bool = False

    def score(self, chunk: ChunkKV) -> Tensor:
        """Return scores (layers, heads, n); those of winners lie above all others."""
        scores = KeyDiffScorer().score(chunk)
        groups = chunk.tokens.grid[0]
        order = torch.arange(scores.shape[-1])
        if (
            self.axis == "time"
        ):  # what stands at one place in two groups of frames, and the last of an odd number as it is
            even = groups - groups % 2
            paired = order.view(groups, -1)[:even].T.reshape(-1)
            order = torch.cat((paired, order.view(groups, -1)[even:].reshape(-1)))
        pairs = scores[..., order[: len(order) // 2 * 2]].unflatten(-1, (-1, 2))
        won = torch.stack((pairs[..., 0] >= pairs[..., 1], pairs[..., 0] < pairs[..., 1]), -1).flatten(-2)
        bonus = torch.full_like(scores, 4.0)  # more than two cosines differ by; a single token wins
        bonus[..., order[: won.shape[-1]]] = 4.0 * won
        return scores + bonus


def one() -> list[Method]:
    """Return the rows with one ranking for L and H, and with L whole."""
    compressors: dict[str, Compressor] = {name: compressor_by_name(name) for name in ("keydiff", "uniform", "echo")}
    compressors |= {
        f"keydiff, one of two in {axis}": RankedCompressor(OneOfTwoScorer(axis)) for axis in ("space", "time")
    }
    rows: list[Method] = []
    for selector in ("", "oracle"):
        ours = x2l_method(selector)
        rows += [
            _named(replace(ours, compressor=made), f"L 1/2, {name}", selector) for name, made in compressors.items()
        ]
        rows.append(_named(replace(ours, finest=1.0), "L 1/1, H keydiff", selector))
    return rows


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
    parser.add_argument("--bench", nargs="+", default=list(WORLDS), choices=list(WORLDS))
    parser.add_argument("--rows", default="one", choices=["one", "pairs"])
    parser.add_argument("--questions", type=int, default=160)
    parser.add_argument("--out", type=Path, default=Path("runs/compressors"))
    args = parser.parse_args()
    for name in args.bench:
        measure(name, one() if args.rows == "one" else pairs(), args.questions, args.out / args.rows / name)


def measure(world: str, methods: list[Method], questions: int, out: Path) -> None:
    """Run methods on the development split of a world, and print what is right, of each kind of question too."""
    bench, budget, options = WORLDS[world]
    screen, x2l = Screen(), VideoX2L.from_pretrained(MADE_FOR.get(bench, "demo"))
    asked = BenchmarkOptions(split="dev", seed=3, questions=questions, **options)  # type: ignore[arg-type]
    with screen.bar(world) as update:
        summary = run(x2l, Run(benchmark_by_name(bench, asked), methods, [parse_budget(budget)]), out, update)
    for row, cell in summary.items():
        if row != "tests":
            kinds = (f"{kind} {100 * part['accuracy']:.0f} of {part['n']}" for kind, part in cell["kinds"].items())
            told = f"{100 * cell['accuracy']:.1f} | recall {cell['recall']:.2f} | {', '.join(kinds)}"
            screen.line(f"{world} | {row} | {told}")


if __name__ == "__main__":
    main()
