"""Clips: their first and last pictures and their times are the source's, whoever decodes them."""

from __future__ import annotations

import av
import numpy as np
import pytest
from clips import truth

from videox2l.errors import SettingsError, VideoError
from videox2l.video.clips import ClipCutter


def decoded(path):
    """Seconds and pictures as shown of a file, by the library alone."""
    with av.open(str(path)) as box:
        stream = box.streams.video[0]
        frames = [(float(f.pts * stream.time_base), np.rot90(f.to_ndarray(format="rgb24"), k=f.rotation // 90))
                  for f in box.decode(stream)]  # fmt: skip
    return [time for time, _ in frames], [image for _, image in frames]


def nearest(image, images):
    """Number of the picture that a clip's frame is most like."""
    height, width = image.shape[:2]
    wrong = [np.abs(other[:height, :width].astype(int) - image.astype(int)).mean() for other in images]
    return int(np.argmin(wrong)), min(wrong)


@pytest.mark.parametrize(
    ("name", "start", "end", "copied"),
    [
        ("plain.mp4", 1.0, 2.0, True),  # key frames every second
        ("plain.mp4", 1.0, 4.0, True),  # to the end
        ("plain.mp4", 1.1, 2.37, False),
        ("plain.mp4", 1.0, 1.51, False),  # what comes after it was decoded before
        ("long_gop.mkv", 0.5, 2.5, False),
        ("short_gop.mp4", 0.5, 1.0, True),
        ("vfr.mkv", 1.0, 5.0, False),
        ("open_gop.ts", 0.5, 1.7, False),
        ("offset.ts", 1.0, 2.0, True),
        ("refresh.mkv", 20 / 30, 2.0, False),  # its key frames do not stand alone
        ("hevc.mp4", 1.0, 2.0, False),  # an open group: pictures before its key frame stand behind it
        ("vp9.webm", 0.3, 1.2, False),
        ("mpeg4.avi", 1.0, 2.0, False),
        ("odd.mp4", 0.2, 0.9, False),
        ("video_90.mov", 0.0, 0.05, True),  # the turn goes along
        ("video_90.mov", 0.03, 0.1, False),
        ("nasa_13013.mp4", 4.0, 6.0, False),
    ],
)
def test_a_clip_begins_and_ends_where_it_should(clip, tmp_path, name, start, end, copied) -> None:
    source = truth(clip(name))
    wanted = [i for i, time in enumerate(source.seconds) if start - 1e-6 <= time < end - 1e-6]
    made = ClipCutter(clip(name)).cut(start, end, tmp_path / "a.b")
    times, images = decoded(made.path)
    assert made.copied == copied
    assert made.frames == len(times) == len(wanted)
    tick = 1.1e-3  # of a Matroska clip
    assert times == pytest.approx([source.seconds[i] - source.seconds[wanted[0]] for i in wanted], abs=tick)
    around = range(max(0, wanted[0] - 3), min(len(source.seconds), wanted[-1] + 4))
    for image, i in ((images[0], wanted[0]), (images[-1], wanted[-1])):
        if copied:
            assert np.array_equal(image, source.images[i])
        elif name != "nasa_13013.mp4":  # of which neighbors are alike
            found, wrong = nearest(image, [source.images[j] for j in around])
            assert (around[found], wrong < 20) == (i, True)


def test_sound_goes_along_for_as_long_as_the_pictures(clip, tmp_path) -> None:
    for start, end, copied in ((1.0, 2.0, True), (0.7, 2.3, False)):
        made = ClipCutter(clip("sound.mp4")).cut(start, end, tmp_path / f"{start}")
        assert (made.audio, made.copied) == (True, copied)
        with av.open(str(made.path)) as box:
            parts = list(box.decode(audio=0))
        length = sum(part.samples for part in parts) / parts[0].sample_rate
        assert abs(length - (end - start)) <= 2 * 1024 / 8000
        assert 0 <= parts[0].time <= 1024 / 8000
    assert not ClipCutter(clip("plain.mp4")).cut(1.0, 2.0, tmp_path / "mute").audio


def test_a_range_without_frames_and_a_folder_that_is_not_there(clip, tmp_path) -> None:
    cutter = ClipCutter(clip("plain.mp4"))
    with pytest.raises(SettingsError, match=r"no frame of 'plain\.mp4' lies between 90 and 91 s"):
        cutter.cut(90.0, 91.0, tmp_path / "a")
    with pytest.raises(VideoError, match="cannot be cut out"):
        cutter.cut(1.1, 2.0, tmp_path / "not there" / "a")
