"""The reader against the oracle: same frames, same times, same pictures, whatever was skipped on the way."""

from __future__ import annotations

from itertools import pairwise

import av
import numpy as np
import pytest
from clips import MAKE, MEDIA, SHIPPED, brute_force, truth, write

from videox2l.errors import SettingsError, VideoError, VideoWarning
from videox2l.video import FrameSampling, Manifest, VideoReader, open_video

FILES = [*MAKE, *SHIPPED]
SETTINGS = [
    {"fps": 1.0},
    {"fps": 9.7, "start": 0.31, "end": 1.7},
    {"fps": 1000.0},
    {"fps": 3.0, "start": 1.5},
    {"fps": None},
]


def read(path, **settings):
    with VideoReader(path, FrameSampling(**settings)) as reader:
        frames = list(reader)
    return frames, reader


def same(frame, expected):
    return np.array_equal(frame.image, expected)


@pytest.fixture
def quiet(request):
    """`joined.ts` rightly warns; here only its frames matter."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*times start anew", VideoWarning)
        yield


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("name", FILES)
def test_every_mode_gives_the_frames_of_a_full_decode(clip, name):
    path = clip(name)
    whole = truth(path)
    for settings in SETTINGS[:2] if name in SHIPPED else SETTINGS:
        expected = brute_force(whole.seconds, **settings)
        if not expected:
            with pytest.raises(SettingsError, match="the video"):
                read(path, **settings)
            continue
        for mode in ("exact", "auto") if settings["fps"] else ("auto",):  # auto skips, yet nothing differs
            frames, reader = read(path, **settings, mode=mode)
            assert [f.index for f in frames] == expected, (settings, mode)
            assert [f.pts for f in frames] == [whole.seconds[i] for i in expected]
            assert all(same(f, whole.images[f.index]) for f in frames), (settings, mode)
            assert reader.expected_frames == len(frames)
        if settings["fps"] is None:
            continue
        frames, reader = read(path, **settings, mode="fast")
        half = 0.5 / settings["fps"] + 1e-9
        assert len(frames) == len(expected)
        moves = [abs(f.pts - whole.seconds[i]) for f, i in zip(frames, expected, strict=True)]
        assert max(moves) <= half
        assert reader.manifest.shift == pytest.approx(max(moves), abs=1e-9)
        assert all(a.pts < b.pts for a, b in pairwise(frames))
        assert [f.pts for f in frames] == [whole.seconds[f.index] for f in frames]
        assert all(same(f, whole.images[f.index]) for f in frames), settings


@pytest.mark.parametrize("name", ["plain.mp4", "vfr.mkv", "slow.mp4"])
def test_control_the_comparison_sees_a_frame_that_is_off_by_one(clip, name):
    whole = truth(clip(name))
    frames, _ = read(clip(name), fps=2.0)
    assert not any(same(f, whole.images[f.index + 1]) for f in frames[:-1])


def test_control_index_over_rate_is_wrong_for_variable_rates(clip):
    frames, reader = read(clip("vfr.mkv"), fps=2.0)
    rate = reader.manifest.frames / reader.manifest.duration
    assert max(abs(f.pts - f.index / rate) for f in frames) > 0.5


def test_control_skipping_all_b_frames_spoils_the_others(clip):
    """Why the reader does not use skip_frame="BIDIR", cheap as it is."""
    path = clip("plain.mp4")
    whole = truth(path)
    spoilt = kept = 0
    with av.open(str(path)) as box:
        stream = box.streams.video[0]
        stream.codec_context.skip_frame = "BIDIR"
        for frame in box.decode(stream):
            kept += 1
            index = whole.seconds.index(float(frame.pts * frame.time_base))
            spoilt += not np.array_equal(frame.to_ndarray(format="rgb24"), whole.images[index])
    assert kept < len(whole.seconds)
    assert spoilt > 0


def decoded(path, **settings):
    return read(path, **settings)[1].frames_decoded


def test_skipping_saves_decoding(clip):
    whole = len(truth(clip("plain.mp4")).seconds)
    exact, auto = (decoded(clip("plain.mp4"), fps=1.0, mode=mode) for mode in ("exact", "auto"))
    assert exact > 0.7 * whole
    assert auto < 0.6 * exact
    # groups of 5 frames, samples 30 frames apart: one key frame for each sample
    assert decoded(clip("short_gop.mp4"), fps=1.0, mode="fast") == 4
    assert decoded(clip("short_gop.mp4"), fps=1.0, mode="auto") <= 4 * 5
    # a late start does not decode what comes before its group
    assert decoded(clip("plain.mp4"), fps=None, start=3.2, mode="exact") <= 30


@pytest.mark.parametrize(
    ("name", "settings", "mode", "reason"),
    [
        ("plain.mp4", {"fps": 1.0, "mode": "exact"}, "exact", None),
        ("plain.mp4", {"fps": 1.0}, "fast", "not decoded"),
        ("plain.mp4", {"fps": None}, "exact", "nothing could be left out"),
        ("slow.mp4", {"fps": 50.0, "mode": "fast"}, "exact", "nothing could be left out"),
        ("h264.avi", {"fps": 1.0, "mode": "fast"}, "exact", "presentation time of its own"),
        ("refresh.mkv", {"fps": 1.0}, "fast", "key frames do not stand alone"),
        ("short_gop.mp4", {"fps": 1.0, "mode": "fast", "start": 0.1}, "fast", "moved to key frames, by 0.0"),
    ],
)
def test_the_manifest_says_what_was_done(clip, name, settings, mode, reason):
    manifest = read(clip(name), **settings)[1].manifest
    assert manifest.mode_used == mode
    if reason is None:
        assert manifest.mode_note is None
    else:
        assert reason in manifest.mode_note


def test_best_stream_rotation_and_colour_depth():
    frames, reader = read(MEDIA / "nasa_13013.mp4", fps=1.0)
    assert (reader.manifest.width, reader.manifest.height) == (480, 270)  # not the small first stream
    assert reader.manifest.frames == 390
    frames, reader = read(MEDIA / "video_90.mov", fps=None)
    assert (reader.manifest.width, reader.manifest.height, reader.manifest.rotation) == (320, 568, 270)
    assert frames[0].image.shape == (568, 320, 3)
    frames, _ = read(MEDIA / "h264_10bits.mp4", fps=5.0)
    assert frames[0].image.dtype == np.uint8
    assert frames[0].image.flags.c_contiguous
    assert 20 < frames[0].image.mean() < 235


def apart(frame, image):
    """Mean difference in grey levels; pictures of different shape are as far apart as can be."""
    if frame.image.shape != image.shape:
        return 255.0
    return float(np.abs(frame.image.astype(float) - image.astype(float)).mean())


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_rotation_is_applied(tmp_path, degrees):
    still = write(tmp_path / "still.mp4", count=3)
    turned = write(tmp_path / "turned.mp4", count=3, rotation=degrees)
    one, two = read(still, fps=None)[0][0], read(turned, fps=None)[0][0]
    assert apart(two, np.rot90(one.image, degrees // 90)) < 3  # encoders do not always write the same bits twice
    wrong = np.rot90(one.image, degrees // 90 + 2)
    assert apart(two, wrong) > 20


def test_pictures_that_change_size_are_scaled_to_the_first(tmp_path):
    parts = [write(tmp_path / f"{k}.ts", count=15, size=size) for k, size in enumerate([(96, 64), (64, 48)])]
    (tmp_path / "both.ts").write_bytes(b"".join(p.read_bytes() for p in parts))
    with pytest.warns(VideoWarning) as caught:
        frames, reader = read(tmp_path / "both.ts", fps=None)
    assert {f.image.shape for f in frames} == {(64, 96, 3)}
    assert len(frames) == 30
    assert any("picture size changes at 0.5" in str(w.message) for w in caught)
    assert any("picture size changes" in text for text in reader.manifest.warnings)


def test_times_that_the_file_mixes_up_lose_no_frame(tmp_path):
    path = write(tmp_path / "tiny.mpg", codec="mpeg2video", options={"bf": "2"})  # several frames share one time
    whole, ticks = [], []
    with av.open(str(path)) as box:
        for frame in box.decode(video=0):
            whole.append(frame.to_ndarray(format="rgb24"))
            ticks.append(frame.pts)
    assert ticks != sorted(ticks)
    frames, reader = read(path, fps=None)
    assert reader.manifest.mode_used == "exact"
    assert len(frames) == len(whole) == 90
    assert all(same(f, image) for f, image in zip(frames, whole, strict=True))
    assert all(a.pts <= b.pts for a, b in pairwise(frames))


def test_joined_streams_go_on_in_time(clip):
    with pytest.warns(VideoWarning, match=r"times start anew at 2\.000 s"):
        _, reader = read(clip("joined.ts"), fps=1.0)
    assert reader.manifest.pts == (0.0, 1.0, 2.0, 3.0)
    assert reader.manifest.duration == pytest.approx(4.0)


def test_max_frames_lowers_fps_and_says_so(clip):
    frames, reader = read(clip("plain.mp4"), fps=10.0, max_frames=8)
    assert len(frames) == 8
    assert reader.manifest.fps == 10.0
    assert reader.manifest.effective_fps == 2.0
    assert reader.manifest.fps_note == "fps 10.0 lowered to 2 so that max_frames=8 holds"
    assert read(clip("plain.mp4"), fps=1.0, max_frames=8)[1].manifest.fps_note is None
    spread, _ = read(clip("plain.mp4"), fps=None, max_frames=8)
    assert [f.index for f in spread] == [f.index for f in frames]
    assert len(read(clip("slow.mp4"), fps=None, max_frames=100)[0]) == 20


def test_a_range_outside_of_the_video_names_its_duration(clip):
    with pytest.raises(SettingsError, match=r"outside the video, which lasts 4\.000 s"):
        open_video(clip("plain.mp4"), FrameSampling(start=4.0))
    with pytest.raises(SettingsError, match="no frame lies between"):
        open_video(clip("slow.mp4"), FrameSampling(start=1.1, end=1.3))


def test_a_reader_is_read_once_per_opening(clip):
    reader = VideoReader(clip("plain.mp4"), FrameSampling(fps=2.0))
    assert reader.expected_frames == 8
    before = reader.manifest
    assert (before.width, before.height, before.frames, before.complete, before.pts) == (96, 64, 120, False, ())
    first = [f.index for f in reader]
    assert reader.manifest.complete
    with pytest.raises(VideoError, match="Call open"):
        iter(reader)
    assert [f.index for f in reader.open()] == first
    assert [f.index for f in VideoReader(clip("plain.mp4"), FrameSampling(fps=2.0))] == first
    with open_video(clip("plain.mp4")) as reader:
        next(iter(reader))
    assert reader.manifest.pts == (0.0,)
    assert not reader.manifest.complete
    with pytest.raises(VideoError, match="Call open"):
        iter(reader)


@pytest.mark.parametrize("name", ["plain.mp4", "vfr.mkv", "nasa_13013.mp4"])
def test_a_manifest_survives_json(clip, name):
    frames, reader = read(clip(name), fps=3.7, start=0.1)
    manifest = reader.manifest
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.pts == tuple(f.pts for f in frames)
    assert manifest.indices == tuple(f.index for f in frames)
    assert manifest.source == name
    assert manifest.complete
    assert manifest.warnings == ()
    with pytest.raises(VideoError, match="missing"):
        Manifest.from_json('{"source": "x"}')
    with pytest.raises(VideoError, match="JSON"):
        Manifest.from_json("no")
