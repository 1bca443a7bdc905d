"""The re-loaded moments of answers as clips of the video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from videox2l.ask.answer import Answer
from videox2l.errors import SettingsError, VideoError
from videox2l.memory import Memory
from videox2l.video import Clip, ClipCutter, content_hash


def find_video(memory: Memory, video: str | Path | None = None) -> Path:
    """Return the file that a memory was made of: `video`, or the file of the manifest's name in the current folder.

    Raises VideoError where it is not there or is another file, and SettingsError where none is named.
    """
    name = str(memory.manifest.get("source", ""))
    path = Path(name if video is None else video)
    if video is None and not (name and path.is_file()):
        raise SettingsError(f"the video '{name or 'of this memory'}' is not in this folder: name it with --video FILE")
    known = memory.manifest.get("sha256")
    if known is not None and content_hash(path) != known:
        raise VideoError(f"'{path.name}' is not the video that this memory was made of: name that one")
    return path


def save_clips(
    answers: Sequence[Answer], memory: Memory, folder: str | Path, video: str | Path | None = None
) -> list[Clip]:
    """Cut the re-loaded moments of answers out of the video, each once, into a folder, which is made.

    The names of the clips tell the video and the seconds. Raises VideoError, SettingsError; see `find_video`.
    """
    cutter = ClipCutter(path := find_video(memory, video), fps=memory.manifest.get("fps"))
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"cannot write clips to '{target}': {error.strerror}") from None
    spans = sorted({(moment.start, moment.end) for answer in answers for moment in answer.reloaded})
    return [cutter.cut(start, end, target / f"{path.stem}-{start:.3f}-{end:.3f}") for start, end in spans]
