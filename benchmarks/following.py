"""How much a chunk counts for the one after it: right answers by share, on the development splits of all worlds.

    python benchmarks/following.py [--shares 0 0.25 0.5] [--questions 240] [--out DIR]

The package's method with the default selector; `videox2l.select.base.FOLLOWING` is the share. Worlds and budgets are
those of `benchmarks/compressors.py`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from compressors import WORLDS, measure

from videox2l.evaluate.methods.two_levels import x2l_method
from videox2l.select import base


def main() -> None:
    """Run the comparison and print what is right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.25, 0.5])
    parser.add_argument("--questions", type=int, default=240)
    parser.add_argument("--out", type=Path, default=Path("runs/following"))
    args = parser.parse_args()
    for world in WORLDS:
        for share in args.shares:
            base.FOLLOWING = share
            method = replace(x2l_method(""), name=f"x2l, share {share:g}")
            measure(world, [method], args.questions, args.out / world / f"{share:g}")


if __name__ == "__main__":
    main()
