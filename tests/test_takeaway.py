"""What is taken away from answers: clips, lists of moments, pages."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import av
import pytest

from tests.test_cli import NASA, QUESTION
from tests.test_cli_chat import x2l
from tests.test_why_and_plot import made_up, moment
from videox2l import Memory, SettingsError
from videox2l.ask.answer import Answer
from videox2l.takeaway import moments_text, report_page, write_moments, write_report


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Memory:
    target = tmp_path_factory.mktemp("takeaway") / "nasa.x2l"
    assert x2l("ingest", NASA, target, "--fps", 4).exit_code == 0
    return Memory.load(target)


ANSWER = made_up([moment(0, 0.1), moment(1, 0.5, "score rank 1")], "is <b> & 'c' there ?", "yes\n\n<script>alert(1)")


def test_lists_of_moments(tmp_path: Path, memory: Memory) -> None:
    for ending in ("srt", "vtt", "csv", "edl"):
        write_moments([ANSWER], tmp_path / f"a.{ending}", memory)
    srt = (tmp_path / "a.srt").read_text()
    assert srt.startswith("1\n00:00:08,000 --> 00:00:16,000\nis <b> & 'c' there ?\nyes <script>alert(1)\n")
    vtt = (tmp_path / "a.vtt").read_text()
    assert vtt.startswith("WEBVTT\n\n00:00:08.000 --> 00:00:16.000\nis &lt;b&gt; &amp;")
    with (tmp_path / "a.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["start"], row["end"], row["answer"]) == ("8.0", "16.0", ANSWER.text)
    # 29.97 frames per second: second 8 is frame 240, second 16 frame 480, of 30 to a second of time code.
    assert (
        "001  AX       V     C        00:00:08:00 00:00:16:00 00:00:00:00 00:00:08:00"
        in (tmp_path / "a.edl").read_text()
    )
    with pytest.raises(SettingsError, match="end its name in"):
        write_moments([ANSWER], tmp_path / "a.txt", memory)


def test_a_table_holds_no_formulas(memory: Memory) -> None:
    """What a video shows may be written to run in a spreadsheet; numbers stay numbers."""
    hostile = replace(ANSWER, text='=HYPERLINK("http://x")', question="-1 ?")
    (row,) = csv.DictReader(moments_text([hostile], ".csv", memory).splitlines())
    assert (row["answer"], row["question"], row["score"]) == ('\'=HYPERLINK("http://x")', "'-1 ?", "0.5")
    (row,) = csv.DictReader(moments_text([replace(ANSWER, text="yes", question="a-1 ?")], ".csv", memory).splitlines())
    assert (row["answer"], row["question"]) == ("yes", "a-1 ?")


def test_answers_about_several_videos(memory: Memory) -> None:
    """Each moment under its own video: pictures, lines and links go by the name in the evidence."""
    evidence = [replace(moment(1, 0.5, "score rank 1"), memory=name) for name in ("a", "b")]
    answer = replace(ANSWER, evidence=tuple(evidence))
    both = {"a": memory, "b": memory}
    page = report_page([answer], both, place="/#m={memory}&t={start:.0f}")
    tags = Tags()
    tags.feed(page)
    assert [source for source in tags.sources if source[0] == "/"] == ["/#m=a&t=8", "/#m=b&t=8"]
    assert tags.tags.count("svg") == tags.tags.count("img") == 2
    assert "nasa_13013.mp4 00:08-00:16</a>" in page
    assert "nasa_13013.mp4 (2) 00:08-00:16</a>" in page
    rows = list(csv.DictReader(moments_text([answer], ".csv", both).splitlines()))
    assert [row["video"] for row in rows] == ["nasa_13013.mp4"] * 2
    with pytest.raises(SettingsError, match=r"of one video, and these are of 2: take \.csv"):
        moments_text([answer], ".srt", both)
    with pytest.raises(KeyError):
        report_page([answer], {"a": memory, "c": memory})


class Tags(HTMLParser):
    """Collects tags and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.sources = list[str](), list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_a_page_stands_alone_and_words_stay_words(tmp_path: Path, memory: Memory) -> None:
    write_report([ANSWER, replace(ANSWER, question="again ?")], tmp_path / "a.html", memory)
    page = Tags()
    page.feed((tmp_path / "a.html").read_text())
    assert "script" not in page.tags
    assert page.tags.count("b") == 0
    assert page.tags.count("svg") == page.tags.count("img") == 2
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)


def test_moments_are_links_into_the_video(tmp_path: Path, memory: Memory) -> None:
    """Relative to the page, so that both can be moved together; braces and spaces in names are no formats."""
    video = tmp_path / "films" / "a {0} b.mp4"
    video.parent.mkdir()
    shutil.copy(NASA, video)
    (tmp_path / "pages").mkdir()
    page = tmp_path / "pages" / "a.html"
    write_report([ANSWER], page, memory, link=video)
    links = Tags()
    links.feed(page.read_text())
    (link,) = [source for source in links.sources if not source.startswith("data:")]
    path, _, part = link.partition("#")
    assert (page.parent / unquote(path)).resolve() == video
    assert part == "t=8.000,16.000"
    write_report([ANSWER], page, memory)
    assert "href" not in page.read_text()


def test_an_answer_is_read_again() -> None:
    assert Answer.from_dict(json.loads(json.dumps(ANSWER.to_dict()))).to_dict() == ANSWER.to_dict()
    for wrong in ({}, {**ANSWER.to_dict(), "cost": {}}, {**ANSWER.to_dict(), "evidence": [{"start": 1}]}):
        with pytest.raises(SettingsError, match="this is no answer"):
            Answer.from_dict(wrong)


def test_a_dialogue_on_one_page(tmp_path: Path, memory: Memory) -> None:
    kept, page = tmp_path / "kept.x2l", tmp_path / "a.html"
    memory.save(kept)
    asked = f"{QUESTION}\nand <then> ?\n"
    args = ("chat", kept, "--max-new-tokens", 2, "--reload", 1, "--report", page)
    done = x2l(*args, "--video", NASA, stdin=asked)
    assert done.exit_code == 0, done.output
    read = Tags()
    read.feed(page.read_text())
    assert (read.tags.count("h2"), read.tags.count("img")) == (2, 2)
    assert QUESTION in page.read_text()
    assert "and &lt;then&gt; ?" in page.read_text()
    assert sum("nasa_13013.mp4#t=" in source for source in read.sources) == 2
    other = x2l(*args, "--video", NASA.with_name("h265_video.mp4"), stdin=asked)
    assert (other.exit_code, "is not the video that this memory was made of" in other.output) == (1, True)
    assert x2l("chat", kept, "--video", NASA, stdin=asked).exit_code == 2
    assert x2l("chat", kept, "--report", tmp_path / "a.txt", stdin=asked).exit_code == 2


def test_the_command_takes_everything_away(tmp_path: Path) -> None:
    done = x2l(
        "ask", NASA, QUESTION, "--fps", 4, "--max-new-tokens", 2, "--reload", 1, "--clips", tmp_path / "clips",
        "--report", tmp_path / "a.html", "--export-moments", tmp_path / "a.csv",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    (clip,) = (tmp_path / "clips").iterdir()
    start, end = map(float, re.findall(r"\d+\.\d{3}", clip.name))
    with av.open(str(clip)) as box:
        frames = sum(1 for _ in box.decode(video=0))
        assert box.streams.audio
    assert abs(frames * 1001 / 30000 - (end - start)) <= 1001 / 30000
    assert (tmp_path / "a.html").exists()
    assert (tmp_path / "a.csv").exists()


def test_what_cannot_be_is_told_before_the_work(tmp_path: Path) -> None:
    done = x2l("ask", NASA, QUESTION, "--export-moments", tmp_path / "a.txt")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "end its name in .srt, .vtt, .csv, .edl" in done.stderr
