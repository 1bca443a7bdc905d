"""Pictures as a video: a folder of them, one still, and animated GIF and WebP."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Generator, Iterator
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from videox2l.errors import VideoError, VideoWarning
from videox2l.video.arrays import ArraySource
from videox2l.video.files import PICTURES, admit
from videox2l.video.sampling import FrameSampling, choose
from videox2l.video.source import Frame, Manifest

ANIMATED = (".gif", ".webp", ".png")


class PictureSource:
    """Gives out pictures as frames. A `FrameSource`, used like a `VideoReader`.

    Pictures of a folder stand in natural order (2 before 10), `fps` of the sampling a second, 1 if it has none. An
    animation has its own times, and is sampled like a video. EXIF orientation is applied; pictures of another size than
    the first one are scaled to it. The manifest's sha256 is that of pixels and times.

    Raises VideoError for a folder without pictures and for files that are none.
    """

    def __init__(self, path: str | os.PathLike[str], sampling: FrameSampling | None = None) -> None:
        self.sampling = sampling or FrameSampling()
        folder = Path(os.path.abspath(path))
        self.name = folder.name
        files = sorted(folder.iterdir(), key=_natural) if folder.is_dir() else [admit(path)]
        self.files = [file for file in files if file.suffix.lower() in PICTURES and not file.name.startswith(".")]
        if not self.files:
            raise VideoError(
                f"{self.name!r} is a directory without pictures ({', '.join(PICTURES)}). Give a video file."
            )
        single = len(self.files) == 1
        self._animated = single and self.files[0].suffix.lower() in ANIMATED and _count(self.files[0]) > 1
        rate, chosen_by = self.sampling.fps or 1.0, self.sampling
        if self._animated:
            *times, self._end = _times(self.files[0])
        else:
            times, self._end = [k / rate for k in range(len(self.files))], len(self.files) / rate
            chosen_by = replace(self.sampling, fps=None)
        self._frames = len(times)
        self._picks = choose(np.array(times), self._end, chosen_by).picks.tolist()
        self._resized = False
        self._array = ArraySource(self._images(), fps=rate, pts=[times[i] for i in self._picks], name=self.name)

    def __enter__(self) -> PictureSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def __iter__(self) -> Iterator[Frame]:
        """Give out the sampled pictures."""
        for frame, index in zip(self._array, self._picks, strict=True):
            yield Frame(frame.image, frame.pts, index)

    @property
    def expected_frames(self) -> int:
        """Number of pictures that the iteration gives out."""
        return len(self._picks)

    @property
    def manifest(self) -> Manifest:
        """What is known so far; complete after the iteration."""
        known = self._array.manifest
        text = ("pictures of another size than the first one were scaled to it",) if self._resized else ()
        return Manifest(
            **{
                **vars(known),
                "container": "image",
                "codec": self.files[0].suffix[1:].lower(),
                "frames": self._frames,
                "duration": self._end,
                "indices": tuple(self._picks[: len(known.pts)]),
                "warnings": text,
                "effective_fps": None if self.sampling.at is not None else self.sampling.fps or 1.0,
                "at": self.sampling.at,
            }
        )

    def _images(self) -> Generator[npt.NDArray[np.uint8], None, None]:
        size: tuple[int, int] | None = None
        for image in self._opened():
            if size is not None and image.size != size:
                if not self._resized:
                    self._resized = True
                    told = "pictures of another size than the first one are scaled to it"
                    warnings.warn(f"{self.name}: {told}", VideoWarning, stacklevel=2)
                image = image.resize(size, Image.Resampling.BICUBIC)
            size = image.size
            yield np.asarray(image)

    def _opened(self) -> Iterator[Image.Image]:
        if self._animated:
            wanted = set(self._picks)
            with Image.open(self.files[0]) as animation:
                for index, image in enumerate(ImageSequence.Iterator(animation)):
                    if index in wanted:
                        yield image.convert("RGB")
            return
        for index in self._picks:
            with _open(self.files[index]) as image:
                yield ImageOps.exif_transpose(image).convert("RGB")


def _open(file: Path) -> Image.Image:
    try:
        image = Image.open(admit(file))
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(
            f"{file.name!r} is not a picture that can be read ({error}). Take it out, or repair it."
        ) from None
    return image


def _count(file: Path) -> int:
    with _open(file) as image:
        return int(getattr(image, "n_frames", 1))


def _times(file: Path) -> list[float]:
    """Seconds at which the pictures of an animation begin, and its end; 0.1 s for those that say 0, as in browsers."""
    with Image.open(file) as image:
        lasting = []
        for picture in ImageSequence.Iterator(image):
            picture.load()  # some formats tell it only then
            lasting.append((picture.info.get("duration") or 100) / 1000)
    return list(accumulate(lasting, initial=0.0))


def _natural(path: Path) -> list[tuple[int, int | str]]:
    parts = re.split(r"(\d+)", path.name.lower())
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts if part]
