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
ENDINGS = (".srt", ".vtt", ".ass", ".ssa")
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
        lines = sorted(_embedded(admit(video)), key=lambda line: (line.start, line.end))
        if not lines:
            raise VideoError(f"{Path(video).name!r} holds no subtitles.")
        return lines
    path = admit(where)
    if path.stat().st_size > _LIMIT:
        raise VideoError(f"{path.name!r} is larger than {_LIMIT >> 20} MiB: no subtitle file is.")
    return parse_subtitles(path.read_bytes(), path.name)


def subtitles_in(path: str | os.PathLike[str], name: str | None = None) -> list[Cue]:
    """Return the lines of a subtitle file, by its ending (`ENDINGS`), or else of the first text track of a video.

    `name`: the file's own, where it lies under another. Raises VideoError, SettingsError.
    """
    if Path(name or path).suffix.lower() in ENDINGS:
        return read_subtitles(path)
    return read_subtitles(EMBEDDED, path)


def parse_subtitles(data: bytes, name: str) -> list[Cue]:
    """Return the lines of an SRT or VTT file, given as its bytes; `name` is for errors, those of `read_subtitles`."""
    try:
        import pysubs2
    except ImportError:
        raise SettingsError(f"{name!r} needs pysubs2: pip install 'videox2l[subtitles]'") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "cp1252", errors="replace")
    try:
        events = pysubs2.SSAFile.from_string(text).events
    except Exception as error:  # the parser raises errors of many kinds on what is no subtitle file
        raise VideoError(f"{name!r} is no subtitle file that can be read: {error}") from None
    lines = [
        Cue(event.start / 1000, event.end / 1000, plain)
        for event in events
        if (plain := _plain(event.plaintext)) and not event.is_comment and event.end > event.start
    ]
    if not lines:
        raise VideoError(f"{name!r} holds no subtitles.")
    return sorted(lines, key=lambda line: (line.start, line.end))


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
