"""The memory of a video: everything that is kept of it, and how it becomes a cache for one question."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from videox2l.backbones.base import KVShape, VisualTokens
from videox2l.errors import MemoryFileError, SettingsError
from videox2l.memory.computed import ComputedLevels
from videox2l.memory.levels import Chunk, LevelKV
from videox2l.memory.mix import planned_tokens, uniform_plan


@dataclass
class Memory:
    """Everything kept of one video.

    `identity` says which model made it, `settings` how it was compressed, `manifest` (plain JSON) which frames were
    sampled; `prefix` are the KVs (layers, heads, n, head_dim) of the text before the video; text after
    the video starts at `next_position`. `reposition` "keep" leaves keys at the positions of their prefill when
    levels are mixed, "compact" closes the gaps. KVs live in host memory. Asking never changes a memory; levels that
    are made for a question (`l_tier="lazy"`) are kept beside it in `computed`, up to a limit.
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
    computed: ComputedLevels = field(default_factory=ComputedLevels, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.chunks)

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
        return "H" if ratio == self.coarsest else f"{ratio:g}x"

    @property
    def duration(self) -> float:
        """Seconds from the start of the first chunk to the end of the last."""
        return self.chunks[-1].end - self.chunks[0].start if self.chunks else 0.0

    @property
    def full_tokens(self) -> int:
        """Tokens that attention would read with full KV: prefix and all raw visual tokens."""
        return self.prefix[0].shape[2] + sum(chunk.tokens for chunk in self.chunks)

    def nbytes(self) -> int:
        """Bytes of all KVs that are kept, and of visual tokens that are kept to make KVs from."""
        kept = sum(level.nbytes() for chunk in self.chunks for level in chunk.kept().values())
        kept += sum(chunk.visual.embeds.nbytes for chunk in self.chunks if chunk.visual is not None)
        return kept + 2 * self.prefix[0].numel() * self.prefix[0].element_size()

    def add(
        self,
        start: float,
        end: float,
        frames: int,
        positions: Tensor,
        levels: Mapping[float, LevelKV],
        visual: VisualTokens | None = None,
    ) -> None:
        """Append a chunk, its levels finest first; they are moved to host memory.

        `visual` are its visual tokens, where levels that are missing now are to be made from them later.
        """
        ratios = sorted(levels)
        finest = levels[ratios[0]].to("cpu")
        stored: dict[float, LevelKV] = {ratios[0]: finest}
        for ratio in ratios[1:]:
            part = levels[ratio].is_part_of(levels[ratios[0]])
            stored[ratio] = finest.first(len(levels[ratio])) if part else levels[ratio].to("cpu")
        tokens = None if visual is None else visual.to("cpu")
        self.chunks.append(Chunk(start, end, frames, positions.cpu(), stored, tokens))

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
        keys = sorted(set(self.identity) | set(identity))
        wrong = [key for key in keys if self.identity.get(key) != identity.get(key)]
        if wrong:
            pairs = ", ".join(
                f"{key}: memory {_short(self.identity.get(key))}, model {_short(identity.get(key))}" for key in wrong
            )
            raise MemoryFileError(f"this memory was made by another model ({pairs}): ingest the video again")

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of content, model, processor, sampling and compression settings."""
        sampling = {k: v for k, v in self.manifest.items() if k not in ("warnings", "source")}
        whole = {"identity": self.identity, "settings": self.settings, "manifest": sampling}
        text = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def summary(self) -> dict[str, Any]:
        """Return what the memory holds, as plain JSON values."""
        return {
            "chunks": len(self.chunks),
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
        """Write the memory to one file, atomically (see `videox2l.memory.store`)."""
        from videox2l.memory.store import save

        save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Memory:
        """Read a memory; every byte is checked against the stored hash."""
        from videox2l.memory.store import load

        return load(Path(path))


def _short(value: str | None) -> str:
    return "nothing" if value is None else value[:12]
