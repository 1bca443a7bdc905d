"""The re-loaded moments of answers as a file for players, tables and editors: SRT, WebVTT, CSV, EDL (CMX3600)."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from videox2l.ask.answer import Answer, Evidence
from videox2l.errors import SettingsError
from videox2l.memory import Memory


@dataclass(frozen=True)
class _Entry:
    answer: Answer
    moment: Evidence
    memory: Memory

    @property
    def words(self) -> str:
        """The question and the answer in two lines; no line is empty, which would end a cue."""
        return "\n".join(" ".join(text.split()) or "-" for text in (self.answer.question, self.answer.text))


def check_moments(path: str | Path) -> Path:
    """Return the path of a list of moments that can be written. Raises SettingsError for its ending or folder."""
    return check_target_file(path, tuple(_FORMATS), "moments")


def write_moments(answers: Sequence[Answer], path: str | Path, memory: Memory) -> None:
    """Write the re-loaded moments of answers, in order of time; the format follows from the ending of `path`.

    .srt, .vtt: each moment as a cue with the question and the answer. .csv: one row per moment, with a
    quote before words that a spreadsheet would take for a formula. .edl: each moment as a
    cut of the video, one after the other, for an editor; its time code counts frames from the first one of the video,
    at the video's average rate, without drop frames. Raises SettingsError.
    """
    target = check_moments(path)
    target.write_text(moments_text(answers, target.suffix.lower(), memory), encoding="utf-8", newline="")


def moments_text(answers: Sequence[Answer], ending: str, memory: Memory | Mapping[str, Memory]) -> str:
    """Return what `write_moments` writes in a file of this ending, such as ".srt".

    `memory`: of answers about several, all of them, by the names in `Evidence.memory`; a list that has no room for the
    name of a video is refused then. Raises SettingsError, and KeyError for a moment of another memory.
    """
    memories = {"": memory} if isinstance(memory, Memory) else memory
    if len(memories) > 1 and ending != ".csv":
        raise SettingsError(f"{ending} holds moments of one video, and these are of {len(memories)}: take .csv")
    places = list(memories)
    entries = [_Entry(answer, moment, memories[moment.memory]) for answer in answers for moment in answer.reloaded]
    entries.sort(key=lambda entry: (places.index(entry.moment.memory), entry.moment.start, entry.moment.end))
    return _FORMATS[ending](entries, next(iter(memories.values())))


def check_target_file(path: str | Path, endings: Sequence[str], what: str) -> Path:
    """Return the path of a file of such an ending that can be written. Raises SettingsError."""
    target = Path(path)
    if target.suffix.lower() not in endings:
        raise SettingsError(f"cannot write {what} to '{target}': end its name in {', '.join(endings)}")
    if not target.parent.is_dir():
        raise SettingsError(f"cannot write '{target}': the folder '{target.parent}' does not exist")
    return target


def _stamp(seconds: float, mark: str) -> str:
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}{mark}{thousandths:03d}"


def _srt(entries: Sequence[_Entry], _: Memory) -> str:
    return "\n".join(
        f"{number}\n{_stamp(e.moment.start, ',')} --> {_stamp(e.moment.end, ',')}\n{e.words}\n"
        for number, e in enumerate(entries, 1)
    )


def _vtt(entries: Sequence[_Entry], _: Memory) -> str:
    def plain(text: str) -> str:
        return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

    cues = [f"{_stamp(e.moment.start, '.')} --> {_stamp(e.moment.end, '.')}\n{plain(e.words)}\n" for e in entries]
    return "\n".join(["WEBVTT\n", *cues])


def _csv(entries: Sequence[_Entry], _: Memory) -> str:
    def plain(words: str) -> str:
        """Return words that no spreadsheet takes for a formula: what a video shows may be written to be one."""
        return f"'{words}" if words.startswith(("=", "+", "-", "@", "\t", "\r")) else words

    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["start", "end", "chunk", "level", "score", "reason", "question", "answer", "video"])
    for e in entries:
        m, words = e.moment, (e.answer.question, e.answer.text, str(e.memory.manifest.get("source", "")))
        table.writerow([m.start, m.end, m.chunk, m.level, m.score, m.reason, *map(plain, words)])
    return text.getvalue()


def _edl(entries: Sequence[_Entry], memory: Memory) -> str:
    frames, duration = memory.manifest.get("frames"), memory.manifest.get("duration")
    rate = frames / duration if frames and duration else 25.0
    base = max(1, round(rate))

    def code(frame: int) -> str:
        seconds = frame // base
        return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{frame % base:02d}"

    source = " ".join(str(memory.manifest.get("source", "video")).split())
    lines, at = [f"TITLE: {Path(source).stem}", "FCM: NON-DROP FRAME", ""], 0
    for number, e in enumerate(entries, 1):
        first, last = round(e.moment.start * rate), round(e.moment.end * rate)
        length = max(1, last - first)
        times = " ".join(code(frame) for frame in (first, first + length, at, at + length))
        lines += [f"{number:03d}  AX       V     C        {times}", f"* FROM CLIP NAME: {source}"]
        lines += [f"* COMMENT: {' '.join(e.words.split())}", ""]
        at += length
    return "\n".join(lines)


_FORMATS: dict[str, Callable[[Sequence[_Entry], Memory], str]] = {
    ".srt": _srt,
    ".vtt": _vtt,
    ".csv": _csv,
    ".edl": _edl,
}
