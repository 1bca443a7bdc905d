"""From a place to a memory: what is read when a memory is opened."""

from __future__ import annotations

import json
import os
import warnings
from typing import Any

import torch

from videox2l.backbones.base import KVShape
from videox2l.errors import MemoryFileError, MemoryWarning
from videox2l.memory.computed import ComputedLevels
from videox2l.memory.disk.journal import GIST, JOURNAL, MANIFEST, ChunkEntry, Stored, read_journal, unpack_manifest
from videox2l.memory.disk.layout import check, gist_fields, level_from, raw, view_as
from videox2l.memory.disk.places import LocalPlace, Place
from videox2l.memory.disk.reader import Source, StoredLevels, StoredVisual
from videox2l.memory.levels import Chunk
from videox2l.times import Line

REMOTE_CACHE = 1 << 30
"""Bytes of re-loaded levels that are kept where reading them again is slow: remote, or quantised."""


def open_source(place: Place, cache: ComputedLevels | None = None) -> Source:
    """Read a memory's manifest and journal. Raises MemoryFileError when there is none or it is damaged.

    A line of the journal that was being written when its writer was stopped is left out, with a MemoryWarning.
    """
    try:
        head = unpack_manifest(place.read(MANIFEST), f"'{MANIFEST}' of '{place}'")
    except OSError as error:
        raise MemoryFileError(f"no memory at '{place}': {_why_not(place, error)}") from error
    try:
        data = place.read(JOURNAL)
    except FileNotFoundError:
        data = b""
    except OSError as error:
        raise MemoryFileError(f"cannot read '{JOURNAL}' of the memory '{place}': {error}") from error
    journal = read_journal(data, head["check"], f"'{JOURNAL}' of the memory '{place}'")
    if journal.torn:
        warnings.warn(
            f"'{place}': the writer was stopped in the middle of a line; its {journal.torn} bytes are left out, "
            f"{len(journal.chunks)} chunks are whole",
            MemoryWarning,
            stacklevel=2,
        )
    try:
        shape = {**head["shape"], "dtype": getattr(torch, head["shape"]["dtype"])}
        quantised = any(head["settings"].get(name) is not None for name in ("l_bits", "h_bits"))
        if cache is None:
            cache = ComputedLevels(0 if place.local and not quantised else REMOTE_CACHE)
        return Source(place, head, journal, KVShape(**shape), cache)
    except (KeyError, TypeError, AttributeError) as error:
        raise MemoryFileError(f"'{MANIFEST}' of '{place}' is damaged: it lacks {error}") from error


def prefix_of(source: Source) -> tuple[torch.Tensor, torch.Tensor]:
    """Read the KVs of the text before the video: keys and values (layers, heads, n, head_dim)."""
    at = Stored.from_json(source.head["prefix"])
    data = source.whole(at)
    part, shape = at.parts[0], source.shape
    buffer = torch.frombuffer(bytearray(memoryview(data)[part.data :]), dtype=torch.uint8)
    half = buffer.numel() // 2
    keys, values = (
        piece.view(shape.dtype).reshape(shape.layers, shape.heads, -1, shape.head_dim)
        for piece in (buffer[:half], buffer[half:])
    )
    return keys, values


def chunks_of(source: Source) -> list[Chunk]:
    """Read the coarsest level of all chunks, in one read; return the chunks."""
    size = source.journal.pack_bytes
    if not size:
        return []
    buffer = torch.empty(size, dtype=torch.uint8)
    with source.trouble([GIST]):
        source.place.read_into(GIST, 0, [raw(buffer)])
    return [chunk_at(source, entry, buffer) for entry in source.journal.chunks]


def chunk_at(source: Source, entry: ChunkEntry, pack: torch.Tensor | None = None) -> Chunk:
    """Return a chunk whose coarsest level is in `pack` (bytes,) uint8, or is read."""
    at = entry.gist
    if pack is None:
        data = torch.frombuffer(bytearray(source.whole(at)), dtype=torch.uint8)
    else:
        data = pack[at.start : at.start + at.nbytes]
        check(raw(data), at.sha256, f"{source.where(at.name)} (chunk {entry.number})")
    coarsest = max(entry.levels)
    fields = gist_fields(source.shape, entry.axes, entry.tokens, entry.levels[coarsest], source.h_bits, entry.own_axes)
    found = view_as(data, fields, at.parts[0].data)
    level = level_from(found, source.h_bits, source.shape.dtype, entry.ranked)
    positions = found["at"].long()
    marks = view_as(data, entry.marks, at.parts[1].data) if entry.marks else {}
    visual = None if entry.grid is None else StoredVisual(source, entry, positions)
    levels = StoredLevels(source, entry, level)
    return Chunk(entry.start, entry.end, len(entry.pts), positions, levels, visual, entry.last, marks=marks)


def lines_of(source: Source) -> tuple[Line, ...]:
    """Read the subtitles, if there are any."""
    at = source.journal.subtitles
    if at is None:
        return ()
    return tuple(Line(float(x["start"]), float(x["end"]), str(x["text"])) for x in json.loads(source.whole(at)))


def video_facts(source: Source) -> dict[str, Any]:
    """Return the sampling manifest: what is known of the video, with the sampled frames of all whole chunks."""
    chunks = source.journal.chunks
    facts = source.head["video"] if source.journal.facts is None else source.journal.facts
    return {
        **facts,
        "pts": [pts for chunk in chunks for pts in chunk.pts],
        "indices": [index for chunk in chunks for index in chunk.indices],
    }


def _why_not(place: Place, error: OSError) -> str:
    if not isinstance(place, LocalPlace):
        return str(error) or "not found"
    if place.folder.is_file():
        return "it is a file; an exported memory is brought back with `x2l import`"
    if not place.folder.exists():
        return "no such folder"
    if isinstance(error, PermissionError):
        return f"permission denied ({os.fspath(place.folder)})"
    return "the folder holds none, or its ingest was stopped before it had begun; ingest again"
