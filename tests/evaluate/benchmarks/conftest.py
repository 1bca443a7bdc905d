"""Videos of six seconds, the demo model, and runs of scripted replies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.benchmarks.layouts import LAYOUTS, Scripted
from videox2l import VideoX2L
from videox2l.demo.render import render_video
from videox2l.evaluate.base import BenchmarkOptions
from videox2l.evaluate.benchmarks import PUBLIC
from videox2l.evaluate.runner import Run, run


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    for seed in range(3):
        render_video(folder / f"{seed}.mp4", seed, 0.1, fps=2)
    return sorted(folder.iterdir())


@pytest.fixture(scope="session")
def demo() -> VideoX2L:
    return VideoX2L.from_pretrained("demo", device="cpu")


@pytest.fixture
def layout(tmp_path: Path, clips: list[Path]) -> Callable[[str], Path]:
    """Make a benchmark's folder as downloaded and unpacked."""

    def make(name: str) -> Path:
        if name == "videomme":
            pytest.importorskip("pyarrow")
        return LAYOUTS[name](tmp_path / name, clips)

    return make


@pytest.fixture
def scripted(
    demo: VideoX2L, layout: Callable[[str], Path], tmp_path: Path
) -> Callable[..., tuple[dict[str, Any], Scripted]]:
    """Run a benchmark on scripted replies; returns the summary of the method, and the method."""

    def go(name: str, replies: Mapping[str, str], **options: Any) -> tuple[dict[str, Any], Scripted]:
        method = Scripted(replies)
        benchmark = PUBLIC[name](BenchmarkOptions(data=layout(name), **options))
        summary = run(demo, Run(benchmark, [method], [Fraction(1, 8)]), tmp_path / "out")
        return summary["scripted"], method

    return go
