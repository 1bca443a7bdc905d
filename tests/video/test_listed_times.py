"""Lists of times: exactly the frames that are shown then, against a full decode; what is kept, and what is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from clips import MEDIA, truth
from PIL import Image
from typer.testing import CliRunner

from videox2l import ArraySource, Memory, MemoryFileError, SettingsError, VideoX2L
from videox2l.cli.app import app
from videox2l.estimate.header import read_header
from videox2l.memory.disk.admission import check_facts
from videox2l.options import IngestOptions
from videox2l.units import times_of_lines
from videox2l.video import FrameSampling, Manifest, VideoReader, open_video

NASA = MEDIA / "nasa_13013.mp4"


def read(path, at, mode="auto"):
    with VideoReader(path, FrameSampling(fps=None, at=at, mode=mode)) as reader:
        return list(reader), reader


def shown(seconds, time):
    """Walk all frames: the last one that has begun."""
    return [i for i, pts in enumerate(seconds) if pts <= time + 1e-6][-1]


@pytest.mark.parametrize("name", ["plain.mp4", "vfr.mkv", "open_gop.ts", "offset.ts", "h264.avi", "hevc.mp4"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_frames_that_are_shown_are_read(clip, name, seed):
    path = clip(name)
    whole, rng = truth(path), np.random.default_rng(seed)
    picks = sorted(rng.choice(len(whole.seconds) - 1, 7, replace=False).tolist())
    at = tuple(whole.seconds[i] + 0.7 * (whole.seconds[i + 1] - whole.seconds[i]) for i in picks)
    expected = [shown(whole.seconds, time) for time in at]
    assert expected == picks
    for mode in ("auto", "exact"):
        frames, reader = read(path, at, mode)
        assert [f.index for f in frames] == expected
        assert [f.pts for f in frames] == [whole.seconds[i] for i in expected]
        assert all(np.array_equal(f.image, whole.images[f.index]) for f in frames)
        manifest = reader.manifest
        assert (manifest.at, manifest.fps, manifest.effective_fps) == (at, None, None)
        assert manifest.pts == tuple(f.pts for f in frames)
        assert Manifest.from_json(manifest.to_json()) == manifest
    assert reader.expected_frames == len(at)


def test_control_a_frame_begins_at_its_own_time_not_before(clip):
    whole = truth(clip("vfr.mkv"))
    begins = whole.seconds[45]
    assert whole.seconds[45] - whole.seconds[44] > 0.3  # where frames are rare, the last one stays for long
    frames, _ = read(clip("vfr.mkv"), (begins - 0.001, begins))
    assert [f.index for f in frames] == [44, 45]
    nearest = min(range(len(whole.seconds)), key=lambda i: abs(whole.seconds[i] - (begins - 0.001)))
    assert nearest == 45  # which is another frame than the one that is shown


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ((1.0, 50.0), "at: 50 s is outside the video, which lasts"),
        ((0.01, 0.02), r"one frame, that of 0.000 s, is shown at both 0.01 s and 0.02 s: leave one of them out"),
    ],
)
def test_times_without_a_frame_of_their_own_are_refused(clip, at, message):
    with pytest.raises(SettingsError, match=message):
        read(clip("plain.mp4"), at)


def test_the_end_is_outside(clip):
    with VideoReader(clip("plain.mp4"), FrameSampling()) as reader:
        end = reader.manifest.duration
    assert read(clip("plain.mp4"), (end - 0.001,))[0][0].index == 119
    with pytest.raises(SettingsError, match="outside the video"):
        read(clip("plain.mp4"), (end,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": "3,2"}, "at must be times that rise, but 2 s stands behind 3 s: sort them"),
        ({"at": [3, "0:03"]}, "at must be times that rise, but 3 s is there twice: leave one out"),
        ({"at": "0:05,soon"}, "at: 'soon' is no time: write seconds"),
        ({"at": [-1]}, "at: must be a time of 0 seconds or more, .* got -1"),
        ({"at": [float("nan")]}, "at: must be a time"),
        ({"at": [1, None]}, "without None"),
        ({"at": ""}, "at holds no time"),
        ({"at": []}, "at holds no time"),
        ({"at": 5}, "at must be a list of times, .* got 5"),
        ({"at": [1], "fps": 2.0}, "does not go with fps"),
        ({"at": [1], "max_frames": 2}, "does not go with max_frames"),
        ({"at": [1], "start": 0}, "does not go with start"),
        ({"at": [1], "end": 9}, "does not go with end"),
        ({"at": [1], "sampling": "fast"}, "does not go with sampling=fast"),
    ],
)
def test_wrong_lists_are_refused(options, message):
    with pytest.raises(SettingsError, match=message):
        IngestOptions(**options)


def test_fps_is_refused_beside_times_even_where_it_is_the_default():
    with pytest.raises(SettingsError, match="does not go with fps: leave one of them out"):
        IngestOptions.from_keywords(None, {"at": [1], "fps": 1.0})
    with pytest.raises(SettingsError, match="goes with fps=None"):
        FrameSampling(at=(1.0,))
    assert IngestOptions(at="0:05, 0:12.5,1:03").at == (5.0, 12.5, 63.0)


def test_lines_of_a_file():
    assert times_of_lines("# cuts\n0:01\n\n2.5  # the bell\n1:02:03\n", "x") == (1.0, 2.5, 3723.0)
    with pytest.raises(SettingsError, match="x, line 3: 'later' is no time"):
        times_of_lines("1\n#\nlater\n", "x")
    with pytest.raises(SettingsError, match=r"x, line 2: .*2 s stands behind 3 s"):
        times_of_lines("3\n2\n", "x")
    with pytest.raises(SettingsError, match="x holds no time"):
        times_of_lines("# nothing\n", "x")


@pytest.fixture(scope="module")
def demo():
    return VideoX2L.from_pretrained("demo")


def test_a_memory_of_listed_times(demo, tmp_path):
    at = [0.5, "0:02", 2.5, 9]
    memory = demo.ingest(NASA, at=at, chunk_frames=2, store=tmp_path / "a.x2l")
    frames = {round(pts, 3) for pts in memory.manifest["pts"]}
    with VideoReader(NASA, FrameSampling(fps=None)) as reader:
        seconds = [frame.pts for frame in reader]
    assert frames == {round(seconds[shown(seconds, time)], 3) for time in (0.5, 2.0, 2.5, 9.0)}
    assert Memory.load(tmp_path / "a.x2l").manifest["at"] == [0.5, 2.0, 2.5, 9.0]
    first, last = memory.chunks
    assert (first.end, last.start) == (last.start, memory.manifest["pts"][2])
    assert 0.02 < last.end - memory.manifest["pts"][3] < 0.05  # the last frame lasts as long as frames do
    again = demo.ingest(NASA, at=at, chunk_frames=2, store=tmp_path / "a.x2l")
    assert again.manifest["pts"] == memory.manifest["pts"]
    for other in ({"at": [0.5, 2, 2.5, 8]}, {}):
        with pytest.raises(MemoryFileError, match=r"content.at: memory \[0.5, 2.0, 2.5, 9.0\], now"):
            demo.ingest(NASA, chunk_frames=2, store=tmp_path / "a.x2l", **other)
    alike = demo.ingest(NASA, fps=None, chunk_frames=2, end=1)
    assert "at" not in alike.manifest or alike.manifest["at"] is None


def test_append_with_listed_times(demo):
    memory = demo.ingest(NASA, at=[0, 1], chunk_frames=2)
    end = memory.chunks[-1].end
    demo.append(memory, NASA, at="0:03,0:04")
    with VideoReader(NASA, FrameSampling(fps=None, at=(3.0, 4.0))) as reader:
        pts = [frame.pts for frame in reader]
    assert memory.manifest["pts"][2:] == [end + second for second in pts]


def test_sources_that_choose_by_themselves_refuse_times(demo):
    frames = np.zeros((3, 32, 32, 3), np.uint8)
    with pytest.raises(SettingsError, match="at goes with the path of a video"):
        demo.ingest(ArraySource(frames), at=[1])
    with open_video(NASA, FrameSampling(fps=None, at=(1.0,))) as source:
        assert demo.ingest(source, at=[1]).manifest["at"] == [1.0]


def test_pictures_at_listed_times(tmp_path):
    for k in range(5):
        Image.new("RGB", (32, 32), (50 * k, 0, 0)).save(tmp_path / f"{k}.png")
    with open_video(tmp_path, FrameSampling(fps=None, at=(1.5, 4.0))) as source:
        assert [frame.index for frame in source] == [1, 4]
        assert source.manifest.at == (1.5, 4.0)


def x2l(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_on_the_command_line(tmp_path):
    listed, file = tmp_path / "listed.x2l", tmp_path / "times.txt"
    file.write_text("0:01 # first\n2.5\n0:00:07\n")
    assert x2l("ingest", NASA, listed, "--at", "0:01,2.5,7").exit_code == 0
    done = x2l("ingest", NASA, listed, "--at", file, "--json")  # the same times: nothing is left to do
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["manifest"]["at"] == [1.0, 2.5, 7.0]
    done = x2l("ingest", NASA, listed, "--at", "1,2.5,8")
    assert (done.exit_code, "content.at" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--at", "1", "--fps", "1"], "does not go with fps"),
        (["--at", "nowhere.txt"], "--at: 'nowhere.txt' is neither a time nor a file of times"),
        (["--at", "1,x"], "--at: 'x' is no time"),
        (["--at", "-5"], "--at: '-5' is neither a time nor a file"),
        (["--at", ""], "--at holds no time"),
        (["--at", MEDIA], "cannot be read"),
        (["--at", "1,90"], "at: 90 s is outside the video"),
        (["--at", "1", "--follow"], "--at do not go with --follow"),
    ],
)
def test_what_is_wrong_is_one_line(args, message, tmp_path):
    done = x2l("ingest", NASA, tmp_path / "a.x2l", *args)
    assert done.exit_code == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_plan_counts_the_times():
    shot = read_header(str(NASA))
    assert shot.samples(1.0, None, 0.0, None, (1.0, 2.0)) == 2
    with pytest.raises(SettingsError, match="at: 90 s is outside"):
        shot.samples(1.0, None, 0.0, None, (1.0, 90.0))
    done = x2l("plan", NASA, "--at", "1,2,3", "--json")
    assert json.loads(done.stdout)["frames"] == 3


def test_a_request_lists_times_but_names_no_file():
    pytest.importorskip("fastapi")
    from videox2l.serve.catalog import ingest_options

    assert ingest_options({"at": [1, "0:02"]}).at == (1.0, 2.0)
    with pytest.raises(SettingsError, match="'/etc/hostname' is no time"):
        ingest_options({"at": "/etc/hostname"})


def test_a_list_on_disk_that_holds_no_times_is_refused():
    check_facts({"at": [1.0, 2]})
    for wrong in (["soon"], [math.nan], {"1": 2}):
        with pytest.raises(ValueError, match="listed times"):
            check_facts({"at": wrong})
