"""Writing a memory chunk by chunk, so that it can be stopped at any instant and continued."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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
from videox2l.memory.disk.layout import ObjectBuilder, TensorSpec, cuts, own_axes
from videox2l.memory.disk.lease import leased
from videox2l.memory.disk.reader import Source, open_source, read_chunk
from videox2l.memory.disk.stores import LocalStore, ObjectStore, RemoteStore, make_folder, open_store
from videox2l.memory.levels import Chunk, LevelCache
from videox2l.types import KVShape, without_source

LOCK = ".lock"
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
            "shape": {
                "layers": self.shape.layers,
                "heads": self.shape.heads,
                "head_dim": self.shape.head_dim,
                "dtype": str(self.shape.dtype).removeprefix("torch."),
            },
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
        with _writing(self.place):
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
                    TensorSpec(name, mark.dtype, tuple(mark.shape)) for name, mark in chunk.features.items()
                ),
            )
            self._journal(entry.to_json())
        return read_chunk(self.source, entry)

    def begin(self, content: Mapping[str, Any], shift: float) -> None:
        """Record that another source is appended: what determines its frames, and the seconds added to its times."""
        with _writing(self.place):
            self._journal({"kind": "source", "content": dict(content), "shift": shift})

    def subtitles(self, lines: Sequence[Mapping[str, Any]], speech: Mapping[str, Any] | None = None) -> None:
        """Keep subtitles, in place of earlier ones; `speech`: what made them of the video's sound, and how far."""
        data = json.dumps(list(lines), ensure_ascii=False, indent=1).encode()
        name = f"subtitles-{hashlib.sha256(data).hexdigest()[:16]}.json"
        known = self.journal.subtitles
        if known is None or known.name != name or self.journal.speech != (speech or {}):
            with _writing(self.place):
                at = self._object(name, [memoryview(data)]) if known is None or known.name != name else known
                told = {"speech": dict(speech)} if speech else {}
                self._journal({"kind": "subtitles", "at": at.to_json(), **told})

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Record that the source came to its end, and what is known of it now."""
        with _writing(self.place):
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
def open_writer(place: ObjectStore, head: Head) -> Iterator[MemoryWriter]:
    """Begin a memory, or go on with the one that is there; nobody else can write meanwhile.

    Raises MemoryFileError when the place is taken by something else, by a memory with other settings or of another
    video (it says what differs), or by another writer.
    """
    with locked(place):
        with _writing(place):
            if not _begun(place):
                builder = ObjectBuilder()
                builder.add("prefix", 0, head.prefix[0].shape[2], {"keys": head.prefix[0], "values": head.prefix[1]})
                pieces, parts = builder.build()
                place.write(PREFIX, pieces)
                at = ObjectRef(PREFIX, 0, parts[0].end, parts[0].sha256, tuple(parts))
                place.write(MANIFEST, [pack_manifest({**head.to_json(), "prefix": at.to_json()})])
        source = _opened(place, LevelCache(0))
        wanted = head.to_json()
        wrong = describe_differences(_compared(source.head), _compared(wanted))
        if wrong:
            raise MemoryFileError(
                f"'{place}' holds another memory ({'; '.join(wrong)}): use the same settings, or another folder"
            )
        yield MemoryWriter(source)


def _compared(head: Mapping[str, Any]) -> dict[str, Any]:
    return {**{key: head[key] for key in _COMPARED}, "identity": without_source(head["identity"])}


@contextlib.contextmanager
def continue_writer(source: Source) -> Iterator[MemoryWriter]:
    """Go on with a memory that was opened, as it is now."""
    with locked(source.place):
        yield MemoryWriter(_opened(source.place, source.cache))


def _opened(place: ObjectStore, cache: LevelCache) -> Source:
    """Open a memory that is to be written to; what a writer that was stopped left to do is done."""
    source = open_source(place, cache)
    if source.journal.facts is not None:
        with _writing(place):
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


@contextlib.contextmanager
def locked(place: ObjectStore) -> Iterator[None]:
    """Hold the lock of a folder, which is made if it is not there, or the lease of a URL.

    The lock of a process that ended is no lock.
    """
    if isinstance(place, RemoteStore):
        with contextlib.ExitStack() as stack:
            with _writing(place):
                stack.enter_context(leased(place))
            yield
        return
    if not isinstance(place, LocalStore):
        yield
        return
    folder = place.folder
    check_target(folder)
    with _writing(place):
        if not folder.exists():
            make_folder(folder)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(handle, 20, 0).decode(errors="replace").strip()
            raise MemoryFileError(
                f"'{place}' is being written to by process {owner or 'unknown'}: wait until it ends"
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def check_store(where: str | os.PathLike[str]) -> None:
    """Raise MemoryFileError where no memory can be written: what `check_target` says of a folder, or an odd URL."""
    place = open_store(where)
    if isinstance(place, LocalStore):
        check_target(place.folder)


def check_target(folder: Path) -> None:
    """Raise MemoryFileError where no memory can be written: a file, no folder above it, or no permission."""
    if folder.exists() and not folder.is_dir():
        raise MemoryFileError(f"cannot write to '{folder}': it is a file; name a folder")
    if not folder.is_dir() and not folder.parent.is_dir():
        raise MemoryFileError(f"cannot write to '{folder}': the folder '{folder.parent}' does not exist")
    above = folder if folder.is_dir() else folder.parent
    if not os.access(above, os.W_OK | os.X_OK):
        raise MemoryFileError(f"cannot write to '{folder}': no permission to write in '{above}'")


@contextlib.contextmanager
def _writing(place: ObjectStore) -> Iterator[None]:
    try:
        yield
    except EOFError as error:
        raise MemoryFileError(f"'{error}' of the memory '{place}' is damaged: it is cut short") from error
    except OSError as error:
        raise MemoryFileError(
            f"cannot write to '{place}': {error.strerror or error}; what was written before is whole, "
            "and the same ingest goes on from there"
        ) from error
