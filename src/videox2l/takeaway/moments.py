"""The re-loaded moments of answers as a file for players, tables and editors: SRT, WebVTT, CSV, EDL (CMX3600)."""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from videox2l.ask.answer import Answer, Evidence
from videox2l.errors import SettingsError
from videox2l.memory import Memory
from videox2l.options import check_target_file

SEVERAL = (".csv", ".edl")
"""Lists that have room for the names of videos."""


@dataclass(frozen=True)
class _Entry:
    answer: Answer
    moment: Evidence

    @property
    def words(self) -> str:
        """The question and the answer in two lines; no line is empty, which would end a cue."""
        return "\n".join(" ".join(text.split()) or "-" for text in (self.answer.question, self.answer.text))


def check_moments(path: str | Path, several: bool = False) -> Path:
    """Return the path of a list of moments that can be written. Raises SettingsError for its ending or folder.

    Cues belong to one video: of `several` only tables and cut lists are written.
    """
    endings = SEVERAL if several else tuple(_FORMATS)
    return check_target_file(path, endings, "moments of several videos" if several else "moments")


def write_moments(answers: Sequence[Answer], path: str | Path, memory: Memory) -> None:
    """Write the re-loaded moments of answers, in order of video and time; the format follows from the ending of `path`.

    .srt, .vtt: each moment as a cue with the question and the answer. .csv: one row per moment, with a quote before
    words that a spreadsheet would take for a formula. .edl: each moment as a
    cut of the video, one after the other, for an editor; its time code counts frames from the first one of the video,
    at the video's average rate, as SMPTE drop-frame time code at 29.97 and 59.94 frames per second. Of
    several videos .csv and .edl. Raises SettingsError, also for a cut list of videos with different rates.
    """
    target = check_moments(path, len(memory.by_name) > 1)
    target.write_text(moments_text(answers, target.suffix.lower(), memory), encoding="utf-8", newline="")


def moments_text(answers: Sequence[Answer], ending: str, memory: Memory) -> str:
    """Return what `write_moments` writes in a file of this ending, such as ".srt".

    Raises SettingsError for cues of several videos, and ValueError for a moment of a memory that is not there.
    """
    order = list(memory.by_name)
    if len(order) > 1 and ending not in SEVERAL:
        raise SettingsError(f"{ending} holds moments of one video, and these are of {len(order)}: take .csv or .edl")
    entries = [_Entry(answer, moment) for answer in answers for moment in answer.reloaded]
    entries.sort(key=lambda entry: (order.index(entry.moment.memory), entry.moment.start, entry.moment.end))
    return _FORMATS[ending](entries, memory)


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


def _no_formula(words: str) -> str:
    """Return words that no spreadsheet takes for a formula: what a video shows may be written to be one."""
    return f"'{words}" if words.startswith(("=", "+", "-", "@", "\t", "\r")) else words


def _csv(entries: Sequence[_Entry], memory: Memory) -> str:
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["start", "end", "chunk", "level", "score", "reason", "question", "answer", "video"])
    for e in entries:
        m, source = e.moment, e.moment.memory or str(memory.manifest.get("source", ""))
        words = (e.answer.question, e.answer.text, source)
        table.writerow([m.start, m.end, m.chunk, m.level, m.score, m.reason, *map(_no_formula, words)])
    return text.getvalue()


def time_code(frame: int, base: int, drop: bool = False) -> str:
    """Return the SMPTE time code of a frame, counted from 0, at `base` frames to a second of time code.

    With `drop`, for rates of `base` * 1000 / 1001, a fifteenth of the first second's numbers is left out in every
    minute but each tenth, so that the code keeps up with the clock, and a semicolon says so.
    """
    if drop:
        left_out, minute = base // 15, base * 60
        tens, rest = divmod(frame, 10 * minute - 9 * left_out)
        minutes = 0 if rest < minute else 1 + (rest - minute) // (minute - left_out)
        frame += left_out * (9 * tens + minutes)
    seconds, mark = frame // base, ";" if drop else ":"
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{mark}{frame % base:02d}"


def _rate(memory: Memory) -> tuple[float, int, bool]:
    """Return frames per second, per second of time code, and whether numbers are dropped."""
    frames, duration = memory.manifest.get("frames"), memory.manifest.get("duration")
    rate = frames / duration if frames and duration else 25.0
    base = max(1, round(rate))
    # A rate that is measured: nearer to 30 * 1000 / 1001, or 60 * 1000 / 1001, than to the whole number.
    drop = base in (30, 60) and abs(rate * 1.001 / base - 1) < 0.0005
    return base * 1000 / 1001 if drop else rate, base, drop


def _edl(entries: Sequence[_Entry], memory: Memory) -> str:
    rates = {name: _rate(part) for name, part in memory.by_name.items()}
    _, base, drop = next(iter(rates.values()))
    if len({found[1:] for found in rates.values()}) > 1:
        told = ", ".join(f"'{name}' {found[0]:.2f}" for name, found in rates.items())
        raise SettingsError(f"a cut list has one rate, these videos have {told} frames per second: write a .csv")
    code = functools.partial(time_code, base=base, drop=drop)
    sources = {n: " ".join(str(part.manifest.get("source", "video")).split()) for n, part in memory.by_name.items()}
    title = ", ".join(Path(source).stem for source in sources.values())
    lines, at = [f"TITLE: {title}", f"FCM: {'' if drop else 'NON-'}DROP FRAME", ""], 0
    for number, e in enumerate(entries, 1):
        source, rate = sources[e.moment.memory], rates[e.moment.memory][0]
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
