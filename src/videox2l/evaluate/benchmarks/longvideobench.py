"""LongVideoBench (arXiv 2407.15754), validation split: 1,337 questions with up to five options, subtitles if wanted."""

from __future__ import annotations

import json
import random
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videox2l.errors import SettingsError
from videox2l.evaluate.base import Row, Sample
from videox2l.evaluate.benchmarks.files import (
    LONGVIDEOBENCH_PREFIXES,
    FileBenchmark,
    Loaded,
    Problems,
    digest_of,
    first_letter,
    lacking,
    letters,
    percent,
    read_list,
)
from videox2l.units import Cue, format_time

FIELDS = ("id", "video_path", "question", "candidates", "duration_group", "question_category")
HALF = 0.5
"""Seconds to each side of the middle of a line that is shorter than a second."""
INSTRUCTION = "Answer with the option's letter from the given choices directly."


class LongVideoBench(FileBenchmark):
    """As downloaded and unpacked: `lvb_val.json`, `videos/<video_path>`, `subtitles/<subtitle_path>`.

    Prompt of the official loader. Its subtitles stand between the frames; here, where the KVs of frames are made before
    any text, those that the loader would show stand between video and question, with their times. A reply without a
    letter gets a random option, as the authors do; here it is drawn from the seed and the question's id.
    """

    name = "longvideobench"
    max_new_tokens = 32
    splits = ("val",)
    archives = (
        ("videos.tar.part.*", "cat videos.tar.part.* > videos.tar && tar -xf videos.tar in that folder"),
        ("subtitles.tar", "tar -xf subtitles.tar in that folder"),
    )
    has_subtitles = True

    def load(self) -> Loaded:
        """Read `lvb_val.json`."""
        file = self.root / "lvb_val.json"
        if not file.is_file():
            raise SettingsError(f"'{self.root}' holds no LongVideoBench: lvb_val.json is not there")
        samples, problems, paths = [], Problems(), dict[str, Path | None]()
        self._tracks: dict[str, tuple[str, float, float]] = {}
        extra = ("subtitle_path", "starting_timestamp_for_subtitles", "duration") if self.options.subtitles else ()
        for number, record in enumerate(read_list(file)):
            missing = lacking(record, (*FIELDS, "correct_choice", *extra))
            if missing:
                problems.add("fields", f"{', '.join(missing)} of {record.get('id') or f'record {number}'}")
                continue
            options, right = tuple(map(str, record["candidates"])), int(record["correct_choice"])
            if not 0 <= right < len(options):
                problems.add("right choices among the candidates", str(record["id"]))
                continue
            video = str(record["video_path"])
            paths[video] = self.place(f"videos/{video}", video)
            if extra:
                self._tracks[video] = _track(record)
            listed = [f"{letter}. {option}" for letter, option in zip(letters(len(options)), options, strict=True)]
            samples.append(
                Sample(
                    id=str(record["id"]),
                    video=video,
                    question="\n".join([f"Question: {record['question']}", *listed, INSTRUCTION]),
                    truth=letters(len(options))[right],
                    kind=str(record["question_category"]),
                    choices=options,
                    query="\n".join([str(record["question"]), *listed]),
                    labels={"duration_group": str(record["duration_group"])},
                )
            )
        return Loaded(samples, paths, problems, digest_of([file]))

    def check_sample(self, sample: Sample, problems: Problems) -> None:
        """Note subtitles that are missing or no subtitles, where they are wanted."""
        if not self.options.subtitles:
            return
        name, shift, duration = self._tracks[sample.video]
        if not (self.root / "subtitles" / name).is_file():
            problems.add("subtitles", f"subtitles/{name}")
            return
        try:
            read_track(self.root / "subtitles" / name, shift, duration)
        except SettingsError:
            problems.add("lines of text in subtitle files", f"subtitles/{name}")

    def read_lines(self, video: str) -> Sequence[Cue]:
        """Read the lines on the timeline of the video, which is a part of the one that they were made for."""
        name, shift, duration = self._tracks[video]
        return read_track(self.root / "subtitles" / name, shift, duration)

    def prompt(self, sample: Sample, pts: Sequence[float]) -> str:
        """Return the question, with subtitles behind the lines during which a frame was sampled."""
        lines = [line for line in self.subtitles(sample.video) if _seen(line, pts)]
        return "\n".join([*(f"[{format_time(max(0.0, line.start))}] {line.text}" for line in lines), sample.question])

    def score(self, sample: Sample, prediction: str) -> float | None:
        """Return 1 for the right letter; without one, for a random option that happens to be right."""
        options = letters(len(sample.choices))
        return float((letter(prediction) or self.guess(sample.id, options)) == sample.truth)

    def guess(self, name: str, options: str) -> str:
        """Return the option that a reply without a letter gets: the same one in every run with this seed."""
        return random.Random(f"{self.options.seed}/{name}").choice(options)

    def metrics(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return the percentages by length of video, and how many replies were guessed for."""
        groups = sorted({row.labels["duration_group"] for row in rows}, key=lambda name: (len(name), name))
        found = {
            f"duration_{group}": percent([row.right or 0.0 for row in rows if row.labels["duration_group"] == group])
            for group in groups
        }
        return {**found, "guessed": float(sum(not letter(row.prediction) for row in rows))}


def letter(reply: str) -> str:
    """Return the option that a reply names; E even where there are fewer, as in the authors' rule."""
    return first_letter(reply, "ABCDE", LONGVIDEOBENCH_PREFIXES)


def read_track(path: Path, shift: float, duration: float) -> list[Cue]:
    """Read a subtitle file of either of the two official forms; `shift` seconds of it lie before the video begins.

    Lines before and behind the video are among them; they meet no frame. Raises SettingsError.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [_line(entry, shift, duration) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise SettingsError(f"'{path}' is no subtitle file of LongVideoBench") from None


def _line(entry: dict[str, Any], shift: float, duration: float) -> Cue:
    if "timestamp" in entry:
        start, end = entry["timestamp"]
        end = shift + duration if end is None else end  # the last line of some tracks has no end
        text = entry["text"]
    else:
        start, end, text = _seconds(entry["start"]), _seconds(entry["end"]), entry["line"]
    return Cue(float(start) - shift, float(end) - shift, " ".join(str(text).split()))


def _seconds(stamp: str) -> float:
    hours, minutes, seconds = stamp.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _seen(line: Cue, pts: Sequence[float]) -> bool:
    """Whether a frame was sampled during a line, its ends left out; a line shorter than a second counts for one."""
    start, end = line.start, line.end
    if end - start < 1:
        start, end = (start + end) / 2 - HALF, (start + end) / 2 + HALF
    return bisect_right(pts, start) < bisect_left(pts, end)


def _track(record: dict[str, Any]) -> tuple[str, float, float]:
    return str(record["subtitle_path"]), float(record["starting_timestamp_for_subtitles"]), float(record["duration"])
