"""Chunk prefill to levels: compressors, scorers, and the context that chunks see."""

from collections.abc import Callable

from videox2l.compress.base import ChunkContext, ChunkKV, Compressor, Scorer, WindowCompressor, check_windows
from videox2l.compress.history import ChunkEncoder, History
from videox2l.compress.pool import PoolCompressor
from videox2l.compress.ranked import PairCompressor, RankedCompressor
from videox2l.compress.scorers import EchoScorer, KeyDiffScorer, SnapScorer, UniformScorer
from videox2l.compress.summary_tokens import SummaryTokenCompressor
from videox2l.errors import SettingsError

COMPRESSORS: dict[str, Callable[[], Compressor]] = {
    "uniform": lambda: RankedCompressor(UniformScorer()),
    "pool": PoolCompressor,
    "keydiff": lambda: RankedCompressor(KeyDiffScorer()),
    "echo": lambda: RankedCompressor(EchoScorer()),
    "snap": lambda: RankedCompressor(SnapScorer()),
    "summary": SummaryTokenCompressor,
}


def compressor_by_name(name: str) -> Compressor:
    """Return a new compressor by its name; raises SettingsError that lists the names."""
    if name not in COMPRESSORS:
        raise SettingsError(f"compressor '{name}' is not known: use {', '.join(COMPRESSORS)}")
    return COMPRESSORS[name]()


__all__ = [
    "COMPRESSORS",
    "ChunkContext",
    "ChunkEncoder",
    "ChunkKV",
    "Compressor",
    "EchoScorer",
    "History",
    "KeyDiffScorer",
    "PairCompressor",
    "PoolCompressor",
    "RankedCompressor",
    "Scorer",
    "SnapScorer",
    "SummaryTokenCompressor",
    "UniformScorer",
    "WindowCompressor",
    "check_windows",
    "compressor_by_name",
]
