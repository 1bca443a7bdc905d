"""How much H has to be on the devices: cache hit rate and waiting, by device bytes. Discrete events, Zipf over videos.

    python benchmarks/cache_simulation.py [--videos 1000] [--replicas 4] [--rate 8] [--plot docs/cache.png]

Questions come as a Poisson process; which video one is about follows Zipf's law with exponent s. A replica answers one
question at a time and keeps the H of the memories that it was asked about last (least recently used goes first). A hit
takes the seconds of a question; a miss first fetches H from the store. Routing "memory" sends all questions about a
memory to one replica (rendezvous hashing), unless more than `--spread` questions wait there: then to the next one.
"any" takes the replica with the shortest queue. The defaults are the figures of docs/scale.md: H of an hour 289 MB,
0.25 s per question, a store that gives 2.5 GB/s to each replica after 30 ms.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

CAPACITIES = (1, 2, 4, 8, 16, 32, 64, 128)
"""GB of H per replica."""
EXPONENTS = (0.6, 0.8, 1.0, 1.2)


@dataclass(frozen=True)
class Load:
    """What is asked, and what it takes.

    `sizes`: bytes of each video's H; `rate`: questions per second; `answer`, `latency`: seconds; `bandwidth`: bytes per
    second from the store to a replica; `spread`: questions that may wait at a replica before others help.
    """

    sizes: Sequence[float]
    exponent: float
    rate: float
    replicas: int
    questions: int
    answer: float = 0.25
    latency: float = 0.03
    bandwidth: float = 2.5e9
    spread: int = 2


@dataclass
class Replica:
    """One device: what is resident, least recently used first, and the times at which its questions end."""

    capacity: float
    resident: OrderedDict[int, float] = field(default_factory=OrderedDict)
    held: float = 0.0
    ends: list[float] = field(default_factory=list)

    def queue(self, now: float) -> int:
        """Return how many questions are not answered yet."""
        while self.ends and self.ends[0] <= now:
            self.ends.pop(0)
        return len(self.ends)

    def touch(self, video: int, size: float) -> bool:
        """Make a memory resident; return whether it was."""
        if video in self.resident:
            self.resident.move_to_end(video)
            return True
        while self.resident and self.held + size > self.capacity:
            self.held -= self.resident.popitem(last=False)[1]
        if size <= self.capacity:
            self.resident[video] = size
            self.held += size
        return False


@dataclass(frozen=True)
class Result:
    """Share of hits, busy share of the replicas, and seconds from question to answer: median and 95th percentile."""

    hits: float
    busy: float
    median: float
    late: float


def popularity(videos: int, exponent: float) -> np.ndarray:
    """Return how likely a question is about each video, the first the likeliest."""
    weights = np.arange(1, videos + 1, dtype=float) ** -exponent
    return weights / weights.sum()


def order_of(video: int, replicas: int) -> list[int]:
    """Return replicas in the order in which they serve a video (rendezvous hashing)."""
    return sorted(range(replicas), key=lambda r: hashlib.sha256(f"{video}/{r}".encode()).digest())


def simulate(load: Load, capacity: float, routing: str = "memory", seed: int = 0) -> Result:
    """Run all questions; the first half fills the caches and is not counted."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1 / load.rate, load.questions))
    videos = rng.choice(len(load.sizes), load.questions, p=popularity(len(load.sizes), load.exponent))
    replicas = [Replica(capacity) for _ in range(load.replicas)]
    orders: dict[int, list[int]] = {}
    hits, work, took = 0, 0.0, []
    for number, (now, video) in enumerate(zip(times.tolist(), videos.tolist(), strict=True)):
        queues = [replica.queue(now) for replica in replicas]
        order = orders.setdefault(video, order_of(video, load.replicas))
        if routing == "any":
            chosen = min(range(load.replicas), key=lambda r: (queues[r], order.index(r)))
        else:
            chosen = next((r for r in order if queues[r] <= load.spread), min(order, key=queues.__getitem__))
        replica = replicas[chosen]
        hit = replica.touch(video, load.sizes[video])
        seconds = load.answer + (0.0 if hit else load.latency + load.sizes[video] / load.bandwidth)
        end = max(now, replica.ends[-1] if replica.ends else now) + seconds
        replica.ends.append(end)
        if number >= load.questions // 2:
            hits, work = hits + hit, work + seconds
            took.append(end - now)
    span = float(times[-1] - times[load.questions // 2]) * load.replicas
    return Result(hits / len(took), work / span, float(np.median(took)), float(np.percentile(took, 95)))


def che(load: Load, capacity: float) -> float:
    """Return the hit rate of one LRU cache, sizes being equal, by the approximation of Che, Tung and Wang (2002)."""
    shares = popularity(len(load.sizes), load.exponent)
    room = capacity / load.sizes[0]
    if room >= len(shares):
        return 1.0
    low, high = 0.0, 1e12
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - np.exp(-shares * middle)).sum() < room else (low, middle)
    return float((shares * (1 - np.exp(-shares * low))).sum())


def draw(rows: Sequence[tuple[float, str, float, Result]], path: Path) -> None:
    """Draw hit rate and the 95th percentile of seconds against GB per replica."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    colors = dict(zip(EXPONENTS, plt.get_cmap("viridis")(np.linspace(0, 0.85, len(EXPONENTS))), strict=True))
    for exponent in EXPONENTS:
        for routing, style in (("memory", "-"), ("any", ":")):
            mine = [(gb, one) for s, kind, gb, one in rows if s == exponent and kind == routing]
            x, label = [gb for gb, _ in mine], f"s = {exponent:g}, {routing}"
            left.plot(x, [100 * one.hits for _, one in mine], style, color=colors[exponent], label=label, marker=".")
            right.plot(x, [one.late for _, one in mine], style, color=colors[exponent], marker=".")
    for axes, label in ((left, "questions whose H is resident, %"), (right, "seconds to the answer, 95th percentile")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(CAPACITIES, [f"{gb}" for gb in CAPACITIES])
        axes.set_xlabel("GB of H per replica")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    right.set_ylim(0)
    left.legend(fontsize="x-small", loc="lower right")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=1000)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--rate", type=float, default=8.0, help="questions per second, over all replicas")
    parser.add_argument("--questions", type=int, default=40_000)
    parser.add_argument("--gigabytes", type=float, default=0.289, help="H of one video")
    parser.add_argument("--spread", type=int, default=2)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    sizes = [args.gigabytes * 1e9] * args.videos
    print("| s | GB each | by memory: hits | busy | median s | 95 % s | any: hits | busy | 95 % s | one LRU (Che) |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    rows = []
    for exponent in EXPONENTS:
        load = Load(sizes, exponent, args.rate, args.replicas, args.questions, spread=args.spread)
        for gb in CAPACITIES:
            memory, free = (simulate(load, gb * 1e9, routing) for routing in ("memory", "any"))
            one = che(load, args.replicas * gb * 1e9)
            rows += [(exponent, "memory", gb, memory), (exponent, "any", gb, free)]
            print(
                f"| {exponent:g} | {gb} | {memory.hits:.1%} | {memory.busy:.0%} | {memory.median:.2f} "
                f"| {memory.late:.2f} | {free.hits:.1%} | {free.busy:.0%} | {free.late:.2f} | {one:.1%} |"
            )
    if args.plot is not None:
        draw(rows, args.plot)


if __name__ == "__main__":
    main()
