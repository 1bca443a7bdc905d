"""The two text files of a memory: a manifest that is written once, and a journal with a line per whole chunk.

Every line carries the SHA-256 of itself and of the line before, so that a changed byte shows, wherever it is, and lines
of different memories cannot be mixed. A line without its end was being written when the writer was stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from videox2l.errors import MemoryFileError
from videox2l.memory.disk.objects import Segment, TensorSpec

FORMAT = "videox2l-memory"
VERSION = 2
MANIFEST = "manifest.json"
JOURNAL = "journal.jsonl"
COARSE = "coarse.pack"
PREFIX = "prefix.safetensors"


@dataclass(frozen=True)
class ObjectRef:
    """An object, or a stretch of one: `name`, first byte, `nbytes`, SHA-256 of these bytes, and its parts."""

    name: str
    start: int
    nbytes: int
    sha256: str
    parts: tuple[Segment, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        plain = {"name": self.name, "start": self.start, "bytes": self.nbytes, "sha256": self.sha256}
        return {**plain, "parts": [part.to_json() for part in self.parts]} if self.parts else plain

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ObjectRef:
        """Read what `to_json` wrote."""
        parts = tuple(Segment.from_json(part) for part in values.get("parts", ()))
        found = cls(str(values["name"]), int(values["start"]), int(values["bytes"]), str(values["sha256"]), parts)
        if min(found.start, found.nbytes) < 0 or any(part.end > found.nbytes for part in parts):
            raise ValueError(f"parts of {found.name}")
        return found


@dataclass(frozen=True)
class ChunkEntry:
    """What the journal says of a chunk.

    `pts`, `indices` of its sampled frames; `axes`, `tokens`: the shape of its raw visual tokens' positions; `levels`
    ratio -> tokens; `ranked`: whether the finest of them serves ratios in between; `nested`: the ratios of the levels
    that are its first tokens; `coarse`: positions and the coarsest level; `fine`: finer levels, or the visual tokens to
    make them from (`grid`); `thumb`: a JPEG. `features`: the tensors of the second part of `coarse`, if there is one;
    `window`: the chunk's number in the window that was prefilled together, and how many chunks that has.
    """

    number: int
    start: float
    end: float
    pts: tuple[float, ...]
    indices: tuple[int, ...]
    axes: int
    tokens: int
    levels: Mapping[float, int]
    ranked: bool
    nested: tuple[float, ...]
    last: bool
    grid: tuple[int, int, int] | None
    coarse: ObjectRef
    fine: ObjectRef | None
    thumb: ObjectRef | None
    own_axes: int = 0
    features: tuple[TensorSpec, ...] = ()
    window: tuple[int, int] = (0, 1)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "kind": "chunk",
            "number": self.number,
            "start": self.start,
            "end": self.end,
            "pts": list(self.pts),
            "indices": list(self.indices),
            "axes": self.axes,
            "tokens": self.tokens,
            "levels": {f"{ratio:g}": size for ratio, size in self.levels.items()},
            "ranked": self.ranked,
            "nested": list(self.nested),
            "own_axes": self.own_axes,
            "last": self.last,
            "grid": None if self.grid is None else list(self.grid),
            **({"features": [spec.to_json() for spec in self.features]} if self.features else {}),
            **({"window": list(self.window)} if self.window[1] > 1 else {}),
            **{name: None if (at := getattr(self, name)) is None else at.to_json() for name in _OBJECTS},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ChunkEntry:
        """Read what `to_json` wrote."""
        grid = values["grid"]
        levels = {float(ratio): int(size) for ratio, size in values["levels"].items()}
        at = {name: None if values[name] is None else ObjectRef.from_json(values[name]) for name in _OBJECTS}
        if at["coarse"] is None or not levels or min(levels.values()) < 1:
            raise ValueError("coarse level and levels of a chunk")
        features = tuple(TensorSpec.from_json(spec) for spec in values.get("features", ()))
        if len(at["coarse"].parts) < 1 + bool(features):
            raise ValueError("features of a chunk")
        place, size = values.get("window", (0, 1))
        return cls(
            number=int(values["number"]),
            start=float(values["start"]),
            end=float(values["end"]),
            pts=tuple(float(pts) for pts in values["pts"]),
            indices=tuple(int(index) for index in values["indices"]),
            axes=int(values["axes"]),
            tokens=int(values["tokens"]),
            levels=dict(sorted(levels.items())),
            ranked=bool(values["ranked"]),
            nested=tuple(float(ratio) for ratio in values["nested"]),
            own_axes=int(values["own_axes"]),
            last=bool(values["last"]),
            grid=None if grid is None else (int(grid[0]), int(grid[1]), int(grid[2])),
            coarse=at["coarse"],
            fine=at["fine"],
            thumb=at["thumb"],
            features=features,
            window=(int(place), int(size)),
        )

    def objects(self) -> list[ObjectRef]:
        """Return all objects of the chunk."""
        return [at for at in (self.coarse, self.fine, self.thumb) if at is not None]


_OBJECTS = ("coarse", "fine", "thumb")


@dataclass
class Journal:
    """A journal as it was read.

    `check`: seal of the last line; `facts`: what the end of an ingest recorded of its video, None while it is not
    complete; `sources`: the same for each source that came to its end; `subtitles`: the last ones that were given,
    `speech`: where they were made of the video's sound, by what and how far, else empty;
    `begun`: what the line said with which the last source was appended, empty for the first one, and `first`: the
    number of its first chunk; `length`: bytes of whole lines; `torn`: bytes behind them, of a line that was being
    written.
    """

    check: str
    chunks: list[ChunkEntry] = field(default_factory=list)
    facts: dict[str, Any] | None = None
    sources: list[dict[str, Any]] = field(default_factory=list)
    subtitles: ObjectRef | None = None
    speech: dict[str, Any] = field(default_factory=dict)
    begun: dict[str, Any] = field(default_factory=dict)
    first: int = 0
    length: int = 0
    torn: int = 0

    @property
    def pack_bytes(self) -> int:
        """Bytes of the pack that the chunks use."""
        coarse = self.chunks[-1].coarse if self.chunks else None
        return 0 if coarse is None else coarse.start + coarse.nbytes

    def line(self, values: Mapping[str, Any]) -> bytes:
        """Return the next line for `values`, to be passed to `take` once it is written."""
        return _sealed(json.dumps(values, separators=(",", ":")).encode(), self.check)

    def take(self, line: bytes) -> None:
        """Add a whole line; raises ValueError, KeyError or TypeError when it is not a valid one."""
        check = _seal_of(line, self.check)
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError("no object")
        if values["kind"] == "chunk":
            entry = ChunkEntry.from_json(values)
            if entry.number != len(self.chunks) or entry.coarse.start < self.pack_bytes:
                raise ValueError(f"chunk {entry.number} is out of order")
            self.chunks.append(entry)
            self.facts = None
        elif values["kind"] == "subtitles":
            self.subtitles = ObjectRef.from_json(values["at"])
            self.speech = dict(values.get("speech", {}))
        elif values["kind"] == "source":
            self.begun = {"content": dict(values["content"]), "shift": float(values["shift"])}
            self.first = len(self.chunks)
            self.facts = None
        elif values["kind"] == "end":
            self.facts = dict(values["facts"])
            self.sources.append(self.facts)
        else:
            raise ValueError(f"kind {values['kind']!r} is not known")
        self.check = check
        self.length += len(line)


def read_journal(data: bytes, check: str, where: str) -> Journal:
    """Read a journal that belongs to the manifest with the hash `check`.

    Raises MemoryFileError, naming the line, when a line is damaged.
    """
    journal = Journal(check)
    lines = data.split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            journal.take(line + b"\n")
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
            if number == len(lines) - 1 and b"\0" in line:
                break  # the file grew, but what was written had not reached the disk
            raise MemoryFileError(f"{where} is damaged in line {number}: {error}") from error
    journal.torn = len(data) - journal.length
    return journal


def pack_manifest(values: Mapping[str, Any]) -> bytes:
    """Return the manifest's text: indented JSON that ends with its own hash."""
    return _sealed(json.dumps({"format": FORMAT, "version": VERSION, **values}, indent=1).encode(), "")


def unpack_manifest(data: bytes, where: str) -> dict[str, Any]:
    """Read a manifest. Raises MemoryFileError when it is damaged, of another format, or of a version not known."""
    try:
        values = json.loads(data)
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise MemoryFileError(f"{where} is not a memory's: ingest a video into a new folder")
        if values.get("version") != VERSION:
            raise MemoryFileError(
                f"{where} has format version {values.get('version')}, this release reads version {VERSION}"
            )
        _seal_of(data, "")
    except (ValueError, RecursionError) as error:
        raise MemoryFileError(f"{where} is damaged: {error}") from error
    return values


def describe_differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return where two nested mappings differ, such as 'settings.ratios: memory [2.0, 32.0], now [2.0, 16.0]'."""
    found = []
    for key in sorted(set(old) | set(new)):
        one, two = old.get(key), new.get(key)
        if isinstance(one, Mapping) and isinstance(two, Mapping):
            found += describe_differences(one, two, f"{prefix}{key}.")
        elif one != two:
            found.append(f"{prefix}{key}: memory {_short(one)}, now {_short(two)}")
    return found


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text[:12] + "..." if len(text) == 64 else text if len(text) <= 200 else text[:200] + "..."


_SEAL = b',"check":"'


def _sealed(text: bytes, before: str) -> bytes:
    """Return a JSON object with its seal as the last member, and a newline.

    The seal is the SHA-256 of the seal before, a newline, and the object's text up to the comma before "check".
    """
    body = text[:-1].rstrip(b"\n")
    return body + _SEAL + hashlib.sha256(before.encode() + b"\n" + body).hexdigest().encode() + b'"}\n'


def _seal_of(line: bytes, before: str) -> str:
    """Return the seal of a sealed text; raises ValueError if it does not fit it and the seal before."""
    body, _, tail = line.rpartition(_SEAL)
    check = hashlib.sha256(before.encode() + b"\n" + body).hexdigest()
    if tail != check.encode() + b'"}\n':
        raise ValueError("its content does not match its hash")
    return check
