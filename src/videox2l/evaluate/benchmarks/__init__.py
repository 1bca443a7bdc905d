"""The public benchmarks, each in a file of its own, read from their official files as downloaded."""

from videox2l.evaluate.benchmarks.longvideobench import LongVideoBench
from videox2l.evaluate.benchmarks.lvbench import LVBench
from videox2l.evaluate.benchmarks.mlvu import MLVU
from videox2l.evaluate.benchmarks.videomme import VideoMME
from videox2l.evaluate.benchmarks.vnbench import VNBench

PUBLIC = {bench.name: bench for bench in (VideoMME, MLVU, LongVideoBench, VNBench, LVBench)}
"""Name -> class, made from the options of the command line."""

__all__ = ["MLVU", "PUBLIC", "LVBench", "LongVideoBench", "VNBench", "VideoMME"]
