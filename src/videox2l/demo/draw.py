"""Pictures of the synthetic world: textures and sprites, at 48 pixels and eight times as large.

Everything is drawn large with Pillow. The small version is the large one scaled down with the same
bicubic filter that video processors use, so a file rendered large and scaled down by a processor shows
the model what it was trained on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

NATIVE = 48
"""Side of a training frame in pixels."""
SCALE = 8
"""A rendered file is this many times larger than a training frame."""
TEXTURE = 80
"""Side of a texture; a scene pans a 48-pixel window over it."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 35, 40),
    "green": (35, 170, 60),
    "blue": (40, 80, 235),
    "yellow": (245, 220, 35),
    "purple": (165, 50, 205),
    "white": (250, 250, 250),
}
MORE_COLOURS: dict[str, tuple[int, int, int]] = {"orange": (245, 130, 15), "cyan": (30, 205, 215)}
"""Colours that only the crowded world has."""
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
GREY = "grey"
"""The colour of a thing that waits to change; no question names it."""
DECOY_SHAPES = ("hexagon", "ring", "arrow", "moon")
"""Shapes of decoys, which no question names."""
LETTERS = ("A", "E", "H", "K", "N", "X")
"""What decoys carry instead of a digit."""
SIDES = ("left", "right", "top")
"""The sides from which something may stand in front of a needle without hiding its digit."""

Pixels = npt.NDArray[np.uint8]
Sprite = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
_PAINT = {**COLOURS, **MORE_COLOURS, GREY: (128, 128, 128)}

_GLYPHS = (
    "01110 10001 10011 10101 11001 10001 01110",
    "00100 01100 00100 00100 00100 00100 01110",
    "01110 10001 00001 00110 01000 10000 11111",
    "11110 00001 00001 01110 00001 00001 11110",
    "00010 00110 01010 10010 11111 00010 00010",
    "11111 10000 11110 00001 00001 10001 01110",
    "00110 01000 10000 11110 10001 10001 01110",
    "11111 00001 00010 00100 01000 01000 01000",
    "01110 10001 10001 01110 10001 10001 01110",
    "01110 10001 10001 01111 00001 00010 01100",
    "01110 10001 10001 11111 10001 10001 10001",
    "11111 10000 10000 11110 10000 10000 11111",
    "10001 10001 10001 11111 10001 10001 10001",
    "10001 10010 10100 11000 10100 10010 10001",
    "10001 11001 10101 10101 10011 10001 10001",
    "10001 10001 01010 00100 01010 10001 10001",
)
"""Ten digits, then the letters."""
BLANK = len(_GLYPHS)
"""A badge without anything on it."""


@lru_cache(maxsize=512)
def texture(seed: int) -> Pixels:
    """Make a muted, smooth background of (80, 80, 3); the same seed always gives the same texture."""
    rng = np.random.default_rng([0x7E87, seed])
    picture = np.full((TEXTURE, TEXTURE, 3), rng.uniform(85, 165, 3), dtype=np.float32)
    for cells, amplitude in ((4, 26.0), (9, 16.0), (20, 9.0)):
        noise = rng.uniform(-1, 1, (cells, cells, 3)).astype(np.float32) * amplitude
        for channel in range(3):
            layer = Image.fromarray(noise[..., channel]).resize((TEXTURE, TEXTURE), Image.Resampling.BICUBIC)
            picture[..., channel] += np.asarray(layer)
    canvas = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).resize((TEXTURE * 4, TEXTURE * 4))
    pen = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(2, 7))):
        colour = tuple(int(c) for c in rng.uniform(60, 190, 3))
        (x, y), (w, h) = rng.integers(0, TEXTURE * 4, 2).tolist(), rng.integers(12, 120, 2).tolist()
        kind = int(rng.integers(3))
        if kind == 0:
            pen.rectangle((x, y, x + w, y + h), fill=colour)
        elif kind == 1:
            pen.ellipse((x, y, x + w, y + h), fill=colour)
        else:
            pen.line((x, y, x + 2 * w - 120, y + 2 * h - 120), fill=colour, width=int(rng.integers(4, 16)))
    soft = canvas.filter(ImageFilter.GaussianBlur(4)).resize((TEXTURE, TEXTURE), Image.Resampling.BOX)
    picture = np.asarray(soft, dtype=np.float32)
    grey = picture.mean(axis=-1, keepdims=True)
    return np.asarray(np.clip(grey + 0.6 * (picture - grey), 30, 220), dtype=np.uint8)


@lru_cache(maxsize=8)
def texture_large(seed: int) -> Pixels:
    """Return `texture(seed)` at eight times the size, (640, 640, 3)."""
    side = TEXTURE * SCALE
    return np.asarray(Image.fromarray(texture(seed)).resize((side, side), Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Look:
    """How a needle or decoy looks.

    `mark` is a digit, 10 and up a letter, or `BLANK`; `size` its side in pixels of 48; `strength` its opacity, 1 for
    none of the background; `cover` the share of it that is hidden from one `side`.
    """

    colour: str
    shape: str
    mark: int
    size: int
    strength: float = 1.0
    cover: float = 0.0
    side: str = "left"


def sprite(look: Look) -> Sprite:
    """Return colour times alpha (size, size, 3) and alpha (size, size, 1) of one needle at 48-pixel scale."""
    return _finished(_small(look.colour, look.shape, look.mark, look.size), look, 1)


def sprite_large(look: Look) -> Sprite:
    """Return the same needle eight times as large: (8 size, 8 size, 3) and (8 size, 8 size, 1)."""
    return _finished(_large(look.colour, look.shape, look.mark, look.size), look, SCALE)


def paste(frame: Pixels, needle: Sprite, x: int, y: int) -> None:
    """Blend a needle into a frame in place, its upper left corner at (x, y)."""
    pixels, alpha = needle
    side = len(alpha)
    window = frame[y : y + side, x : x + side]
    window[:] = np.clip(window * (1 - alpha) + pixels, 0, 255)


def _finished(whole: Sprite, look: Look, scale: int) -> Sprite:
    """Make a needle as translucent as it looks, and hide what something stands in front of."""
    pixels, alpha = (plane * np.float32(look.strength) for plane in whole)
    hidden = round(look.cover * look.size) * scale
    if hidden:
        rows, columns = slice(None), slice(None)
        if look.side == "top":
            rows = slice(0, hidden)
        else:
            columns = slice(0, hidden) if look.side == "left" else slice(len(alpha) - hidden, None)
        pixels[rows, columns] = alpha[rows, columns] = 0
    return pixels, alpha


@lru_cache(maxsize=8192)
def _small(colour: str, shape: str, mark: int, size: int) -> Sprite:
    pixels, alpha = (
        Image.fromarray(plane).resize((size, size), Image.Resampling.BICUBIC)
        for plane in _draw(colour, shape, mark, size)
    )
    return np.asarray(pixels, dtype=np.float32), np.asarray(alpha, dtype=np.float32)[..., None] / np.float32(255)


@lru_cache(maxsize=32)
def _large(colour: str, shape: str, mark: int, size: int) -> Sprite:
    pixels, alpha = _draw(colour, shape, mark, size)
    return pixels.astype(np.float32), alpha.astype(np.float32)[..., None] / np.float32(255)


def _draw(colour: str, shape: str, mark: int, size: int) -> tuple[Pixels, Pixels]:
    """Draw a needle large, on black, and its mask."""
    side = size * SCALE
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    pen.polygon(_outline(shape, side), fill=255)
    if shape == "ring":
        pen.ellipse((0.16 * side, 0.16 * side, 0.84 * side, 0.84 * side), fill=0)
    badge_w, badge_h, cell = 0.40 * side, 0.50 * side, 0.060 * side
    middle_x, middle_y = side / 2, side * (0.62 if shape == "triangle" else 0.5)
    badge = [middle_x - badge_w / 2, middle_y - badge_h / 2, middle_x + badge_w / 2, middle_y + badge_h / 2]
    pen.rectangle(badge, fill=255)
    picture = Image.new("RGB", (side, side))
    picture.paste(_PAINT[colour], (0, 0, side, side), mask)
    pen = ImageDraw.Draw(picture)
    pen.rectangle(badge, fill=(8, 8, 8))
    left, top = middle_x - 2.5 * cell, middle_y - 3.5 * cell
    for row, bits in enumerate(_GLYPHS[mark].split() if mark != BLANK else ()):
        for column, bit in enumerate(bits):
            if bit == "1":
                x, y = left + column * cell, top + row * cell
                pen.rectangle((x, y, x + cell - 1, y + cell - 1), fill=(255, 255, 255))
    return np.asarray(picture), np.asarray(mask)


def _outline(shape: str, side: int) -> list[tuple[float, float]]:
    """Corners of a shape that fills a square of `side`, less one small pixel at each edge."""
    middle, radius = side / 2, side / 2 - SCALE
    low, high = middle - radius, middle + radius
    if shape == "square":
        inset = 0.07 * side
        return [
            (low + inset, low + inset),
            (high - inset, low + inset),
            (high - inset, high - inset),
            (low + inset, high - inset),
        ]
    if shape == "triangle":
        return [(middle, low), (high, high), (low, high)]
    if shape == "diamond":
        return [(middle, low), (high, middle), (middle, high), (low, middle)]
    if shape == "cross":
        arm = 0.36 * radius
        a, b = middle - arm, middle + arm
        return [
            (a, low),
            (b, low),
            (b, a),
            (high, a),
            (high, b),
            (b, b),
            (b, high),
            (a, high),
            (a, b),
            (low, b),
            (low, a),
            (a, a),
        ]
    if shape == "arrow":
        return [(low, middle), (middle, low), (middle, middle - radius / 2), (high, middle - radius / 2),
                (high, middle + radius / 2), (middle, middle + radius / 2), (middle, high)]  # fmt: skip
    if shape == "moon":
        outer = [math.pi * (0.5 + k / 24) for k in range(25)]
        rim = [(middle + radius * math.cos(a), middle - radius * math.sin(a)) for a in outer]
        return rim + [(middle + 0.45 * radius * math.cos(a), middle - radius * math.sin(a)) for a in reversed(outer)]
    corners = {"star": 10, "hexagon": 6}.get(shape, 48)
    points = []
    for k in range(corners):
        angle = 2 * math.pi * k / corners - math.pi / 2
        reach = radius * (0.55 if shape == "star" and k % 2 else 1.0)
        points.append((middle + reach * math.cos(angle), middle + reach * math.sin(angle)))
    return points
