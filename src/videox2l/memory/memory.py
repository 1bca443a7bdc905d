"""The memory of a video: everything that is kept of it, and how it becomes a cache for one question."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from videox2l.errors import MemoryFileError, SettingsError
from videox2l.memory.cache_layout import DialogueKV, Placement, planned_tokens, uniform_plan
from videox2l.memory.features import FeatureCache
from videox2l.memory.level_cache import LevelCache
from videox2l.memory.levels import Chunk, LevelKV, Levels
from videox2l.memory.resident import ResidentLevel
from videox2l.options import check_path
from videox2l.types import SOURCE, KVShape, without_source
from videox2l.units import Cue, cues_within

if TYPE_CHECKING:
    from videox2l.memory.disk.source import Source


@dataclass
class Memory:
    """Everything kept of one video.

    `identity` says which model made it, `settings` how it was compressed, `manifest` (plain JSON) which frames were
    sampled; `prefix` are the KVs (layers, heads, n, head_dim) of the text before the video; text after
    the video starts at `next_position`. `reposition` "keep" leaves keys at the positions of their prefill when
    levels are mixed, "compact" closes the gaps. KVs live in host memory. Asking never changes a memory; levels that
    are made for a question (`l_tier="lazy"`) are kept beside it in `level_cache`, up to a limit, and features of all
    chunks side by side in `feature_cache`, and H on the device in `resident`. `complete`: the video
    came to its end. `source`: where the memory lies on disk, if it does; levels finer than H are then read from there
    when a plan wants them. `subtitles`: lines on the time line of the video, in order. `dialogue`: earlier turns about
    the video, which a `Chat` gives to its own view of the memory; never saved.
    """

    identity: dict[str, str]
    settings: dict[str, Any]
    manifest: dict[str, Any]
    shape: KVShape
    ratios: tuple[float, ...]
    prefix: tuple[Tensor, Tensor]
    next_position: int
    reposition: str = "keep"
    chunks: list[Chunk] = field(default_factory=list)
    level_cache: LevelCache = field(default_factory=LevelCache, init=False, repr=False, compare=False)
    feature_cache: FeatureCache = field(default_factory=FeatureCache, init=False, repr=False, compare=False)
    resident: ResidentLevel = field(default_factory=ResidentLevel, init=False, repr=False, compare=False)
    complete: bool = True
    source: Source | None = field(default=None, repr=False, compare=False)
    subtitles: tuple[Cue, ...] = field(default=(), repr=False)
    dialogue: DialogueKV | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.chunks)

    @property
    def system(self) -> str | None:
        """The system text that stands before the video; None where it is the chat template's own."""
        return self.settings.get("system")

    @property
    def finest(self) -> float:
        """Ratio of level L."""
        return self.ratios[0]

    @property
    def coarsest(self) -> float:
        """Ratio of level H."""
        return self.ratios[-1]

    def level_name(self, ratio: float) -> str:
        """Return 'L', 'H', or the ratio of a level in between, such as '8x'."""
        if ratio == self.finest:
            return "L"
        return "H" if ratio == self.coarsest else f"{ratio:.3g}x"

    @property
    def duration(self) -> float:
        """Seconds from the start of the first chunk to the end of the last."""
        return self.chunks[-1].end - self.chunks[0].start if self.chunks else 0.0

    @property
    def full_tokens(self) -> int:
        """Tokens that attention would read with full KV: text before and between videos, all raw visual tokens."""
        return self.text_tokens + sum(chunk.tokens for chunk in self.chunks)

    @property
    def text_tokens(self) -> int:
        """Tokens of text before the video."""
        return int(self.prefix[0].shape[2])

    @property
    def changes_in_place(self) -> bool:
        """Whether a plan that changes leaves all other columns of a cache as they are (`update_cache`)."""
        return self.reposition == "keep"

    def placements(self) -> list[Placement]:
        """Return where each video stands; there is one, where it was prefilled."""
        return [Placement(range(len(self)), self.resident)]

    @property
    def runs(self) -> list[range]:
        """The numbers of the chunks of each video; there is one."""
        return [range(len(self))]

    def owner(self, chunk: int) -> tuple[str, int]:
        """Return the name of the video that a chunk belongs to, among several, and the chunk's number in its memory."""
        return "", chunk

    @property
    def by_name(self) -> Mapping[str, Memory]:
        """This memory, under the name that evidence has for its video: none."""
        return {"": self}

    def lines(self, chunk: int) -> list[Cue]:
        """Return the subtitles that are shown during a chunk."""
        return cues_within(self.subtitles, self.chunks[chunk].start, self.chunks[chunk].end)

    def set_subtitles(self, lines: Sequence[Cue]) -> None:
        """Keep subtitles in place of earlier ones, on disk too where the memory lies there.

        Questions that run see those that were there before. Raises MemoryFileError.
        """
        ordered = sorted(lines, key=lambda line: (line.start, line.end))
        if self.source is not None:
            from videox2l.memory.disk.writer import continue_writer

            with continue_writer(self.source) as writer:
                writer.subtitles([asdict(line) for line in ordered])
            self.source = writer.source
        self.subtitles = tuple(ordered)

    def nbytes(self) -> int:
        """Bytes of all KVs that are kept, of visual tokens that are kept to make KVs from, and of features."""
        kept = sum(chunk.size(ratio) for chunk in self.chunks for ratio in chunk.kept()) * self.shape.token_bytes
        kept += sum(chunk.visual.nbytes for chunk in self.chunks if chunk.visual is not None)
        kept += sum(feature.nbytes for chunk in self.chunks for feature in chunk.features.values())
        return kept + 2 * self.prefix[0].numel() * self.prefix[0].element_size()

    def add(self, chunk: Chunk) -> Chunk:
        """Append a chunk, brought to host memory, and return it."""
        self.chunks.append(in_host_memory(chunk))
        return self.chunks[-1]

    def free_position(self) -> int:
        """Return the first position that is free for text after the prefix and the chunks."""
        last = max((chunk.next_position for chunk in self.chunks), default=0)
        return max(self.prefix[0].shape[2], last)

    def only(self, chunks: Sequence[int]) -> Memory:
        """Return the memory with some of its chunks, given by their numbers in order; text follows right after them."""
        return self.with_chunks([self.chunks[i] for i in chunks])

    def with_chunks(self, chunks: Sequence[Chunk]) -> Memory:
        """Return the memory with these chunks; what is kept beside a memory is shared."""
        copy = replace(self, chunks=list(chunks))
        copy.next_position = copy.free_position()  # of these chunks, whatever another thread appends meanwhile
        copy.level_cache, copy.feature_cache, copy.resident = self.level_cache, self.feature_cache, self.resident
        return copy

    def is_new_source(self, sha256: str | None) -> bool:
        """Return whether a stream with this hash is another one, to be appended, rather than the rest of this one."""
        return bool(self.chunks) and (sha256 is None or sha256 != self.manifest.get("sha256"))

    def snapshot(self) -> Memory:
        """Return the memory as it is now, whatever is appended to it later."""
        return self.with_chunks(self.chunks)

    def after(self, dialogue: DialogueKV | None) -> Memory:
        """Return the memory as it is now, with a dialogue behind its video."""
        copy = self.snapshot()
        copy.dialogue = dialogue
        return copy

    def seen(
        self, as_of: float | None = None, within: tuple[float, float] | None = None, said: str | None = None
    ) -> list[int]:
        """Return the numbers of the chunks that a question sees.

        They are over at second `as_of`, overlap the seconds `within`, and subtitles that hold the text `said` are shown
        during them. Raises SettingsError when there are none.
        """
        found = list(range(len(self.chunks))) if within is None else self.chunks_within(*within)
        if as_of is not None:
            found = [i for i in found if self.chunks[i].end <= as_of]
        if said is not None:
            found = [i for i in found if any(said.casefold() in line.text.casefold() for line in self.lines(i))]
        if not found:
            wishes = [] if within is None else [f"within={within[0]:g}-{within[1]:g}"]
            wishes += ([] if as_of is None else [f"as_of={as_of:g}"]) + ([] if said is None else [f"said='{said}'"])
            wish = " and ".join(wishes) or "a memory without chunks"
            span = f"{self.chunks[0].start:g}-{self.chunks[-1].end:g} s" if self.chunks else "nothing yet"
            whole = f", the first chunk ends at {self.chunks[0].end:g} s" if self.chunks and as_of is not None else ""
            raise SettingsError(f"{wish} leaves no chunk to ask about: the memory covers {span}{whole}")
        return found

    def thumbnail(self, chunk: int) -> bytes | None:
        """Return a small JPEG of the first frame of a chunk, or None if there is none."""
        found = self.chunks[chunk]
        for entry in self.source.journal.chunks if self.source is not None else ():
            if self.source is not None and entry.start == found.start and entry.thumb is not None:
                return self.source.picture(entry.thumb)
        return found.thumbnail

    def has(self, ratio: float) -> bool:
        """Return whether every chunk has a level at `ratio` now, rather than when it is wanted."""
        return all(ratio in chunk.levels for chunk in self.chunks)

    def chunks_within(self, start: float, end: float) -> list[int]:
        """Return the indices of the chunks that overlap the seconds from `start` to `end`."""
        if not start < end:
            raise SettingsError(f"time range {start:g}-{end:g} is empty: it must end after it starts")
        return [i for i, chunk in enumerate(self.chunks) if chunk.start < end and start < chunk.end]

    def check_model(self, identity: Mapping[str, str]) -> None:
        """Raise MemoryFileError that says what differs when another model or processor asks."""
        keys = sorted((set(self.identity) | set(identity)) - {SOURCE})
        wrong = [key for key in keys if self.identity.get(key) != identity.get(key)]
        if wrong:
            pairs = ", ".join(
                f"{key}: memory {_short(self.identity.get(key))}, model {_short(identity.get(key))}" for key in wrong
            )
            raise MemoryFileError(f"this memory was made by another model ({pairs}): ingest the video again")

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of content, model, processor, sampling and compression settings."""
        sampling = {k: v for k, v in self.manifest.items() if k not in ("warnings", "source")}
        whole = {"identity": without_source(self.identity), "settings": self.settings, "manifest": sampling}
        text = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def summary(self) -> dict[str, Any]:
        """Return what the memory holds, as plain JSON values."""
        return {
            "chunks": len(self.chunks),
            "frames": sum(chunk.frames for chunk in self.chunks),
            "complete": self.complete,
            "levels": {self.level_name(ratio): ratio for ratio in self.ratios},
            "tokens": {
                "full": self.full_tokens,
                **{self.level_name(r): planned_tokens(self, uniform_plan(self, r)) for r in self.ratios if self.has(r)},
            },
            "bytes": {"kept": self.nbytes(), "full": self.full_tokens * self.shape.token_bytes},
            "duration": self.duration,
            "settings": self.settings,
            "identity": self.identity,
            "fingerprint": self.fingerprint(),
            "manifest": self.manifest,
        }

    def save(self, path: str | Path) -> None:
        """Write the memory to a folder or an fsspec URL (docs/memory-format.md); an older one there is replaced."""
        from videox2l.memory.disk.folder import save

        check_path(path, "the place of a memory")
        save(self, path)

    @classmethod
    def load(cls, path: str | Path, cache_bytes: int | None = None) -> Memory:
        """Open a memory in a folder or at an fsspec URL, as far as its chunks are whole.

        Levels finer than H are read when a plan wants them; every byte is checked against its hash when it is first
        read. `cache_bytes` of such levels are kept in host memory; by default none where they are read from a folder
        at the model's own dtype, since the operating system keeps them, and 1 GiB otherwise. Raises MemoryFileError.
        """
        from videox2l.memory.disk.folder import load

        return load(path, cache_bytes)


def _short(value: str | None) -> str:
    return "nothing" if value is None else value[:12]


def in_host_memory(chunk: Chunk) -> Chunk:
    """Return a chunk with its levels, finest first, and its visual tokens in host memory."""
    levels = chunk.levels
    ratios = sorted(levels)
    finest = levels[ratios[0]].to("cpu")
    stored: dict[float, LevelKV] = {ratios[0]: finest}
    for ratio in ratios[1:]:
        nested = levels[ratio].is_part_of(levels[ratios[0]])
        stored[ratio] = finest.first(len(levels[ratio])) if nested else levels[ratio].to("cpu")
    visual = None if chunk.visual is None else chunk.visual.to("cpu")
    return replace(chunk, positions=chunk.positions.cpu(), levels=Levels(stored), visual=visual)
