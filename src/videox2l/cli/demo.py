"""What `x2l demo` does: render a video that nobody trained on, ingest it, ask, and compare with the truth."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videox2l.ask.answer import Answer
from videox2l.cli.console import Screen
from videox2l.cli.options import load_model
from videox2l.demo.render import render_video
from videox2l.errors import SettingsError
from videox2l.options import LoadOptions
from videox2l.units import format_range

PER_KIND = 2


def render_only(path: Path, truth: Path | None, seed: int, minutes: float) -> None:
    """Write a video and, if asked for, its questions with answers and event times as a JSON list."""
    _check(minutes)
    for target in (path, truth):
        if target is not None and not target.parent.is_dir():
            raise SettingsError(f"cannot write '{target}': the folder '{target.parent}' does not exist")
    screen = Screen()
    with screen.waiting(f"rendering {path.name}"):
        questions = render_video(path, seed, minutes)
    if truth is not None:
        truth.write_text(json.dumps(questions, indent=1) + "\n", encoding="utf-8")
    screen.line(f"{path}: {minutes:g} minutes, seed {seed}, {len(questions)} questions")


def show(seed: int, minutes: float, reload: str) -> None:
    """Render, ingest and ask; print answers, evidence, and whether each was right."""
    _check(minutes)
    screen = Screen()
    with tempfile.TemporaryDirectory(prefix="videox2l-") as folder:
        video = Path(folder) / f"demo-{seed}.mp4"
        with screen.waiting(f"rendering {minutes:g} minutes of video"):
            questions = pick(render_video(video, seed, minutes))
        x2l = load_model("demo", LoadOptions(), screen)
        with screen.ingest_bar(video.name) as progress:
            memory = x2l.ingest(video, progress=progress)
    screen.memory(memory.summary())
    right = 0
    held = []
    for asked in questions:
        screen.question(asked["question"])
        answer = x2l.ask(memory, asked["question"], reload=reload, on_text=screen.piece)
        screen.answer(answer)
        correct = answer.text == asked["answer"]
        right += correct
        verdict = "right" if correct else f"wrong: the answer is {asked['answer']}"
        if asked["start"] is None:
            screen.line(f"  {verdict}")
            continue
        held.append(event_reloaded(answer, asked))
        moment = format_range(asked["start"], asked["end"])
        screen.line(f"  {verdict}; the event at {moment} was {'re-loaded' if held[-1] else 'not re-loaded'}")
    screen.line(
        f"\n{right} of {len(questions)} answers right; "
        f"the event was among the re-loaded moments for {sum(held)} of {len(held)} questions"
    )


def pick(questions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first questions of each kind."""
    kinds = dict.fromkeys(question["kind"] for question in questions)
    return [q for kind in kinds for q in [q for q in questions if q["kind"] == kind][:PER_KIND]]


def event_reloaded(answer: Answer, asked: dict[str, Any]) -> bool:
    """Return whether a re-loaded moment overlaps the event that the question is about."""
    return any(moment.start < asked["end"] and asked["start"] < moment.end for moment in answer.reloaded)


def _check(minutes: float) -> None:
    if not 0.25 <= minutes <= 24 * 60:
        raise SettingsError(f"minutes={minutes:g} is not possible: use 0.25 to 1440")
