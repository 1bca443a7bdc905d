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
import numpy as np
import pytest
from PIL import Image

from tests.test_cli import NASA, QUESTION
from tests.test_cli_chat import x2l
from tests.test_why_and_plot import made_up, moment
from videox2l import Memory, SettingsError
from videox2l.ask.answer import Answer
from videox2l.takeaway import moments_text, write_moments, write_report
from videox2l.takeaway.moments import time_code
from videox2l.video import ClipCutter


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
    edl = (tmp_path / "a.edl").read_text()
    assert "FCM: DROP FRAME\n" in edl
    assert "001  AX       V     C        00:00:08;00 00:00:16;00 00:00:00;00 00:00:08;00" in edl
    with pytest.raises(SettingsError, match="end its name in"):
        write_moments([ANSWER], tmp_path / "a.txt", memory)


@pytest.mark.parametrize(
    ("frame", "base", "code"),
    [
        (0, 30, "00:00:00;00"),
        (1799, 30, "00:00:59;29"),
        (1800, 30, "00:01:00;02"),
        (3597, 30, "00:01:59;29"),
        (3598, 30, "00:02:00;02"),
        (17981, 30, "00:09:59;29"),
        (17982, 30, "00:10:00;00"),
        (107892, 30, "01:00:00;00"),
        (2589408, 30, "24:00:00;00"),
        (3599, 60, "00:00:59;59"),
        (3600, 60, "00:01:00;04"),
        (35964, 60, "00:10:00;00"),
        (215784, 60, "01:00:00;00"),
    ],
)
def test_drop_frame_time_codes_are_those_of_smpte(frame: int, base: int, code: str) -> None:
    assert time_code(frame, base, drop=True) == code
    assert (time_code(frame, base) == code.replace(";", ":")) == (frame < base * 60)


@pytest.mark.parametrize("base", [30, 60])
def test_drop_frame_numbers_are_left_out_one_by_one(base: int) -> None:
    """Write down every number of 71 minutes, and leave out those that the standard leaves out."""
    codes = [
        f"{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d};{number:02d}"
        for second in range(71 * 60)
        for number in range(base)
        if not (second % 60 == 0 and second // 60 % 10 and number < base // 15)
    ]
    assert [time_code(frame, base, drop=True) for frame in range(len(codes))] == codes
    hour = 3600 * base * 1000 / 1001  # frames that are shown in an hour by the clock
    assert codes[round(hour)].startswith("01:00:00")


@pytest.mark.parametrize(
    ("rate", "start", "drop", "code"),
    [
        (30000 / 1001, 1800 * 1001 / 30000, True, "00:01:00;02"),
        (29.9705, 17982 * 1001 / 30000, True, "00:10:00;00"),  # measured from times in thousandths
        (60000 / 1001, 3600 * 1001 / 60000, True, "00:01:00;04"),
        (30.0, 60.0, False, "00:01:00:00"),
        (60.0, 60.0, False, "00:01:00:00"),
        (24000 / 1001, 1440 * 1001 / 24000, False, "00:01:00:00"),
        (25.0, 60.0, False, "00:01:00:00"),
    ],
)
def test_cut_lists_drop_frames_where_the_rate_asks_for_it(
    rate: float, start: float, drop: bool, code: str, tmp_path: Path, memory: Memory
) -> None:
    film = replace(memory, manifest={**memory.manifest, "frames": 1_000_000, "duration": 1_000_000 / rate})
    cut = replace(moment(1, 0.5, "score rank 1"), start=start, end=start + 1)
    write_moments([replace(ANSWER, evidence=(cut,))], tmp_path / "a.edl", film)
    told = (tmp_path / "a.edl").read_text()
    assert f"FCM: {'DROP' if drop else 'NON-DROP'} FRAME\n" in told
    assert f"001  AX       V     C        {code} " in told
    assert (";" in told) == drop


def test_a_table_holds_no_formulas(memory: Memory) -> None:
    """What a video shows may be written to run in a spreadsheet; numbers stay numbers."""
    hostile = replace(ANSWER, text='=HYPERLINK("http://x")', question="-1 ?")
    (row,) = csv.DictReader(moments_text([hostile], ".csv", memory).splitlines())
    assert (row["answer"], row["question"], row["score"]) == ('\'=HYPERLINK("http://x")', "'-1 ?", "0.5")
    (row,) = csv.DictReader(moments_text([replace(ANSWER, text="yes", question="a-1 ?")], ".csv", memory).splitlines())
    assert (row["answer"], row["question"]) == ("yes", "a-1 ?")


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


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two videos of one name, a picture, and memories of the videos."""
    folder = tmp_path_factory.mktemp("several")
    for name, source in (("a", NASA), ("b", NASA.with_name("h264_10bits.mp4"))):
        (folder / name).mkdir()
        shutil.copy(source, folder / name / "film.mp4")
        assert x2l("ingest", folder / name / "film.mp4", folder / f"{name}.x2l", "--fps", 4).exit_code == 0
    Image.new("RGB", (96, 96), (200, 40, 40)).save(folder / "still.png")
    return folder


def frames_in(clip: Path) -> list[np.ndarray]:
    with av.open(str(clip)) as box:
        return [frame.to_ndarray(format="rgb24") for frame in box.decode(video=0)]


def test_clips_of_several_come_from_their_own_videos(tmp_path: Path, several: Path) -> None:
    a, b = several / "a" / "film.mp4", several / "b" / "film.mp4"
    args = ("-q", QUESTION, "--max-new-tokens", 1, "--reload", "all", "--fps", 4)
    done = x2l("ask", a, b, several / "still.png", *args, "--clips", tmp_path / "files", "--json")
    assert done.exit_code == 0, done.output
    evidence = json.loads(done.stdout)["answers"][0]["evidence"]
    moments = [moment for moment in evidence if not moment["memory"].endswith("still.png")]
    assert len(moments) == len(evidence) - 1
    clips = {clip.stem for clip in (tmp_path / "files").iterdir()}
    stems = {str(a): "film", str(b): "film-2"}
    assert clips == {f"{stems[m['memory']]}-{m['start']:.3f}-{m['end']:.3f}" for m in moments}
    for name, file in (("film-2", b), ("film", a)):
        cut = [clip for clip in (tmp_path / "files").iterdir() if clip.stem.startswith(f"{name}-0.000")]
        whole = ClipCutter(file).cut(0.0, float(cut[0].stem.split("-")[-1]), tmp_path / "alone")
        assert len(frames_in(cut[0])) == whole.frames
        assert np.array_equal(frames_in(cut[0])[0], frames_in(whole.path)[0])
    assert frames_in(whole.path)[0].shape != frames_in(next((tmp_path / "files").glob("film-2-0.000-*")))[0].shape

    kept = ("ask", several / "a.x2l", several / "b.x2l", "-q", QUESTION, "--max-new-tokens", 1, "--reload", "all")
    done = x2l(*kept, "--video", b, "--video", a, "--clips", tmp_path / "kept")  # matched by content, in any order
    assert done.exit_code == 0, done.output
    assert {clip.stem for clip in (tmp_path / "kept").iterdir()} == clips
    for named, message in (
        ((a,), "the video 'film.mp4' is not in this folder: name it with --video FILE"),
        ((a, NASA.with_name("av1_video.mkv")), "'film.mp4' is not in this folder"),
        ((a, b, a), "--video is given 3 times"),
    ):
        words = [word for file in named for word in ("--video", file)]
        done = x2l(*kept, *words, "--clips", tmp_path / "none")
        assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert message in done.stderr
    assert not (tmp_path / "none").exists()


def test_one_page_about_several(tmp_path: Path, several: Path) -> None:
    """Two time lines and headings; pictures and links of each video; files that are not at hand give no links."""
    a, memory_b, page = several / "a" / "film.mp4", several / "b.x2l", tmp_path / "a.html"
    asked = ("ask", a, memory_b, "-q", QUESTION, "-q", "and then ?", "--fps", 4)
    done = x2l(*asked, "--max-new-tokens", 1, "--reload", "all", "--report", page, "--json")
    assert done.exit_code == 0, done.output
    evidence = json.loads(done.stdout)["answers"][0]["evidence"]
    count = {name: sum(m["memory"] == str(name) for m in evidence) for name in (a, memory_b)}
    read = Tags()
    read.feed(page.read_text())
    assert (read.tags.count("h2"), read.tags.count("svg")) == (2, 4)
    assert read.tags.count("img") == 2 * len(evidence)
    links = [source for source in read.sources if not source.startswith("data:")]
    assert len(links) == 2 * count[a]
    assert {(page.parent / unquote(link.partition("#")[0])).resolve() for link in links} == {a.resolve()}
    pictures = [source for source in read.sources if source.startswith("data:")]
    assert len(set(pictures)) == len(evidence)  # each moment has its own: chunk 0 of one is not chunk 0 of the other
    assert f"{memory_b}: 00:" in page.read_text()

    asked = ("ask", several / "a.x2l", memory_b, "-q", QUESTION, "--max-new-tokens", 1, "--reload", "all")
    done = x2l(*asked, "--report", page, "--video", several / "b" / "film.mp4")
    assert done.exit_code == 0, done.output
    read = Tags()
    read.feed(page.read_text())
    assert sum("b/film.mp4#t=" in source for source in read.sources) == count[memory_b]
    assert not any("a/film.mp4#t=" in source for source in read.sources)


def test_moments_of_several_and_why(tmp_path: Path, several: Path) -> None:
    """A table and a cut list name each moment's own video; a time is explained in every video that has it."""
    a, b = several / "a.x2l", several / "b.x2l"
    asked = ("ask", a, b, "-q", QUESTION, "--max-new-tokens", 1, "--reload", "all")
    done = x2l(*asked, "--export-moments", tmp_path / "a.csv", "--why", 1, "--why", 12.5, "--json")
    assert done.exit_code == 0, done.output
    (answer,) = json.loads(done.stdout)["answers"]
    ends = {name: max(m["end"] for m in answer["evidence"] if m["memory"] == str(name)) for name in (a, b)}
    wanted = [(1.0, str(name)) for name in (a, b)] + [(12.5, str(name)) for name in (a, b) if ends[name] > 12.5]
    assert [(why["seconds"], why["memory"]) for why in answer["why"]] == wanted
    assert all(why["start"] <= why["seconds"] <= why["end"] for why in answer["why"])
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(float(row["start"]), row["video"]) for row in rows] == [
        (m["start"], m["memory"]) for m in answer["evidence"]
    ]
    assert [float(row["start"]) for row in rows] != sorted(float(row["start"]) for row in rows)  # video by video
    told = x2l(*asked, "--why", 1)
    assert f"{b}:" in told.stdout
    for more, message in (
        (("--export-moments", tmp_path / "a.srt"), "cannot write moments of several videos to"),
        (("--plot", tmp_path / "a.png"), "--plot go with one video"),
        (("--why", 99), "01:39 is not seen by the question"),
    ):
        wrong = x2l(*asked, *more)
        assert (wrong.exit_code, message in wrong.stderr) == (2, True), wrong.output


def test_a_cut_list_of_several_has_one_rate(tmp_path: Path, memory: Memory) -> None:
    class Two:
        """Two memories, as a question sees them."""

        def __init__(self, *rates: float) -> None:
            facts = [{**memory.manifest, "frames": 1000, "duration": 1000 / rate} for rate in rates]
            parts = [
                replace(memory, manifest={**one, "source": f"{n}.mp4"}) for n, one in zip("xy", facts, strict=True)
            ]
            self.by_name = dict(zip("xy", parts, strict=True))

    cuts = [replace(moment(1, 0.5, "score rank 1"), memory=name) for name in "yx"]
    answers = [replace(ANSWER, evidence=tuple(cuts))]
    write_moments(answers, tmp_path / "a.edl", Two(30000 / 1001, 29.9705))  # type: ignore[arg-type]
    lines = (tmp_path / "a.edl").read_text().splitlines()
    assert [line for line in lines if line.startswith("* FROM")] == [f"* FROM CLIP NAME: {n}.mp4" for n in "xy"]
    assert lines[3].endswith("00:00:08;00 00:00:16;00 00:00:00;00 00:00:08;00")
    assert lines[7].endswith("00:00:08;00 00:00:16;00 00:00:08;00 00:00:16;00")
    with pytest.raises(SettingsError, match=r"a cut list has one rate, these videos have 'x' 25\.00, 'y' 30\.00"):
        write_moments(answers, tmp_path / "b.edl", Two(25.0, 30.0))  # type: ignore[arg-type]


def test_a_dialogue_about_several_on_one_page(tmp_path: Path, several: Path) -> None:
    page, asked = tmp_path / "a.html", f"{QUESTION}\nand then ?\n"
    args = ("chat", several / "a.x2l", several / "b.x2l", "--max-new-tokens", 1, "--reload", "all", "--report", page)
    done = x2l(*args, "--video", several / "b" / "film.mp4", "--json", stdin=asked)
    assert done.exit_code == 0, done.output
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    names = [{moment["memory"] for moment in answer["evidence"]} for answer in answers]
    assert names == [{str(several / "a.x2l"), str(several / "b.x2l")}] * 2
    assert answers[1]["cost"]["dialogue_tokens"] > 0
    read = Tags()
    read.feed(page.read_text())
    assert (read.tags.count("h2"), read.tags.count("svg")) == (2, 4)
    assert any("b/film.mp4#t=" in source for source in read.sources)
    wrong = x2l(*args, "--video", NASA.with_name("av1_video.mkv"), stdin=asked)
    assert (wrong.exit_code, wrong.stdout) == (1, "")
    assert "'av1_video.mkv' is not a video that one of these memories was made of" in wrong.stderr
    assert x2l("chat", several / "a.x2l", "what ?", stdin=asked).exit_code == 1
