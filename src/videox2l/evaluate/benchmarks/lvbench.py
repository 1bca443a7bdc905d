"""LVBench (arXiv 2406.08035): 1,549 questions with four options about 103 videos of an hour and more."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from videox2l.errors import SettingsError
from videox2l.evaluate.base import Row, Sample
from videox2l.evaluate.benchmarks.files import (
    FileBenchmark,
    Loaded,
    Problems,
    digest_of,
    first_character,
    lacking,
    percent,
    read_list,
)
from videox2l.units import parse_range

FIELDS = ("uid", "question", "answer", "question_type")
INSTRUCTION = "Answer the question with the option letter"
NAMES = {
    "key information retrieval": "KIR",
    "event understanding": "EU",
    "summarization": "Sum",
    "entity recognition": "ER",
    "reasoning": "Rea",
    "temporal grounding": "TG",
}
"""Types of question, and what the leaderboard calls them."""


class LVBench(FileBenchmark):
    """As downloaded: `video_info.meta.jsonl` and `videos/<key>.mp4`, or videos as video2dataset names them.

    Questions hold their options. The official repository publishes no prompt: the sentence behind the question is that
    of lmms-eval. Scoring of the official repository; a question may have several types and counts for each.
    """

    name = "lvbench"
    archives = (
        ("all_videos_split.zip.*", "cat all_videos_split.zip.* > all_videos.zip && unzip all_videos.zip there"),
    )

    def load(self) -> Loaded:
        """Read the annotations: one line per video."""
        file = self.place("video_info.meta.jsonl", "data/video_info.meta.jsonl")
        if file is None:
            raise SettingsError(f"'{self.root}' holds no LVBench: video_info.meta.jsonl is not there")
        samples, problems, paths = [], Problems(), dict[str, Path | None]()
        for number, entry in enumerate(read_list(file), 1):
            missing = lacking(entry, ("key", "qa"))
            if missing:
                problems.add("fields", f"{', '.join(missing)} of line {number}")
                continue
            key = str(entry["key"])
            paths[key] = self._video(key)
            for record in entry["qa"]:
                missing = lacking(record, FIELDS)
                if missing:
                    problems.add("fields", f"{', '.join(missing)} of question {record.get('uid', '?')} about {key}")
                    continue
                samples.append(_sample(key, record))
        return Loaded(samples, paths, problems, digest_of([file]))

    def _video(self, key: str) -> Path | None:
        folders, endings = ("all_videos", "videos", "video", "data/videos", "scripts/videos"), ("mp4", "mkv", "webm")
        return self.place(*(f"{f}/{key}.{e}" for f in folders for e in endings)) or self._numbered.get(key)

    @cached_property
    def _numbered(self) -> dict[str, Path]:
        """Videos that video2dataset wrote: 00000/00000003.mp4, with its address in 00000/00000003.json."""
        found = {}
        for folder in ("videos", "scripts/videos", "data/videos"):
            for note in sorted((self.root / folder).glob("*/*.json")):
                try:
                    address = str(json.loads(note.read_text(encoding="utf-8"))["url"])
                except (ValueError, KeyError, TypeError):
                    continue
                video = note.with_suffix(".mp4")
                if video.is_file():
                    found[address.rpartition("v=")[2].partition("&")[0].rpartition("/")[2]] = video
        return found

    def score(self, sample: Sample, prediction: str) -> float | None:
        """Return 1 for the right letter."""
        return float(first_character(prediction, "ABCD") == sample.truth)

    def metrics(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return the official percentages: over all, and by type under the leaderboard's names."""
        by_type: dict[str, list[float]] = {}
        for row in rows:
            for kind in row.labels["types"].split("; "):
                by_type.setdefault(NAMES.get(kind, kind), []).append(row.right or 0.0)
        return {
            **{kind: percent(found) for kind, found in sorted(by_type.items())},
            "Overall": percent([row.right or 0.0 for row in rows]),
        }


def _sample(key: str, record: dict[str, Any]) -> Sample:
    kinds = record["question_type"]
    kinds = [kinds] if isinstance(kinds, str) else [str(kind) for kind in kinds]
    return Sample(
        id=str(record["uid"]),
        video=key,
        question=f"{record['question']}\n{INSTRUCTION}",
        truth=str(record["answer"]),
        kind=kinds[0],
        choices=("A", "B", "C", "D"),
        query=str(record["question"]),
        moments=_moments(record.get("time_reference")),
        labels={"types": "; ".join(kinds)},
    )


def _moments(reference: Any) -> tuple[tuple[float, float], ...]:
    """Read "12:30-12:45"; what is no time range is no moment."""
    try:
        return (parse_range(str(reference)),)
    except SettingsError:
        return ()
