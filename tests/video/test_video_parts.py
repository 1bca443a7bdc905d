"""The parts of the reader by themselves: sampling, plans, frames from memory, and what must never grow."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from clips import brute_force, write

from videox2l.errors import SettingsError, VideoError
from videox2l.video import ArraySource, FrameSampling, FrameSource, Manifest, VideoReader
from videox2l.video.decode import plan_decoding
from videox2l.video.sampling import choose
from videox2l.video.timeline import Timeline, scan


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fps": 0}, "fps=0 must be above 0"),
        ({"fps": float("nan")}, "fps=nan is not a finite number"),
        ({"fps": True}, "fps=True is not"),
        ({"fps": "1"}, "fps='1' is not"),
        ({"max_frames": 0}, "max_frames=0 must be a whole number"),
        ({"max_frames": 2.5}, "max_frames=2.5 must be a whole number"),
        ({"start": -1.0}, "start=-1.0 must not be negative"),
        ({"start": 5.0, "end": 5.0}, "end=5.0 must be above start=5.0"),
        ({"end": 0.0}, "end=0.0 must be above start=0.0"),
        ({"mode": "quick"}, "mode='quick' is unknown. Use 'auto'"),
    ],
)
def test_settings_that_cannot_work_are_named(settings, message):
    with pytest.raises(SettingsError) as caught:
        FrameSampling(**settings)
    assert message in str(caught.value)


@pytest.mark.parametrize("seed", range(20))
def test_choices_follow_the_grid_at_any_rate(seed):
    rng = np.random.default_rng(seed)
    gaps = rng.choice([1001 / 30000, 1 / 25, 0.5, 3.0], size=150, p=[0.5, 0.3, 0.1, 0.1])
    seconds = np.concatenate([[0.0], np.cumsum(gaps)])
    duration = float(seconds[-1]) + 0.04
    fps = float(rng.choice([0.1, 0.5, 1.0, 29.97, 3.3, 100.0]))
    start = float(rng.choice([0.0, 0.04, duration / 3]))
    for end in (None, start + duration / 4 + 3.1):
        choice = choose(seconds, duration, FrameSampling(fps=fps, start=start, end=end))
        assert choice.picks.tolist() == brute_force(seconds.tolist(), fps, start, end)
        for limit in (1, 2, 7):
            few = choose(seconds, duration, FrameSampling(fps=fps, start=start, end=end, max_frames=limit))
            assert 1 <= len(few.picks) <= limit
            assert (few.note is None) == (len(choice.picks) <= limit)
            assert few.fps <= fps
            if few.note:
                expected = brute_force(seconds.tolist(), few.fps, start, end)
                assert few.picks.tolist() == expected[:limit]


def timeline(groups, size, reorder=True):
    """Key frame, then triples in decode order P B B."""
    order = []
    for group in range(groups):
        base = group * size
        order.append(base)
        for k in range(1, size, 3):
            run = list(range(base + k, min(base + k + 3, base + size)))
            order += [run[-1], *run[:-1]] if reorder else run
    pts = np.array(order, dtype=np.int64)
    key = pts % size == 0
    return Timeline(pts, key, np.argsort(pts), Fraction(1, 10), False, len(pts) / 10)


def codec(name, extradata=b""):
    return SimpleNamespace(
        codec=SimpleNamespace(canonical_name=name), codec_context=SimpleNamespace(extradata=extradata)
    )


@pytest.mark.parametrize("name", ["h264", "vp9"])
@pytest.mark.parametrize("mode", ["exact", "auto", "fast"])
@pytest.mark.parametrize("fps", [0.03, 0.4, 1.0, 4.0, 10.0])
def test_plans_decode_all_that_samples_need(name, mode, fps):
    line = timeline(9, 25)
    choice = choose(line.seconds, line.duration, FrameSampling(fps=fps))
    plan = plan_decoding(line, choice, mode, codec(name))
    fed = {p for first, last in plan.runs for p in range(first, last + 1)}
    for sample in line.position[plan.samples].tolist():
        group = int(line.pts[sample]) // 25
        assert set(range(group * 25, sample + 1)) <= fed  # from its key frame to itself
    assert all(line.key[first] for first, _ in plan.runs)
    assert all(a[1] < b[0] - 1 for a, b in pairwise(plan.runs))
    assert len(plan.samples) == len(choice.picks)
    if mode != "fast":
        assert plan.samples.tolist() == choice.picks.tolist()
        assert plan.shift == 0
    assert plan.shift <= 0.5 / fps + 1e-9
    if mode == "fast" and fps == 0.03:
        assert len(fed) == len(plan.samples)  # key frames alone


def test_a_picture_shown_before_its_key_frame_starts_at_the_one_before():
    pts = np.array([0, 3, 1, 2, 6, 4, 5, 7], dtype=np.int64)  # 6 is a key frame; 4 and 5 are shown before it
    key = np.isin(pts, [0, 6])
    line = Timeline(pts, key, np.argsort(pts), Fraction(1, 1), False, 8.0)
    starts = {int(pts[p]): line.run_start(p) for p in range(8)}
    assert starts == {0: 0, 1: 0, 2: 0, 3: 0, 4: 0, 5: 0, 6: 4, 7: 4}


def test_hevc_with_temporal_layers_is_not_thinned(clip):
    notes = {}
    for name in ("hevc.mp4", "layers.mp4", "layers.ts"):
        with VideoReader(clip(name), FrameSampling(fps=1.0, start=0.7)) as reader:
            notes[name] = len(list(reader)), reader.frames_decoded
    assert notes["hevc.mp4"][1] < 0.75 * notes["layers.mp4"][1]
    assert notes["layers.ts"] == notes["layers.mp4"]


def test_the_scan_leaves_out_hidden_pictures():
    class Bytes(bytearray):
        """A packet: its bytes, and attributes."""

    def made(pts, first, discard=False):
        data = Bytes([first, 0, 0])
        data.pts = data.dts = pts
        data.duration, data.size, data.is_keyframe, data.is_discard = 10, 3, pts == 0, discard
        data.is_corrupt = False
        return data

    packets = [made(0, 0x10), made(10, 0x11), made(11, 0x01), made(20, 0x11, discard=True), made(30, 0x11)]
    box = SimpleNamespace(demux=lambda _: iter(packets), format=SimpleNamespace(name="matroska,webm"))
    for name, shown in (("vp8", [0, 10, 30]), ("vp9", [0, 10, 11, 30])):
        stream = SimpleNamespace(time_base=Fraction(1, 1000), codec=SimpleNamespace(canonical_name=name))
        line = scan(box, stream, 0, "x")
        assert line.shown.tolist() == shown
        assert line.duration == 0.04


def test_packets_without_times_are_refused():
    flags = {"is_keyframe": True, "is_discard": False, "is_corrupt": False}
    packets = [SimpleNamespace(pts=None, dts=None, duration=0, size=3, **flags)]
    box = SimpleNamespace(demux=lambda _: iter(packets), format=SimpleNamespace(name="mpegts"))
    codec = SimpleNamespace(canonical_name="h264")
    stream = SimpleNamespace(time_base=Fraction(1, 1000), codec=codec, codec_context=SimpleNamespace(framerate=None))
    with pytest.raises(VideoError, match=r"'x' carries no times.*--fps"):
        scan(box, stream, None, "x")


def test_frames_from_memory():
    frames = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    source = ArraySource(frames, fps=2.0)
    assert isinstance(source, FrameSource)
    assert source.expected_frames == 5
    before = source.manifest
    assert (before.width, before.height, before.frames, before.duration, before.complete) == (6, 4, 5, 2.5, False)
    given = list(source)
    assert [(f.pts, f.index) for f in given] == [(0.0, 0), (0.5, 1), (1.0, 2), (1.5, 3), (2.0, 4)]
    assert all(np.array_equal(f.image, image) for f, image in zip(given, frames, strict=True))
    assert source.manifest.complete
    assert Manifest.from_json(source.manifest.to_json()) == source.manifest
    with pytest.raises(VideoError, match="read already"):
        iter(source)

    stream = ArraySource((image for image in frames), fps=2.0)
    assert stream.expected_frames is None
    assert stream.manifest.sha256 is None
    list(stream)
    assert stream.manifest == source.manifest  # the same hash, whichever way they came
    assert ArraySource(frames, fps=3.0).manifest.sha256 != source.manifest.sha256
    assert [f.pts for f in ArraySource(frames, pts=[0, 1, 5, 6, 7.5])] == [0.0, 1.0, 5.0, 6.0, 7.5]


def test_frames_from_memory_that_cannot_work():
    frames = np.zeros((2, 4, 6, 3), np.uint8)
    with pytest.raises(SettingsError, match="fps=0"):
        ArraySource(frames, fps=0)
    with pytest.raises(SettingsError, match="3 pts were given for 2 frames"):
        ArraySource(frames, pts=[0, 1, 2])
    with pytest.raises(SettingsError, match="ascending"):
        ArraySource(frames, pts=[1, 1])
    with pytest.raises(VideoError, match=r"not float64 \(4, 6, 3\)"):
        ArraySource(frames.astype(float))
    with pytest.raises(VideoError, match="no frames"):
        ArraySource(frames[:0])
    with pytest.raises(VideoError, match="frame 1 has shape"):
        list(ArraySource([frames[0], np.zeros((3, 3, 3), np.uint8)].__iter__()))
    with pytest.raises(SettingsError, match="only 1 pts"):
        list(ArraySource(iter(frames), pts=[0.0]))


PEAK = """
import resource, sys
from videox2l.video import FrameSampling, VideoReader
read = 0
for frame in VideoReader(sys.argv[1], FrameSampling(fps=None)):
    read += frame.image.nbytes
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, read)
assert not {"torch", "transformers", "PIL"} & set(sys.modules), "video must not need a model"
"""


def test_memory_does_not_grow_with_the_video(tmp_path):
    peaks, sizes = [], []
    for name, count in (("short.mp4", 60), ("long.mp4", 1600)):
        path = write(tmp_path / name, count=count, codec="mpeg4", size=(160, 120))
        done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
        peak, size = map(int, done.stdout.split())
        peaks.append(peak / 1024)
        sizes.append(size / 2**20)
    assert sizes[1] - sizes[0] > 80  # MiB of pixels went by
    assert peaks[1] - peaks[0] < 12
    tracemalloc.start()
    try:
        assert sum(1 for _ in VideoReader(tmp_path / "long.mp4", FrameSampling(fps=None))) == 1600
        assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
    finally:
        tracemalloc.stop()
