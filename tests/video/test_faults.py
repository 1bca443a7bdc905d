"""Holes, orientations and packets without times: what is shown, and what is told."""

from __future__ import annotations

import itertools
import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import joined, pictures, write

from videox2l.errors import VideoWarning
from videox2l.video import FrameSampling, open_video
from videox2l.video.follow import FollowSource

ONE = 1 << 16
MATRICES = [
    [a, b, 0, c, d, 0, 0, 0, 1 << 30]
    for a, b, c, d in (
        *((x, 0, 0, y) for x, y in itertools.product((ONE, -ONE), repeat=2)),
        *((0, x, y, 0) for x, y in itertools.product((ONE, -ONE), repeat=2)),
    )
]


def read(path, **sampling):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", VideoWarning)
        with open_video(path, FrameSampling(**sampling)) as reader:
            frames = list(reader)
    return frames, reader.manifest, [str(w.message) for w in caught]


def filters_of(matrix) -> list[tuple[str, str]]:
    """What FFmpeg's command line puts in front of a stream with this matrix (`ffmpeg_filter.c`, autorotate)."""
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    if a and d:
        return ([("hflip", "")] if a < 0 else []) + ([("vflip", "")] if d < 0 else [])
    names = {(1, 1): "0", (1, -1): "2", (-1, 1): "1", (-1, -1): "3"}  # cclock_flip, cclock, clock, clock_flip
    return [("transpose", names[1 if c > 0 else -1, 1 if b > 0 else -1])]


def filtered(path: Path, filters) -> np.ndarray:
    """The first frame behind libavfilter's filters."""
    with av.open(str(path)) as box:
        graph = av.filter.Graph()
        last = graph.add_buffer(template=box.streams.video[0])
        for name, value in filters:
            following = graph.add(name, value) if value else graph.add(name)
            last.link_to(following)
            last = following
        last.link_to(graph.add("buffersink"))
        graph.configure()
        graph.push(next(box.decode(video=0)))
        return graph.pull().to_ndarray(format="rgb24")


@pytest.mark.parametrize("matrix", MATRICES, ids=lambda m: ",".join(str(m[i] // ONE) for i in (0, 1, 3, 4)))
def test_all_eight_orientations_equal_libavfilter(matrix, tmp_path):
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as box:
        stream = box.add_stream("libx264", rate=10, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        stream.set_display_matrix(matrix)
        for picture in pictures(5, 64, 48):
            box.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        box.mux(stream.encode(None))
    frames, manifest, _ = read(path)
    truth = filtered(path, filters_of(matrix))
    assert np.abs(frames[0].image.astype(int) - truth.astype(int)).max() <= 2  # rounding of chroma
    assert (manifest.height, manifest.width) == truth.shape[:2]
    assert manifest.mirrored == (np.linalg.det([[matrix[0], matrix[3]], [matrix[1], matrix[4]]]) < 0)
    coded = filtered(path, [])
    mirrored = coded[:, ::-1] if manifest.mirrored else coded
    said = np.rot90(mirrored, k=manifest.rotation // 90)
    assert np.abs(said.astype(int) - truth.astype(int)).max() <= 2


def test_pixels_that_are_not_square_are_scaled(tmp_path):
    path = tmp_path / "wide.mkv"
    with av.open(str(path), "w") as box:
        stream = box.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for picture in pictures(5):
            box.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        box.mux(stream.encode(None))
    frames, manifest, told = read(path)
    assert frames[0].image.shape == (64, 128, 3)
    assert (manifest.width, manifest.height) == (128, 64)
    assert any("96 x 64 is shown as 128 x 64" in text for text in told)


def without(source: Path, target: Path, first: float, last: float) -> None:
    """Copy a clip without the packets of a stretch of time."""
    with av.open(str(source)) as box, av.open(str(target), "w") as out:
        stream = box.streams.video[0]
        copied = out.add_stream_from_template(stream)
        for packet in box.demux(stream):
            if packet.dts is not None and not first <= float(packet.pts * packet.time_base) < last:
                packet.stream = copied
                out.mux(packet)


@pytest.mark.parametrize("ending", ["mkv", "ts", "flv"])
def test_a_hole_is_told_with_its_times_and_a_frame_resumes_behind_it(ending, tmp_path):
    whole = write(tmp_path / "whole.mkv", count=300, rate=30, params="keyint=30:bframes=0:scenecut=0")
    path = tmp_path / f"hole.{ending}"
    without(whole, path, 3.0, 6.0)
    frames, manifest, told = read(path, fps=2.0)
    assert len(manifest.holes) == 1
    assert np.allclose(manifest.holes[0], (3.0, 6.0), atol=0.1)
    assert [round(f.pts, 1) for f in frames if f.resumes] == [6.0]
    assert any("00:03-00:06" in text for text in told)
    inside = read(path, fps=2.0, start=6.5)
    assert inside[1].holes == ()


def test_frames_that_cannot_be_decoded_are_a_hole(tmp_path):
    path = write(tmp_path / "whole.mp4", count=300, rate=30, params="keyint=30:bframes=0:scenecut=0")
    with av.open(str(path)) as box:
        packets = [p for p in box.demux(video=0) if p.dts is not None and 3.0 <= float(p.pts * p.time_base) < 6.0]
        spans = [(p.pos, p.size) for p in packets]
    data = bytearray(path.read_bytes())
    for at, size in spans:
        data[at : at + size] = bytes(size)
    path.write_bytes(data)
    frames, manifest, told = read(path, fps=2.0)
    assert len(frames) < 20
    assert any(abs(a - 3.0) <= 0.5 and abs(b - 6.0) <= 0.5 for a, b in manifest.holes), (manifest.holes, told)


def test_rare_frames_are_no_holes(tmp_path):
    path = write(tmp_path / "slides.mkv", count=12, rate=30, times=[i * 300 for i in range(12)])
    assert read(path, fps=1.0)[1].holes == ()


def test_first_packets_without_times_are_read(tmp_path):
    path = write(tmp_path / "whole.mp4", count=90, rate=30, params="keyint=30:bframes=0")
    late = tmp_path / "late.mkv"
    with av.open(str(path)) as box, av.open(str(late), "w", options={"avoid_negative_ts": "disabled"}) as out:
        stream = box.streams.video[0]
        copied = out.add_stream_from_template(stream)
        for packet in box.demux(stream):
            if packet.dts is not None:
                packet.pts -= 1 / packet.time_base
                packet.dts -= 1 / packet.time_base
                packet.stream = copied
                out.mux(packet)
    with av.open(str(late)) as box:
        untimed = sum(packet.pts is None and packet.size > 0 for packet in box.demux(video=0))
    assert untimed > 20, "the muxer wrote the times all the same: this tests nothing"
    frames, _, told = read(late, fps=None)
    whole = read(path, fps=None)[0]
    assert len(frames) == len(whole) == 90
    assert all(np.array_equal(one.image, two.image) for one, two in zip(frames, whole, strict=True))
    assert np.allclose([f.pts for f in frames], [f.pts for f in whole], atol=0.05)
    assert any("carry no times" in text for text in told)


def test_a_source_that_is_followed_tells_holes_and_orientation(tmp_path):
    whole = write(tmp_path / "whole.mkv", count=300, rate=30, params="keyint=30:bframes=0:scenecut=0")
    path = tmp_path / "hole.mkv"
    without(whole, path, 3.0, 8.0)
    source = FollowSource(str(path), fps=2.0, idle=0.0)
    with pytest.warns(VideoWarning, match="nothing came between"):
        frames = list(source)
    assert [round(f.pts, 1) for f in frames if f.resumes] == [8.0]
    assert len(source.manifest.holes) == 1


def test_a_source_that_is_followed_goes_on_where_its_times_start_anew(tmp_path):
    path = joined(tmp_path)  # two seconds, twice
    source = FollowSource(str(path), fps=4.0, idle=0.0)
    with pytest.warns(VideoWarning, match=r"times start anew at (1\.9|2\.0)\d* s; they were continued"):
        frames = list(source)
    assert [round(4 * frame.pts) for frame in frames] == list(range(16))
    assert any("start anew" in text for text in source.manifest.warnings)
