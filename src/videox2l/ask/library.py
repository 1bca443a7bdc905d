"""A question about all memories of a library: which videos, and which of their moments, it is about.

Features of all chunks stand side by side in host memory; nothing else of a memory is read before it is found.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from videox2l.ask.answer import Answer
from videox2l.engine.backbone import Backbone
from videox2l.errors import MemoryFileError, SettingsError
from videox2l.memory import Chunk, Memory
from videox2l.memory.disk.journal import ObjectRef
from videox2l.memory.disk.library import locations
from videox2l.memory.disk.reader import read_features, read_prefix
from videox2l.memory.disk.source import open_source, subtitles_of
from videox2l.memory.disk.stores import open_store
from videox2l.memory.features import INDEX, PICTURES, votes_of
from videox2l.memory.level_cache import LevelCache
from videox2l.memory.levels import Levels
from videox2l.options import AskOptions, LibraryOptions
from videox2l.select import selector_by_name
from videox2l.select.base import compared_features
from videox2l.types import TextTokens, without_source
from videox2l.units import Cue, cues_within, format_range

_OPEN = 4
"""Memories that stay open between questions: their H is in host memory."""


@dataclass(frozen=True)
class Moment:
    """A chunk that a search found: number `chunk` of `memory`, made of `video`; seconds; the search's `score`."""

    memory: str
    video: str
    chunk: int
    start: float
    end: float
    score: float

    @property
    def where(self) -> str:
        """Its memory and times."""
        return f"{self.memory} {format_range(self.start, self.end)}"


@dataclass(frozen=True)
class LibraryAnswer(Answer):
    """An answer from the memories of a library that were found for the question.

    `evidence`: every chunk of these memories. `moments`: the best of the search, best first, of all memories.
    `searched`: how many memories and chunks were compared. `left_out`: by name, memories that were not, and why.
    """

    moments: tuple[Moment, ...] = ()
    searched: tuple[int, int] = (0, 0)
    left_out: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, answer: Answer, found: Search) -> LibraryAnswer:
        """Return the answer with what was searched."""
        own = {one.name: getattr(answer, one.name) for one in fields(answer)}
        only = found.memories[0] if len(found.memories) == 1 else ""
        videos = {moment.memory: moment.video for moment in found.best}
        evidence = (replace(part, memory=part.memory or only) for part in answer.evidence)
        own["evidence"] = tuple(replace(part, video=videos[part.memory]) for part in evidence)
        return cls(**own, moments=found.moments, searched=found.searched, left_out=found.left_out)


@dataclass(frozen=True)
class Search:
    """What a search found: the memories that are to be asked, `opened`, and the `best` moment of each, best first."""

    best: tuple[Moment, ...]
    opened: tuple[Memory, ...]
    moments: tuple[Moment, ...]
    searched: tuple[int, int]
    left_out: dict[str, str]

    @property
    def memories(self) -> tuple[str, ...]:
        """Names of the memories that are to be asked, best first."""
        return tuple(moment.memory for moment in self.best)


@dataclass
class SearchedMemory(Memory):
    """Features and times of many memories' chunks, for selectors; it cannot be asked. `cues`: those of each chunk."""

    cues: tuple[tuple[Cue, ...], ...] = ()

    def lines(self, chunk: int) -> list[Cue]:
        """Return the subtitles that are shown during a chunk of its own video."""
        return list(self.cues[chunk])

    def after(self, dialogue: object) -> Memory:
        """Return itself: there is no dialogue."""
        return self


@dataclass(frozen=True)
class IndexedMemory:
    """What an index holds of one memory. `seal`: hash over manifest and journal, and so over the hash of every byte."""

    name: str
    path: str
    stamp: object
    seal: str
    video: str
    head: dict[str, Any] = field(repr=False)
    chunks: tuple[Chunk, ...] = field(repr=False)
    cues: tuple[tuple[Cue, ...], ...] = field(repr=False)

    def joins(self) -> tuple[object, ...]:
        """Return what memories must agree on to be asked together."""
        settings, before = self.head["settings"], len(ObjectRef.from_json(self.head["prefix"]).parts[0])
        alike = tuple(settings.get(name) for name in ("system", "index", "embedder"))
        return (self.head["ratios"], self.head["reposition"], before, *alike)


class LibraryIndex:
    """Features of all memories in a folder, or at an fsspec URL, that one model can be asked about.

    `search` looks first which memories came, went or grew, and reads those alone. Safe for several threads.
    """

    def __init__(self, library: str | Path, backbone: Backbone, identity: dict[str, str]) -> None:
        self.library, self._backbone, self._identity = library, backbone, without_source(identity)
        self._held: dict[str, dict[str, IndexedMemory]] = {}  # by the features that are held, by name
        self._wrong: dict[str, tuple[object, str]] = {}  # memories that cannot be read
        self._views: dict[str, tuple[list[IndexedMemory], SearchedMemory]] = {}
        self._opened: OrderedDict[str, Memory] = OrderedDict()  # by seal, those that were asked last at the end
        self._lock = Lock()

    def search(self, question: TextTokens, options: LibraryOptions, asking: AskOptions) -> Search:
        """Find the moments that a question is about, and the memories that are to be asked.

        Raises SettingsError for a selector that reads levels, MemoryFileError where no memory is left.
        """
        selector = selector_by_name(options.search) if isinstance(options.search, str) else options.search
        names = compared_features(selector)
        with self._lock:
            indexed, view, left_out = self.update(names)
        owners = [(memory, number) for memory in indexed for number in range(len(memory.chunks))]
        try:
            seen = view.seen(asking.as_of, asking.within, asking.said)
        except SettingsError:
            raise SettingsError(
                f"as_of={asking.as_of}, within={asking.within} and said={asking.said!r} leave no moment of the "
                f"{len(indexed)} memories in '{self.library}': ask for more of them"
            ) from None
        scores = selector.score(question, view, self._backbone)
        order = [seen[i] for i in scores[seen].argsort(descending=True, stable=True).tolist()]
        values = scores.tolist()

        def moment(i: int) -> Moment:
            memory, number = owners[i]
            chunk = memory.chunks[number]
            return Moment(memory.name, memory.video, number, chunk.start, chunk.end, values[i])

        best: dict[str, int] = {}
        for i in order:
            best.setdefault(owners[i][0].name, i)
        taken = list[int]()
        for name, i in best.items():
            if len(taken) == options.videos:
                break
            memory, first = owners[i][0], owners[taken[0]][0] if taken else None
            if asking.system not in (None, memory.head["settings"].get("system")):
                left_out[name] = "found, but made with another system text than was asked for"
            elif first is not None and memory.joins() != first.joins():
                left_out[name] = f"found, but made with other settings than '{first.name}'"
            else:
                taken.append(i)
        if not taken:
            raise MemoryFileError(f"no memory in '{self.library}' was made with the system text {asking.system!r}")
        return Search(
            best=tuple(moment(i) for i in taken),
            opened=tuple(self._open(owners[i][0]) for i in taken),
            moments=tuple(moment(i) for i in order[: options.moments]),
            searched=(len(indexed), len(owners)),
            left_out=left_out,
        )

    def _open(self, memory: IndexedMemory) -> Memory:
        """Return a memory with its levels; those that were asked last are kept."""
        with self._lock:
            opened = self._opened.pop(memory.seal, None) or Memory.load(memory.path)
            self._opened[memory.seal] = opened
            while len(self._opened) > _OPEN:
                self._opened.popitem(last=False)
            return opened

    def update(self, names: tuple[str, ...]) -> tuple[list[IndexedMemory], SearchedMemory, dict[str, str]]:
        """Return the memories whose features `names` are compared, these side by side, and why others are not."""
        key = "+".join(names)
        held, now = self._held.setdefault(key, {}), locations(self.library)
        for name in [name for name in held if name not in now]:
            del held[name]
        self._wrong = {name: found for name, found in self._wrong.items() if now.get(name, ("", None))[1] == found[0]}
        for name, (path, stamp) in now.items():
            known = held.get(name)
            if name in self._wrong or (known is not None and known.stamp == stamp):
                continue
            held.pop(name, None)
            try:
                held[name] = _read(name, path, stamp, names, known)
            except MemoryFileError as error:
                self._wrong[name] = (stamp, str(error))
        left_out = {name: why for name, (_, why) in self._wrong.items()}
        indexed = list[IndexedMemory]()
        for name in sorted(held):
            why = self._unfit(held[name], names, indexed)
            if why:
                left_out[name] = why
            else:
                indexed.append(held[name])
        if not indexed:
            reasons = "".join(f"; {name}: {why}" for name, why in list(left_out.items())[:3])
            raise MemoryFileError(f"'{self.library}' holds no memory that this model can be asked about{reasons}")
        before = self._views.get(key)
        same = before is not None and [one.seal for one in before[0]] == [one.seal for one in indexed]
        if before is None or not same:
            before = self._views[key] = (indexed, _side_by_side(indexed))
        return indexed, before[1], left_out

    def _unfit(self, memory: IndexedMemory, names: Iterable[str], others: Sequence[IndexedMemory]) -> str:
        """Return why a memory is not compared with others, or nothing."""
        head = memory.head
        theirs = without_source(head["identity"])
        wrong = [name for name in sorted({*theirs, *self._identity}) if theirs.get(name) != self._identity.get(name)]
        if wrong:
            return f"made by another model (it differs in {', '.join(wrong)})"
        if not memory.chunks:
            return "it holds no chunk yet"
        votes = [list(vote) for vote in votes_of(self._backbone)]
        if INDEX in names and [list(vote) for vote in head["settings"].get("index", ())] != votes:
            return "its keys are indexed by other layers than the model's are now: ingest the video again"
        if PICTURES in names and others and others[0].head["settings"]["embedder"] != head["settings"]["embedder"]:
            return f"its frames were embedded by another encoder than those of '{others[0].name}'"
        return ""


def _read(name: str, path: str, stamp: object, names: tuple[str, ...], known: IndexedMemory | None) -> IndexedMemory:
    """Read what an index holds of a memory; what is known is kept where the content is the same."""
    source = open_source(open_store(path), LevelCache(0))
    seal = source.journal.check
    if known is not None and known.seal == seal:
        return replace(known, stamp=stamp)
    entries, cues = source.journal.chunks, subtitles_of(source)
    nowhere = torch.zeros(1, 1, dtype=torch.int64)
    chunks = tuple(
        Chunk(entry.start, entry.end, len(entry.pts), nowhere, Levels({}), features=features)
        for entry, features in zip(entries, read_features(source, names), strict=True)
    )
    lines = tuple(tuple(cues_within(cues, chunk.start, chunk.end)) for chunk in chunks)
    video = str(source.head["video"].get("source") or "")
    return IndexedMemory(name, path, stamp, seal, video, source.head, chunks, lines)


def _side_by_side(indexed: Sequence[IndexedMemory]) -> SearchedMemory:
    """Return all chunks as one memory; the question is read behind the text before the first one's video."""
    source = open_source(open_store(indexed[0].path), LevelCache(0))
    cues = tuple(line for memory in indexed for line in memory.cues)
    return SearchedMemory(
        identity=dict(source.head["identity"]),
        settings=dict(source.head["settings"]),
        manifest={},
        shape=source.shape,
        ratios=tuple(float(ratio) for ratio in source.head["ratios"]),
        prefix=read_prefix(source),
        next_position=0,
        chunks=[chunk for memory in indexed for chunk in memory.chunks],
        subtitles=tuple(cue for lines in cues for cue in lines),
        cues=cues,
    )
