"""What manifest and journal claim, against one another and the bytes that are there, before anything is allocated.

A memory that someone sends is untrusted: hashes say that nothing changed on the way, no more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from videox2l.memory.disk.journal import COARSE, ChunkEntry, ObjectRef
from videox2l.memory.disk.objects import HEADER, INDEX, StoredShape, coarse_fields, level_fields
from videox2l.memory.votes import index_rows

if TYPE_CHECKING:
    from videox2l.memory.disk.source import Source

DTYPES = ("float32", "float16", "bfloat16")
BITS = (None, 8, 4)
_MOST = 1 << 31  # tokens, layers and the like: what is more is no number of them
_SECONDS = 1e9
THUMBNAIL = 1 << 20
"""Bytes of a thumbnail at most."""


def need(right: bool, what: str) -> None:
    """Raise ValueError that says what is wrong."""
    if not right:
        raise ValueError(what)


def whole(value: Any, what: str, low: int = 1, high: int = _MOST) -> int:
    """Return a whole number within bounds, ValueError otherwise."""
    need(isinstance(value, int) and not isinstance(value, bool) and low <= value <= high, f"{what} {str(value)[:40]}")
    return int(value)


def check_shape(values: Any) -> None:
    """Raise ValueError, KeyError or TypeError where the shape of KVs in a manifest cannot be."""
    for name, high in (("layers", 4096), ("heads", 65536), ("head_dim", 65536)):
        whole(values[name], name, 1, high)
    need(values["dtype"] in DTYPES, f"dtype {values['dtype']!r:.40}")


def check_source(source: Source) -> None:
    """Raise ValueError, KeyError, TypeError or OSError where a memory claims what its bytes do not hold."""
    head, settings = source.head, source.head["settings"]
    need(isinstance(settings, dict) and isinstance(head["identity"], dict), "settings or identity")
    need(all(isinstance(text, str) for text in head["identity"].values()), "identity")
    need(isinstance(head["video"], dict) and isinstance(head["content"], dict), "video or content")
    need(head["reposition"] in ("keep", "compact"), f"reposition {head['reposition']!r:.40}")
    need(settings.get("l_bits") in BITS and settings.get("h_bits") in BITS, "l_bits or h_bits")
    _check_settings(settings, source.stored)
    need(isinstance(head["ratios"], list) and len(head["ratios"]) > 0, "ratios")
    ratios = [_ratio(ratio) for ratio in head["ratios"]]
    need(ratios == sorted(set(ratios)), f"ratios {ratios}")
    check_facts(head["video"])
    _check_prefix(source, ObjectRef.from_json(head["prefix"]))
    for facts in source.journal.sources:
        check_facts(facts)
    end = -math.inf
    for entry in source.journal.chunks:
        _check_chunk(source, entry, end)
        end = entry.start
    if source.journal.chunks:
        size = source.place.size(COARSE)
        need(source.journal.pack_bytes <= size, f"{COARSE} has {size} bytes of {source.journal.pack_bytes}")


def _check_settings(settings: Mapping[str, Any], shape: StoredShape) -> None:
    need(settings.get("l_tier", "stored") in ("stored", "lazy", "none"), "l_tier")
    need(all(isinstance(settings[name], str) for name in ("compressor", "history")), "compressor or history")
    whole(settings["chunk_frames"], "chunk_frames")
    whole(settings.get("window_chunks", 1), "window_chunks")
    whole(settings.get("window_tokens", 0), "window_tokens", 0)
    need(isinstance(settings.get("live", False), bool), "live")
    need(isinstance(settings["ratios"], list), "ratios")
    need(settings.get("system") is None or isinstance(settings["system"], str), "system")
    embedder = settings.get("embedder")
    need(embedder is None or all(isinstance(text, str) for text in dict(embedder).values()), "embedder")
    for layer, kind in settings.get("index", ()):
        whole(layer, "index", 0, shape.layers - 1)
        head = re.fullmatch(r"head (\d{1,5})\.(\d{1,5})", str(kind))
        need(kind in ("confident", "best") or (head is not None and int(head[1]) < shape.heads), "index")


def _ratio(value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    need(number and math.isfinite(value) and 1 <= value <= _MOST, f"ratio {str(value)[:40]}")
    return float(value)


def check_facts(facts: Mapping[str, Any]) -> None:
    """Raise ValueError for what no manifest of a video says."""
    for name in ("duration", "effective_fps", "start", "end", "fps"):
        value = facts.get(name)
        fits = value is None or (isinstance(value, int | float) and math.isfinite(value) and abs(value) < _SECONDS)
        need(fits, f"{name} {str(value)[:40]} of the video")
    for name in ("source", "container", "codec"):
        value = facts.get(name, "")
        need(value is None or (isinstance(value, str) and value.isprintable()), f"{name} of the video")
    warnings, holes = facts.get("warnings", ()), facts.get("holes", ())
    need(all(isinstance(text, str) for text in warnings or ()), "warnings of the video")
    at = facts.get("at") or ()
    need(
        isinstance(at, list | tuple) and all(isinstance(t, int | float) and math.isfinite(t) for t in at),
        "listed times",
    )
    need(all(len(hole) == 2 and all(math.isfinite(t) for t in hole) for hole in holes or ()), "holes of the video")


def _check_prefix(source: Source, at: ObjectRef) -> None:
    shape = source.stored
    each = shape.token_bytes
    need(at.start == 0 and len(at.parts) == 1 and at.parts[0].end == at.nbytes, "prefix")
    size = at.nbytes - at.parts[0].data
    need(size > 0 and size % each == 0 and size // each == at.parts[0].stop, "prefix")
    need(source.place.size(at.name) == at.nbytes, f"{at.name} has another size")


def _check_chunk(source: Source, entry: ChunkEntry, after: float) -> None:
    """Check one line of the journal. What it claims is bounded by its piece of the pack, which is there."""
    name, shape = f"chunk {entry.number}:", source.stored
    times = (entry.start, *entry.pts, entry.end)
    need(all(math.isfinite(t) and abs(t) < _SECONDS for t in times), f"{name} times")
    need(len(entry.pts) == len(entry.indices) > 0, f"{name} frames")
    need(all(a < b for a, b in pairwise(entry.pts)), f"{name} pts")
    need(all(a < b for a, b in pairwise(entry.indices)) and entry.indices[0] >= 0, f"{name} indices")
    need(after <= entry.start <= entry.pts[0] and entry.pts[-1] <= entry.end, f"{name} start or end")
    whole(entry.axes, f"{name} axes", 1, 8)
    whole(entry.own_axes, f"{name} own_axes", 0, 8)
    whole(entry.tokens, f"{name} tokens")
    place, size = entry.window
    need(0 <= place < size <= _MOST and place <= entry.number, f"{name} window")
    coarsest = max(entry.levels)
    for ratio, size in entry.levels.items():
        _ratio(ratio)
        whole(size, f"{name} level", 1, entry.tokens)
    need(set(entry.nested) <= set(entry.levels), f"{name} nested")
    fields = coarse_fields(shape, entry.axes, entry.tokens, entry.levels[coarsest], source.h_bits, entry.own_axes)
    _cover(entry.coarse, 0, sum(field.nbytes for field in fields), f"{name} coarse")
    need(entry.coarse.name == COARSE and entry.coarse.start >= 0, f"{name} coarse")
    if entry.features:
        need(all(n >= 0 for field in entry.features for n in field.shape), f"{name} features")
        _cover(entry.coarse, 1, sum(field.nbytes for field in entry.features), f"{name} features")
        votes = tuple((layer, kind) for layer, kind in source.head["settings"].get("index", ()))
        for field in entry.features:
            if field.name == INDEX:
                rows = len(index_rows(votes, shape.heads))
                fits = len(field.shape) == 3 and field.shape[0] == rows and 2 * field.shape[2] == shape.head_dim
                need(fits and field.dtype == "U8", f"{name} index")
                need(0 < field.shape[1] - HEADER <= entry.tokens, f"{name} index")
    if entry.thumb is not None:
        need(0 <= entry.thumb.nbytes <= THUMBNAIL and entry.thumb.start == 0, f"{name} thumbnail")
    if entry.grid is not None:
        need(all(0 < n < _MOST for n in entry.grid) and entry.fine is not None, f"{name} grid")
        need(len(entry.fine.parts) == 1 and entry.fine.start == 0, f"{name} grid")  # type: ignore[union-attr]
    elif len(entry.levels) > 1:
        _check_fine(source, entry, shape, name)


def _check_fine(source: Source, entry: ChunkEntry, shape: StoredShape, name: str) -> None:
    """Check that the parts of the finer levels cover exactly the tokens that are claimed."""
    need(entry.fine is not None and entry.fine.start == 0, f"{name} fine")
    assert entry.fine is not None
    labels: dict[str, list[int]] = {}
    for number, part in enumerate(entry.fine.parts):
        fields = level_fields(shape, len(part), source.l_bits, entry.own_axes)
        _cover(entry.fine, number, sum(field.nbytes for field in fields), f"{name} fine")
        ends = labels.setdefault(part.label.split(":")[0], [0])
        need(part.first == ends[-1], f"{name} parts of fine")
        ends.append(part.stop)
    kept = [ratio for ratio in entry.levels if ratio not in entry.nested and ratio != max(entry.levels)]
    for ratio in {min(entry.levels), *kept}:
        need(labels.get(f"{ratio:g}", [0])[-1] == entry.levels[ratio], f"{name} parts of level {ratio:g}")
    sizes = [entry.levels[ratio] for ratio in entry.nested]
    need(all(size <= entry.levels[min(entry.levels)] for size in sizes), f"{name} nested")


def _cover(at: ObjectRef, number: int, nbytes: int, what: str) -> None:
    """Check that a part of an object has just so many bytes of tensors, and follows the part before."""
    part = at.parts[number]
    before = at.parts[number - 1].end if number else 0
    need(part.start == before and part.end - part.data == nbytes and part.end <= at.nbytes, f"{what}: bytes of a part")
