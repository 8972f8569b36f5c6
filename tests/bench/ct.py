"""The group `ct`: figures of containers. Each is in a module of its own, named `ct_…`, with the figures it goes with."""

from __future__ import annotations

from collections.abc import Iterable

from tests.bench import containers, ct_create, ct_many, ct_peers, ct_pull
from tests.bench.figures import Benchmark, Figure

START_GOAL = 1.3


def start() -> Iterable[Figure]:
    """As in the core's group, against the goal of containers."""
    return containers.start(goal=START_GOAL)


BENCHMARKS: list[Benchmark] = [
    start,
    *ct_create.BENCHMARKS,
    *ct_many.BENCHMARKS,
    *ct_peers.BENCHMARKS,
    *ct_pull.BENCHMARKS,
]
