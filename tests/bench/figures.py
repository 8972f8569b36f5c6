"""What a benchmark yields, and how it is printed: one row a figure, with its goal and whether it is met."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A measured value. `goal` with `at_most` says which side is good."""

    name: str
    value: float
    unit: str
    goal: float
    at_most: bool = True

    @property
    def met(self) -> bool:
        return self.value <= self.goal if self.at_most else self.value >= self.goal


Benchmark = Callable[[], Iterable[Figure]]


def percentile(values: Iterable[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie: nearest rank, so it is one that was measured."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))]


def collect(benchmarks: Iterable[Benchmark]) -> Iterator[Figure | str]:
    """Run each; a benchmark that cannot be taken yields its error's text in place of figures."""
    for benchmark in benchmarks:
        try:
            yield from benchmark()
        except Exception as error:  # noqa: BLE001  one figure that cannot be taken does not hide the others
            yield f"{benchmark.__name__}: {type(error).__name__}: {error}"


def report(rows: Iterable[Figure | str], *, as_json: bool) -> int:
    """Print as they come; the exit status is non-zero when a figure could not be taken."""
    status = 0
    for row in rows:
        if isinstance(row, str):
            status = 1
            sys.stderr.write(f"not taken: {row}\n")
        elif as_json:
            print(
                json.dumps(
                    {"name": row.name, "value": round(row.value, 4), "unit": row.unit, "goal": row.goal, "met": row.met}
                ),
                flush=True,
            )
        else:
            relation = "≤" if row.at_most else "≥"
            met = "yes" if row.met else "NO"
            print(
                f"{row.name:<22} {row.value:>10.3f} {row.unit:<8} goal {relation} {row.goal:<8g} met {met}", flush=True
            )
    return status
