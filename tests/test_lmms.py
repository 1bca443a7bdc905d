"""The model for lmms-eval: each video is ingested once, whatever the order of the questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from videox2l import VideoX2L
from videox2l.demo.render import render_video
from videox2l.errors import SettingsError
from videox2l.lmms.session import Job, Session

INGEST = {"fps": 1.0, "ratios": (2.0, 32.0)}


class Counting(VideoX2L):
    """Notes which files it ingests."""

    def __init__(self, x2l: VideoX2L) -> None:
        super().__init__(x2l.backbone)
        self.read: list[str] = []

    def ingest(self, video: Any, **settings: Any) -> Any:
        self.read.append(Path(video).name)
        return super().ingest(video, **settings)


@pytest.fixture(scope="module")
def demo() -> VideoX2L:
    return VideoX2L.from_pretrained("demo", device="cpu")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, list[dict[str, Any]]]]:
    folder = tmp_path_factory.mktemp("videos")
    found = []
    for seed in (0, 1):
        path = folder / f"{seed}.mp4"
        found.append((str(path), render_video(path, seed, 0.25, fps=2)))
    return found


@pytest.fixture(scope="module")
def jobs(videos: list[tuple[str, list[dict[str, Any]]]]) -> list[Job]:
    """Questions that jump from video to video."""
    return [
        Job(path, asked["question"], 8)
        for pair in zip(videos[0][1][:4], videos[1][1][:4], strict=True)
        for (path, _), asked in zip(videos, pair, strict=True)
    ]


def run(session: Session, jobs: list[Job]) -> list[str]:
    answers = [""] * len(jobs)
    for index, answer in session.answers(jobs):
        answers[index] = answer
    return answers


def test_each_video_is_ingested_once_and_answers_are_those_of_the_package(demo: VideoX2L, jobs: list[Job]) -> None:
    counting = Counting(demo)
    session = Session(counting, INGEST, {"reload": 1})
    answers = run(session, jobs)
    assert counting.read == ["0.mp4", "1.mp4"]
    assert sorted(session.ingested.values()) == [1, 1]
    memories = {job.video: demo.ingest(job.video, **INGEST) for job in jobs[:2]}
    assert answers == [demo.ask(memories[job.video], job.question, reload=1, max_new_tokens=8).text for job in jobs]
    # Control: the two videos have different answers, so mixing them up would show.
    other = {jobs[0].video: memories[jobs[1].video], jobs[1].video: memories[jobs[0].video]}
    assert answers != [demo.ask(other[job.video], job.question, reload=1, max_new_tokens=8).text for job in jobs]


def test_calls_with_one_question_each_share_the_video_at_hand(demo: VideoX2L, jobs: list[Job]) -> None:
    counting = Counting(demo)
    session = Session(counting, INGEST, {"reload": 1})
    for job in (jobs[0], jobs[2], jobs[4], jobs[1], jobs[3]):
        run(session, [job])
    assert counting.read == ["0.mp4", "1.mp4"]


def test_a_store_serves_later_runs_but_no_other_settings(demo: VideoX2L, jobs: list[Job], tmp_path: Path) -> None:
    first, second, third = Counting(demo), Counting(demo), Counting(demo)
    answers = run(Session(first, INGEST, {"reload": 1}, tmp_path / "memories"), jobs)
    again = Session(second, INGEST, {"reload": 1}, tmp_path / "memories")
    assert run(again, jobs) == answers
    assert (len(first.read), second.read, sorted(again.opened.values())) == (2, [], [1, 1])
    run(Session(third, {**INGEST, "fps": 0.5}, {"reload": 1}, tmp_path / "memories"), jobs)
    assert len(third.read) == 2
    assert len(list((tmp_path / "memories").iterdir())) == 4


def test_an_unfinished_memory_in_the_store_is_completed(demo: VideoX2L, jobs: list[Job], tmp_path: Path) -> None:
    def stop(done: int, expected: int | None, pts: float) -> None:
        raise InterruptedError

    session = Session(demo, INGEST, {"reload": 1}, tmp_path)
    folder = session._folder(jobs[0].video)
    with pytest.raises(InterruptedError):
        demo.ingest(jobs[0].video, store=folder, progress=stop, **INGEST)
    whole = run(Session(demo, INGEST, {"reload": 1}), jobs[:1])
    assert run(session, jobs[:1]) == whole
    assert list(session.ingested.values()) == [1]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (128, 0.0, 1.0, ())),
        ({"max_new_tokens": 16, "temperature": 0, "top_p": None, "until": ["\n\n"]}, (16, 0.0, 1.0, ("\n\n",))),
        ({"temperature": 0.7, "top_p": 0.9, "do_sample": True, "until": "."}, (128, 0.7, 0.9, (".",))),
        ({"temperature": 0.7, "do_sample": False}, (128, 0.0, 1.0, ())),
    ],
)
def test_settings_of_tasks_are_understood(given: dict[str, Any], expected: tuple[Any, ...]) -> None:
    job = Job.of("a.mp4", "q", given, 128)
    assert (job.max_new_tokens, job.temperature, job.top_p, job.until) == expected


def test_an_answer_ends_before_the_first_stop(demo: VideoX2L, videos: list[tuple[str, list[dict[str, Any]]]]) -> None:
    path = videos[0][0]
    question = "which appears first , the red star or the blue circle ?"
    session = Session(demo, INGEST, {"reload": 1})
    [whole] = run(session, [Job(path, question, 8)])
    assert " " in whole
    [cut] = run(session, [Job(path, question, 8, until=("never", whole.split()[1]))])
    assert cut == whole.split()[0] + " "


def test_what_cannot_work_is_told_before_anything_is_read(demo: VideoX2L) -> None:
    with pytest.raises(SettingsError, match="reload"):
        Session(demo, INGEST, {"reload": "many"})
    with pytest.raises(SettingsError, match="selector"):
        Session(demo, INGEST, {"selector": "magic"})


def test_arguments_and_visuals_of_lmms_eval() -> None:
    model = pytest.importorskip("videox2l.lmms.model", reason="lmms-eval has an environment of its own")
    assert model._numbers("2:8:32") == (2.0, 8.0, 32.0)
    assert model._numbers(16) == (16.0,)
    with pytest.raises(SettingsError, match="ratios=two"):
        model._numbers("two")
    assert model._video_of(["a.MKV"], "t") == "a.MKV"
    with pytest.raises(SettingsError, match="task t shows 2 item"):
        model._video_of([object(), object()], "t")
