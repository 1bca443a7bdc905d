"""Pictures as videos: folders, stills, animations; and streams that carry no times."""

from __future__ import annotations

import av
import numpy as np
import pytest
from clips import pictures, write
from PIL import Image

from videox2l.errors import VideoError, VideoWarning
from videox2l.video import FrameSampling, open_video


def frames_of(path, **sampling):
    with open_video(path, FrameSampling(**sampling)) as source:
        return list(source), source


def test_a_folder_in_natural_order_at_a_rate(tmp_path):
    made = list(pictures(12))
    for number, picture in enumerate(made):
        Image.fromarray(picture).save(tmp_path / f"page{number}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden.png").write_text("nor this")
    frames, source = frames_of(tmp_path, fps=2.0)
    assert [f.pts for f in frames] == [k / 2 for k in range(12)]
    assert all(np.array_equal(f.image, picture) for f, picture in zip(frames, made, strict=True))
    assert source.expected_frames == 12
    assert source.manifest.complete
    assert source.manifest.sha256
    assert (source.manifest.duration, source.manifest.frames) == (6.0, 12)
    part, _ = frames_of(tmp_path, fps=2.0, start=2.0, end=4.0)
    assert [f.index for f in part] == [4, 5, 6, 7]


def test_pictures_of_another_size_are_scaled_and_told(tmp_path):
    Image.new("RGB", (32, 16), "red").save(tmp_path / "1.png")
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "2.png")
    with pytest.warns(VideoWarning, match="another size"):
        frames, source = frames_of(tmp_path)
    assert [f.image.shape for f in frames] == [(16, 32, 3)] * 2
    assert source.manifest.warnings


def test_stills_are_shown_as_their_exif_says(tmp_path):
    image = Image.fromarray(next(pictures(1)))
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned clockwise
    image.save(tmp_path / "one.png", exif=exif)
    frames, _ = frames_of(tmp_path / "one.png")
    assert np.array_equal(frames[0].image, np.rot90(np.asarray(image), k=-1))


@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_animations_have_their_own_times(ending, tmp_path):
    images = [Image.new("RGB", (32, 16), color) for color in ("red", "lime", "blue", "white")]
    lasting = [500, 1000, 250, 250]
    path = tmp_path / f"a.{ending}"
    images[0].save(path, save_all=True, append_images=images[1:], duration=lasting, lossless=True)
    frames, source = frames_of(path, fps=None)
    assert np.allclose([f.pts for f in frames], [0, 0.5, 1.5, 1.75])
    assert [tuple(f.image[0, 0]) for f in frames] == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
    assert source.manifest.codec == ending
    assert (source.manifest.duration, source.manifest.frames) == (2.0, 4)
    assert len(frames_of(path, fps=1.0)[0]) == 2


def test_what_is_no_picture_is_told(tmp_path):
    with pytest.raises(VideoError, match="without pictures"):
        open_video(tmp_path)
    (tmp_path / "1.png").write_bytes(b"no picture at all")
    with pytest.raises(VideoError, match=r"'1\.png' is not a picture"):
        frames_of(tmp_path)


def test_uncompressed_video_and_raw_streams(tmp_path):
    whole = write(tmp_path / "whole.mp4", count=60, params="keyint=30:bframes=3")
    truth = frames_of(whole, fps=None)[0]
    raw, plain = tmp_path / "raw.h264", tmp_path / "plain.y4m"
    with av.open(str(whole)) as box, av.open(str(raw), "w") as out:
        copied = out.add_stream_from_template(box.streams.video[0])
        for packet in box.demux(video=0):
            if packet.dts is not None:
                packet.stream = copied
                out.mux(packet)
    with pytest.warns(VideoWarning, match="carry no times"):
        frames, source = frames_of(raw, fps=None)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(frames, truth, strict=True))
    assert np.allclose([f.pts for f in frames], [f.pts for f in truth], atol=1e-3)  # the stream tells its rate
    assert source.manifest.container == "h264"
    with av.open(str(plain), "w", format="yuv4mpegpipe") as out:
        stream = out.add_stream("wrapped_avframe", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for picture in pictures(30):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    assert np.allclose([f.pts for f in frames_of(plain, fps=2.0)[0]], np.arange(6) / 2)
