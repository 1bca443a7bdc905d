"""Several memories of one model as one question sees them: one behind the other, each with its own times."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from videox2l.engine.backbone import Backbone, JoinsVideos
from videox2l.errors import SettingsError
from videox2l.memory.cache_layout import Placement
from videox2l.memory.levels import describe
from videox2l.memory.memory import Memory
from videox2l.types import TextTokens
from videox2l.units import Cue


@dataclass
class JointMemory(Memory):
    """Memories one behind the other, as the model's chat template puts several videos.

    The prefix stands once, before the first. `parts` are the memories, `names` what their videos are called, `texts`
    what stands before each of them but the first. Chunks are those of all parts, in order, at the positions of their
    own ingest: `placements` says how far each video is moved. Times are those of a chunk's own video. A video's KVs
    know nothing of the videos before it; text between them, and the question, sees all that stands before.
    """

    parts: tuple[Memory, ...] = ()
    names: tuple[str, ...] = ()
    texts: tuple[TextTokens, ...] = ()

    @classmethod
    def of(cls, memories: Sequence[Memory], names: Sequence[str], backbone: Backbone) -> JointMemory:
        """Return memories as one, each under its name. Raises SettingsError that says what does not fit together."""
        if not isinstance(backbone, JoinsVideos):
            raise SettingsError(
                f"{backbone.name} is not asked about several videos at once, only Qwen2-VL, Qwen2.5-VL, Qwen3-VL, "
                "LLaVA-OneVision and InternVL are: ask about one at a time"
            )
        first = memories[0]
        for name, memory in zip(names, memories, strict=True):
            if not memory.chunks:
                raise SettingsError(f"'{name}' holds no chunk yet: ingest it first")
            if memory.reposition != "keep":
                raise SettingsError(
                    f"'{name}' has keys that are moved to their columns (reposition='{memory.reposition}'), which does "
                    "not go with several videos: ingest with another compressor"
                )
            for what, (here, there) in _differences(first, memory).items():
                if here != there:
                    raise SettingsError(
                        f"'{names[0]}' and '{name}' cannot be asked together: {what} {here} and {there}; ingest "
                        "both with the same settings"
                    )
        texts = tuple(backbone.between_videos(len(memories)))
        return replace(cls.told_of(memories, names), texts=texts).with_parts(memories)

    @classmethod
    def told_of(cls, memories: Sequence[Memory], names: Sequence[str]) -> JointMemory:
        """Return memories side by side, each under its name, to tell of answers about them: without the text between
        videos, which a model knows, it cannot be asked itself."""
        first = memories[0]
        return cls(
            identity=first.identity,
            settings=first.settings,
            manifest={"source": ", ".join(names)},
            shape=first.shape,
            ratios=first.ratios,
            prefix=first.prefix,
            next_position=0,
            parts=tuple(memories),
            names=tuple(names),
        )

    def with_parts(self, parts: Sequence[Memory]) -> JointMemory:
        """Return the same with other states or parts of its memories, in the same order."""
        made = replace(
            self,
            parts=tuple(parts),
            chunks=[chunk for part in parts for chunk in part.chunks],
            complete=all(part.complete for part in parts),
            subtitles=tuple(line for part in parts for line in part.subtitles),
        )
        made.feature_cache = parts[0].feature_cache  # it holds tables by their chunks, whatever memory they are of
        made.next_position = made.free_position()
        return made

    @property
    def by_name(self) -> Mapping[str, Memory]:
        """The memories, by the names of their videos."""
        return dict(zip(self.names, self.parts, strict=True))

    @property
    def text_tokens(self) -> int:
        """Tokens of text before the first video, and between videos."""
        return super().text_tokens + sum(len(text) for text in self.texts)

    @property
    def changes_in_place(self) -> bool:
        """Never: text between videos saw the levels before it."""
        return False

    def placements(self) -> list[Placement]:
        """Return where each video stands: behind the largest position of the one before it, and the text between."""
        start, free = super().text_tokens, self.parts[0].free_position()
        found = [Placement(self.runs[0], self.parts[0].resident)]
        for text, part, run in zip(self.texts, self.parts[1:], self.runs[1:], strict=True):
            shift = free + len(text) - start
            found.append(Placement(run, part.resident, text, free, shift))
            free = part.free_position() + shift
        return found

    @property
    def runs(self) -> list[range]:
        """The numbers of each video's chunks."""
        ends = list(accumulate(map(len, self.parts), initial=0))
        return [range(start, end) for start, end in itertools.pairwise(ends)]

    def free_position(self) -> int:
        """Return the first position that is free for text after the last video."""
        return self.parts[-1].free_position() + self.placements()[-1].shift

    def _place(self, chunk: int) -> tuple[int, int]:
        """Return the number of the part that a chunk belongs to, and its number there."""
        part = next(number for number, run in enumerate(self.runs) if chunk in run)
        return part, chunk - self.runs[part].start

    def owner(self, chunk: int) -> tuple[str, int]:
        """Return the name of the video that a chunk belongs to, and the chunk's number in its memory."""
        part, number = self._place(chunk)
        return self.names[part], number

    def lines(self, chunk: int) -> list[Cue]:
        """Return the subtitles that are shown during a chunk of its own video."""
        part, number = self._place(chunk)
        return self.parts[part].lines(number)

    def split(self, chunks: Sequence[int]) -> list[list[int]]:
        """Return numbers of chunks as the numbers in each part."""
        return [[i - run.start for i in chunks if i in run] for run in self.runs]

    def only(self, chunks: Sequence[int]) -> JointMemory:
        """Return some of the chunks, at least one of each video; what follows a video stands right after them."""
        return self.with_parts([part.only(own) for part, own in zip(self.parts, self.split(chunks), strict=True)])

    def snapshot(self) -> JointMemory:
        """Return the memories as they are now, whatever is appended to them later."""
        return self.with_parts([part.snapshot() for part in self.parts])

    def seen(
        self, as_of: float | None = None, within: tuple[float, float] | None = None, said: str | None = None
    ) -> list[int]:
        """Return the chunks of each video that are seen, by its own times. Raises SettingsError where one has none."""
        found = list[int]()
        for name, part, run in zip(self.names, self.parts, self.runs, strict=True):
            try:
                found += [run.start + i for i in part.seen(as_of, within, said)]
            except SettingsError as error:
                raise SettingsError(f"'{name}': {error}") from None
        return found

    def nbytes(self) -> int:
        """Bytes of all that the memories keep."""
        return sum(part.nbytes() for part in self.parts)

    def summary(self) -> dict[str, Any]:
        """Return what each memory holds, by name, as plain JSON values."""
        return {name: part.summary() for name, part in zip(self.names, self.parts, strict=True)}

    def save(self, path: str | Path) -> None:
        """Raise SettingsError: each memory is saved by itself."""
        raise SettingsError(f"several memories cannot be saved as one ('{path}'): save each by itself")


def _differences(one: Memory, other: Memory) -> dict[str, tuple[object, object]]:
    """Return what two memories must agree on, by name."""
    return {
        "they have the ratios": (describe(one.ratios), describe(other.ratios)),
        "they have the system text": (_told(one, "system"), _told(other, "system")),
        "their text before the video has tokens:": (one.text_tokens, other.text_tokens),
        "selectors have an index of the layers": (_told(one, "index"), _told(other, "index")),
        "their frames were embedded by": (_told(one, "embedder"), _told(other, "embedder")),
    }


def _told(memory: Memory, name: str) -> object:
    return memory.settings.get(name) or "none"
