"""Writing a memory chunk by chunk, so that it can be stopped at any instant and continued."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from videox2l.errors import MemoryFileError
from videox2l.memory.disk.journal import (
    COARSE,
    JOURNAL,
    MANIFEST,
    PREFIX,
    ChunkEntry,
    Journal,
    ObjectRef,
    describe_differences,
    pack_manifest,
)
from videox2l.memory.disk.layout import ObjectBuilder, cuts, own_axes
from videox2l.memory.disk.locks import locked, writing_errors
from videox2l.memory.disk.objects import StoredShape, TensorSpec, dtype_name
from videox2l.memory.disk.reader import read_chunk
from videox2l.memory.disk.source import Source, open_source
from videox2l.memory.disk.stores import ObjectStore
from videox2l.memory.level_cache import LevelCache
from videox2l.memory.levels import Chunk
from videox2l.types import KVShape, without_source

_COMPARED = ("identity", "settings", "content", "shape", "ratios", "reposition")


@dataclass(frozen=True)
class Head:
    """What a memory's manifest says: all that is known before the first chunk.

    `identity` of the model, `settings` of the compression, `content`: what determines the frames (hash and sampling
    settings), `video`: everything else that is known of the source, `prefix` (layers, heads, n, head_dim) twice.
    """

    identity: dict[str, str]
    settings: dict[str, Any]
    content: dict[str, Any]
    video: dict[str, Any]
    shape: KVShape
    ratios: tuple[float, ...]
    reposition: str
    prefix: tuple[Tensor, Tensor]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, without the prefix."""
        return {
            "identity": self.identity,
            "settings": self.settings,
            "content": self.content,
            "video": self.video,
            "shape": asdict(StoredShape.of(self.shape)),
            "ratios": list(self.ratios),
            "reposition": self.reposition,
        }


class MemoryWriter:
    """The one writer of a memory. `open_writer` makes it; `source` is what readers see.

    A chunk is journalled when all its objects are on disk: until then readers do not see it. After an error nothing
    that was journalled is lost, and a new writer goes on from there.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.place = source.place

    @property
    def journal(self) -> Journal:
        """What is journalled so far."""
        return self.source.journal

    def add(self, chunk: Chunk, pts: Sequence[float], indices: Sequence[int]) -> Chunk:
        """Write a chunk; return it as it is read back. Raises MemoryFileError when it cannot be written."""
        number = len(self.journal.chunks)
        coarsest = max(chunk.levels)
        with writing_errors(self.place):
            fine = self._fine(number, chunk, coarsest)
            thumb = None
            if chunk.thumbnail is not None:
                thumb = self._object(f"thumbs/{number:06d}.jpg", [memoryview(chunk.thumbnail)])
            coarse = self._coarse(chunk, coarsest)
            entry = ChunkEntry(
                number=number,
                start=chunk.start,
                end=chunk.end,
                pts=tuple(pts),
                indices=tuple(indices),
                axes=chunk.positions.shape[0],
                tokens=chunk.tokens,
                levels={ratio: chunk.levels.size(ratio) for ratio in chunk.levels},
                ranked=chunk.levels.ranked,
                nested=tuple(ratio for ratio in list(chunk.levels)[1:] if chunk.levels.nested(ratio)),
                last=chunk.last,
                grid=None if chunk.visual is None else chunk.visual.grid,
                coarse=coarse,
                fine=fine,
                thumb=thumb,
                own_axes=own_axes(chunk.levels[coarsest]),
                features=tuple(
                    TensorSpec(name, dtype_name(mark.dtype), tuple(mark.shape)) for name, mark in chunk.features.items()
                ),
                window=chunk.window,
            )
            self._journal(entry.to_json())
        return read_chunk(self.source, entry)

    def begin(self, content: Mapping[str, Any], shift: float) -> None:
        """Record that another source is appended: what determines its frames, and the seconds added to its times."""
        with writing_errors(self.place):
            self._journal({"kind": "source", "content": dict(content), "shift": shift})

    def subtitles(self, lines: Sequence[Mapping[str, Any]], speech: Mapping[str, Any] | None = None) -> None:
        """Keep subtitles, in place of earlier ones; `speech`: what made them of the video's sound, and how far."""
        data = json.dumps(list(lines), ensure_ascii=False, indent=1).encode()
        name = f"subtitles-{hashlib.sha256(data).hexdigest()[:16]}.json"
        known = self.journal.subtitles
        if known is None or known.name != name or self.journal.speech != (speech or {}):
            with writing_errors(self.place):
                at = self._object(name, [memoryview(data)]) if known is None or known.name != name else known
                told = {"speech": dict(speech)} if speech else {}
                self._journal({"kind": "subtitles", "at": at.to_json(), **told})

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Record that the source came to its end, and what is known of it now."""
        with writing_errors(self.place):
            self._journal({"kind": "end", "facts": dict(facts)})
            self.place.join()

    def _journal(self, values: Mapping[str, Any]) -> None:
        line = self.journal.line(values)
        self.place.commit(JOURNAL, self.journal.length, line)
        self.journal.take(line)

    def _coarse(self, chunk: Chunk, coarsest: float) -> ObjectRef:
        builder = ObjectBuilder()
        builder.add_coarse(chunk.positions, chunk.levels[coarsest], self.source.shape, self.source.h_bits)
        if chunk.features:
            builder.add("features", 0, 1, chunk.features)
        pieces, parts = builder.build()
        data = b"".join(pieces)
        start = self.journal.pack_bytes
        self.place.append(COARSE, start, data)
        return ObjectRef(COARSE, start, len(data), hashlib.sha256(data).hexdigest(), tuple(parts))

    def _fine(self, number: int, chunk: Chunk, coarsest: float) -> ObjectRef | None:
        builder = ObjectBuilder()
        shape, bits = self.source.shape, self.source.l_bits
        finer = [ratio for ratio in chunk.levels if ratio < coarsest]
        if chunk.visual is not None:
            builder.add("visual", 0, chunk.tokens, {"embeds": chunk.visual.embeds})
        elif not finer:
            return None
        else:
            for ratio in finer:
                level = chunk.levels[ratio]
                if ratio == finer[0] and level.ranked:
                    for first, stop in cuts(len(level), [chunk.levels.size(ratio) for ratio in chunk.levels], bits):
                        builder.add_level(f"{ratio:g}:{first}-{stop}", first, level.between(first, stop), shape, bits)
                elif ratio == finer[0] or not chunk.levels.nested(ratio):
                    builder.add_level(f"{ratio:g}", 0, level, shape, bits)
        pieces, parts = builder.build()
        at = self._object(f"chunks/{number:06d}.safetensors", pieces)
        return ObjectRef(at.name, 0, at.nbytes, at.sha256, tuple(parts))

    def _object(self, name: str, pieces: Sequence[memoryview]) -> ObjectRef:
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
        self.place.write(name, pieces)
        return ObjectRef(name, 0, sum(len(piece) for piece in pieces), digest.hexdigest())


@contextlib.contextmanager
def open_writer(place: ObjectStore, head: Head, kept: Collection[str] = ()) -> Iterator[MemoryWriter]:
    """Begin a memory, or go on with the one that is there; nobody else can write meanwhile.

    `kept`: names of settings that stay what they are in the memory that is there.
    Raises MemoryFileError when the place is taken by something else, by a memory with other settings or of another
    video (it says what differs), or by another writer.
    """
    with writing_errors(place):
        _begun(place)  # what holds other files stays as it is, without a lock
    with locked(place):
        with writing_errors(place):
            if not _begun(place):
                builder = ObjectBuilder()
                builder.add("prefix", 0, head.prefix[0].shape[2], {"keys": head.prefix[0], "values": head.prefix[1]})
                pieces, parts = builder.build()
                place.write(PREFIX, pieces)
                at = ObjectRef(PREFIX, 0, parts[0].end, parts[0].sha256, tuple(parts))
                place.write(MANIFEST, [pack_manifest({**head.to_json(), "prefix": at.to_json()})])
        source = _opened(place, LevelCache(0))
        wanted = head.to_json()
        wrong = describe_differences(_compared(source.head, kept), _compared(wanted, kept))
        if wrong:
            raise MemoryFileError(
                f"'{place}' holds another memory ({'; '.join(wrong)}): use the same settings, or another folder"
            )
        yield MemoryWriter(source)


def _compared(head: Mapping[str, Any], kept: Collection[str]) -> dict[str, Any]:
    settings = {"window_chunks": 1, **head["settings"]}
    settings = {name: value for name, value in settings.items() if name not in kept}
    identity = without_source(head["identity"])
    return {**{key: head[key] for key in _COMPARED}, "identity": identity, "settings": settings}


@contextlib.contextmanager
def continue_writer(source: Source) -> Iterator[MemoryWriter]:
    """Go on with a memory that was opened, as it is now."""
    with locked(source.place):
        yield MemoryWriter(_opened(source.place, source.cache))


def _opened(place: ObjectStore, cache: LevelCache) -> Source:
    """Open a memory that is to be written to; what a writer that was stopped left to do is done."""
    source = open_source(place, cache)
    if source.journal.facts is not None:
        with writing_errors(place):
            place.join()
    return source


def _begun(place: ObjectStore) -> bool:
    """Return whether a memory is there; raises MemoryFileError when something else is."""
    names = place.names()
    if MANIFEST in names:
        return True
    other = [name for name in names if name != PREFIX]  # that much of a memory may be there without a manifest
    if other:
        raise MemoryFileError(f"'{place}' holds other files, such as '{other[0]}': name a new folder")
    return False
