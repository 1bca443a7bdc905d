"""Pictures of the chunks of a memory: those that it keeps, or frames of its video where that is at hand."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from videox2l.ask.answer import Evidence
from videox2l.errors import SettingsError, VideoError, VideoWarning
from videox2l.memory import Memory


@dataclass(frozen=True)
class Thumbnail:
    """A picture (height, width, 3) uint8 RGB of a moment of the evidence."""

    moment: Evidence
    image: npt.NDArray[np.uint8]


def thumbnails_of(
    moments: Sequence[Evidence], memory: Memory | None, video: str | Path | Mapping[str, Path] | None = None
) -> list[Thumbnail]:
    """Return pictures of moments, as far as there are any: of `video` if it is named, otherwise of `memory`.

    Of several memories `video` is a map of their names to files; those that are not in it give their own pictures.
    Raises VideoError if `video` cannot be read or is not the file that the memory was made of, and SettingsError if it
    is named without a memory.
    """
    if isinstance(video, Mapping):
        found = list[Thumbnail]()
        for name, part in ({} if memory is None else memory.by_name).items():
            found += thumbnails_of([m for m in moments if m.memory == name], part, video.get(name))
        return found
    if video is not None:
        if memory is None:
            raise SettingsError("pictures of a video need its memory too, which knows the frames: give both")
        return _of_video(moments, memory, video)
    if memory is None:
        return []
    kept = [(moment, memory.thumbnail(moment.chunk)) for moment in moments]
    return [Thumbnail(moment, _decoded(jpeg)) for moment, jpeg in kept if jpeg is not None]


def _decoded(jpeg: bytes) -> npt.NDArray[np.uint8]:
    from PIL import Image

    with Image.open(io.BytesIO(jpeg)) as image:
        return np.asarray(image.convert("RGB"))


def _of_video(moments: Sequence[Evidence], memory: Memory, video: str | Path) -> list[Thumbnail]:
    """Return the middle one of the sampled frames of each moment, from the video itself."""
    from videox2l.video import VideoReader

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VideoWarning)  # the ingest has told
        reader = VideoReader(video).open()
        known = memory.manifest.get("sha256")
        if known is not None and reader.manifest.sha256 != known:
            raise VideoError(f"'{Path(video).name}' is not the video that this memory was made of: name that one")
        pts, indices = np.array(memory.manifest["pts"]), memory.manifest["indices"]
        wanted = {}
        for moment in moments:
            inside = np.flatnonzero((pts >= moment.start) & (pts < moment.end))
            if len(inside):
                wanted[int(indices[inside[len(inside) // 2]])] = moment
        return [Thumbnail(wanted[f.index], f.image) for f in reader.pictures(list(wanted)) if f.index in wanted]
