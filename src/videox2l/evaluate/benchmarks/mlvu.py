"""MLVU: multiple choice by accuracy, generated answers by ROUGE-L."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videox2l.errors import SettingsError
from videox2l.evaluate.base import BenchmarkOptions, Row, Sample
from videox2l.evaluate.benchmarks.files import (
    FileBenchmark,
    Loaded,
    Problems,
    before_bracket,
    digest_of,
    lacking,
    letters,
    percent,
    read_list,
)


def rouge_l(prediction: str, reference: str) -> float:
    """Return the F-measure (0 to 1) of the longest common subsequence of words (Lin, 2004); case is ignored."""
    said, wanted = (re.findall(r"\w+", text.lower()) for text in (prediction, reference))
    if not said or not wanted:
        return 0.0
    longest = [0] * (len(wanted) + 1)
    for word in said:
        before = 0
        for i, other in enumerate(wanted, 1):
            kept = longest[i]
            longest[i] = before + 1 if word == other else max(longest[i], longest[i - 1])
            before = kept
    common = longest[-1]
    return 2 * common / (len(said) + len(wanted))


CHOICE = {
    "plotQA": "1_plotQA",
    "needle": "2_needle",
    "ego": "3_ego",
    "count": "4_count",
    "order": "5_order",
    "anomaly_reco": "6_anomaly_reco",
    "topic_reasoning": "7_topic_reasoning",
}
"""Task -> name of its annotation file and of its folder of videos."""
GENERATION = {"subPlot": "8_sub_scene", "summary": "9_summary"}
WATCH = "Carefully watch this video and pay attention to every detail. Based on your observations, "


class MLVU(FileBenchmark):
    """As downloaded: `MLVU/json/1_plotQA.json` and so on, `MLVU/video/1_plotQA/*.mp4` and so on.

    Prompt and scoring of the official templates. The official average of tasks with options (M-Avg) is the mean over
    tasks. Both generation tasks need a judge: they are answered, not scored, and ROUGE-L is given beside, which is no
    official figure; `for_judge` makes the files that the official scripts read.
    """

    name = "mlvu"
    splits = ("dev",)
    archives = (("**/*.tar*", "unpack them there"), ("**/*.zip*", "unpack them there"))

    def __init__(self, options: BenchmarkOptions) -> None:
        super().__init__(options)
        wanted = set(options.tasks) or set(GENERATION)
        self.max_new_tokens = 1000 if wanted & set(GENERATION) else 100

    def load(self) -> Loaded:
        """Read the annotation files that are there; each task has one."""
        below = next((name for name in ("MLVU/", "") if (self.root / name / "json").is_dir()), None)
        if below is None:
            raise SettingsError(f"'{self.root}' holds no MLVU: there is no folder json or MLVU/json")
        samples: list[Sample] = []
        problems, paths, files = Problems(), dict[str, Path | None](), []
        for task, stem in {**CHOICE, **GENERATION}.items():
            file = self.root / f"{below}json/{stem}.json"
            if not file.is_file():
                if not self.options.tasks or task in self.options.tasks:
                    problems.add("annotations", f"json/{file.name}")
                continue
            files.append(file)
            for number, record in enumerate(read_list(file)):
                name = f"{file.name}[{number}]"
                fields = ("video", "question", "answer", *(("candidates",) if task in CHOICE else ()))
                missing = lacking(record, fields)
                if missing:
                    problems.add("fields", f"{', '.join(missing)} of {name}")
                    continue
                video = f"video/{stem}/{record['video']}"
                paths[video] = self.place(*(below + place for place in _places(video, task, record)))
                if task in CHOICE and record["answer"] not in record["candidates"]:
                    problems.add("answers among the candidates", name)
                    continue
                samples.append(_sample(task, name, video, record))
        return Loaded(samples, paths, problems, digest_of(files))

    def score(self, sample: Sample, prediction: str) -> float | None:
        """Return 1 for the right letter; None for a task of generation."""
        if sample.kind in GENERATION:
            return None
        return float(before_bracket(prediction, letters(len(sample.choices))) == sample.truth)

    def metrics(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return the mean over tasks with options (percent); of those that need a judge, ROUGE-L and their number."""
        kinds = {task: [row.right or 0.0 for row in rows if row.kind == task] for task in CHOICE}
        averages = [percent(found) for found in kinds.values() if found]
        figures = {"M-Avg": sum(averages) / len(averages)} if averages else {}
        for task in GENERATION:
            mine = [rouge_l(row.prediction, row.truth) for row in rows if row.kind == task]
            if mine:
                figures[f"rouge_l_{task}"] = percent(mine)
        judged = sum(row.kind in GENERATION for row in rows)
        return {**figures, **({"needs_judge": float(judged)} if judged else {})}


def for_judge(rows: Sequence[Row], task: str) -> list[dict[str, str]]:
    """Return replies of one method to a task of generation as the official scripts of that task read them."""
    marker = f"{WATCH}answer the given questions.\n"
    return [
        {
            "video_name": row.video.rpartition("/")[2],
            "Q": row.question.removeprefix(marker),
            "A": row.truth,
            "pred": row.prediction,
        }
        for row in rows
        if row.kind == task
    ]


def _places(video: str, task: str, record: dict[str, Any]) -> tuple[str, ...]:
    """Where a video may lie: some copies name folders by the task alone."""
    return video, f"video/{task}/{record['video']}", f"video/{record['video']}"


def _sample(task: str, name: str, video: str, record: dict[str, Any]) -> Sample:
    if task in GENERATION:
        question = f"{WATCH}answer the given questions.\n{record['question']}"
        return Sample(name, video, question, str(record["answer"]), task, query=str(record["question"]))
    options = tuple(map(str, record["candidates"]))
    listed = "\n".join(f"({letter}) {option}" for letter, option in zip(letters(len(options)), options, strict=True))
    question = (
        f"{WATCH}select the best option that accurately addresses the question.\n"
        f"Question: {record['question']}\nOptions:\n{listed}\nOnly give the best option.\nBest option:("
    )
    truth = letters(len(options))[record["candidates"].index(record["answer"])]
    return Sample(name, video, question, truth, task, choices=options, query=f"{record['question']}\n{listed}")
