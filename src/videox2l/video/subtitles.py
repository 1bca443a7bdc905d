"""Lines of text on a video's timeline: from SRT and VTT files, and from text tracks inside a video."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterable
from pathlib import Path

import av

from videox2l.errors import SettingsError, VideoError
from videox2l.units import Cue
from videox2l.video.decode import first_frame
from videox2l.video.files import admit, open_container

EMBEDDED = "embedded"
_LIMIT = 32 << 20
_TAG = re.compile(r"<[^<>]{0,200}>|\{[^{}]{0,200}\}")


def read_subtitles(where: str | os.PathLike[str], video: str | os.PathLike[str] | None = None) -> list[Cue]:
    """Return the lines of an SRT or VTT file, or with `where="embedded"` of the first text track of `video`.

    Sorted by time. Raises VideoError when there are none or they cannot be read, SettingsError when the package that
    reads files is missing.
    """
    if os.fspath(where) == EMBEDDED:
        if video is None:
            raise SettingsError("subtitles='embedded' needs a video file: give the path of a subtitle file instead")
        lines = list(_embedded(admit(video)))
        name = Path(video).name
    else:
        path = admit(where)
        name = path.name
        lines = list(_from_file(path))
    if not lines:
        raise VideoError(f"{name!r} holds no subtitles.")
    return sorted(lines, key=lambda line: (line.start, line.end))


def _from_file(path: Path) -> Iterable[Cue]:
    try:
        import pysubs2
    except ImportError:
        raise SettingsError(f"{path.name!r} needs pysubs2: pip install 'videox2l[subtitles]'") from None
    if path.stat().st_size > _LIMIT:
        raise VideoError(f"{path.name!r} is larger than {_LIMIT >> 20} MiB: no subtitle file is.")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "cp1252", errors="replace")
    try:
        events = pysubs2.SSAFile.from_string(text).events
    except Exception as error:  # the parser raises errors of many kinds on what is no subtitle file
        raise VideoError(f"{path.name!r} is no subtitle file that can be read: {error}") from None
    for event in events:
        plain = _plain(event.plaintext)
        if plain and not event.is_comment and event.end > event.start:
            yield Cue(event.start / 1000, event.end / 1000, plain)


def _embedded(path: Path) -> Iterable[Cue]:
    frame = first_frame(path)
    origin = float(frame.pts * frame.time_base) if frame.pts is not None else 0.0
    with open_container(path) as container:
        tracks = [track for track in container.streams.subtitles if track.codec_context.name not in _PICTURES]
        if not tracks:
            raise VideoError(f"{path.name!r} has no text track: give a subtitle file instead.")
        track = tracks[0]
        for packet in container.demux(track):
            if packet.pts is None or not packet.duration:
                continue
            start = float(packet.pts * packet.time_base) - origin
            try:
                found = packet.decode()
            except av.error.FFmpegError:
                continue
            plain = _plain(" ".join(_text(piece) for piece in found))
            if plain:
                yield Cue(start, start + float(packet.duration * packet.time_base), plain)


_PICTURES = ("dvdsub", "dvbsub", "pgssub", "xsub")


def _text(subtitle: object) -> str:
    dialogue: bytes = getattr(subtitle, "dialogue", b"") or getattr(subtitle, "text", b"")
    return dialogue.decode("utf-8", errors="replace")


def _plain(text: str) -> str:
    """Return a line's words, without tags and line breaks."""
    return " ".join(html.unescape(_TAG.sub(" ", text.replace("\\N", " "))).split())
