"""What the demo model knows with every KV kept, what it can guess without the video, and what a stride loses.

    PYTHONPATH=. python benchmarks/demo_models.py [--videos 125] [--frames 16 64 256] [--model FOLDER] [--out FILE.md]

Full KV is the stock forward of transformers over the whole video; so are the rows without a video. Greedy decoding,
exact match. Intervals are 95 % bootstrap intervals over videos.
"""

from __future__ import annotations

import argparse
import platform
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import transformers

from training.evaluate import MODEL, Oracle, questions_of_every_kind
from training.geometry import TEMPORAL
from videox2l import ArraySource, VideoX2L
from videox2l.demo.questions import KINDS, WorldQuestion
from videox2l.demo.world import WorldVideo, make_video
from videox2l.evaluate.statistics import cluster_bootstrap
from videox2l.version import __version__

EACH = 4
"""Questions of every kind about each video."""
RETRIEVAL = ("digit", "colour", "shape", "pair")
FIRST_SEED = 500_000
"""Far from the seeds of other benchmarks."""
Found = dict[str, dict[int, list[float]]]
"""Kind -> video -> right or wrong."""


def ask_about(
    videos: int, frames: int, split: str, answers: Callable[[WorldVideo], Callable[[str], str]], one_frame: bool = False
) -> Found:
    """Ask every kind of question about each video; `answers` watches a video and returns what answers."""
    found: Found = defaultdict(lambda: defaultdict(list))
    for number, video in enumerate(make_videos(videos, frames, split, one_frame)):
        answer = answers(video)
        for question in asked_about(video):
            found[question.kind][number].append(float(answer(question.question) == question.answer))
    return found


def make_videos(videos: int, frames: int, split: str, one_frame: bool) -> Iterator[WorldVideo]:
    """Make the videos; with `one_frame`, every event lasts for one frame, and none comes back."""
    for seed in range(FIRST_SEED, FIRST_SEED + videos):
        if one_frame:
            yield make_video(seed, frames, split, durations=(1,), repeats=0.0)
        else:
            yield make_video(seed, frames, split)


def asked_about(video: WorldVideo) -> list[WorldQuestion]:
    """Return the questions about a video."""
    return questions_of_every_kind(video, video.seed, EACH)


def by_stock(
    folder: Path, text_only: bool | None = None, every: int = 1
) -> Callable[[WorldVideo], Callable[[str], str]]:
    """Answer by the stock model: the whole video, an empty video (`text_only` False), or no place for one (True).

    `every` n takes every n-th pair of frames, at its own time.
    """
    oracle = Oracle(folder)

    def watch(video: WorldVideo) -> Callable[[str], str]:
        if text_only is None:
            pairs = torch.from_numpy(video.render()).unflatten(0, (-1, TEMPORAL))[::every]
            oracle.watch(pairs.flatten(0, 1), step=float(TEMPORAL * every))
        else:
            oracle.watch_nothing(text_only)
        return oracle.answer

    return watch


def by_stride(folder: Path, ratio: float) -> Callable[[WorldVideo], Callable[[str], str]]:
    """Answer from every `ratio`-th visual token of a chunk."""
    x2l = VideoX2L.from_pretrained("demo" if folder == MODEL else str(folder))

    def watch(video: WorldVideo) -> Callable[[str], str]:
        memory = x2l.ingest(ArraySource(video.render()), ratios=(ratio,), compressor="uniform", history="L")
        return lambda question: x2l.ask(memory, question, reload="all", max_new_tokens=13).text

    return watch


def most_frequent(videos: int, split: str) -> Found:
    """Answer every question by what is right most often for its kind; for "order" by the thing that is named first."""
    asked = [(n, q) for n, video in enumerate(make_videos(videos, 64, split, False)) for q in asked_about(video)]
    truths = {kind: Counter(q.answer for _, q in asked if q.kind == kind) for kind in KINDS}
    found: Found = defaultdict(lambda: defaultdict(list))
    for number, q in asked:
        guess = truths[q.kind].most_common(1)[0][0]
        if q.kind == "order":
            guess = " ".join(q.question.partition(", the ")[2].split()[:2])
        found[q.kind][number].append(float(guess == q.answer))
    return found


def row(name: str, found: Found, kinds: Sequence[str] = KINDS) -> str:
    """Return a row of a table: percent right, interval, number of questions."""
    cells = []
    for kind in kinds:
        groups = list(found[kind].values())
        share = cluster_bootstrap(groups)
        n = sum(map(len, groups))
        cells.append(f"{100 * share.mean:.1f} ({100 * share.low:.0f}-{100 * share.high:.0f}, n={n})" if n else "-")
    return f"| {name} | {' | '.join(cells)} |"


def head(first: str, kinds: Sequence[str] = KINDS) -> list[str]:
    """Return the head of a table."""
    return [f"| {first} | {' | '.join(kinds)} |", "|" + " --- |" * (1 + len(kinds))]


def report(folder: Path, lengths: Sequence[int], videos: int, split: str, only_full: bool) -> list[str]:
    """Measure and return the lines of the report."""
    lines = ["### Every KV kept", "", *head("frames")]
    for frames in lengths:
        lines.append(row(str(frames), ask_about(videos, frames, split, by_stock(folder))))
        print(lines[-1], flush=True)
    if only_full:
        return lines
    lines += ["", "### Without the video, 64 frames", "", *head("what is seen")]
    lines.append(row("(the most frequent answer)", most_frequent(videos, split)))
    lines.append(row("an empty video", ask_about(videos, 64, split, by_stock(folder, False))))
    lines.append(row("the question alone", ask_about(videos, 64, split, by_stock(folder, True))))
    lines += ["", "### Events of one frame, 64 frames", "", *head("method", RETRIEVAL)]
    for name, answers in (
        ("every KV kept", by_stock(folder)),
        ("every 16th pair of frames", by_stock(folder, every=16)),
        ("every 16th visual token", by_stride(folder, 16)),
        ("an empty video", by_stock(folder, False)),
    ):
        lines.append(row(name, ask_about(videos, 64, split, answers, one_frame=True), RETRIEVAL))
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Run the benchmark and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL, help="model folder")
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--videos", type=int, default=125, help="per length; four questions of every kind about each")
    parser.add_argument("--only-full", action="store_true", help="leave out the tables of guesses and of strides")
    parser.add_argument("--split", default="heldout", choices=["dev", "heldout"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write the report here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = report(args.model, args.frames, args.videos, args.split, args.only_full)
    end = (
        f"Split {args.split}, {args.videos} videos per row. videox2l {__version__}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, {platform.machine()} CPU, float32."
    )
    text = "\n".join([*lines, "", end, ""])
    print(text)
    if args.out is not None:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
