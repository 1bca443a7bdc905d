"""How much demo-xl remembers at each ratio of its summary tokens: held-out videos, every chunk at one level.

    PYTHONPATH=. python benchmarks/demo_xl_ratios.py [--videos 125] [--frames 64] [--model FOLDER] [--out FILE.md]

Ratios 2 to 32, each with its own history, so that what is compressed is what later chunks saw. Intervals are 95 %
bootstrap intervals over videos.
"""

from __future__ import annotations

import argparse
import platform
from collections import defaultdict
from pathlib import Path

import torch
import transformers
from demo_models import FIRST_SEED, Found, head, row

from training.evaluate import questions_of_every_kind
from training.summary import RATIOS
from videox2l import ArraySource, VideoX2L
from videox2l.compress import SummaryTokenCompressor
from videox2l.demo.world import make_video
from videox2l.demo.xl import FOLDER, load_demo_xl
from videox2l.version import __version__

KINDS = ("digit", "colour", "shape", "order", "count")


def run(folder: Path, frames: int, videos: int, split: str) -> dict[int, Found]:
    """Ask four questions of every kind about each video, at every ratio."""
    x2l = VideoX2L(load_demo_xl(VideoX2L.from_pretrained("demo").backbone, torch.float32, folder))
    found: dict[int, Found] = {ratio: defaultdict(lambda: defaultdict(list)) for ratio in RATIOS}
    compressor = SummaryTokenCompressor(end_ratio=None)
    for seed in range(FIRST_SEED, FIRST_SEED + videos):
        video = make_video(seed, frames, split)
        asked = [question for question in questions_of_every_kind(video, seed, 4) if question.kind in KINDS]
        pictures = video.render()
        for ratio in RATIOS:
            memory = x2l.ingest(ArraySource(pictures), ratios=(ratio,), history="own", compressor=compressor)
            for question in asked:
                said = x2l.ask(memory, question.question, reload="all", max_new_tokens=6).text
                found[ratio][question.kind][seed].append(float(said == question.answer))
    return found


def main() -> None:
    """Run the benchmark and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=FOLDER, help="folder of a demo-xl model")
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--videos", type=int, default=125, help="four questions of every kind about each")
    parser.add_argument("--split", default="heldout", choices=["dev", "heldout"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write the table here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = run(args.model, args.frames, args.videos, args.split)
    lines = [*head("ratio", KINDS), *(row(str(ratio), found[ratio], KINDS) for ratio in RATIOS), ""]
    lines.append(
        f"Split {args.split}, {args.frames} frames, {args.videos} videos. videox2l {__version__}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()} CPU, float32."
    )
    print("\n".join(lines))
    if args.out is not None:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
