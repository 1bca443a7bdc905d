"""Answering many questions about many videos in any order, each video being ingested once.

Knows nothing of lmms-eval, which asks question by question and hands the video over with each.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videox2l.errors import SettingsError, VideoWarning, X2LError
from videox2l.memory import Memory
from videox2l.memory.disk.source import is_memory
from videox2l.options import DEFAULT_SELECTOR
from videox2l.pipeline import VideoX2L
from videox2l.select import budget_for, selector_by_name
from videox2l.video.files import content_hash


@dataclass(frozen=True)
class Job:
    """A question about a video file, and how to decode its answer.

    `until`: the answer ends before the first of these strings.
    """

    video: str
    question: str
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    until: tuple[str, ...] = ()

    @classmethod
    def of(cls, video: str, question: str, settings: Mapping[str, Any], default_tokens: int) -> Job:
        """Read the generation settings of a task: transformers' names, of which None and `do_sample` are understood."""
        until = settings.get("until") or ()
        sampled = settings.get("do_sample") is not False
        temperature = settings.get("temperature") if sampled else 0.0
        top_p = settings.get("top_p")
        return cls(
            video=video,
            question=question,
            max_new_tokens=int(settings.get("max_new_tokens") or default_tokens),
            temperature=0.0 if temperature is None else float(temperature),
            top_p=1.0 if top_p is None else float(top_p),
            until=(until,) if isinstance(until, str) else tuple(until),
        )


@dataclass
class Session:
    """A model, how it ingests, how it answers, and how often it read each video.

    `ingest`, `ask`: keyword arguments of `VideoX2L.ingest` and `VideoX2L.ask`. `store`: a folder of memories that later
    runs find again; without it a memory is dropped when another video is asked about. `ingested`: videos read, and how
    often; `opened`: memories found in the store instead. `unanswered`: videos and questions that could not be used,
    with the reason; with `strict` the first of them is raised.
    """

    x2l: VideoX2L
    ingest: Mapping[str, Any] = field(default_factory=dict)
    ask: Mapping[str, Any] = field(default_factory=dict)
    store: Path | None = None
    seed: int = 0
    ingested: dict[str, int] = field(default_factory=dict)
    opened: dict[str, int] = field(default_factory=dict)
    strict: bool = False
    unanswered: list[tuple[str, str, str]] = field(default_factory=list)
    _held: tuple[str, Memory] | None = None

    def __post_init__(self) -> None:
        # Whatever can be wrong is found before the hours of an ingest, not after them.
        budget_for(self.ask.get("reload", 3))
        selector_by_name(self.ask.get("selector", DEFAULT_SELECTOR))

    def answers(self, jobs: Sequence[Job]) -> Iterator[tuple[int, str]]:
        """Yield (index, answer) of each job, those about one video after another; memory holds one video at a time.

        Raises SettingsError, VideoError.
        """
        groups: dict[str, list[int]] = {}
        for index, job in enumerate(jobs):
            groups.setdefault(os.path.realpath(job.video), []).append(index)
        for video, indices in groups.items():
            try:
                if self._held is None or self._held[0] != video:
                    self._held = None  # before the next one is made: two would need twice the room
                    self._held = video, self._memory(video)
                memory = self._held[1]
            except (X2LError, OSError) as error:
                if self.strict:
                    raise
                for index in indices:
                    yield index, self._leave_out(jobs[index], error)
                continue
            for index in indices:
                try:
                    answer = self._answer(memory, jobs[index])
                except SettingsError as error:  # such as a control token in the question
                    if self.strict:
                        raise
                    answer = self._leave_out(jobs[index], error)
                yield index, answer

    def _leave_out(self, job: Job, error: Exception) -> str:
        """Note a question that cannot be answered; its answer is empty, which no task takes for right."""
        self.unanswered.append((job.video, job.question, str(error)))
        warnings.warn(f"unanswered: {job.video}: {error}", VideoWarning, stacklevel=3)
        return ""

    def _memory(self, video: str) -> Memory:
        folder = self._folder(video)
        if folder is not None and is_memory(str(folder)):
            memory = Memory.load(folder)
            if memory.complete:
                self.opened[video] = self.opened.get(video, 0) + 1
                return memory
        self.ingested[video] = self.ingested.get(video, 0) + 1
        return self.x2l.ingest(video, store=folder, **self.ingest)

    def _folder(self, video: str) -> Path | None:
        """Where the memory of a video lies: named by its content, the model and the settings, so that no two clash."""
        if self.store is None:
            return None
        key = {"sha256": content_hash(video), "model": self.x2l.identity, "ingest": dict(self.ingest)}
        name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
        self.store.mkdir(parents=True, exist_ok=True)
        return self.store / f"{name}.x2l"

    def _answer(self, memory: Memory, job: Job) -> str:
        if not job.question:
            raise SettingsError("a question is empty: lmms-eval's task gives no text for one of its documents")
        text = self.x2l.ask(
            memory,
            job.question,
            max_new_tokens=job.max_new_tokens,
            temperature=job.temperature,
            top_p=job.top_p,
            seed=self.seed,
            **self.ask,
        ).text
        ends = [text.find(stop) for stop in job.until if stop and stop in text]
        return text[: min(ends)] if ends else text
