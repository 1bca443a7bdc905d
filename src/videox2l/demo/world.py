"""A seeded world of short events: coloured shapes that carry a digit, over panning backgrounds.

Time is counted in sampled frames here. At one frame per second a frame is a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from videox2l.demo.cast import SPLITS, Thing, cast
from videox2l.demo.draw import (
    BLANK,
    COLOURS,
    DECOY_SHAPES,
    GREY,
    LETTERS,
    NATIVE,
    SCALE,
    SIDES,
    TEXTURE,
    Look,
    Pixels,
    paste,
    sprite,
    sprite_large,
    texture,
    texture_large,
)
from videox2l.errors import SettingsError

TEXTURES_PER_SPLIT = 400
STYLES = ("overlay", "insert", "change")
"""A glyph over the scene; a picture in place of the scene; a grey thing in the scene that gets its colour and digit."""
WAIT = 2
"""Frames that a thing of style "change" is there, grey and without a digit, before and after."""
VISIBILITIES = ("clear", "mixed", "faint")


@dataclass(frozen=True)
class Event:
    """One appearance of a thing, in frames `start` to `end` (exclusive), at first at pixel (x, y) of 48.

    It moves (dx, dy) pixels a frame. `card` is the grey level of the picture behind it when its style is "insert".
    `strength`, `cover` and `side` are those of its `Look`.
    """

    colour: str
    shape: str
    digit: int
    start: int
    end: int
    x: int
    y: int
    size: int
    style: str = "overlay"
    dx: int = 0
    dy: int = 0
    strength: float = 1.0
    cover: float = 0.0
    side: str = "left"
    card: int = 0

    @property
    def thing(self) -> Thing:
        """The colour and the shape, without the digit."""
        return self.colour, self.shape

    @property
    def look(self) -> Look:
        """What it looks like while it lasts."""
        return Look(self.colour, self.shape, self.digit, self.size, self.strength, self.cover, self.side)

    def place(self, frame: float) -> tuple[float, float]:
        """Return the upper left corner at a frame, kept inside the picture."""
        room, since = NATIVE - self.size, frame - self.start
        return min(max(self.x + self.dx * since, 0), room), min(max(self.y + self.dy * since, 0), room)


@dataclass(frozen=True)
class Scene:
    """A stretch of frames over one texture; the window moves (dx, dy) pixels a frame from (x, y).

    The light swings by the share `flicker` around its mean every `period` frames.
    """

    start: int
    end: int
    texture: int
    x: int
    y: int
    dx: int
    dy: int
    flicker: float = 0.0
    period: float = 8.0

    def window(self, frame: float) -> tuple[float, float]:
        """Return the upper left corner of the window at a frame; fractions are times between frames."""
        return self.x + self.dx * (frame - self.start), self.y + self.dy * (frame - self.start)

    def light(self, frame: float) -> float:
        """Return what all grey levels are multiplied with at a frame."""
        return 1.0 + self.flicker * math.sin(2 * math.pi * (frame - self.start) / self.period)


@dataclass(frozen=True)
class WorldVideo:
    """A script of scenes, events and decoys which can be drawn and asked about."""

    seed: int
    split: str
    frames: int
    scenes: tuple[Scene, ...] = field(repr=False)
    events: tuple[Event, ...]
    decoys: tuple[Event, ...] = ()

    @property
    def things(self) -> list[Thing]:
        """The different things that appear, in the order of their first appearance."""
        return list(dict.fromkeys(event.thing for event in self.events))

    def appearances(self, thing: Thing) -> list[Event]:
        """Return the events of a thing in order of time."""
        return [event for event in self.events if event.thing == thing]

    def layers(self) -> list[Event]:
        """Return all that is pasted over the scenes, in the order of pasting: what waits, decoys, events."""
        waiting = []
        for event in self.events:
            if event.style == "change":
                grey = replace(event, colour=GREY, digit=BLANK, style="overlay")
                for start, end in ((event.start - WAIT, event.start), (event.end, event.end + WAIT)):
                    x, y = (round(c) for c in event.place(start))
                    waiting.append(replace(grey, start=start, end=end, x=x, y=y))
        return [*waiting, *self.decoys, *self.events]

    def shown(self, time: float) -> list[Event]:
        """Return what is pasted over the scene at a time, in the order of pasting."""
        here = [event for event in self.layers() if event.start <= time < event.end]
        return [event for event in here if event in self.events] or here

    def draw_large(self, second: float) -> Pixels:
        """Draw the picture at some second, a frame being one: uint8 (384, 384, 3)."""
        scene = next(scene for scene in self.scenes if scene.start <= second < scene.end)
        x, y = (round(c * SCALE) for c in scene.window(second))
        frame = texture_large(scene.texture)[y : y + NATIVE * SCALE, x : x + NATIVE * SCALE].copy()
        for event in self.shown(second):
            if event.style == "insert":
                frame[:] = event.card
            x, y = (round(c * SCALE) for c in event.place(second))
            paste(frame, sprite_large(event.look), x, y)
        return np.clip(frame * np.float32(scene.light(second)), 0, 255).astype(np.uint8) if scene.flicker else frame

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
        busy = {t for event in self.events for t in range(event.start, event.end)}
        events = set(self.events)
        for event in self.layers():
            needle = sprite(event.look)
            for t in range(max(event.start, first), min(event.end, last)):
                if event in events or t not in busy:
                    if event.style == "insert":
                        out[t - first] = event.card
                    paste(out[t - first], needle, *(int(c) for c in event.place(t)))
        for scene in self.scenes:
            if scene.flicker:
                for t in range(max(scene.start, first), min(scene.end, last)):
                    out[t - first] = np.clip(out[t - first] * np.float32(scene.light(t)), 0, 255)
        if noise > 0:
            rng = np.random.default_rng([SPLITS[self.split], self.seed, first, 9])
            grain = _grain()[rng.integers(0, len(_grain()), last - first)] * np.float32(noise)
            out = np.clip(out + grain, 0, 255).astype(np.uint8)
        return out


@dataclass(frozen=True, kw_only=True)
class VideoStyle:
    """What a made-up video is like.

    `max_events`: at most so many events, their number drawn, or exactly `events`; short videos hold fewer. `durations`:
    lengths in frames that an event may have. `gap`, `lead`: frames without an event between two events, and at the
    beginning. `repeats`: chance that some thing appears more than once. `colours`: at most so many different ones; with
    one, only the shapes tell things apart. `spread`: one event in each of as many equal parts of the video, instead of
    anywhere. `styles`: how events come about; each draws one. `visibility`: "clear": large, opaque, whole; "faint":
    small, translucent, often partly hidden; "mixed": anything from one to the other. `decoys`: chance that a stretch of
    8 frames without an event shows something that looks like a needle, but whose shape no question names, with a letter
    for a digit.
    """

    max_events: int = 8
    events: int | None = None
    durations: Sequence[int] = (1, 2, 3, 4)
    gap: int = 2
    lead: int = 0
    repeats: float = 0.5
    colours: int = len(COLOURS)
    spread: bool = False
    styles: Sequence[str] = ("overlay", "overlay", "insert", "change")
    visibility: str = "mixed"
    decoys: float = 0.5

    def __post_init__(self) -> None:
        if self.visibility not in VISIBILITIES:
            raise SettingsError(f"visibility must be one of {', '.join(VISIBILITIES)}, got {self.visibility!r}")


def make_video(seed: int, frames: int, split: str = "train", **style: Any) -> WorldVideo:
    """Write the script of a video of so many sampled frames; the same arguments always give the same video.

    `seed` within a `split` ("train", "dev", "heldout", "video"). Splits share neither seeds nor textures; training,
    development and held-out videos never show the same thing with the same digit. `style`: the fields of `VideoStyle`.
    """
    if split not in SPLITS:
        raise SettingsError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    look = VideoStyle(**style)
    rng = np.random.default_rng([SPLITS[split], seed, frames])
    scenes = make_scenes(rng, frames, split)
    most = min(look.max_events if look.events is None else look.events, max(1, frames // 4))
    exactly = look.spread or look.events is not None
    wanted = most if exactly else int(rng.integers(max(1, most // 4), most + 1))
    lengths = rng.choice(list(look.durations), wanted)
    while len(lengths) > 1 and look.lead + lengths.sum() + look.gap * (len(lengths) - 1) > frames:
        lengths = lengths[:-1]
    starts = _place(rng, lengths, frames, look.gap, look.lead, look.spread)
    shown = cast(rng, len(lengths), look.repeats, look.colours, split)
    made = tuple(
        draw_event(
            rng,
            thing,
            digit,
            start,
            min(start + int(length), frames),
            str(rng.choice(list(look.styles))),
            look.visibility,
        )
        for (thing, digit), start, length in zip(shown, starts, lengths, strict=True)
    )
    return WorldVideo(seed, split, frames, scenes, made, make_decoys(rng, frames, made, look.decoys))


def draw_event(
    rng: np.random.Generator,
    thing: Thing,
    digit: int,
    start: int,
    end: int,
    style: str = "overlay",
    visibility: str = "mixed",
) -> Event:
    """Draw what one appearance looks like: where, how large, how clear, and how it moves."""
    ease = {"clear": 1.0, "faint": 0.0}.get(visibility, float(rng.random()))
    size = 18 + 2 * int(rng.integers(round(2 * ease), round(2 * ease) + 3))
    x, y = rng.integers(0, NATIVE - size + 1, 2).tolist()
    dx, dy = rng.integers(-2, 3, 2).tolist()
    strength = 1.0 if ease > 0.8 else float(rng.uniform(0.55 + 0.35 * ease, 0.7 + 0.3 * ease))
    cover = float(rng.uniform(0.1, 0.25)) if rng.random() < 0.5 * (1 - ease) else 0.0
    side = SIDES[int(rng.integers(len(SIDES)))]
    card = int(rng.integers(60, 196))
    return Event(*thing, digit, start, end, x, y, size, style, dx, dy, round(strength, 2), round(cover, 2), side, card)


def draw_decoy(rng: np.random.Generator, start: int, end: int) -> Event:
    """Draw something that looks like a needle and is none."""
    shape = DECOY_SHAPES[int(rng.integers(len(DECOY_SHAPES)))]
    colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
    return draw_event(rng, (colour, shape), 10 + int(rng.integers(len(LETTERS))), start, end)


def make_scenes(rng: np.random.Generator, frames: int, split: str) -> tuple[Scene, ...]:
    """Draw scenes of 4 to 16 frames over textures of a split."""
    scenes, start = [], 0
    while start < frames:
        length = int(rng.integers(4, 17))
        room = TEXTURE - NATIVE
        dx, dy = (int(d) for d in rng.integers(-1, 2, 2))
        x, y = (int(rng.integers(max(0, -d * length), room - max(0, d * length) + 1)) for d in (dx, dy))
        ground = SPLITS[split] * 1_000_000 + int(rng.integers(TEXTURES_PER_SPLIT))
        flicker = round(float(rng.uniform(0, 0.12)), 3) if rng.random() < 0.4 else 0.0
        period = round(float(rng.uniform(3, 16)), 1)
        scenes.append(Scene(start, min(start + length, frames), ground, x, y, dx, dy, flicker, period))
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


def make_decoys(rng: np.random.Generator, frames: int, events: Sequence[Event], chance: float) -> tuple[Event, ...]:
    """Draw decoys, none within `WAIT` frames of an event."""
    busy = np.zeros(frames, dtype=bool)
    for event in events:
        busy[max(0, event.start - WAIT) : event.end + WAIT] = True
    found = []
    for at in range(0, frames, 8):
        if rng.random() < chance:
            start, length = at + int(rng.integers(6)), int(rng.integers(1, 6))
            end = min(start + length, frames)
            if start < end and not busy[start:end].any():
                found.append(draw_decoy(rng, start, end))
                busy[start:end] = True
    return tuple(found)


@lru_cache(maxsize=1)
def _grain() -> npt.NDArray[np.float32]:
    """Frames of unit noise to draw from; making fresh noise would take longer than all else."""
    return np.random.default_rng(0).standard_normal((256, NATIVE, NATIVE, 3), dtype=np.float32)
