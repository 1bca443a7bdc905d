"""What the tests of the memory on disk share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import make_qwen25, make_video_xl
from videox2l import ArraySource, Memory, VideoX2L
from videox2l.select import AttentionSelector

ONE_LOOK = AttentionSelector(shortlist=0)  # reads no level finer than H
ASK: dict[str, Any] = {"reload": 2, "max_new_tokens": 6}
QUESTION = "What happens?"


def frames(n: int = 19, seed: int = 1) -> np.ndarray:
    """Noise (n, 32, 32, 3): five chunks of at most four frames."""
    return np.random.default_rng(seed).integers(0, 255, (n, 32, 32, 3), np.uint8)


def small_model(family: str = "qwen2_5_vl") -> VideoX2L:
    return VideoX2L.from_model(*(make_video_xl() if family == "video_xl" else make_qwen25()))


def ingest(x2l: VideoX2L, store: Path | str | None = None, n: int = 19, **settings: Any) -> Memory:
    settings = {"ratios": (2, 8), "chunk_frames": 4, **settings}
    return x2l.ingest(ArraySource(frames(n), fps=2.0, name="clip"), store=store, **settings)


def content(folder: Path) -> dict[str, bytes]:
    """The bytes of every file of a memory, those that are no part of it left out."""
    names = [path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", ".used")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in names}
