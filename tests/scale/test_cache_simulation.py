"""The simulation of docs/scale.md against closed forms."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.cache_simulation import Load, che, simulate

pytestmark = pytest.mark.slow

ONE = Load([1.0] * 200, 0.9, rate=0.01, replicas=1, questions=8_000)


@pytest.mark.parametrize("room", [5, 20, 80])
def test_hits_of_one_cache_are_those_of_ches_approximation(room: int) -> None:
    found = simulate(ONE, room).hits
    assert found == pytest.approx(che(ONE, room), abs=0.03)
    assert found != pytest.approx(che(ONE, 2 * room), abs=0.03)


def test_waiting_is_that_of_a_queue_with_one_server() -> None:
    """With all resident, service takes one time: M/D/1, mean wait rho / (2 (1 - rho)) services."""
    load = replace(ONE, rate=0.8 / 0.25, questions=40_000, sizes=[1.0])
    found = simulate(load, 10)
    assert found.hits == 1
    assert found.busy == pytest.approx(0.8, abs=0.03)
    assert found.median == pytest.approx(0.25 * 2.6, rel=0.15)  # the median lies below the mean of 3 services


def test_routing_by_memory_adds_the_caches_up() -> None:
    load = replace(ONE, replicas=4, rate=12.0, spread=50)
    apart, alike = simulate(load, 20, "memory").hits, simulate(load, 20, "any").hits
    assert apart == pytest.approx(che(load, 80), abs=0.05)
    assert alike < apart - 0.1
