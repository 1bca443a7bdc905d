"""The benchmarks and methods that can be named."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from videox2l.errors import SettingsError
from videox2l.evaluate.base import Benchmark, BenchmarkOptions, Method
from videox2l.evaluate.benchmarks import PUBLIC, from_description
from videox2l.evaluate.boards import Boards
from videox2l.evaluate.dense import Dense
from videox2l.evaluate.film import Film
from videox2l.evaluate.haystack import Haystack
from videox2l.evaluate.methods import FAMILIES, METHODS, STANDARD

BENCHMARKS: dict[str, Callable[[BenchmarkOptions], Benchmark]] = {
    "haystack": Haystack,
    "dense": Dense,
    "boards": Boards,
    "film": Film,
    **PUBLIC,
}
"""Name -> a function that makes the benchmark from the options of the command line."""


def benchmark_by_name(name: str, options: BenchmarkOptions) -> Benchmark:
    """Return a benchmark; raises SettingsError that lists the names."""
    if name not in BENCHMARKS:
        raise SettingsError(f"benchmark '{name}' is not known: use {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name](options)


def methods_by_names(names: Sequence[str]) -> list[Method]:
    """Return methods; "all" stands for the standard ones. Raises SettingsError."""
    return [method_by_name(each) for name in names for each in (STANDARD if name == "all" else (name,))]


def method_by_name(name: str) -> Method:
    """Return a method; raises SettingsError that lists the names."""
    family, colon, rest = name.partition(":")
    if colon and family in FAMILIES:
        return FAMILIES[family](rest)
    if name not in METHODS:
        families = ["x2l:SELECTOR", "x2l:none", "retrieval:SELECTOR", "xl2:SELECTOR", "kvpress:SCORER"]
        raise SettingsError(f"method '{name}' is not known: use {', '.join([*METHODS, *families])}")
    return METHODS[name]()


__all__ = ["BENCHMARKS", "METHODS", "benchmark_by_name", "from_description", "method_by_name", "methods_by_names"]
