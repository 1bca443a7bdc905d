"""A seeded world of short events: coloured shapes that carry a digit, over panning backgrounds.

Time is counted in sampled frames here. At one frame per second a frame is a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from videox2l.demo.draw import COLOURS, NATIVE, SHAPES, TEXTURE, Pixels, paste, sprite, texture
from videox2l.errors import SettingsError

SPLITS = {"train": 1, "dev": 2, "heldout": 3, "video": 4}
"""Every split draws from its own seeds and its own textures."""
TEXTURES_PER_SPLIT = 400
SIZES = (22, 24, 26)

Thing = tuple[str, str]
"""What a question names: (colour, shape)."""


@dataclass(frozen=True)
class Event:
    """One appearance of a thing, in frames `start` to `end` (exclusive), at pixel (x, y) of 48."""

    colour: str
    shape: str
    digit: int
    start: int
    end: int
    x: int
    y: int
    size: int

    @property
    def thing(self) -> Thing:
        """The colour and the shape, without the digit."""
        return self.colour, self.shape


@dataclass(frozen=True)
class Scene:
    """A stretch of frames over one texture; the window moves (dx, dy) pixels a frame from (x, y)."""

    start: int
    end: int
    texture: int
    x: int
    y: int
    dx: int
    dy: int

    def window(self, frame: float) -> tuple[float, float]:
        """Return the upper left corner of the window at a frame; fractions are times between frames."""
        return self.x + self.dx * (frame - self.start), self.y + self.dy * (frame - self.start)


@dataclass(frozen=True)
class WorldVideo:
    """A script of scenes and events which can be drawn and asked about."""

    seed: int
    split: str
    frames: int
    scenes: tuple[Scene, ...] = field(repr=False)
    events: tuple[Event, ...]

    @property
    def things(self) -> list[Thing]:
        """The different things that appear, in the order of their first appearance."""
        return list(dict.fromkeys(event.thing for event in self.events))

    def appearances(self, thing: Thing) -> list[Event]:
        """Return the events of a thing in order of time."""
        return [event for event in self.events if event.thing == thing]

    def render(self, first: int = 0, last: int | None = None, *, noise: float = 2.0) -> Pixels:
        """Draw frames `first` to `last` (exclusive) at 48 pixels: uint8 (frames, 48, 48, 3).

        `noise` is the standard deviation of the sensor noise in grey levels.
        """
        last = self.frames if last is None else last
        out = np.empty((last - first, NATIVE, NATIVE, 3), dtype=np.uint8)
        for scene in self.scenes:
            ground = texture(scene.texture)
            for t in range(max(scene.start, first), min(scene.end, last)):
                x, y = (int(c) for c in scene.window(t))
                out[t - first] = ground[y : y + NATIVE, x : x + NATIVE]
        for event in self.events:
            needle = sprite(event.colour, event.shape, event.digit, event.size)
            for t in range(max(event.start, first), min(event.end, last)):
                paste(out[t - first], needle, event.x, event.y)
        if noise > 0:
            rng = np.random.default_rng([SPLITS[self.split], self.seed, first, 9])
            grain = _grain()[rng.integers(0, len(_grain()), last - first)] * np.float32(noise)
            out = np.clip(out + grain, 0, 255).astype(np.uint8)
        return out


def make_video(
    seed: int,
    frames: int,
    split: str = "train",
    *,
    max_events: int = 8,
    durations: Sequence[int] = (2, 3, 4),
    gap: int = 2,
    lead: int = 0,
    repeats: float = 0.5,
    colours: int = len(COLOURS),
    spread: bool = False,
) -> WorldVideo:
    """Write the script of a video; the same arguments always give the same video.

    Parameters
    ----------
    seed, split
        The seed within a split ("train", "dev", "heldout", "video"). Splits share neither seeds nor textures.
    frames
        Length in sampled frames.
    max_events
        At most this many events; short videos hold fewer.
    durations
        Lengths in frames that an event may have.
    gap, lead
        Frames without an event between two events, and at the beginning.
    repeats
        Chance that some thing appears more than once.
    colours
        At most so many different colours; with one, only the shapes tell things apart.
    spread
        Put one event into each of as many equal parts of the video, instead of anywhere.
    """
    if split not in SPLITS:
        raise SettingsError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    rng = np.random.default_rng([SPLITS[split], seed, frames])
    scenes = make_scenes(rng, frames, split)
    most = min(max_events, max(1, frames // 4))
    wanted = most if spread else int(rng.integers(max(1, most // 4), most + 1))
    lengths = rng.choice(list(durations), wanted)
    while len(lengths) > 1 and lead + lengths.sum() + gap * (len(lengths) - 1) > frames:
        lengths = lengths[:-1]
    starts = _place(rng, lengths, frames, gap, lead, spread)
    things = _cast(rng, len(lengths), repeats, colours)
    events = tuple(
        Event(*thing, digit, start, min(start + int(length), frames), *make_spot(rng))
        for (thing, digit), start, length in zip(things, starts, lengths, strict=True)
    )
    return WorldVideo(seed, split, frames, scenes, events)


def near_misses(things: Sequence[Thing]) -> list[Thing]:
    """Things that do not appear but share the colour or the shape of one that does."""
    shown = set(things)
    colours, shapes = {colour for colour, _ in shown}, {shape for _, shape in shown}
    return [thing for thing in all_things() if thing not in shown and (thing[0] in colours or thing[1] in shapes)]


def all_things() -> list[Thing]:
    """Every colour with every shape."""
    return [(colour, shape) for colour in COLOURS for shape in SHAPES]


def make_scenes(rng: np.random.Generator, frames: int, split: str) -> tuple[Scene, ...]:
    """Draw scenes of 4 to 16 frames over textures of a split."""
    scenes, start = [], 0
    while start < frames:
        length = int(rng.integers(4, 17))
        room = TEXTURE - NATIVE
        dx, dy = (int(d) for d in rng.integers(-1, 2, 2))
        x, y = (int(rng.integers(max(0, -d * length), room - max(0, d * length) + 1)) for d in (dx, dy))
        ground = SPLITS[split] * 1_000_000 + int(rng.integers(TEXTURES_PER_SPLIT))
        scenes.append(Scene(start, min(start + length, frames), ground, x, y, dx, dy))
        start += length
    return tuple(scenes)


def _place(
    rng: np.random.Generator, lengths: npt.NDArray[np.int64], frames: int, gap: int, lead: int, spread: bool
) -> list[int]:
    """Starts of the events, in order, at least `gap` apart."""
    edges = np.linspace(lead, frames, len(lengths) + 1).astype(int)
    latest = edges[1:] - lengths - gap
    if spread and (latest >= edges[:-1]).all():
        return [int(rng.integers(low, high + 1)) for low, high in zip(edges[:-1], latest, strict=True)]
    free = max(0, frames - lead - int(lengths.sum()) - gap * (len(lengths) - 1))
    offsets = np.sort(rng.integers(0, free + 1, len(lengths)))
    before = np.concatenate([[0], np.cumsum(lengths + gap)[:-1]])
    return [int(start) for start in lead + offsets + before]


def _cast(rng: np.random.Generator, events: int, repeats: float, colours: int) -> list[tuple[Thing, int]]:
    """Choose a thing and a digit for every event; a repeated thing keeps its digit."""
    counts = [1] * events
    if events > 1 and rng.random() < repeats:
        times = int(rng.integers(2, min(4, events) + 1))
        counts = [times] + [1] * (events - times)
        if len(counts) > 2 and rng.random() < 0.5:
            times = int(rng.integers(2, min(4, len(counts) - 1) + 1))
            counts = [counts[0], times] + [1] * (len(counts) - 1 - times)
    digits = rng.permutation(10)
    chosen: list[Thing] = []
    for _ in counts:
        free = [thing for thing in all_things() if thing not in chosen]
        shown = {colour for colour, _ in chosen}
        pool = near_misses(chosen) if chosen and rng.random() < 0.4 else free
        if len(shown) >= colours:
            pool = [thing for thing in free if thing[0] in shown]
        pool = pool or free
        chosen.append(pool[int(rng.integers(len(pool)))])
    cast = [(thing, int(digit)) for thing, digit, n in zip(chosen, digits, counts, strict=False) for _ in range(n)]
    return [cast[i] for i in rng.permutation(len(cast))]


def make_spot(rng: np.random.Generator) -> tuple[int, int, int]:
    """Draw the place and the size of a needle: (x, y, size)."""
    size = int(rng.choice(SIZES))
    x, y = rng.integers(0, NATIVE - size + 1, 2).tolist()
    return x, y, size


@lru_cache(maxsize=1)
def _grain() -> npt.NDArray[np.float32]:
    """Frames of unit noise to draw from; making fresh noise would take longer than all else."""
    return np.random.default_rng(0).standard_normal((256, NATIVE, NATIVE, 3), dtype=np.float32)
