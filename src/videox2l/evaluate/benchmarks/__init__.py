"""The public benchmarks, read from their official files as downloaded: each in a file of its own, or described."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from videox2l.evaluate.base import Benchmark, BenchmarkOptions
from videox2l.evaluate.benchmarks.described import Described, read_description
from videox2l.evaluate.benchmarks.longvideobench import LongVideoBench
from videox2l.evaluate.benchmarks.lvbench import LVBench
from videox2l.evaluate.benchmarks.mlvu import MLVU
from videox2l.evaluate.benchmarks.videomme import VideoMME


def from_description(path: Path, options: BenchmarkOptions) -> Described:
    """Return the benchmark that a YAML file describes. Raises SettingsError."""
    return Described(read_description(path), options)


PUBLIC: dict[str, Callable[[BenchmarkOptions], Benchmark]] = {
    "videomme": VideoMME,
    "mlvu": MLVU,
    "longvideobench": LongVideoBench,
    "vnbench": partial(from_description, Path(__file__).parent / "vnbench.yaml"),
    "lvbench": LVBench,
}
"""Name -> what makes the benchmark from the options of the command line."""

__all__ = ["MLVU", "PUBLIC", "Described", "LVBench", "LongVideoBench", "VideoMME", "from_description"]
