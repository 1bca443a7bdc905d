"""Video-MME (arXiv 2405.21075): 2,700 questions with four options about 900 videos, with and without subtitles."""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

from videox2l.errors import SettingsError, VideoError, VideoWarning
from videox2l.evaluate.base import Row, Sample
from videox2l.evaluate.benchmarks.files import (
    VIDEOMME_PREFIXES,
    FileBenchmark,
    Loaded,
    Problems,
    digest_of,
    first_letter,
    lacking,
    percent,
    read_parquet,
)
from videox2l.units import Cue
from videox2l.video.subtitles import read_subtitles

FIELDS = ("videoID", "question_id", "duration", "domain", "sub_category", "task_type", "question", "options", "answer")
INSTRUCTION = (
    "Select the best answer to the following multiple-choice question based on the video. "
    "Respond with only the letter (A, B, C, or D) of the correct option."
)
DURATIONS = ("short", "medium", "long")


class VideoMME(FileBenchmark):
    """As downloaded: `videomme/test-*.parquet`, `data/<videoID>.mp4`, `subtitle/<videoID>.srt`.

    Prompt and scoring of the official repository. With subtitles, those at the times of the sampled frames are listed
    before the question; videos that have none are asked as without. The official figure leaves out replies without a
    letter ("answered" in its script); the accuracy of the summary counts them as wrong.
    """

    name = "videomme"
    archives = (
        ("videos_chunked_*.zip", "unzip 'videos_chunked_*.zip' in that folder"),
        ("subtitle.zip", "unzip subtitle.zip in that folder"),
    )
    has_subtitles = True

    def load(self) -> Loaded:
        """Read the parquet files."""
        files = sorted([*self.root.glob("videomme/test-*.parquet"), *self.root.glob("test-*.parquet")])
        if not files:
            raise SettingsError(f"'{self.root}' holds no Video-MME: videomme/test-00000-of-00001.parquet is not there")
        samples, problems, paths = [], Problems(), {}
        for number, record in enumerate(row for file in files for row in read_parquet(file)):
            missing = lacking(record, FIELDS)
            if missing:
                name = record.get("question_id") or f"row {number}"
                problems.add("fields", f"{', '.join(missing)} of {name}")
                continue
            video = str(record["videoID"])
            if video not in paths:
                paths[video] = self._video(video)
            question = "\n".join([str(record["question"]), *map(str, record["options"])])
            samples.append(
                Sample(
                    id=str(record["question_id"]),
                    video=video,
                    question=f"{INSTRUCTION}\n{question}\nThe best answer is:",
                    truth=str(record["answer"]),
                    kind=str(record["task_type"]),
                    choices=tuple(map(str, record["options"])),
                    query=question,
                    labels={name: str(record[name]) for name in ("duration", "domain", "sub_category")},
                )
            )
        return Loaded(samples, paths, problems, digest_of(files))

    def _video(self, video: str) -> Path | None:
        folders, endings = ("data", "video", "videos"), ("mp4", "MP4", "mkv")
        return self.place(*(f"{folder}/{video}.{ending}" for folder in folders for ending in endings))

    def _srt(self, video: str) -> Path | None:
        return self.place(f"subtitle/{video}.srt", f"subtitles/{video}.srt")

    def check_sample(self, sample: Sample, problems: Problems) -> None:
        """Note, where subtitles are wanted, those that long videos lack, all of which have some."""
        if self.options.subtitles and self._srt(sample.video) is None:
            if not any((self.root / folder).is_dir() for folder in ("subtitle", "subtitles")):
                problems.add("folders", "subtitle")
            elif sample.labels["duration"] == "long":
                problems.add("subtitles", f"subtitle/{sample.video}.srt")

    def check(self) -> None:
        """Raise SettingsError also when the package that reads subtitles is missing."""
        super().check()
        if self.options.subtitles:
            with_some = next((s.video for s in self.samples() if self._srt(s.video) is not None), None)
            if with_some is not None:
                self.subtitles(with_some)

    def read_lines(self, video: str) -> Sequence[Cue]:
        """Read the video's SRT file, if it has one; one without lines counts as none, with a warning."""
        path = self._srt(video)
        if path is None:
            return ()
        try:
            return read_subtitles(path)
        except VideoError as error:
            warnings.warn(f"{error} The video is asked about as without subtitles.", VideoWarning, stacklevel=2)
            return ()

    def prompt(self, sample: Sample, pts: Sequence[float]) -> str:
        """Return the question, with subtitles behind the lines that are shown at a sampled frame, each once."""
        lines = [
            line
            for line in self.subtitles(sample.video)
            if bisect_left(pts, line.start) < bisect_left(pts, line.end)  # a time from start on, before the end
        ]
        said = "\n".join(dict.fromkeys(line.text for line in lines))
        return f"This video's subtitles are listed below:\n{said}\n{sample.question}" if said else sample.question

    def score(self, sample: Sample, prediction: str) -> float | None:
        """Return 1 for the right letter."""
        return float(letter(prediction) == sample.truth)

    def metrics(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return the official percentages: right among the answered, over all and by duration."""
        answered = [row for row in rows if letter(row.prediction)]
        found = {"official": percent([row.right or 0.0 for row in answered])}
        for duration in DURATIONS:
            mine = [row.right or 0.0 for row in answered if row.labels["duration"] == duration]
            if mine:
                found[f"official_{duration}"] = percent(mine)
        return {**found, "unanswered": float(len(rows) - len(answered))}


def letter(reply: str) -> str:
    """Return the option that a reply names."""
    return first_letter(reply, "ABCD", VIDEOMME_PREFIXES)
