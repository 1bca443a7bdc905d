"""A hole in a video ends a chunk, is kept in the memory, and is shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import make_qwen25
from videox2l import Memory, VideoX2L
from videox2l.evaluate.encode import EncodedVideo
from videox2l.video import ArraySource, Frame, Manifest


class Holed:
    """Ten frames a second apart, then nothing for a minute, then seven more."""

    def __init__(self) -> None:
        pictures = np.random.default_rng(3).integers(0, 255, (17, 32, 32, 3), np.uint8)
        self.source = ArraySource(pictures, pts=[*range(10), *range(70, 77)])
        self.expected_frames = 17

    def __iter__(self) -> Iterator[Frame]:
        for frame in self.source:
            yield replace(frame, resumes=frame.index == 10)

    @property
    def manifest(self) -> Manifest:
        return replace(self.source.manifest, holes=((10.0, 70.0),))


@pytest.fixture(scope="module")
def x2l() -> VideoX2L:
    return VideoX2L.from_model(*make_qwen25())


def test_an_evaluation_cuts_a_video_with_a_hole(x2l: VideoX2L) -> None:
    encoded = EncodedVideo(x2l, Holed(), chunk_frames=4)
    assert [chunk.frames for chunk in encoded.chunks] == [4, 4, 2, 4, 3]
    assert [chunk.frames for chunk in encoded.chunked(2)] == [2, 2, 2, 2, 2, 2, 2, 2, 1]
    assert all(chunk.end - chunk.start <= 2 for chunk in encoded.chunked(2))


def test_a_chunk_ends_at_a_hole(x2l: VideoX2L, tmp_path: Path) -> None:
    memory = x2l.ingest(Holed(), chunk_frames=4, store=tmp_path / "m.x2l")
    spans = [(chunk.start, chunk.end, chunk.frames) for chunk in memory.chunks]
    assert spans[:3] == [(0, 4, 4), (4, 8, 4), (8, 10, 2)]
    assert [span[0] for span in spans[3:]] == [70, 74]
    x2l.append(memory, Holed())
    assert [tuple(hole) for hole in memory.manifest["holes"]] == [(10.0, 70.0), (86.0, 146.0)]
    loaded = Memory.load(tmp_path / "m.x2l")
    assert [tuple(hole) for hole in loaded.manifest["holes"]] == [(10.0, 70.0), (86.0, 146.0)]
    assert [chunk.frames for chunk in loaded.chunks] == [4, 4, 2, 4, 3] * 2
