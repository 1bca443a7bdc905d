"""The crowded world of the benchmark `dense`: several things at once, each with a digit, in scenes with names.

Nothing is visible that cannot be asked for. A picture holds up to four things; every visual token of it can tell the
kind of scene. Time is counted in sampled frames, as in `videox2l.demo.world`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from videox2l.demo.cast import SPLITS, Thing
from videox2l.demo.draw import COLOURS as FEW_COLOURS
from videox2l.demo.draw import (
    DECOY_SHAPES,
    NATIVE,
    SCALE,
    SHAPES,
    TEXTURE,
    Look,
    Pixels,
    paste,
    sprite,
    sprite_large,
)
from videox2l.demo.draw import MORE_COLOURS as NEW_COLOURS
from videox2l.demo.questions import Span, WorldQuestion
from videox2l.errors import SettingsError

COLOURS = (*FEW_COLOURS, *NEW_COLOURS)
ALL_SHAPES = (*SHAPES, *DECOY_SHAPES)
THINGS: tuple[Thing, ...] = tuple((colour, shape) for colour in COLOURS for shape in ALL_SHAPES)
SCENES = ("sea", "forest", "desert", "city", "snow", "night", "meadow", "sunset")
WORDS = (*NEW_COLOURS, *DECOY_SHAPES, "scene", "comes", "one", *SCENES)
"""Words of the questions that the tokenizer of the first world lacks."""
GRID = 2
"""Frames that show the same things: those whose patches the vision tower joins."""
CHUNK = 8
"""Frames of the stretch in which density is counted."""
AT_ONCE = 4
"""At most so many things in a picture: one in each quarter."""
MOST = AT_ONCE * CHUNK // GRID


@dataclass(frozen=True)
class Showing:
    """A thing with its digit in one grid of frames, at pixel (x, y) of 48 in the grid's first frame."""

    thing: Thing
    digit: int
    start: int
    x: int
    y: int
    size: int
    drift: tuple[int, int] = (0, 0)

    @property
    def end(self) -> int:
        """End (exclusive) in frames."""
        return self.start + GRID

    @property
    def look(self) -> Look:
        """What it looks like."""
        return Look(*self.thing, self.digit, self.size)


@dataclass(frozen=True)
class CrowdScene:
    """A stretch of frames of one kind; the window moves (dx, dy) pixels a frame from (x, y) over its ground."""

    kind: str
    start: int
    end: int
    ground: int
    x: int
    y: int
    dx: int
    dy: int

    def window(self, frame: float) -> tuple[float, float]:
        """Return the upper left corner of the window at a frame."""
        return self.x + self.dx * (frame - self.start), self.y + self.dy * (frame - self.start)


@dataclass(frozen=True)
class CrowdVideo:
    """A script of scenes and showings which can be drawn and asked about."""

    seed: int
    split: str
    frames: int
    scenes: tuple[CrowdScene, ...] = field(repr=False)
    showings: tuple[Showing, ...] = field(repr=False)

    @property
    def things(self) -> list[Thing]:
        """The different things that appear, in the order of their first appearance."""
        return list(dict.fromkeys(showing.thing for showing in self.showings))

    def appearances(self, thing: Thing) -> list[Showing]:
        """Return the showings of a thing in order of time."""
        return [showing for showing in self.showings if showing.thing == thing]

    def scene_at(self, frame: float) -> int:
        """Return the number of the scene that a frame belongs to."""
        return next(i for i, scene in enumerate(self.scenes) if scene.start <= frame < scene.end)

    def render(self, first: int = 0, last: int | None = None, *, noise: float = 2.0) -> Pixels:
        """Draw frames `first` to `last` (exclusive) at 48 pixels: uint8 (frames, 48, 48, 3).

        `noise` is the standard deviation of the sensor noise in grey levels.
        """
        last = self.frames if last is None else last
        out = np.empty((last - first, NATIVE, NATIVE, 3), dtype=np.uint8)
        for scene in self.scenes:
            ground = scene_ground(scene.kind, scene.ground)
            for t in range(max(scene.start, first), min(scene.end, last)):
                x, y = (int(c) for c in scene.window(t))
                out[t - first] = ground[y : y + NATIVE, x : x + NATIVE]
        for showing in self.showings:
            for t in range(max(showing.start, first), min(showing.end, last)):
                dx, dy = (d * (t - showing.start) for d in showing.drift)
                paste(out[t - first], sprite(showing.look), showing.x + dx, showing.y + dy)
        if noise > 0:
            rng = np.random.default_rng([SPLITS[self.split], self.seed, first, 0xC0])
            grain = rng.standard_normal(out.shape, dtype=np.float32) * np.float32(noise)
            out = np.clip(out + grain, 0, 255).astype(np.uint8)
        return out

    def draw_large(self, second: float) -> Pixels:
        """Draw the picture at some second, a frame being one: uint8 (384, 384, 3)."""
        scene = self.scenes[self.scene_at(second)]
        x, y = (round(c * SCALE) for c in scene.window(int(second)))
        frame = scene_ground_large(scene.kind, scene.ground)[y : y + NATIVE * SCALE, x : x + NATIVE * SCALE].copy()
        for showing in self.showings:
            if showing.start <= second < showing.end:
                dx, dy = (d * int(second - showing.start) for d in showing.drift)
                paste(frame, sprite_large(showing.look), (showing.x + dx) * SCALE, (showing.y + dy) * SCALE)
        return frame


def make_crowd(seed: int, frames: int, split: str = "train", density: int = 8) -> CrowdVideo:
    """Write the script of a video; the same arguments always give the same one.

    Parameters
    ----------
    seed, split
        As of `make_video`: splits share no seeds, no grounds, and no thing with the same digit.
    frames
        A multiple of 8.
    density
        Different things in every 8 frames, 1 to 16. All 80 have been shown before one comes again; it keeps its digit.

    Raises SettingsError for what does not fit.
    """
    if split not in SPLITS:
        raise SettingsError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if not 1 <= density <= MOST:
        raise SettingsError(f"density must be 1 to {MOST}, got {density}: a picture has room for {AT_ONCE} things")
    if frames < CHUNK or frames % CHUNK:
        raise SettingsError(f"frames must be a multiple of {CHUNK}, got {frames}")
    rng = np.random.default_rng([SPLITS[split], seed, frames, density, 0xC80])
    scenes = _make_scenes(rng, frames, split)
    digits = {thing: int(rng.choice(allowed)) for thing, allowed in crowd_digits(split).items()}
    waiting: list[Thing] = []
    showings: list[Showing] = []
    for chunk in range(0, frames, CHUNK):
        places = [(grid, quarter) for grid in range(CHUNK // GRID) for quarter in range(AT_ONCE)]
        for place in sorted(rng.choice(len(places), density, replace=False).tolist()):
            if not waiting:
                here = {showing.thing for showing in showings if showing.start >= chunk}
                waiting = sorted((THINGS[i] for i in rng.permutation(len(THINGS))), key=lambda thing: thing not in here)
            thing = waiting.pop()
            grid, quarter = places[place]
            showings.append(place_thing(rng, thing, digits[thing], chunk + grid * GRID, quarter))
    return CrowdVideo(seed, split, frames, scenes, tuple(showings))


def place_thing(rng: np.random.Generator, thing: Thing, digit: int, start: int, quarter: int) -> Showing:
    """Draw size and place of a thing in a quarter of the picture, 0 to 3 row by row."""
    half = NATIVE // 2
    size = 18 + 2 * int(rng.integers(3))
    drift = tuple(rng.integers(-1, 2, 2).tolist())
    low = [max(0, -d) for d in drift]
    x, y = (int(rng.integers(edge, half - size + 1 - max(0, d))) for edge, d in zip(low, drift, strict=True))
    return Showing(thing, digit, start, x + half * (quarter % 2), y + half * (quarter // 2), size, (drift[0], drift[1]))


@lru_cache(maxsize=len(SPLITS))
def crowd_digits(split: str) -> dict[Thing, tuple[int, ...]]:
    """Return the digits that each of the 80 things may carry in a split: six in training, two in each of the others."""
    part = {"train": slice(0, 6), "dev": slice(6, 8), "heldout": slice(8, 10), "video": slice(8, 10)}[split]
    rng = np.random.default_rng(0xC80D)
    return {thing: tuple(rng.permutation(10).tolist()[part]) for thing in THINGS}


def _make_scenes(rng: np.random.Generator, frames: int, split: str) -> tuple[CrowdScene, ...]:
    """Draw scenes of 4 frames and more, no two of one kind after each other."""
    most = max(1, min(8 if frames <= 64 else 10, frames // 8))
    count = int(rng.integers(max(1, most // 2), most + 1))
    slots = frames // 4
    cuts = sorted((1 + rng.choice(slots - 1, count - 1, replace=False)).tolist()) if count > 1 else []
    edges = [0, *(4 * cut for cut in cuts), frames]
    kinds: list[str] = []
    pool = [SCENES[i] for i in rng.permutation(len(SCENES))[: int(rng.integers(max(2, count // 2), len(SCENES) + 1))]]
    for _ in range(count):
        free = [kind for kind in pool if kind not in kinds[-1:]]
        fresh = [kind for kind in free if kind not in kinds]
        free = fresh if fresh and rng.random() < 0.7 else free
        kinds.append(free[int(rng.integers(len(free)))])
    scenes = []
    for kind, start, end in zip(kinds, edges, edges[1:], strict=False):
        room, length = TEXTURE - NATIVE, end - start
        slow = length <= room
        dx, dy = (int(d) for d in (rng.integers(-1, 2, 2) if slow else (0, 0)))
        x, y = (int(rng.integers(max(0, -d * length), room - max(0, d * length) + 1)) for d in (dx, dy))
        ground = SPLITS[split] * 1_000_000 + int(rng.integers(GROUNDS_PER_SPLIT))
        scenes.append(CrowdScene(kind, start, end, ground, x, y, dx, dy))
    return tuple(scenes)


GROUNDS_PER_SPLIT = 60
_BASE = {
    "sea": (45, 95, 150), "forest": (35, 80, 45), "desert": (205, 175, 115), "city": (125, 125, 130),
    "snow": (195, 205, 220), "night": (22, 24, 52), "meadow": (125, 170, 85), "sunset": (190, 95, 95),
}  # fmt: skip


@lru_cache(maxsize=1024)
def scene_ground(kind: str, seed: int) -> Pixels:
    """Draw the ground of a scene of some kind: uint8 (80, 80, 3); the same seed always gives the same one."""
    rng = np.random.default_rng([0x5CE, SCENES.index(kind), seed])
    side = TEXTURE * 4
    base = np.array(_BASE[kind]) + rng.uniform(-12, 12, 3)
    canvas = Image.new("RGB", (side, side), _rgb(base))
    _PATTERNS[kind](ImageDraw.Draw(canvas), rng, base, side)
    small = canvas.filter(ImageFilter.GaussianBlur(2)).resize((TEXTURE, TEXTURE), Image.Resampling.BOX)
    return np.asarray(small)


@lru_cache(maxsize=8)
def scene_ground_large(kind: str, seed: int) -> Pixels:
    """Return `scene_ground(kind, seed)` at eight times the size, (640, 640, 3)."""
    side = TEXTURE * SCALE
    return np.asarray(Image.fromarray(scene_ground(kind, seed)).resize((side, side), Image.Resampling.BICUBIC))


def _rgb(colour: npt.ArrayLike) -> tuple[int, int, int]:
    red, green, blue = np.clip(np.asarray(colour), 0, 255).astype(int).tolist()
    return red, green, blue


def _stripes(step: float, shade: Sequence[float], *, upright: bool = False, lean: float = 0.0) -> Callable[..., None]:
    """Lines across the ground every `step` of its side, lighter or darker by `shade`, `lean` from the straight."""

    def draw(pen: ImageDraw.ImageDraw, rng: np.random.Generator, base: Sequence[float], side: int) -> None:
        width = step * side * float(rng.uniform(0.3, 0.5))
        offset, lean_ = float(rng.uniform(0, step * side)), lean * side * float(rng.uniform(0.7, 1.3))
        for k in range(-2, int(1 / step) + 3):
            at = k * step * side + offset + float(rng.uniform(-0.15, 0.15)) * step * side
            line = (at, 0, at + lean_, side) if upright else (0, at, side, at + lean_)
            pen.line(line, fill=_rgb(np.add(base, np.multiply(shade, float(rng.uniform(0.6, 1.2))))), width=int(width))

    return draw


def _dots(count: int, shade: Sequence[float], size: tuple[float, float]) -> Callable[..., None]:
    """Spots on the ground, lighter or darker by `shade`, of a radius of `size` pixels of 80."""

    def draw(pen: ImageDraw.ImageDraw, rng: np.random.Generator, base: Sequence[float], side: int) -> None:
        for _ in range(int(count * rng.uniform(0.8, 1.2))):
            (x, y), r = rng.uniform(0, side, 2).tolist(), float(rng.uniform(*size)) * side / TEXTURE
            pen.ellipse(
                (x - r, y - r, x + r, y + r), fill=_rgb(np.add(base, np.multiply(shade, rng.uniform(0.7, 1.1))))
            )

    return draw


def _windows(pen: ImageDraw.ImageDraw, rng: np.random.Generator, base: Sequence[float], side: int) -> None:
    """Dark windows in rows and columns."""
    step = int(side / rng.integers(9, 13))
    for x in range(int(rng.integers(step)) - step, side, step):
        for y in range(int(rng.integers(step // 3)) - step, side, step):
            dark = -70 if rng.random() < 0.8 else 60
            pen.rectangle((x, y, x + step // 2, y + step // 2), fill=_rgb(np.add(base, dark)))


_PATTERNS: dict[str, Callable[..., None]] = {
    "sea": _stripes(0.09, (30, 40, 45)),
    "forest": _stripes(0.1, (45, 10, 5), upright=True),
    "desert": _stripes(0.16, (-35, -40, -35), lean=0.5),
    "city": _windows,
    "snow": _dots(130, (50, 45, 30), (0.8, 1.8)),
    "night": _dots(60, (190, 185, 110), (0.4, 0.9)),
    "meadow": _dots(70, (70, -60, 40), (0.8, 1.6)),
    "sunset": _stripes(0.2, (60, 55, -30)),
}

DETAIL, GIST, STEPS = "detail", "gist", "multi-step"
TASKS = {
    "digit": DETAIL,
    "scene order": GIST, "scene count": GIST, "scene after": GIST, "scene presence": GIST,
    "place": STEPS, "pair": STEPS, "order": STEPS, "after thing": STEPS,
}  # fmt: skip
"""Kinds of questions, and what each asks for: one detail, the course of the whole video, or several steps."""
MIX = {
    "digit": 0.34, "scene order": 0.1, "scene count": 0.08, "scene after": 0.1, "scene presence": 0.05,
    "place": 0.09, "pair": 0.08, "order": 0.08, "after thing": 0.08,
}  # fmt: skip
PHRASES = {
    "digit": ("what digit appears with the {} ?", "which digit does the {} carry ?", "the {} has what digit ?"),
    "scene order": ("which scene comes first , {} or {} ?", "what scene is first , {} or {} ?"),
    "scene count": ("how many times does the {} scene appear ?", "how often is the {} scene in the video ?"),
    "scene after": ("which scene comes after the {} scene ?", "what scene is after the {} scene ?"),
    "scene presence": ("is there a {} scene in the video ?", "does a {} scene appear ?"),
    "place": ("in which scene is the {} ?", "which scene has the {} ?"),
    "pair": ("what digits appear with the {} and the {} ?", "which digits do the {} and the {} carry ?"),
    "order": ("which appears first , the {} or the {} ?", "what is first , the {} or the {} ?"),
    "after thing": ("which scene comes after the one with the {} ?", "what scene is after the scene with the {} ?"),
}
"""The ways to ask; the first is the one that is easiest to read."""


def make_crowd_questions(
    video: CrowdVideo, rng: np.random.Generator, n: int, mix: Mapping[str, float] = MIX
) -> list[WorldQuestion]:
    """Draw up to `n` questions, no two with the same words, kinds in the proportions of `mix`."""
    kinds, weights = list(mix), np.array(list(mix.values()), dtype=float)
    drawn: dict[str, WorldQuestion] = {}
    for kind in rng.choice(kinds, 4 * n, p=weights / weights.sum()):
        question = _MAKERS[str(kind)](video, rng, str(kind))
        if question is not None:
            drawn.setdefault(question.question, question)
        if len(drawn) == n:
            break
    return list(drawn.values())


def _ask(
    rng: np.random.Generator, kind: str, names: Sequence[str], answer: str, *needs: Sequence[Span]
) -> WorldQuestion:
    ways = PHRASES[kind]
    return WorldQuestion(ways[int(rng.integers(len(ways)))].format(*names), answer, kind, tuple(map(tuple, needs)))


def _spans(parts: Sequence[Showing] | Sequence[CrowdScene]) -> tuple[Span, ...]:
    return tuple((part.start, part.end) for part in parts)


def _some(rng: np.random.Generator, items: Sequence[Thing], n: int) -> list[Thing]:
    return [items[i] for i in rng.permutation(len(items))[:n]]


def _about_things(video: CrowdVideo, rng: np.random.Generator, kind: str) -> WorldQuestion | None:
    """Digit of a thing, digits of two, which of two is first."""
    things = _some(rng, video.things, 1 if kind == "digit" else 2)
    shown = [video.appearances(thing) for thing in things]
    names = [" ".join(thing) for thing in things]
    if kind != "order":
        answer = " ".join(str(showings[0].digit) for showings in shown)
        return _ask(rng, kind, names, answer, *map(_spans, shown)) if len(things) > (kind == "pair") else None
    if len(things) < 2 or shown[0][0].start == shown[1][0].start:
        return None
    first = min((0, 1), key=lambda i: shown[i][0].start)
    return _ask(rng, kind, names, names[first], *(_spans(showings[:1]) for showings in shown))


def _by_thing(video: CrowdVideo, rng: np.random.Generator, kind: str) -> WorldQuestion | None:
    """The scene of a thing that appears in one scene alone, or the scene after that one."""
    things = [t for t in video.things if len({video.scene_at(s.start) for s in video.appearances(t)}) == 1]
    if not things:
        return None
    (thing,) = _some(rng, things, 1)
    shown = video.appearances(thing)
    scene = video.scene_at(shown[0].start) + (kind == "after thing")
    if scene == len(video.scenes):
        return None
    after = [_spans(video.scenes[scene : scene + 1])] if kind == "after thing" else []
    return _ask(rng, kind, [" ".join(thing)], video.scenes[scene].kind, _spans(shown), *after)


def _about_scenes(video: CrowdVideo, rng: np.random.Generator, kind: str) -> WorldQuestion | None:
    """Order, number, successor and presence of kinds of scenes."""
    stretches = {name: [scene for scene in video.scenes if scene.kind == name] for name in SCENES}
    here = [name for name in SCENES if stretches[name]]
    if kind == "scene order":
        if len(here) < 2:
            return None
        one, two = rng.permutation(len(here))[:2].tolist()
        first = min((one, two), key=lambda i: stretches[here[i]][0].start)
        needs = (_spans(stretches[here[i]][:1]) for i in (one, two))
        return _ask(rng, kind, [here[one], here[two]], here[first], *needs)
    if kind == "scene after":
        once = [i for i, scene in enumerate(video.scenes[:-1]) if len(stretches[scene.kind]) == 1]
        if not once:
            return None
        i = once[int(rng.integers(len(once)))]
        needs = (_spans(video.scenes[i + k : i + k + 1]) for k in (0, 1))
        return _ask(rng, kind, [video.scenes[i].kind], video.scenes[i + 1].kind, *needs)
    absent = [name for name in SCENES if not stretches[name]]
    if kind == "scene presence":
        pool = absent if absent and rng.random() < 0.5 else here
    else:
        often = [name for name in here if len(stretches[name]) > 1]
        pool = often if often and rng.random() < 0.5 else here + absent[:1]
    name = pool[int(rng.integers(len(pool)))]
    answer = str(len(stretches[name])) if kind == "scene count" else ("yes" if stretches[name] else "no")
    spans = [_spans([scene]) for scene in stretches[name]]
    return _ask(rng, kind, [name], answer, *(spans if kind == "scene count" else spans[:1]))


_MAKERS: dict[str, Callable[[CrowdVideo, np.random.Generator, str], WorldQuestion | None]] = {
    "digit": _about_things, "pair": _about_things, "order": _about_things,
    "place": _by_thing, "after thing": _by_thing,
    "scene order": _about_scenes, "scene count": _about_scenes, "scene after": _about_scenes,
    "scene presence": _about_scenes,
}  # fmt: skip


def crowd_choices(kind: str) -> tuple[str, ...]:
    """Return the answers that a question of a kind can have."""
    digits = tuple(str(n) for n in range(10))
    if kind in ("digit", "scene count"):
        return digits
    if kind == "pair":
        return tuple(f"{one} {two}" for one in digits for two in digits)
    if kind == "order":
        return tuple(" ".join(thing) for thing in THINGS)
    return ("yes", "no") if kind == "scene presence" else SCENES
