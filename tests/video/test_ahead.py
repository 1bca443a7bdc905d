"""Frames that are decoded while the model works: the same frames, the same errors, no thread that stays."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from videox2l import ArraySource, VideoError
from videox2l.video import Frame, FrameSource
from videox2l.video.ahead import ahead


class Counted:
    """A source that counts what was decoded; it breaks before frame `bad`, and has no known end where `live`."""

    def __init__(self, frames: int, bad: int | None = None, live: bool = False) -> None:
        self.inner: FrameSource = ArraySource(np.arange(frames * 48, dtype=np.uint8).reshape(frames, 4, 4, 3), fps=2.0)
        self.bad, self.live = bad, live
        self.given = 0
        self.threads = set[str]()

    def __iter__(self) -> Iterator[Frame]:
        for frame in self.inner:
            if self.given == self.bad:
                raise VideoError("the file is damaged")
            self.given += 1
            self.threads.add(threading.current_thread().name)
            yield frame

    @property
    def manifest(self) -> object:
        return self.inner.manifest

    @property
    def expected_frames(self) -> int | None:
        return None if self.live else self.inner.expected_frames


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "x2l-frames"]


def test_frames_come_in_order_from_another_thread_and_it_ends() -> None:
    source = Counted(40)
    found = [(frame.index, frame.pts, frame.image.tobytes()) for frame in ahead(source, 3)]  # type: ignore[arg-type]
    assert found == [(frame.index, frame.pts, frame.image.tobytes()) for frame in Counted(40)]
    assert source.threads == {"x2l-frames"}
    assert readers() == []


def test_no_more_than_that_many_are_decoded_ahead() -> None:
    source = Counted(40)
    frames = ahead(source, 3)  # type: ignore[arg-type]
    next(frames)
    end = time.monotonic() + 5
    while source.given < 5 and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.05)
    assert source.given == 5  # one was taken, three wait, one is in hand
    frames.close()
    assert source.given <= 10
    assert readers() == []


def test_an_error_comes_behind_the_frames_before_it() -> None:
    frames = ahead(Counted(40, bad=7), 3)  # type: ignore[arg-type]
    assert [next(frames).index for _ in range(7)] == list(range(7))
    with pytest.raises(VideoError, match="damaged"):
        next(frames)
    assert readers() == []


def test_a_source_without_a_known_end_is_read_by_who_asks() -> None:
    source = Counted(6, live=True)
    assert len(list(ahead(source, 3))) == 6  # type: ignore[arg-type]
    assert source.threads == {threading.current_thread().name}
