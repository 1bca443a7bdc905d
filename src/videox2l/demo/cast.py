"""Who appears in a video of the synthetic world: things, and the digits that they carry in each split."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from videox2l.demo.draw import COLOURS, SHAPES

SPLITS = {"train": 1, "dev": 2, "heldout": 3, "video": 4}
"""Every split draws from its own seeds and its own textures."""
_DIGITS_OF = {"train": slice(0, 6), "dev": slice(6, 8), "heldout": slice(8, 10), "video": slice(8, 10)}

Thing = tuple[str, str]
"""What a question names: (colour, shape)."""


def all_things() -> list[Thing]:
    """Every colour with every shape."""
    return [(colour, shape) for colour in COLOURS for shape in SHAPES]


@lru_cache(maxsize=len(SPLITS))
def digits_of(split: str) -> dict[Thing, tuple[int, ...]]:
    """Return the digits that each thing may carry in a split.

    Training has six of the ten, development and held-out videos two each, which no other of the three has: what is
    asked there has to be read, it cannot be remembered. Rendered files (split "video") carry those of held-out videos.
    """
    rng = np.random.default_rng(0xCA57)
    return {thing: tuple(rng.permutation(10).tolist()[_DIGITS_OF[split]]) for thing in all_things()}


def near_misses(things: Sequence[Thing]) -> list[Thing]:
    """Things that do not appear but share the colour or the shape of one that does."""
    shown = set(things)
    colours, shapes = {colour for colour, _ in shown}, {shape for _, shape in shown}
    return [thing for thing in all_things() if thing not in shown and (thing[0] in colours or thing[1] in shapes)]


def cast(rng: np.random.Generator, events: int, repeats: float, colours: int, split: str) -> list[tuple[Thing, int]]:
    """Choose a thing and a digit for every event; a thing that comes back keeps its digit, others have their own."""
    counts = _counts(rng, events, repeats)
    allowed, taken = digits_of(split), set[int]()
    chosen: dict[Thing, int] = {}
    for _ in counts:
        free = [thing for thing in all_things() if thing not in chosen and set(allowed[thing]) - taken]
        shown = {colour for colour, _ in chosen}
        pool = [thing for thing in near_misses(list(chosen)) if thing in free] if rng.random() < 0.4 else free
        if len(shown) >= colours:
            pool = [thing for thing in free if thing[0] in shown]
        pool = pool or free
        thing = pool[int(rng.integers(len(pool)))]
        digits = [digit for digit in allowed[thing] if digit not in taken]
        chosen[thing] = digits[int(rng.integers(len(digits)))]
        taken.add(chosen[thing])
    shows = [pair for pair, n in zip(chosen.items(), counts, strict=True) for _ in range(n)]
    return [shows[i] for i in rng.permutation(len(shows))]


def _counts(rng: np.random.Generator, events: int, repeats: float) -> list[int]:
    """Draw how often each thing appears; at most ten things, as every one needs a digit."""
    counts = [1] * events
    if events > 1 and rng.random() < repeats:
        times = int(rng.integers(2, min(4, events) + 1))
        counts = [times] + [1] * (events - times)
        if len(counts) > 2 and rng.random() < 0.5:
            times = int(rng.integers(2, min(4, len(counts) - 1) + 1))
            counts = [counts[0], times] + [1] * (len(counts) - 1 - times)
    while len(counts) > 10:
        counts = [counts[0] + 1, *counts[1:-1]]
    return counts
