"""Reading a memory where it lies: manifest, journal, prefix and H when it is opened, everything else when it is wanted.

Every byte that is read is checked against its hash before it is used for the first time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from videox2l.errors import MemoryFileError
from videox2l.memory.disk.journal import COARSE, ChunkEntry, ObjectRef
from videox2l.memory.disk.layout import joined, level_from, raw, view_as
from videox2l.memory.disk.objects import Segment, TensorSpec, check_hash, coarse_fields, damaged, level_fields
from videox2l.memory.disk.source import Source
from videox2l.memory.levels import Chunk, Columns, LevelKV, Levels
from videox2l.types import VisualTokens

T = TypeVar("T")

THREADS = 4
"""Chunks that are read at once from a folder."""
SMALL = 4 << 20
"""Bytes of which threads cost more than they save."""


def _each(work: Callable[..., T], jobs: Sequence[tuple[Any, ...]], nbytes: int) -> list[T]:
    """Return what `work` makes of each of the jobs, which read `nbytes` together: at once where those are many."""
    if len(jobs) < 2 or nbytes < SMALL:
        return [work(*job) for job in jobs]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda job: work(*job), jobs))


def _fields(source: Source, entry: ChunkEntry, part: Segment) -> list[TensorSpec]:
    """Return the tensors of a part of finer levels."""
    return level_fields(source.stored, len(part), source.l_bits, entry.own_axes)


def _decode(source: Source, entry: ChunkEntry, part: Segment, buffer: Tensor) -> LevelKV:
    """Return the level that the bytes of a part (from its `data` on) hold."""
    found = view_as(buffer, _fields(source, entry, part), 0)
    check_index(found["index"], entry, source.where(_fine(entry).name))
    return level_from(found, source.l_bits, source.shape.dtype, entry.ranked)


def _read_parts(source: Source, wanted: Sequence[tuple[ChunkEntry, list[Segment], int]]) -> list[LevelKV]:
    """Return levels: for each the chunk, its parts, and how many tokens. Read in parallel."""
    jobs = [(entry, part) for entry, parts, _ in wanted for part in parts]
    objects = [_fine(entry) for entry, _ in jobs]
    spans = [(part.start, part.end) for _, part in jobs]
    if source.place.local:
        pairs, nbytes = list(zip(objects, spans, strict=True)), sum(end - start for start, end in spans)
        found = _each(lambda at, span: source.ranges([at], [span])[0], pairs, nbytes)
    else:
        found = source.ranges(objects, spans)
    pieces = []
    for (entry, part), at, data in zip(jobs, objects, found, strict=True):
        if (at.name, part.start) not in source.seen:
            source.verify(at, part, hashlib.sha256(data).hexdigest())
        buffer = torch.frombuffer(bytearray(memoryview(data)[part.data - part.start :]), dtype=torch.uint8)
        pieces.append(_decode(source, entry, part, buffer))
    levels = []
    for _, parts, n in wanted:
        mine, pieces = pieces[: len(parts)], pieces[len(parts) :]
        levels.append(joined(mine, n))
    return levels


def _fill(source: Source, entry: ChunkEntry, parts: Sequence[Segment], n: int, columns: Columns) -> None:
    """Read the first `n` tokens of a level straight into a cache's columns; no copy on the way on a CPU.

    On another device each layer goes through pinned memory and is on its way while the next one is read.
    """
    at = _fine(entry)
    for part in parts:
        exact = part.stop <= n and columns[0][0].device.type == "cpu"
        room = [(k[:, part.first : part.stop], v[:, part.first : part.stop]) for k, v in columns]
        fresh = (at.name, part.start) not in source.seen
        with source.wrap_errors([at.name]):
            digest = (_straight if exact else _staged)(source, entry, at, part, room, fresh)
        if fresh:
            source.verify(at, part, digest)


def _straight(source: Source, entry: ChunkEntry, at: ObjectRef, part: Segment, room: Columns, fresh: bool) -> str:
    """Read a part with positioned reads that scatter over layers and heads; return its SHA-256 if `fresh`."""
    fields = _fields(source, entry, part)
    before = memoryview(bytearray(part.data - part.start + sum(x.nbytes for x in fields[:-2])))
    rows = [pair[side].view(torch.uint8).numpy() for side in (0, 1) for pair in room]  # (heads, n, bytes) each
    targets = [memoryview(head.data).cast("B") for row in rows for head in row]
    source.place.read_into(at.name, part.start, [before, *targets])
    digest = hashlib.sha256(before)
    for target in targets if fresh else ():
        digest.update(target)
    return digest.hexdigest()


def _staged(source: Source, entry: ChunkEntry, at: ObjectRef, part: Segment, room: Columns, fresh: bool) -> str:
    """Read a part layer by layer into a staging buffer and copy on from there; return its SHA-256 if `fresh`."""
    fields = _fields(source, entry, part)
    cuda = room[0][0].device.type == "cuda"
    staging = torch.empty(part.end - part.data, dtype=torch.uint8, pin_memory=cuda)
    views = view_as(staging, fields, 0)
    before = memoryview(bytearray(part.data - part.start))
    bytes_before = sum(x.nbytes for x in fields[:-2])
    source.place.read_into(at.name, part.start, [before, raw(staging[:bytes_before])])
    at_byte = part.data + bytes_before
    for side, name in enumerate(("keys", "values")):
        for layer, pair in enumerate(room):
            piece = views[name][layer]
            source.place.read_into(at.name, at_byte, [raw(piece)])
            at_byte += piece.nbytes
            target = pair[side]
            target.copy_(piece[:, : target.shape[1]], non_blocking=cuda)
    digest = hashlib.sha256(before)
    if fresh:
        digest.update(raw(staging))
    return digest.hexdigest()


def check_index(index: Tensor, entry: ChunkEntry, where: str) -> None:
    """Raise MemoryFileError where kept tokens (layers, heads, n) are none of the chunk's."""
    least, most = (int(x) for x in torch.aminmax(index))
    if not entry.own_axes and not 0 <= least <= most < entry.tokens:
        raise damaged(where, f"chunk {entry.number} has {entry.tokens} tokens, but keeps number {most}")


class StoredLevels(Levels):
    """A chunk's levels where they lie: the coarsest in host memory, finer ones read when they are looked up."""

    def __init__(self, source: Source, entry: ChunkEntry, coarse: LevelKV) -> None:
        self.source = source
        self.entry = entry
        self.coarsest = max(entry.levels)
        super().__init__({self.coarsest: coarse})

    def __getitem__(self, ratio: float) -> LevelKV:
        if ratio == self.coarsest:
            return super().__getitem__(ratio)
        if ratio not in self.entry.levels:
            raise KeyError(ratio)
        return self._read(ratio, self.entry.levels[ratio])

    def __iter__(self) -> Iterator[float]:
        return iter(self.entry.levels)

    def __len__(self) -> int:
        return len(self.entry.levels)

    def __contains__(self, ratio: object) -> bool:
        return ratio in self.entry.levels

    @property
    def ranked(self) -> bool:
        """Whether the finest level serves all coarser ratios."""
        return self.entry.ranked

    def size(self, ratio: float) -> int:
        """Return how many tokens the level at `ratio` has."""
        return self.entry.levels[ratio]

    def first(self, n: int) -> LevelKV:
        """Return the `n` most important tokens, reading no more parts than hold them."""
        return self[self.coarsest].first(n) if self._in_coarse(n) else self._read(-1.0, n)

    def in_memory(self, ratio: float, n: int) -> bool:
        """Return whether the level at `ratio`, of `n` tokens, is in host memory."""
        return ratio == self.coarsest or (ratio not in self.entry.levels and self._in_coarse(n))

    def _in_coarse(self, n: int) -> bool:
        """Whether the first `n` tokens of the finest level are those of the coarsest, which is in host memory."""
        return n <= self.size(self.coarsest) and (self.coarsest in self.entry.nested or len(self.entry.levels) == 1)

    def with_level(self, ratio: float, level: LevelKV) -> Levels:
        """Return the level that is in host memory and one more."""
        return Levels({**self._levels, ratio: level})

    def nested(self, ratio: float) -> bool:
        """Return whether the level at `ratio` is the first tokens of the finest one."""
        return ratio in self.entry.nested

    def parts(self, ratio: float, n: int) -> list[Segment]:
        """Return the parts of the level at `ratio`, or if it has none, of the first `n` tokens of the finest one."""
        own = ratio in self.entry.levels and ratio not in self.entry.nested
        label = f"{ratio if own else min(self.entry.levels):g}"
        return [part for part in _fine(self.entry).parts if part.label.split(":")[0] == label and part.first < n]

    def _read(self, ratio: float, n: int) -> LevelKV:
        return read_levels([(self, ratio, n)])[0]


def read_levels(wanted: Sequence[tuple[StoredLevels, float, int]]) -> list[LevelKV]:
    """Return levels of one source: those that are kept, and the others read together."""
    source = wanted[0][0].source
    keys = [(levels.entry.number, ratio if ratio in levels.entry.levels else float(-n)) for levels, ratio, n in wanted]
    found = {i: level for i, key in enumerate(keys) if (level := source.cache.get(*key)) is not None}
    missing = [i for i in range(len(wanted)) if i not in found]
    if missing:
        jobs = [(wanted[i][0].entry, wanted[i][0].parts(*wanted[i][1:]), wanted[i][2]) for i in missing]
        for i, level in zip(missing, _read_parts(source, jobs), strict=True):
            found[i] = level
            source.cache.put(*keys[i], level)
    return [found[i] for i in range(len(wanted))]


def fetch_into(jobs: Sequence[tuple[StoredLevels, float, int, Columns]]) -> None:
    """Bring levels of one source into the columns of a cache."""
    source = jobs[0][0].source
    direct = source.place.local and source.l_bits is None and not source.cache.capacity
    if not direct:
        levels = read_levels([job[:3] for job in jobs])
        for level, (_, _, _, columns) in zip(levels, jobs, strict=True):
            for layer, (keys, values) in enumerate(columns):
                keys.copy_(level.keys[layer])
                values.copy_(level.values[layer])
    else:
        fills = [(source, job[0].entry, job[0].parts(*job[1:3]), job[2], job[3]) for job in jobs]
        _each(_fill, fills, sum(part.end - part.start for fill in fills for part in fill[2]))


class StoredVisual(VisualTokens):
    """The visual tokens of a chunk where they lie: read when `embeds` is looked at, and not kept."""

    def __init__(self, source: Source, entry: ChunkEntry, positions: Tensor) -> None:
        assert entry.grid is not None
        for name, value in (("positions", positions), ("grid", entry.grid), ("_source", source), ("_entry", entry)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return int(self.positions.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of the embeddings, without reading them."""
        part = _fine(self._entry).parts[0]
        return part.end - part.data

    def to(self, device: torch.device | str) -> VisualTokens:
        """Return the tokens, read, with their embeddings on `device`."""
        return VisualTokens(self.embeds.to(device), self.positions, self.grid)

    def __getattr__(self, name: str) -> Any:
        if name != "embeds":
            raise AttributeError(name)
        source, entry = self._source, self._entry
        at = _fine(entry)
        part = at.parts[0]
        data = source.whole(at)
        flat = torch.frombuffer(bytearray(memoryview(data)[part.data :]), dtype=torch.uint8)
        try:
            head = json.loads(data[8 : part.data])["visual.embeds"]
            embeds = flat.view(_dtype(head["dtype"])).reshape(head["shape"])
            if embeds.ndim != 2 or embeds.shape[0] != entry.tokens:
                raise ValueError(f"shape {tuple(embeds.shape)}")
        except (ValueError, KeyError, TypeError, RuntimeError, RecursionError) as error:
            raise damaged(source.where(at.name), f"its visual tokens cannot be read ({error})") from error
        return embeds


def _dtype(name: str) -> torch.dtype:
    return {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[name]


def _fine(entry: ChunkEntry) -> ObjectRef:
    assert entry.fine is not None
    return entry.fine


def read_prefix(source: Source) -> tuple[torch.Tensor, torch.Tensor]:
    """Read the KVs of the text before the video: keys and values (layers, heads, n, head_dim)."""
    at = ObjectRef.from_json(source.head["prefix"])
    data = source.whole(at)
    part, shape = at.parts[0], source.shape
    buffer = torch.frombuffer(bytearray(memoryview(data)[part.data :]), dtype=torch.uint8)
    half = buffer.numel() // 2
    keys, values = (
        piece.view(shape.dtype).reshape(shape.layers, shape.heads, -1, shape.head_dim)
        for piece in (buffer[:half], buffer[half:])
    )
    return keys, values


def read_chunks(source: Source) -> list[Chunk]:
    """Read the coarsest level of all chunks, in one read; return the chunks."""
    size = source.journal.pack_bytes
    if not size:
        return []
    if source.kept is None:
        buffer = torch.empty(size, dtype=torch.uint8)
        with source.wrap_errors([COARSE]):
            source.place.read_into(COARSE, 0, [raw(buffer)])
    else:  # as one stretch, under the hashes of all its pieces
        hashes = "\n".join(entry.coarse.sha256 for entry in source.journal.chunks)
        (data,) = source.ranges([ObjectRef(COARSE, 0, size, hashes)], [(0, size)])
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return [read_chunk(source, entry, buffer) for entry in source.journal.chunks]


def read_chunk(source: Source, entry: ChunkEntry, pack: torch.Tensor | None = None) -> Chunk:
    """Return a chunk whose coarsest level is in `pack` (bytes,) uint8, or is read."""
    at = entry.coarse
    if pack is None:
        data = torch.frombuffer(bytearray(source.whole(at)), dtype=torch.uint8)
    else:
        data = pack[at.start : at.start + at.nbytes]
        check_hash(raw(data), at.sha256, f"{source.where(at.name)} (chunk {entry.number})")
    coarsest = max(entry.levels)
    fields = coarse_fields(
        source.stored, entry.axes, entry.tokens, entry.levels[coarsest], source.h_bits, entry.own_axes
    )
    found = view_as(data, fields, at.parts[0].data)
    check_index(found["index"], entry, source.where(at.name))
    level = level_from(found, source.h_bits, source.shape.dtype, entry.ranked)
    positions = found["at"].long()
    features = view_as(data, entry.features, at.parts[1].data) if entry.features else {}
    visual = None if entry.grid is None else StoredVisual(source, entry, positions)
    levels = StoredLevels(source, entry, level)
    return Chunk(
        start=entry.start,
        end=entry.end,
        frames=len(entry.pts),
        positions=positions,
        levels=levels,
        visual=visual,
        last=entry.last,
        features=features,
        window=entry.window,
    )


def read_features(source: Source, names: Sequence[str]) -> list[dict[str, Tensor]]:
    """Read some features of each chunk and nothing else. Raises MemoryFileError where a chunk lacks one."""
    chunks = source.journal.chunks
    for entry in chunks:
        missing = set(names) - {spec.name for spec in entry.features}
        if missing:
            raise MemoryFileError(f"'{source.place}' keeps no feature '{min(missing)}': ingest the video again")
    if not names or not chunks:
        return [{} for _ in chunks]
    parts = [entry.coarse.parts[1] for entry in chunks]
    starts = [entry.coarse.start for entry in chunks]
    spans = [(at + part.start, at + part.end) for at, part in zip(starts, parts, strict=True)]
    found = []
    for entry, part, data in zip(chunks, parts, source.ranges([entry.coarse for entry in chunks], spans), strict=True):
        check_hash(data, part.sha256, f"{source.where(COARSE)} (chunk {entry.number})")
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        tensors = view_as(buffer, entry.features, part.data - part.start)
        found.append({name: tensors[name].clone() for name in names})  # the other features are let go
    return found
