"""Questions about a whole library: is the right video found, the right moment, and the right answer given.

    python benchmarks/library.py [--libraries 4] [--videos 50] [--out FILE]

Each library holds 50 rendered videos of 64 seconds (mp4), ingested at 1 fps, levels 1/2 and 1/32. Six things are in
most of its videos; each of the other 30 is in one video alone, and is asked for: its digit can only be read there.
The rows with "chunks" ask no model: recall and latency of the search among 10, 1,000 and 100,000 chunks. One for each
question is the library's own; all others are made up: every key is drawn from those of the library's chunks that show
nothing asked for, with noise, so that they look like chunks of the same world. Intervals are 95 % bootstrap intervals
over questions.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch

from videox2l import VideoX2L
from videox2l.ask.library import LibraryIndex, SearchedMemory
from videox2l.demo.cast import all_things, digits_of
from videox2l.demo.render import write_video
from videox2l.demo.world import WorldVideo, make_video
from videox2l.evaluate.statistics import cluster_bootstrap
from videox2l.memory import Chunk
from videox2l.memory.features import INDEX, KEYS, index_size, key_index, read_index
from videox2l.options import LibraryOptions
from videox2l.select import selector_by_name

SECONDS = 64
COMMON = 6
SEARCHES = ("exact:nothing", "keys", "embed-dot")
VIDEOS = (1, 2, 3, 5)
SIZES = (10, 1_000, 100_000)
TOP = (1, 3, 10)
NOISE = 0.1


@dataclass(frozen=True)
class Asked:
    """A question about one video of a library: the name of its memory, its answer, and when (seconds) it is shown."""

    text: str
    answer: str
    memory: str
    times: tuple[tuple[int, int], ...]

    def shown(self, memory: str, start: float, end: float) -> bool:
        """Return whether a chunk of a memory shows what is asked for."""
        return memory == self.memory and any(start < last and first < end for first, last in self.times)


def make_library(seed: int, videos: int) -> tuple[list[WorldVideo], list[Asked]]:
    """Return scripts of videos, and the questions that one video alone can answer."""
    rng = np.random.default_rng([0x11B, seed])
    things = [all_things()[i] for i in rng.permutation(len(all_things()))]
    common, single = things[:COMMON], things[COMMON:]
    scripts, asked = [], []
    for number in range(videos):
        video = make_video(900_000 + 1_000 * seed + number, SECONDS, "heldout")
        pool = [common[i] for i in rng.permutation(COMMON)]
        names = {thing: pool[i % COMMON] for i, thing in enumerate(video.things)}
        if number < len(single):
            names[video.things[int(rng.integers(len(names)))]] = single[number]
        digits = {thing: int(rng.choice(digits_of("heldout")[thing])) for thing in sorted(set(names.values()))}
        events = tuple(
            replace(event, colour=new[0], shape=new[1], digit=digits[new])
            for event in video.events
            for new in (names[event.thing],)
        )
        scripts.append(replace(video, events=events))
        if number < len(single):
            seen = scripts[-1].appearances(single[number])
            text, times = f"what digit appears with the {' '.join(single[number])} ?", ((e.start, e.end) for e in seen)
            asked.append(Asked(text, str(seen[0].digit), f"video-{number:02d}", tuple(times)))
    return scripts, asked


def interval(values: Sequence[float]) -> str:
    """Return percent, with its interval."""
    found = cluster_bootstrap([[value] for value in values])
    return f"{100 * found.mean:.1f} ({100 * found.low:.0f}-{100 * found.high:.0f})"


def answers(x2l: VideoX2L, libraries: Sequence[tuple[Path, Sequence[Asked]]]) -> Iterator[dict[str, object]]:
    """Yield rows: how often the right video and moment are found, and the right answer is given."""
    for search in SEARCHES:
        rows: dict[str, list[float]] = {}
        for folder, questions in libraries:
            for one in questions:
                found = x2l.ask_library(
                    folder,
                    one.text,
                    searching=LibraryOptions(search=search, videos=1, moments=10_000),
                    max_new_tokens=4,
                )
                order = list(dict.fromkeys(moment.memory for moment in found.moments))
                right = [one.shown(moment.memory, moment.start, moment.end) for moment in found.moments]
                for n in VIDEOS:
                    rows.setdefault(f"video in {n}", []).append(one.memory in order[:n])
                for n in (1, 3):
                    rows.setdefault(f"moment in {n}", []).append(any(right[:n]))
                if search == SEARCHES[0]:
                    for n in VIDEOS:
                        text = x2l.ask_library(
                            folder, one.text, searching=LibraryOptions(search=search, videos=n), max_new_tokens=4
                        ).text
                        rows.setdefault(f"right, of {n} videos", []).append(text == one.answer)
        yield {"search": search, "questions": len(rows["video in 1"])} | {k: interval(v) for k, v in rows.items()}
    for name, pick in (("right video known", 0), ("another video", 1)):
        right = []
        for folder, questions in libraries:
            for number, one in enumerate(questions):
                memory = questions[(number + pick) % len(questions)].memory
                right.append(x2l.ask(folder / memory, one.text, max_new_tokens=4).text == one.answer)
        yield {"search": name, "questions": len(right), "right": interval(right)}


def grown(
    view: SearchedMemory, keep: Sequence[int], asked: set[int], size: int, rng: np.random.Generator
) -> SearchedMemory:
    """Return `size` chunks: those of `keep`, and made-up ones like all that show nothing `asked` for."""
    own = [view.chunks[i] for i in keep][:size]
    pool = [chunk for i, chunk in enumerate(view.chunks) if i not in asked]
    rows = torch.cat([read_index(chunk.features[INDEX]) for chunk in pool], 1)  # (rows, all, d)
    width = rows.std(1, keepdim=True)
    spread = torch.stack([chunk.features[KEYS] for chunk in pool]).std(0)
    most = max(index_size(chunk.features[INDEX]) for chunk in pool)
    made = []
    for _ in range(size - len(own)):
        index = rows[:, torch.from_numpy(rng.integers(0, rows.shape[1], most))]
        index = key_index(index + NOISE * width * torch.from_numpy(rng.standard_normal(index.shape, np.float32)))
        keys = pool[int(rng.integers(len(pool)))].features[KEYS]
        keys = keys + NOISE * spread * torch.from_numpy(rng.standard_normal(keys.shape, np.float32))
        made.append(Chunk(0.0, 8.0, 8, view.chunks[0].positions, {}, features={INDEX: index, KEYS: keys}))
    return replace(view, chunks=[*own, *made], cues=((),) * size)


def scaled(x2l: VideoX2L, folder: Path, questions: Sequence[Asked]) -> Iterator[dict[str, object]]:
    """Yield rows: recall and latency of the search among more and more chunks."""
    rng = np.random.default_rng(5)
    index = LibraryIndex(folder, x2l.backbone, x2l.identity)
    indexed, view, _ = index.update((INDEX, KEYS))
    owners = [(memory.name, chunk) for memory in indexed for chunk in memory.chunks]
    shown = [
        [i for i, (name, chunk) in enumerate(owners) if one.shown(name, chunk.start, chunk.end)] for one in questions
    ]
    for size in SIZES:
        asked = list(range(min(len(questions), size // 2)))
        whole = grown(view, [shown[i][0] for i in asked], {i for chunks in shown for i in chunks}, size, rng)
        for search in ("exact:nothing", "keys"):
            selector, ranks, seconds = selector_by_name(search), list[int](), list[float]()
            begun = perf_counter()
            selector.score(x2l.backbone.suffix(questions[0].text), whole, x2l.backbone)
            build = perf_counter() - begun
            for place, i in enumerate(asked):
                begun = perf_counter()
                scores = selector.score(x2l.backbone.suffix(questions[i].text), whole, x2l.backbone)
                order = scores.argsort(descending=True, stable=True)
                seconds.append(perf_counter() - begun)
                ranks.append(int((order == place).nonzero()[0, 0]))
            name = INDEX if search == "exact:nothing" else KEYS
            held = sum(chunk.features[name].nbytes for chunk in whole.chunks)
            yield {
                "search": search, "chunks": size, "questions": len(asked),
                **{f"in {n}": interval([rank < n for rank in ranks]) for n in TOP},
                "ms": round(1000 * median(seconds), 2), "first s": round(build, 2), "features MB": round(held / 1e6, 1),
            }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libraries", type=int, default=4)
    parser.add_argument("--videos", type=int, default=50)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    x2l = VideoX2L.from_pretrained("demo")
    rows = [{"torch": torch.__version__, "machine": platform.machine(), "threads": 1}]
    print(json.dumps(rows[0]))
    with tempfile.TemporaryDirectory() as name:
        libraries = []
        begun, seconds = perf_counter(), 0.0
        for seed in range(args.libraries):
            scripts, questions = make_library(seed, args.videos)
            folder = Path(name) / f"library-{seed}"
            folder.mkdir()
            for number, video in enumerate(scripts):
                file = Path(name) / f"{seed}-{number}.mp4"
                write_video(file, video.draw_large, 4 * SECONDS, fps=4)
                start = perf_counter()
                x2l.ingest(file, store=folder / f"video-{number:02d}")
                seconds += perf_counter() - start
            libraries.append((folder, questions))
        print(f"rendered and ingested in {perf_counter() - begun:.0f} s, {seconds:.0f} s of it ingest")
        for row in [*answers(x2l, libraries), *scaled(x2l, *libraries[0])]:
            rows.append(row)
            print(json.dumps(row), flush=True)
    if args.out is not None:
        args.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")


if __name__ == "__main__":
    main()
