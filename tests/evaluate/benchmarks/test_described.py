"""Benchmarks that a YAML file describes: against the classes of known ones, and one that has no class."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.evaluate.benchmarks.layouts import Scripted, put, rows_of
from tests.evaluate.benchmarks.test_command import x2l
from tests.evaluate.benchmarks.test_multiple_choice import REPLIES
from videox2l import SettingsError, VideoX2L
from videox2l.evaluate.base import BenchmarkOptions
from videox2l.evaluate.benchmarks import PUBLIC, from_description
from videox2l.evaluate.runner import Run, run

Layout = Callable[[str], Path]
KNOWN: dict[str, dict[str, Any]] = {
    "videomme": {
        "annotations": "videomme/test-*.parquet",
        "video": "{videoID}",
        "places": "data/{video}.mp4",
        "id": "{question_id}",
        "question": "Select the best answer to the following multiple-choice question based on the video. Respond with "
        "only the letter (A, B, C, or D) of the correct option.\n{question}\n{options}\nThe best answer is:",
        "query": "{question}\n{options}",
        "options": "options",
        "option": "{option}",
        "answer": "answer",
        "kind": "{task_type}",
        "labels": {"duration": "{duration}", "domain": "{domain}", "sub_category": "{sub_category}"},
    },
    "longvideobench": {
        "annotations": "lvb_val.json",
        "video": "{video_path}",
        "places": "videos/{video}",
        "id": "{id}",
        "question": "Question: {question}\n{options}\nAnswer with the option's letter from the given choices directly.",
        "query": "{question}\n{options}",
        "options": "candidates",
        "answer": "correct_choice",
        "answer_is": "index",
        "kind": "{question_category}",
        "labels": {"duration_group": "{duration_group}"},
        "max_new_tokens": 32,
    },
    "lvbench": {
        "annotations": "video_info.meta.jsonl",
        "records": "qa",
        "video": "{key}",
        "places": ["all_videos/{video}.mp4", "videos/00000/00000007.mp4"],
        "id": "{uid}",
        "question": "{question}\nAnswer the question with the option letter",
        "query": "{question}",
        "options": "ABCD",
        "answer": "answer",
        "kind": "{question_type}",
        "moments": "time_reference",
        "scoring": "first character",
    },
}


def write(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", KNOWN)
def test_a_description_asks_what_the_class_asks(layout: Layout, tmp_path: Path, name: str) -> None:
    """Bit-equal prompts, texts for selectors, options, truths and places; and the same scores of the same replies."""
    data = layout(name)
    file = write(tmp_path / "a.yaml", {"name": name, **KNOWN[name]})
    one, other = from_description(file, BenchmarkOptions(data=data)), PUBLIC[name](BenchmarkOptions(data=data))
    one.check()
    same = {"labels": {}, "kind": "-"} if name == "lvbench" else {}  # a question of several types has the class alone
    assert len(one.samples()) == len(other.samples()) > 3
    for mine, theirs in zip(one.samples(), other.samples(), strict=True):
        assert replace(mine, **same) == replace(theirs, **same)
        for reply, *_ in REPLIES:
            if name != "longvideobench":  # whose class guesses where there is no letter, and has prefixes of its own
                assert one.score(mine, reply) == other.score(theirs, reply)
    assert one.max_new_tokens == other.max_new_tokens


NEW = {
    "name": "new",
    "annotations": "questions.csv",
    "video": "{clip}",
    "places": ["clips/{video}.mp4"],
    "question": "{ask}\n{options}\nOne letter.",
    "query": "{ask}",
    "options": ["one", "two", "three"],
    "option": "({letter}) {option}",
    "answer": "right",
    "answer_is": "text",
    "kind": "{what}",
    "labels": {"level": "level {level}"},
    "group": "{clip}-{pair}",
    "tries": 2,
    "max_new_tokens": 4,
}
ROWS = [
    ("a", "0", "color", "1", "Which color ?", "red", "blue", "green", "blue"),
    ("a", "0", "color", "1", "What color ?", "blue", "red", "green", "blue"),
    ("a", "1", "color", "2", "And last ?", "red", "blue", "green", "green"),
    ("a", "1", "color", "2", "And then last ?", "red", "blue", "green", "green"),
    ("b", "0", "shape", "2", "Which shape ?", "star", "cross", "circle", "star"),
    ("b", "0", "shape", "2", "What shape ?", "cross", "star", "circle", "star"),
]
FIELDS = ("clip", "pair", "what", "level", "ask", "one", "two", "three", "right")


@pytest.fixture
def new(tmp_path: Path, clips: list[Path]) -> Path:
    """A folder with a benchmark that no class knows, and its description beside."""
    for name, clip in zip("ab", clips, strict=False):
        put(clip, tmp_path / "data" / "clips" / f"{name}.mp4")
    with (tmp_path / "data" / "questions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([FIELDS, *ROWS])
    write(tmp_path / "new.yaml", NEW)
    return tmp_path


def test_a_benchmark_without_a_class(new: Path, demo: VideoX2L) -> None:
    """By hand: the first pair is right, the second half right, the third right: 1 of 2 colors, 1 of 1 shapes."""
    method = Scripted({"0": "B", "1": "(A)", "2": "C", "3": "A", "4": "The answer is A.", "5": "B)"})
    benchmark = from_description(new / "new.yaml", BenchmarkOptions(data=new / "data"))
    summary = run(demo, Run(benchmark, [method], [Fraction(1, 8)]), new / "out")["scripted"]
    assert method.asked["1"] == "What color ?\n(A) blue\n(B) red\n(C) green\nOne letter."
    assert (summary["accuracy"], summary["n"]) == (pytest.approx(2 / 3), 3)
    assert summary["metrics"] == pytest.approx(
        {"color": 50.0, "shape": 100.0, "level 1": 100.0, "level 2": 50.0, "overall": 100 * 2 / 3}
    )
    write(new / "kinds.yaml", {**NEW, "over": "kinds"})
    other = from_description(new / "kinds.yaml", BenchmarkOptions(data=new / "data"))
    assert other.metrics(rows_of(new / "out")) == pytest.approx(
        {"color": 50.0, "shape": 100.0, "level 1": 100.0, "level 2": 50.0, "overall": 75.0}
    )
    with pytest.raises(SettingsError, match="description"):  # another description is another run
        run(demo, Run(other, [method], [Fraction(1, 8)]), new / "out")


def test_from_the_command_line(new: Path) -> None:
    args = ("--data", new / "data", "--out", new / "out", "--methods", "H", "--max-new-tokens", 2)
    done = x2l("eval", "--describe", new / "new.yaml", *args)
    assert done.exit_code == 0, done.output
    assert len(rows_of(new / "out")) == 6
    assert json.loads((new / "out" / "summary.json").read_text())["H"]["n"] == 3
    assert "overall" in done.stdout
    assert x2l("eval", "vnbench", "--describe", new / "new.yaml", *args).exit_code == 2
    assert x2l("eval", *args).exit_code == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qestion": "x"}, "option 'qestion' is not known: did you mean question"),
        ({"question": None}, "question is missing"),
        ({"question": "{ask} {0.x}"}, "is no template: write {field}"),
        ({"question": "{ask"}, "is no template"),
        ({"option": "{letter} {option.__class__}"}, "is no template"),
        ({"scoring": "vibes"}, "scoring must be one of first letter, first character"),
        ({"answer_is": "number"}, "answer_is must be one of letter, text, index"),
        ({"options": "ABC"}, "answer_is: text needs options of the records"),
        ({"question": "{nothing}"}, r"missing 6 fields: nothing of record 0, nothing of record 1"),
        ({"answer": "what"}, "missing 6 answers among the options: record 0"),
        ({"tries": 3}, "missing 3 tries: 1 of a-0"),
        ({"id": "{clip}"}, "missing 2 ids of their own: a, b"),
        ({"places": ["/etc/{video}", "../{video}.mp4"]}, "missing 2 videos: a, b"),
        ({"annotations": "*.json"}, r"holds no new: \*\.json is not there"),
        ({"records": "what"}, "field 'what' of record 0 is no list of records"),
    ],
)
def test_what_is_wrong_is_named(new: Path, change: dict[str, Any], message: str) -> None:
    file = write(new / "wrong.yaml", {**NEW, **change})
    with pytest.raises(SettingsError, match=message):
        from_description(file, BenchmarkOptions(data=new / "data", strict=True)).check()


def test_files_that_are_no_descriptions(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    for text, told in (
        ("- a", "no description"),
        ("a: [", "cannot be read as YAML"),
        ("!!python/name:os.system ''", ""),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(SettingsError, match=rf"a\.yaml'.*{told}"):
            from_description(file, BenchmarkOptions(data=tmp_path))
    with pytest.raises(SettingsError, match="cannot be read as YAML"):
        from_description(tmp_path / "none.yaml", BenchmarkOptions(data=tmp_path))
