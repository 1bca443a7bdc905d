"""How a decoded picture is shown: turned, mirrored, and with square pixels."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Orientation:
    """One of the eight ways in which a picture can lie: first transposed (`swap`), then mirrored.

    `flip_x`: left and right are exchanged; `flip_y`: top and bottom. `exact`: the file asks for just this one, not for
    an angle between.
    """

    swap: bool = False
    flip_x: bool = False
    flip_y: bool = False
    exact: bool = True

    @classmethod
    def of(cls, picture: Any) -> Orientation:
        """Return the orientation of a decoded frame (PyAV), from its display matrix if it has one.

        The matrix sends a point (x, y) to (a x + c y, b x + d y), y pointing down; it is nine int32 in 16.16 fixed
        point, a, b, c, d being numbers 0, 1, 3 and 4.
        """
        side = picture.side_data.get("DISPLAYMATRIX")
        data = b"" if side is None else bytes(side)
        if len(data) < 36:
            return cls()
        a, b, _, c, d, *_ = struct.unpack("=9i", data[:36])
        swap = abs(a) + abs(d) < abs(b) + abs(c)
        x, y = (c, b) if swap else (a, d)
        rest = abs(a) + abs(d) if swap else abs(b) + abs(c)
        return cls(swap, x < 0, y < 0, exact=rest <= 0.02 * (abs(x) + abs(y)))

    def apply(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return a picture (height, width, 3) as it is to be shown, contiguous."""
        if self.swap:
            image = image.swapaxes(0, 1)
        return np.ascontiguousarray(image[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1])

    @property
    def mirrored(self) -> bool:
        """Whether the picture is shown as in a mirror: no turn alone does it."""
        return self.swap ^ self.flip_x ^ self.flip_y

    @property
    def degrees(self) -> int:
        """Degrees that the picture is turned by, counter-clockwise; where it is mirrored, after left and right are."""
        if self.swap:
            return 270 if self.flip_x else 90
        return 180 if self.flip_y else 0


@dataclass(frozen=True)
class Display:
    """How a stream is shown. `coded`: (height, width) of its first picture; `square`: the same with square pixels."""

    orientation: Orientation
    coded: tuple[int, int]
    square: tuple[int, int]

    @classmethod
    def of(cls, picture: Any, aspect: Any) -> Display:
        """Return how a stream is shown whose first frame is `picture`; `aspect`: width of a pixel by its height."""
        coded = (int(picture.height), int(picture.width))
        return cls(Orientation.of(picture), coded, _with_square_pixels(*coded, float(aspect or 1)))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width as shown."""
        height, width = self.square
        return (width, height) if self.orientation.swap else (height, width)

    def image(self, picture: Any) -> npt.NDArray[np.uint8]:
        """Return a decoded frame as RGB as shown, (height, width, 3) uint8, scaled to `size` if need be."""
        if (picture.height, picture.width) != self.square:
            height, width = self.square
            picture = picture.reformat(width, height, format="rgb24", interpolation="BICUBIC")
        return self.orientation.apply(picture.to_ndarray(format="rgb24"))

    def fits(self, picture: Any) -> bool:
        """Return whether a decoded frame has the size of the first one."""
        return (picture.height, picture.width) == self.coded

    def remarks(self) -> list[str]:
        """Return what a reader of the manifest needs to know."""
        found = []
        if not self.orientation.exact:
            found.append(f"the file asks for a turn that is no quarter; {self.orientation.degrees} degrees were taken")
        if self.square != self.coded:
            (height, width), (tall, wide) = self.coded, self.square
            found.append(f"its pixels are not square: {width} x {height} is shown as {wide} x {tall}")
        return found


def _with_square_pixels(height: int, width: int, aspect: float) -> tuple[int, int]:
    """Scale the side that is too short, so that no line is lost."""
    if not 0.02 < aspect < 50 or abs(aspect - 1) < 0.002:
        return height, width
    return (height, max(1, round(width * aspect))) if aspect > 1 else (max(1, round(height / aspect)), width)
