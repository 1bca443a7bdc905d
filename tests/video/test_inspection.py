"""What is in a video: facts of clips whose making is known, and of damaged ones."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from clips import MEDIA, cut, truth, write
from typer.testing import CliRunner

from videox2l.cli.app import app
from videox2l.video import inspect_video


def test_streams_of_a_file_with_two_of_each_kind() -> None:
    found = inspect_video(MEDIA / "nasa_13013.mp4")
    assert [stream.kind for stream in found.streams] == ["video", "audio", "subtitle"] * 2
    assert [stream.language for stream in found.streams] == ["eng"] * 6
    assert [i for i, stream in enumerate(found.streams) if stream.used] == [3]
    assert (found.width, found.height, found.frames) == (480, 270, 390)
    assert found.fps == pytest.approx(30000 / 1001)
    assert (found.hdr, found.primaries, found.damaged, found.decoded) == (None, "BT.709", False, None)


@pytest.mark.parametrize(("name", "variable"), [("vfr.mkv", True), ("plain.mp4", False), ("long_gop.mkv", False)])
def test_times(clip, name: str, variable: bool) -> None:
    path = clip(name)
    found, seconds = inspect_video(path), truth(path).seconds
    assert (found.frames, found.variable) == (len(seconds), variable)
    assert found.duration >= seconds[-1]
    with av.open(str(path)) as box:
        keys = [float(p.pts * p.time_base) for p in box.demux(video=0) if p.size and p.is_keyframe]
    assert found.key_interval == pytest.approx(max(np.diff([*(k - keys[0] for k in keys), found.duration])))


def test_orientation(clip) -> None:
    found = inspect_video(clip("video_90.mov"))
    assert ((found.width, found.height), found.coded, found.rotation) == ((320, 568), (568, 320), 270)


def test_hdr_is_seen_and_ten_bits_alone_are_not_hdr(tmp_path, clip) -> None:
    hdr = write(
        tmp_path / "hdr.mp4", count=4, codec="libx265", pix_fmt="yuv420p10le",
        params="colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc",
    )  # fmt: skip
    found = inspect_video(hdr)
    assert (found.hdr, found.transfer, found.primaries, found.bits) == ("PQ", "PQ", "BT.2020", 10)
    plain = inspect_video(clip("h264_10bits.mp4"))
    assert (plain.hdr, plain.bits) == (None, 10)


def test_pixels_that_are_not_square(tmp_path) -> None:
    found = inspect_video(write(tmp_path / "sar.mp4", count=4, params="sar=4/3"))
    assert found.pixel_aspect == pytest.approx(float(Fraction(4, 3)))
    assert ((found.width, found.height), found.coded) == ((128, 64), (96, 64))


def test_a_file_that_was_cut_short(tmp_path, clip) -> None:
    found = inspect_video(cut(clip("long_gop.mkv"), tmp_path / "cut.mkv", 0.5))
    assert found.damaged
    assert found.holes[-1][1] == found.declared
    assert not inspect_video(clip("long_gop.mkv")).damaged


def test_damage_that_only_decoding_shows() -> None:
    path = MEDIA / "corrupted.mp4"
    assert inspect_video(path).decoded is None
    found = inspect_video(path, decode_all=True)
    assert found.damaged
    assert found.decoded == 49
    assert any("could not be decoded" in problem for problem in found.problems)


def x2l(*args: object):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_the_command_tells_it_all(tmp_path) -> None:
    done = x2l("check", MEDIA / "nasa_13013.mp4")
    assert done.exit_code == 0, done.output
    assert "audio     aac, 16000 Hz, stereo, eng" in done.stdout
    assert "constant frame rate" in done.stdout
    damaged = x2l("check", MEDIA / "corrupted.mp4", "--decode", "--json")
    assert damaged.exit_code == 1
    assert json.loads(damaged.stdout)["decoded"] == 49
    text = tmp_path / "a.mp4"
    text.write_text("#EXTM3U\n")
    assert x2l("check", text).exit_code == 1


def test_the_command_plans_for_a_model() -> None:
    done = x2l("check", MEDIA / "nasa_13013.mp4", "--model", "demo", "--ratios", "2,32", "--json")
    assert done.exit_code == 0, done.output
    planned = x2l("plan", MEDIA / "nasa_13013.mp4", "--ratios", "2,32", "--json")
    assert json.loads(done.stdout)["plan"]["tokens"] == json.loads(planned.stdout)["tokens"]
    refused = x2l("check", MEDIA / "nasa_13013.mp4", "--ratios", "2,32")
    assert refused.exit_code == 2
    assert "--ratios: no effect without --model" in refused.stderr


def test_nothing_is_imported_that_takes_seconds() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from videox2l.cli.app import app\n"
        f"assert CliRunner().invoke(app, ['check', {str(MEDIA / 'nasa_13013.mp4')!r}]).exit_code == 0\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
