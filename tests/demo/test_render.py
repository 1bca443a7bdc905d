"""Files: what a player sees, scaled down, is what the model was trained on."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from videox2l.demo.render import render_video, script
from videox2l.demo.world import Event
from videox2l.errors import SettingsError


@pytest.fixture(scope="module")
def half_minute(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, object]]]:
    path = tmp_path_factory.mktemp("render") / "video.mp4"
    return path, render_video(path, 11, 0.5)


def test_frames_scale_down_to_training_frames(half_minute: tuple[Path, object]) -> None:
    path, _ = half_minute
    drawn = script(11, 0.5).render(noise=0).astype(float)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (384, 384, 10)
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        frames = {float(frame.time): frame.to_image() for frame in container.decode(stream)}
    assert sorted(frames) == pytest.approx([i / 10 for i in range(300)])
    for second, picture in enumerate(drawn):
        seen = np.asarray(frames[float(second)].resize((48, 48), Image.Resampling.BICUBIC), dtype=float)
        assert np.abs(seen - picture).mean() < 3
        assert np.abs(seen - picture).max() < 60


def test_truth_has_every_kind_and_real_times(half_minute: tuple[Path, list[dict[str, object]]]) -> None:
    _, truth = half_minute
    assert len(truth) >= 8
    assert {str(item["kind"]) for item in truth} >= {"digit", "colour", "shape", "order", "count", "presence"}
    times = {(event.start, event.end) for event in script(11, 0.5).events}
    for item in truth:
        assert set(item) == {"question", "answer", "kind", "start", "end"}
        assert (item["start"], item["end"]) in times | {(None, None)}


@pytest.mark.parametrize("minutes", [1, 3, 30])
def test_scripts_of_files(minutes: int) -> None:
    for seed in range(20):
        events = script(seed, minutes).events
        assert len(events) == 8
        assert events[0].start >= 3
        assert events[-1].end <= 60 * minutes
        assert all(2 <= event.end - event.start <= 4 for event in events)
        assert all(b.start - a.end >= 4 for a, b in pairwise(events))
        assert events[-1].start > 60 * minutes * 0.8


def test_own_events(tmp_path: Path) -> None:
    event = Event("red", "star", 7, 1, 3, x=10, y=10, size=24)
    truth = render_video(tmp_path / "own.mp4", 0, 0.1, fps=2, events=[event])
    assert {"answer": "7", "kind": "digit", "start": 1.0, "end": 3.0}.items() <= truth[0].items()
    assert "red star" in truth[0]["question"]


def test_the_rate_may_vary(tmp_path: Path) -> None:
    """Frames are left out, none is shown at another time, and no gap is longer than five of them."""
    render_video(tmp_path / "vfr.mp4", 11, 0.2, variable=True)
    drawn = script(11, 0.2)
    with av.open(str(tmp_path / "vfr.mp4")) as container:
        frames = {float(frame.time): frame.to_image() for frame in container.decode(video=0)}
    assert 40 < len(frames) < 110
    assert max(b - a for a, b in pairwise(sorted(frames))) <= 0.51
    for second, picture in enumerate(drawn.render(noise=0).astype(float)):
        seen = np.asarray(frames[float(second)].resize((48, 48), Image.Resampling.BICUBIC), dtype=float)
        assert np.abs(seen - picture).mean() < 3


def test_other_codecs(tmp_path: Path) -> None:
    render_video(tmp_path / "av1.mp4", 11, 0.1, fps=5, codec="av1")
    with av.open(str(tmp_path / "av1.mp4")) as container:
        assert container.streams.video[0].codec_context.name in {"av1", "libdav1d"}
        assert len(list(container.decode(video=0))) == 30
    with pytest.raises(SettingsError, match="use h264, av1"):
        render_video(tmp_path / "x.mp4", 0, 0.1, codec="mpeg1")


def test_no_frames_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="at least one frame"):
        render_video(tmp_path / "none.mp4", 0, 0)
