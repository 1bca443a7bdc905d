"""What is missing is told by name before anything runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.benchmarks.layouts import LAYOUTS
from videox2l.errors import SettingsError, VideoWarning
from videox2l.evaluate.base import BenchmarkOptions
from videox2l.evaluate.benchmarks import PUBLIC

Layout = Callable[[str], Path]


def check(name: str, root: Path, **options: Any) -> None:
    PUBLIC[name](BenchmarkOptions(data=root, strict=True, **options)).check()


def edit(path: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_whole_passes(layout: Layout, name: str) -> None:
    root = layout(name)
    check(name, root)
    if name in ("videomme", "longvideobench"):
        check(name, root, subtitles=True)


VIDEOS = {
    "videomme": ("data", "missing 3 videos: a_Short-1x, mediumVideo, -longVideo_"),
    "mlvu": ("MLVU/video", r"missing 10 videos: video/1_plotQA/plotQA_1.mp4, (\S+ ){4}and 5 more"),
    "longvideobench": ("videos", "missing 2 videos: 86CxyhFV9MI.mp4, @user-7123.mp4"),
    "vnbench": ("VNBench_new", "missing 4 videos: VNBench_new/9917483_ret_edit1.mp4, "),
    "lvbench": ("all_videos", "missing 1 videos: Cm73ma6Ibcs"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_missing_videos(layout: Layout, name: str) -> None:
    root = layout(name)
    folder, message = VIDEOS[name]
    shutil.rmtree(root / folder)
    with pytest.raises(SettingsError, match=message) as error:
        check(name, root)
    assert str(root) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", LAYOUTS)
def test_half_a_download(layout: Layout, name: str) -> None:
    """A file that is cut short is told before anything runs, not when its turn comes."""
    root = layout(name)
    video = sorted((root / VIDEOS[name][0]).rglob("*.mp4"))[0]
    half = video.read_bytes()[: video.stat().st_size // 2]
    video.unlink()  # the layouts link to the same file
    video.write_bytes(half)
    with pytest.raises(SettingsError, match=rf"missing 1 pictures in video files \(cut short.*{video.stem}"):
        check(name, root)
    video.write_bytes(b"")
    with pytest.raises(SettingsError, match=video.stem):
        check(name, root)


PACKED = {
    "videomme": ("videos_chunked_01.zip", r"unzip 'videos_chunked_\*.zip'"),
    "mlvu": ("MLVU/video_part_1.tar.gz", "unpack them"),
    "longvideobench": ("videos.tar.part.aa", r"cat videos.tar.part.\* > videos.tar && tar -xf videos.tar"),
    "vnbench": ("VNBench_new.zip", "unzip them"),
    "lvbench": ("all_videos_split.zip.001", r"cat all_videos_split.zip.\* > all_videos.zip"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_archives_as_downloaded_are_named(layout: Layout, name: str) -> None:
    root = layout(name)
    shutil.rmtree(root / VIDEOS[name][0])
    file, message = PACKED[name]
    (root / file).parent.mkdir(exist_ok=True)
    (root / file).touch()
    with pytest.raises(SettingsError, match=message) as error:
        check(name, root)
    assert Path(file).name in str(error.value)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_of_something_else(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=str(tmp_path)):
        check(name, tmp_path)
    with pytest.raises(SettingsError, match="--data"):
        check(name, None)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="is no folder"):
        check(name, tmp_path / "nowhere")


def test_missing_fields_of_videomme(layout: Layout) -> None:
    root = layout("videomme")
    from pyarrow import parquet

    path = root / "videomme" / "test-00000-of-00001.parquet"
    rows = parquet.read_table(path).to_pylist()
    rows[1]["answer"], rows[4]["options"], rows[4]["task_type"] = None, [], ""
    parquet.write_table(type(parquet.read_table(path)).from_pylist(rows), path)
    with pytest.raises(SettingsError, match="missing 2 fields: answer of 001-2, task_type, options of 002-2"):
        check("videomme", root)


def test_a_file_that_is_no_parquet(layout: Layout) -> None:
    root = layout("videomme")
    (root / "videomme" / "test-00000-of-00001.parquet").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(SettingsError, match="is no parquet file that can be read"):
        check("videomme", root)


def test_missing_subtitles_of_videomme(layout: Layout) -> None:
    """Long videos all have some; others may have none."""
    root = layout("videomme")
    (root / "subtitle" / "-longVideo_.srt").unlink()
    check("videomme", root)
    with pytest.raises(SettingsError, match=r"missing 1 subtitles: subtitle/-longVideo_\.srt"):
        check("videomme", root, subtitles=True)
    shutil.rmtree(root / "subtitle")
    (root / "subtitle.zip").touch()
    with pytest.raises(
        SettingsError, match=r"missing 1 folders: subtitle\. subtitle\.zip lie there packed: unzip subtitle"
    ):
        check("videomme", root, subtitles=True)


def test_an_empty_subtitle_file_counts_as_none(layout: Layout) -> None:
    root = layout("videomme")
    (root / "subtitle" / "a_Short-1x.srt").write_text("")
    bench = PUBLIC["videomme"](BenchmarkOptions(data=root, subtitles=True))
    with pytest.warns(VideoWarning, match="as without subtitles"):
        assert bench.subtitles("a_Short-1x") == ()
    [sample] = [sample for sample in bench.samples() if sample.id == "001-1"]
    assert bench.prompt(sample, [0.0, 1.0]) == sample.question


def test_missing_fields_and_files_of_mlvu(layout: Layout) -> None:
    root = layout("mlvu")
    edit(root / "MLVU/json/3_ego.json", lambda records: records[0].pop("candidates"))
    edit(root / "MLVU/json/4_count.json", lambda records: records[0].update(answer="purple"))
    (root / "MLVU/json/9_summary.json").unlink()
    with pytest.raises(SettingsError) as error:
        check("mlvu", root)
    for part in (
        "1 fields: candidates of 3_ego.json[0]",
        "answers among the candidates: 4_count.json[0]",
        "json/9_summary",
    ):
        assert part in str(error.value)
    with pytest.raises(SettingsError, match="3_ego"):
        check("mlvu", root, tasks=("needle",))  # what is broken is told whether it is wanted or not
    edit(root / "MLVU/json/3_ego.json", lambda records: records.clear())
    edit(root / "MLVU/json/4_count.json", lambda records: records.clear())
    check("mlvu", root, tasks=("needle",))


def test_missing_of_longvideobench(layout: Layout) -> None:
    root = layout("longvideobench")
    (root / "subtitles" / "@user-7123_en.json").unlink()
    with pytest.raises(SettingsError, match=r"missing 1 subtitles: subtitles/@user-7123_en\.json"):
        check("longvideobench", root, subtitles=True)
    (root / "subtitles" / "@user-7123_en.json").write_text("<html>")
    with pytest.raises(SettingsError, match="missing 1 lines of text in subtitle files: subtitles/@user-7123"):
        check("longvideobench", root, subtitles=True)
    edit(root / "lvb_val.json", lambda records: records[1].pop("correct_choice"))
    with pytest.raises(SettingsError, match="missing 1 fields: correct_choice of 86CxyhFV9MI_1"):
        check("longvideobench", root)
    with pytest.raises(SettingsError, match="split 'test' is not known: longvideobench has val"):
        check("longvideobench", root, split="test")


def test_missing_of_vnbench(layout: Layout) -> None:
    root = layout("vnbench")
    file = root / "VNBench-main-4try.json"
    edit(file, lambda records: records.pop(3))
    with pytest.raises(SettingsError, match="missing 1 tries: 1 of 9917483_ret_edit1"):
        check("vnbench", root)
    edit(file, lambda records: records[0].pop("gt"))
    with pytest.raises(SettingsError, match="missing 1 fields: gt of record 0"):
        check("vnbench", root)
    edit(file, lambda records: records[0].update(gt="purple"))
    with pytest.raises(SettingsError, match="missing 1 answers among the options: record 0"):
        check("vnbench", root)
    file.write_text("[{]")
    with pytest.raises(SettingsError, match="is no JSON"):
        check("vnbench", root)


def test_missing_of_lvbench(layout: Layout) -> None:
    root = layout("lvbench")
    file = root / "video_info.meta.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0].replace('"answer": "A", ', ""), lines[1]]))
    with pytest.raises(SettingsError, match="missing 1 fields: answer of question 2 about Cm73ma6Ibcs"):
        check("lvbench", root)
    file.write_text("\n".join([lines[0], lines[1][:-5]]))
    with pytest.raises(SettingsError, match="line 2 is no JSON"):
        check("lvbench", root)


def test_annotations_cannot_lead_out_of_the_folder(layout: Layout, clips: list[Path]) -> None:
    root = layout("longvideobench")
    (root.parent / "secret.mp4").write_bytes(clips[0].read_bytes())
    edit(root / "lvb_val.json", lambda records: records[0].update(video_path="../../secret.mp4"))
    with pytest.raises(SettingsError, match=r"missing 1 videos: \.\./\.\./secret\.mp4"):
        check("longvideobench", root)


def test_options_that_do_not_apply(layout: Layout) -> None:
    root = layout("vnbench")
    with pytest.raises(SettingsError, match="without subtitles"):
        check("vnbench", root, subtitles=True)
    with pytest.raises(SettingsError, match="task 'counting' is not known: vnbench has cnt, cnt_edit1"):
        check("vnbench", root, tasks=("counting",))
    with pytest.raises(SettingsError, match="no questions that are wanted"):
        check("vnbench", root, questions=3)


def test_settings_follow_the_annotations_not_the_folder(layout: Layout, tmp_path: Path) -> None:
    root = layout("lvbench")
    first = PUBLIC["lvbench"](BenchmarkOptions(data=root)).settings()
    shutil.copytree(root, tmp_path / "moved")
    assert PUBLIC["lvbench"](BenchmarkOptions(data=tmp_path / "moved")).settings() == first
    file = tmp_path / "moved" / "video_info.meta.jsonl"
    file.write_text(file.read_text().replace("red star", "red moon"))
    assert PUBLIC["lvbench"](BenchmarkOptions(data=tmp_path / "moved")).settings() != first
    assert PUBLIC["lvbench"](BenchmarkOptions(data=root, frames=8)).settings() != first
