"""Small folders in exactly the official layout of each public benchmark, with our own records about made-up videos."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videox2l.evaluate.base import MethodOutput, Row, Sample, VideoSession
from videox2l.evaluate.encode import EncodedVideo


@dataclass
class Scripted:
    """A method whose replies are known beforehand, by id of the question; it notes what it was asked."""

    replies: Mapping[str, str]
    name: str = "scripted"
    about: str = "replies from a list"
    at_budget: bool = False
    uses_question: bool = False
    reusable: bool = True
    asked: dict[str, str] = field(default_factory=dict, repr=False)

    def prepare(self, video: EncodedVideo, budget: float, max_new_tokens: int) -> VideoSession:
        return self

    def ask(self, sample: Sample) -> MethodOutput:
        self.asked[sample.id] = sample.question
        return MethodOutput(text=self.replies[sample.id], tokens=1.0, bytes_attended=1, bytes_kept=1, bytes_device=1)


def put(clip: Path, target: Path) -> None:
    """Put a video into a layout."""
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(clip, target)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def srt(path: Path, lines: Sequence[tuple[str, str, str]]) -> None:
    """Write an SRT file as Video-MME has them, with a font tag around each line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = [
        f'{i}\n{a} --> {b}\n<font color="white" size=".72c">{text}</font>\n' for i, (a, b, text) in enumerate(lines, 1)
    ]
    path.write_text("\n".join(blocks), encoding="utf-8")


def videomme(root: Path, clips: Sequence[Path]) -> Path:
    """Three videos with three questions each: a short, a medium and a long one; the medium one has no subtitles."""
    import pyarrow as pa
    from pyarrow import parquet

    truths = {"001": "CAD", "002": "BAC", "003": "ABD"}
    ids = {"001": "a_Short-1x", "002": "mediumVideo", "003": "-longVideo_"}
    rows = [
        {
            "video_id": number,
            "duration": duration,
            "domain": "Knowledge",
            "sub_category": "Astronomy",
            "url": f"https://www.youtube.com/watch?v={ids[number]}",
            "videoID": ids[number],
            "question_id": f"{number}-{i + 1}",
            "task_type": ("Counting Problem", "OCR Problems", "Object Recognition")[i],
            "question": f"What is shown in part {i + 1}?",
            "options": ["A. A red star.", "B. A blue cross.", "C. A green square.", "D. Nothing."],
            "answer": truth,
        }
        for number, duration in zip(truths, ("short", "medium", "long"), strict=True)
        for i, truth in enumerate(truths[number])
    ]
    (root / "videomme").mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(rows), root / "videomme" / "test-00000-of-00001.parquet")
    for name, clip in zip(ids.values(), clips, strict=True):
        put(clip, root / "data" / f"{name}.mp4")
    srt(root / "subtitle" / "a_Short-1x.srt", [("00:00:02,000", "00:00:03,000", "A short one.")])
    lines = [
        ("00:00:00,200", "00:00:00,800", "Between two frames."),
        ("00:00:00,900", "00:00:02,500", "Look at the star."),
        ("00:00:02,500", "00:00:03,900", "Look at the star."),
        ("00:00:05,000", "00:00:05,500", "It is gone."),
    ]
    srt(root / "subtitle" / "-longVideo_.srt", lines)
    return root


def mlvu(root: Path, clips: Sequence[Path]) -> Path:
    """All nine tasks; two questions about plots and needles, one of each other kind."""

    def choice(kind: str, truth: int, number: int = 1) -> dict[str, Any]:
        options = ["red", "green", "blue", "white"]
        return {
            "video": f"{kind}_{number}.mp4",
            "duration": 6.0,
            "question": f"Which colour has the {kind} star?",
            "candidates": options,
            "answer": options[truth],
            "question_type": kind,
        }

    tasks: dict[str, list[dict[str, Any]]] = {
        "1_plotQA": [choice("plotQA", 1), choice("plotQA", 0)],
        "2_needle": [choice("findNeedle", 2), choice("findNeedle", 0, 2)],
        "3_ego": [choice("ego", 0)],
        "4_count": [choice("count", 3)],
        "5_order": [choice("order", 1)],
        "6_anomaly_reco": [choice("anomaly_reco", 0)],
        "7_topic_reasoning": [choice("topic_reasoning", 2)],
        "8_sub_scene": [
            {
                "video": "subPlot_1.mp4",
                "duration": 6.0,
                "question": "Describe what the red star does.",
                "answer": "A red star falls down.",
                "question_type": "subPlot",
                "scoring_points": ["falls"],
            }
        ],
        "9_summary": [
            {
                "video": "summary_1.mp4",
                "duration": 6.0,
                "question": "Summarize the video.",
                "answer": "Shapes move over a texture.",
                "question_type": "summary",
            }
        ],
    }
    for stem, records in tasks.items():
        write_json(root / "MLVU" / "json" / f"{stem}.json", records)
        for name in {record["video"] for record in records}:
            put(clips[0], root / "MLVU" / "video" / stem / name)
    return root


def longvideobench(root: Path, clips: Sequence[Path]) -> Path:
    """Five questions about two videos, with subtitles of both official forms; both videos are parts of longer ones."""

    def record(name: str, video: str, group: int, count: int, right: int, track: str, shift: float) -> dict[str, Any]:
        return {
            "video_id": video,
            "question": "When the star comes, what is left?",
            "question_wo_referring_query": "what is left?",
            "candidates": ["a cross", "a square", "a circle", "a diamond", "nothing"][:count],
            "correct_choice": right,
            "position": [1],
            "topic_category": "KS-Knowledge-STEM",
            "question_category": "S2O" if count > 2 else "T3E",
            "level": "L1-Perception",
            "id": name,
            "video_path": f"{video}.mp4",
            "subtitle_path": track,
            "duration_group": group,
            "starting_timestamp_for_subtitles": shift,
            "duration": 6.0,
            "view_count": 7,
        }

    first, second = ("86CxyhFV9MI", 15, "86CxyhFV9MI_en.json", 100.0), ("@user-7123", 600, "@user-7123_en.json", 0.0)
    records = [
        record("86CxyhFV9MI_0", *first[:2], 5, 2, *first[2:]),
        record("86CxyhFV9MI_1", *first[:2], 5, 1, *first[2:]),
        record("@user-7123_0", *second[:2], 5, 0, *second[2:]),
        record("@user-7123_1", *second[:2], 4, 0, *second[2:]),
        record("@user-7123_2", *second[:2], 2, 1, *second[2:]),
    ]
    write_json(root / "lvb_val.json", records)
    for (name, *_), clip in zip((first, second), clips, strict=False):
        put(clip, root / "videos" / f"{name}.mp4")
    stamped = [
        {"start": "00:01:30.000", "end": "00:01:35.000", "line": "Before the part begins."},
        {"start": "00:01:41.200", "end": "00:01:41.800", "line": "Too short to be seen."},
        {"start": "00:01:41.900", "end": "00:01:42.300", "line": "Now the star comes."},
        {"start": "00:01:43.500", "end": "00:01:45.000", "line": "It stays\nfor a while."},
    ]
    write_json(root / "subtitles" / first[2], stamped)
    write_json(
        root / "subtitles" / second[2],
        [{"timestamp": [0.0, 1.5], "text": "Hello."}, {"timestamp": [4.2, None], "text": "Bye."}],
    )
    return root


VNBENCH = {
    "9917483_ret_edit1": "BCDA",
    "44120_ret_edit1": "ABCD",
    "9917483_ord_insert1": "DCBA",
    "9917483_cnt_edit1": "AAAA",
}
"""Item -> the right letters of its four tries."""


def vnbench(root: Path, clips: Sequence[Path]) -> Path:
    """Four items of three types, each in four tries."""
    records = []
    for item, truths in VNBENCH.items():
        kind = item.partition("_")[2]
        for number, truth in enumerate(truths):
            options = ["w", "x", "y"]
            options.insert("ABCD".index(truth), "the right one")
            records.append(
                {
                    "video": f"/VNBench_new/{item}.mp4",
                    "question": "What was inserted?",
                    "options": options,
                    "gt": "the right one",
                    "gt_option": truth,
                    "needle_time": [2, 4],
                    "type": kind,
                    "try": number,
                    "length": 6,
                }
            )
    write_json(root / "VNBench-main-4try.json", records)
    for item in VNBENCH:
        put(clips[0], root / "VNBench_new" / f"{item}.mp4")
    return root


def lvbench(root: Path, clips: Sequence[Path]) -> Path:
    """Four questions about two videos; one of them lies where video2dataset puts it."""

    def question(uid: str, kinds: list[str], answer: str, when: str) -> dict[str, Any]:
        text = "What is seen?\n(A) A red star\n(B) A blue cross\n(C) A green square\n(D) Nothing"
        return {"uid": uid, "question": text, "answer": answer, "question_type": kinds, "time_reference": when}

    entries = [
        {
            "key": "Cm73ma6Ibcs",
            "type": "sport",
            "video_info": {"duration_minutes": 1, "fps": 2.0},
            "qa": [
                question("1", ["entity recognition"], "B", "00:01-00:03"),
                question("2", ["entity recognition", "reasoning"], "A", "00:00-00:06"),
            ],
        },
        {
            "key": "x-9_Zq",
            "type": "tv",
            "video_info": {"duration_minutes": 1, "fps": 2.0},
            "qa": [question("3", ["reasoning"], "C", ""), question("4", ["temporal grounding"], "D", "00:02-00:02")],
        },
    ]
    root.mkdir(parents=True, exist_ok=True)
    (root / "video_info.meta.jsonl").write_text(
        "".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8"
    )
    put(clips[0], root / "all_videos" / "Cm73ma6Ibcs.mp4")
    put(clips[1], root / "videos" / "00000" / "00000007.mp4")
    write_json(
        root / "videos" / "00000" / "00000007.json",
        {"url": "https://www.youtube.com/watch?v=x-9_Zq", "key": "00000007"},
    )
    return root


LAYOUTS = {
    "videomme": videomme,
    "mlvu": mlvu,
    "longvideobench": longvideobench,
    "vnbench": vnbench,
    "lvbench": lvbench,
}


def rows_of(path: Path) -> list[Row]:
    """Read the rows of a run."""
    return [
        Row.from_dict(json.loads(line)) for line in (path / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    ]
