"""The world of the benchmark `boards`: the same colors and digits on every board, and a letter that tells boards apart.

A board is a picture of nine tiles: eight of eight colors, each with a digit, and a gray one with the letter of the
scene. A scene lasts four frames, two grids of visual tokens, and shows its facts twice, tiles in another order. Time is
counted in sampled frames, as in `videox2l.demo.world`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from videox2l.demo.cast import SPLITS
from videox2l.demo.draw import COLOURS as FEW_COLOURS
from videox2l.demo.draw import MORE_COLOURS, NATIVE, SCALE, Pixels
from videox2l.demo.questions import Span, WorldQuestion
from videox2l.errors import SettingsError

COLOURS = {**FEW_COLOURS, "orange": MORE_COLOURS["orange"], "black": (15, 15, 15)}
LETTERS = "cefhjklnprtuvxyz"
"""What scenes are called; no letter comes twice in a video."""
WORDS = ("orange", "black", "scene", *LETTERS)
"""Words of the questions that the tokenizer of the first world lacks."""
GRID = 2
"""Frames that show the same board: those whose patches the vision tower joins."""
SCENE = 4
"""Frames of a scene."""
MOST = SCENE * len(LETTERS)
TILE = NATIVE // 3
TAG = "tag"
"""The tile with the letter, among the names of colors."""

_GRAY = (118, 118, 118)
_LIGHT, _DARK = (250, 250, 250), (25, 25, 25)
_DIGIT = (1.3, 1.45, 0.8, -0.2)
_LETTER = (1.35, 1.7, 1.1, -0.5)
"""Width and height of a dot of a glyph, and how far the glyph stands from the middle of its tile, in pixels of 48.

Found from the weights, which came without the pictures that they were trained on: what they read best.
"""
_GLYPHS = {
    "0": "01110 10001 10001 10001 10001 10001 01110", "1": "00100 01100 00100 00100 00100 00100 01110",
    "2": "01110 10001 00001 00010 00100 01000 11111", "3": "01110 10001 00001 00110 00001 10001 01110",
    "4": "00010 00110 01010 10010 11111 00010 00010", "5": "11111 10000 10000 11110 00001 00001 11110",
    "6": "00110 01000 10000 11110 10001 10001 01110", "7": "11111 00001 00010 00100 01000 01000 01000",
    "8": "01110 10001 10001 01110 10001 10001 01110", "9": "01110 10001 10001 01111 00001 00010 01100",
    "c": "01110 10001 10000 10000 10000 10001 01110", "e": "11111 10000 10000 11110 10000 10000 11111",
    "f": "11111 10000 10000 11110 10000 10000 10000", "h": "10001 10001 10001 11111 10001 10001 10001",
    "j": "00001 00001 00001 00001 00001 10001 01110", "k": "10001 10010 10100 11000 10100 10010 10001",
    "l": "10000 10000 10000 10000 10000 10000 11111", "n": "10001 10001 11001 10101 10011 10001 10001",
    "p": "11110 10001 10001 11110 10000 10000 10000", "r": "11110 10001 10001 11110 10100 10010 10001",
    "t": "11111 00100 00100 00100 00100 00100 00100", "u": "10001 10001 10001 10001 10001 10001 01110",
    "v": "10001 10001 10001 01010 01010 00100 00100", "x": "10001 10001 01010 00100 01010 10001 10001",
    "y": "10001 10001 01010 00100 00100 00100 00100", "z": "11111 00001 00010 00100 01000 10000 11111",
}  # fmt: skip


@dataclass(frozen=True)
class BoardScene:
    """Four frames from `start` on: a letter, the digit of each color, and the order of the tiles in both grids."""

    letter: str
    digits: Mapping[str, int]
    start: int
    orders: tuple[tuple[str, ...], ...] = field(repr=False)
    lights: tuple[float, ...] = field(repr=False)

    @property
    def span(self) -> Span:
        """First frame and end (exclusive)."""
        return self.start, self.start + SCENE

    def board(self, frame: int, scale: int = 1) -> Pixels:
        """Draw the board at a frame: uint8 (48 scale, 48 scale, 3); `scale` is 1 or 8."""
        grid = (frame - self.start) // GRID
        side = TILE * scale
        picture = np.empty((NATIVE * scale, NATIVE * scale, 3), dtype=np.uint8)
        for place, name in enumerate(self.orders[grid]):
            glyph = self.letter if name == TAG else str(self.digits[name])
            y, x = (side * part for part in divmod(place, 3))
            picture[y : y + side, x : x + side] = _tile(name, glyph, scale)
        return np.asarray(np.clip(picture * np.float32(self.lights[grid]), 0, 255), dtype=np.uint8)


@dataclass(frozen=True)
class BoardVideo:
    """A script of scenes which can be drawn and asked about."""

    seed: int
    split: str
    scenes: tuple[BoardScene, ...] = field(repr=False)

    @property
    def frames(self) -> int:
        """Number of frames."""
        return SCENE * len(self.scenes)

    def render(self, *, noise: float = 2.0) -> Pixels:
        """Draw all frames: uint8 (frames, 48, 48, 3). `noise`: standard deviation of the sensor noise, gray levels."""
        out = np.stack([self.scenes[frame // SCENE].board(frame) for frame in range(self.frames)])
        rng = np.random.default_rng([SPLITS[self.split], self.seed, 0xB0A])
        grain = rng.standard_normal(out.shape, dtype=np.float32) * np.float32(noise)
        return np.asarray(np.clip(out + grain, 0, 255), dtype=np.uint8)

    def draw_large(self, second: float) -> Pixels:
        """Draw the picture at some second, a frame being one: uint8 (384, 384, 3)."""
        return self.scenes[int(second) // SCENE].board(int(second), SCALE)


def make_boards(seed: int, frames: int, split: str = "dev") -> BoardVideo:
    """Write the script of a video; the same arguments always give the same one, splits share no seeds.

    `frames`: a multiple of 4, at most 64: every scene has a letter of its own. Raises SettingsError for what does not
    fit.
    """
    if split not in SPLITS:
        raise SettingsError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if frames < SCENE or frames % SCENE or frames > MOST:
        raise SettingsError(f"frames must be a multiple of {SCENE} up to {MOST}, got {frames}: a scene has {SCENE}")
    rng = np.random.default_rng([SPLITS[split], seed, frames, 0xB0A])
    names = [*COLOURS, TAG]
    scenes = []
    for number, letter in enumerate(rng.permutation(list(LETTERS))[: frames // SCENE].tolist()):
        digits = dict(zip(COLOURS, rng.permutation(10).tolist(), strict=False))
        orders = tuple(tuple(rng.permutation(names).tolist()) for _ in range(SCENE // GRID))
        lights = tuple(rng.uniform(0.95, 1.05, SCENE // GRID).tolist())
        scenes.append(BoardScene(letter, digits, SCENE * number, orders, lights))
    return BoardVideo(seed, split, tuple(scenes))


@lru_cache(maxsize=1024)
def _tile(name: str, glyph: str, scale: int) -> Pixels:
    """Draw a tile of a color with its glyph: uint8 (16 scale, 16 scale, 3)."""
    fill = _GRAY if name == TAG else COLOURS[name]
    dot = SCALE * 2
    picture = Image.new("RGB", (TILE * dot, TILE * dot), fill)
    pen = ImageDraw.Draw(picture)
    ink = _DARK if np.dot(fill, (0.299, 0.587, 0.114)) > 140 else _LIGHT
    wide, high, right, down = (dot * length for length in (_LETTER if name == TAG else _DIGIT))
    left, top = TILE * dot / 2 - 2.5 * wide + right, TILE * dot / 2 - 3.5 * high + down
    for row, bits in enumerate(_GLYPHS[glyph].split()):
        for column, bit in enumerate(bits):
            if bit == "1":
                x, y = left + column * wide, top + row * high
                pen.rectangle((x, y, x + wide, y + high), fill=ink)
    return np.asarray(picture.resize((TILE * scale, TILE * scale), Image.Resampling.BICUBIC))


DETAIL, GIST, STEPS = "detail", "gist", "multi-step"
TASKS = {"digit": DETAIL, "colour": DETAIL, "after": GIST, "order": GIST, "presence": GIST, "hop": STEPS}
"""Kinds of questions, and what each asks for."""
MIX = {"digit": 0.4, "colour": 0.25, "after": 0.1, "order": 0.1, "presence": 0.05, "hop": 0.1}
PHRASES = {
    "digit": "what digit has {} in scene {} ?",
    "colour": "what colour has digit {} in scene {} ?",
    "after": "which is after {} ?",
    "order": "which is first , {} or {} ?",
    "presence": "is {} in the video ?",
    "hop": "what digit has {} after {} ?",
}
"""The one wording of each kind that the weights know."""


def make_board_questions(
    video: BoardVideo, rng: np.random.Generator, n: int, mix: Mapping[str, float] = MIX
) -> list[WorldQuestion]:
    """Draw up to `n` questions, no two with the same words, kinds in the proportions of `mix`."""
    kinds, weights = list(mix), np.array(list(mix.values()), dtype=float)
    drawn: dict[str, WorldQuestion] = {}
    for kind in rng.choice(kinds, 4 * n, p=weights / weights.sum()).tolist():
        question = _MAKERS[kind](video.scenes, rng, kind)
        if question is not None:
            drawn.setdefault(question.question, question)
        if len(drawn) == n:
            break
    return list(drawn.values())


def _ask(kind: str, names: Sequence[object], answer: object, *scenes: BoardScene) -> WorldQuestion:
    needs = tuple((scene.span,) for scene in scenes)
    return WorldQuestion(PHRASES[kind].format(*names), str(answer), kind, needs)


def _fact(scenes: Sequence[BoardScene], rng: np.random.Generator, kind: str) -> WorldQuestion | None:
    """The digit of a color on a board, the color of a digit, or the digit of a color on the board after one."""
    if kind == "hop" and len(scenes) < 2:
        return None
    named = int(rng.integers(len(scenes) - (kind == "hop")))
    scene = scenes[named + (kind == "hop")]
    colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
    digit, letter = scene.digits[colour], scenes[named].letter
    if kind == "colour":
        return _ask(kind, (digit, letter), colour, scene)
    return _ask(kind, (colour, letter), digit, *scenes[named : named + 1 + (kind == "hop")])


def _course(scenes: Sequence[BoardScene], rng: np.random.Generator, kind: str) -> WorldQuestion | None:
    """Which scene follows one, which of two is first, whether there is one."""
    if kind == "presence":
        absent = sorted(set(LETTERS) - {scene.letter for scene in scenes})
        if absent and rng.random() < 0.5:
            return _ask(kind, (absent[int(rng.integers(len(absent)))],), "no")
        scene = scenes[int(rng.integers(len(scenes)))]
        return _ask(kind, (scene.letter,), "yes", scene)
    if len(scenes) < 2:
        return None
    if kind == "after":
        at = int(rng.integers(len(scenes) - 1))
        return _ask(kind, (scenes[at].letter,), scenes[at + 1].letter, *scenes[at : at + 2])
    one, two = (scenes[i] for i in rng.permutation(len(scenes))[:2])
    first = min(one, two, key=lambda scene: scene.start)
    return _ask(kind, (one.letter, two.letter), first.letter, *sorted((one, two), key=lambda scene: scene.start))


_MAKERS: dict[str, Callable[[Sequence[BoardScene], np.random.Generator, str], WorldQuestion | None]] = {
    "digit": _fact, "colour": _fact, "hop": _fact, "after": _course, "order": _course, "presence": _course,
}  # fmt: skip


def board_choices(kind: str) -> tuple[str, ...]:
    """Return the answers that a question of a kind can have."""
    if kind in ("digit", "hop"):
        return tuple(str(n) for n in range(10))
    if kind == "colour":
        return tuple(COLOURS)
    return ("yes", "no") if kind == "presence" else tuple(LETTERS)
