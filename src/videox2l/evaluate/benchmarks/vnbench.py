"""VNBench (VideoNIAH, arXiv 2406.09367): needles in videos; 1,350 questions, each in four rotations of its options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videox2l.errors import SettingsError
from videox2l.evaluate.base import Row, Sample
from videox2l.evaluate.benchmarks.files import (
    FileBenchmark,
    Loaded,
    Problems,
    digest_of,
    earliest_in_alphabet,
    lacking,
    letters,
    percent,
    read_list,
)

FIELDS = ("video", "question", "options", "gt", "type", "try")
INSTRUCTION = "Answer with the option's letter from the given choices directly."
FAMILIES = ("ret", "ord", "cnt")
TRIES = 4


class VNBench(FileBenchmark):
    """As downloaded and unpacked: `VNBench-main-4try.json` and the folder of videos `VNBench_new`.

    Prompt and scoring of the official repository: a question counts as right only if it is answered rightly in all four
    rotations; the overall figure is the mean over the nine types.
    """

    name = "vnbench"
    archives = (("*.zip", "unzip them in that folder"), ("*.tar*", "unpack them in that folder"))

    def load(self) -> Loaded:
        """Read the annotation file."""
        files = sorted([*self.root.glob("VNBench*.json"), *self.root.glob("VNBench*.jsonl")])
        if len(files) != 1:
            found = ", ".join(file.name for file in files) or "none"
            raise SettingsError(f"'{self.root}' should hold one annotation file VNBench-main-4try.json, found {found}")
        samples: list[Sample] = []
        problems, paths = Problems(), dict[str, Path | None]()
        for number, record in enumerate(read_list(files[0])):
            name = f"record {number}"
            missing = lacking(record, FIELDS)
            if missing:
                problems.add("fields", f"{', '.join(missing)} of {name}")
                continue
            if record["gt"] not in record["options"]:
                problems.add("answers among the options", name)
                continue
            video = str(record["video"]).lstrip("./")
            base = video.rpartition("/")[2]
            paths[video] = self.place(video, f"VNBench_new/{base}", f"videos/{base}", f"video/{base}", base)
            samples.append(_sample(video, record))
        tries: dict[str, set[str]] = {}
        for sample in samples:
            tries.setdefault(sample.group, set()).add(sample.id)
        for group, ids in tries.items():
            if len(ids) != TRIES:
                problems.add("tries", f"{TRIES - len(ids)} of {group}")
        return Loaded(samples, paths, problems, digest_of(files))

    def score(self, sample: Sample, prediction: str) -> float | None:
        """Return 1 for the right letter in this rotation; rotations are joined by their group."""
        return float(earliest_in_alphabet(prediction, letters(len(sample.choices))) == sample.truth)

    def metrics(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return the official percentages: by type, by family, and over all (the mean over types)."""
        right: dict[str, dict[str, int]] = {}
        for row in rows:
            items = right.setdefault(row.kind, {})
            items[row.group] = items.get(row.group, 0) + int(row.right or 0.0)
        types = {
            kind: percent([float(count == TRIES) for count in items.values()]) for kind, items in sorted(right.items())
        }
        figures = dict(types)
        for family in FAMILIES:
            mine = [value for kind, value in types.items() if kind.startswith(family)]
            if mine:
                figures[family] = sum(mine) / len(mine)
        figures["overall"] = sum(types.values()) / len(types) if types else 0.0
        return figures


def _sample(video: str, record: dict[str, Any]) -> Sample:
    options = tuple(map(str, record["options"]))
    listed = [f"{letter}. {option}" for letter, option in zip(letters(len(options)), options, strict=True)]
    kind, stem = str(record["type"]), video.rpartition("/")[2].rpartition(".")[0]
    return Sample(
        id=f"{stem}_{record['try']}",
        video=video,
        question="\n".join([str(record["question"]), *listed, INSTRUCTION]),
        truth=letters(len(options))[record["options"].index(record["gt"])],
        kind=kind,
        choices=options,
        query="\n".join([str(record["question"]), *listed]),
        moments=_moments(record.get("needle_time")),
        cluster=stem.removesuffix(f"_{kind}"),  # needles of several types were put into the same video
        group=stem,
        labels={"family": kind[:3]},
    )


def _moments(times: Any) -> tuple[tuple[float, float], ...]:
    """The first second of each needle; what is no list of seconds is no moment."""
    if not isinstance(times, list) or not all(isinstance(time, (int, float)) for time in times):
        return ()
    return tuple((float(time), float(time) + 1.0) for time in times)
