"""Times and byte counts as people write them: 12:30, 1:02:03.5, 95 seconds; 200M."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from videox2l.errors import SettingsError


def format_time(seconds: float) -> str:
    """Return seconds as mm:ss, or h:mm:ss from an hour on; fractions are cut off."""
    whole = int(seconds + 1e-6)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes:02d}:{whole % 60:02d}"


def format_range(start: float, end: float) -> str:
    """Return a moment as mm:ss-mm:ss."""
    return f"{format_time(start)}-{format_time(end)}"


def parse_time(text: str) -> float:
    """Read "95", "95.5", "12:30" or "1:02:03" as seconds. Raises SettingsError."""
    parts = text.strip().split(":")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    if not 1 <= len(values) <= 3 or any(not 0 <= value < 1e15 for value in values):
        raise SettingsError(f"'{text}' is no time: write seconds, mm:ss or h:mm:ss")
    seconds = 0.0
    for value in values:
        seconds = seconds * 60 + value
    return seconds


def parse_range(text: str) -> tuple[float, float]:
    """Read "A-B" as a pair of seconds, such as "10:00-11:30". Raises SettingsError."""
    first, dash, second = text.partition("-")
    if not dash:
        raise SettingsError(f"'{text}' is no time range: write start-end, such as 10:00-11:30")
    start, end = parse_time(first), parse_time(second)
    if start >= end:
        raise SettingsError(f"time range '{text}' is empty: it must end after it starts")
    return start, end


def as_time(value: object, name: str) -> float | None:
    """Return a time in seconds of a number, or of text such as "12:30"; None stays. Raises SettingsError."""
    if value is None:
        return None
    if isinstance(value, str):
        return parse_time(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e15:
        raise SettingsError(f"{name} must be a time of 0 seconds or more, or text such as 12:30; got {value!r}")
    return float(value)


def as_range(value: object, name: str) -> tuple[float, float]:
    """Return a time range in seconds of a pair of times, or of text such as "10:00-11:30". Raises SettingsError."""
    if isinstance(value, str):
        return parse_range(value)
    if not isinstance(value, (list, tuple)) or len(value) != 2 or None in value:
        raise SettingsError(f"{name} must be a time range, a pair of times or text such as 10:00-11:30; got {value!r}")
    start, end = (as_time(part, name) or 0.0 for part in value)
    if start >= end:
        raise SettingsError(f"{name}: time range {start:g}-{end:g} is empty: it must end after it starts")
    return start, end


def as_times(value: object, name: str) -> tuple[float, ...] | None:
    """Return times in seconds, which must rise, of a list of them or of text such as "0:05,0:12.5,1:03"; None stays.

    Raises SettingsError that names the time that is wrong.
    """
    if value is None:
        return None
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)):
        raise SettingsError(f"{name} must be a list of times, or text such as 0:05,0:12.5,1:03; got {value!r:.80}")
    if not parts or parts == [""]:
        raise SettingsError(f"{name} holds no time: name one or more, such as 0:05,0:12.5,1:03")
    found = list[float]()
    for part in parts:
        try:
            second = as_time(part, name)
        except SettingsError as error:
            raise SettingsError(f"{name}: {str(error).removeprefix(f'{name} ')}") from None
        if second is None:
            raise SettingsError(f"{name} must be a list of times without None, got {value!r:.80}")
        if found and second <= found[-1]:
            before = f"stands behind {found[-1]:g} s: sort them"
            cure = before if second < found[-1] else "is there twice: leave one out"
            raise SettingsError(f"{name} must be times that rise, but {second:g} s {cure}")
        found.append(second)
    return tuple(found)


def times_of_lines(text: str, name: str) -> tuple[float, ...]:
    """Return the times of a text with one a line, in which "#" begins a comment. Raises SettingsError; see `as_times`.

    Errors name the line.
    """
    found = list[float]()
    for number, line in enumerate(text.splitlines(), 1):
        if words := line.partition("#")[0].strip():
            try:
                found.append(parse_time(words))
                as_times(found[-2:], name)
            except SettingsError as error:
                raise SettingsError(f"{name}, line {number}: {str(error).removeprefix(f'{name} ')}") from None
    return as_times(found, name) or ()


_CUE = 10_000


@dataclass(frozen=True)
class Cue:
    """A line of subtitles: `start`, `end` seconds since the first frame of the video, and its plain `text`."""

    start: float
    end: float
    text: str

    def __post_init__(self) -> None:
        """Raise SettingsError for what is no line of text."""
        if not isinstance(self.text, str) or len(self.text) > _CUE:
            raise SettingsError(
                f"a line of subtitles must be a text of at most {_CUE} characters, got {self.text!r:.60}"
            )


def cues_within(lines: Sequence[Cue], start: float, end: float) -> list[Cue]:
    """Return the lines that are shown at some time from `start` to `end` (seconds)."""
    return [line for line in lines if line.start < end and start < line.end]


def format_bytes(count: float) -> str:
    """Return bytes for people: 1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def parse_bytes(text: str, name: str = "size") -> int:
    """Read "500MB", "20G", "24GiB" or a plain number as bytes. Raises SettingsError."""
    units = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30}
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", text.strip().upper())
    if found is None or found[2] not in units:
        raise SettingsError(f"{name} must be a size such as 500MB or 20GB, got '{text}'")
    return int(float(found[1]) * units[found[2]])
