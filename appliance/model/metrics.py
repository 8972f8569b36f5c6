"""Figures over time as values: which columns a series has, which steps are kept, how points become coarser. Pure.

A series is one object's ("node/pve1", "qemu/100", "storage/local"). A point holds the means over one step, one number a
column; NaN is "not known". Columns are named as Proxmox VE's `rrddata` names them, in its units: ratios 0…1, bytes,
bytes a second, pressures in percent of time (PSI's avg10).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

NODE: Final = (
    "cpu", "iowait", "loadavg", "maxcpu", "memtotal", "memused", "memavailable", "swaptotal", "swapused", "roottotal",
    "rootused", "netin", "netout", "diskread", "diskwrite", "pressurecpusome", "pressureiosome", "pressureiofull",
    "pressurememorysome", "pressurememoryfull",
)  # fmt: skip
GUEST: Final = (
    "cpu", "maxcpu", "mem", "maxmem", "disk", "maxdisk", "netin", "netout", "diskread", "diskwrite", "pressurecpusome",
    "pressurecpufull", "pressureiosome", "pressureiofull", "pressurememorysome", "pressurememoryfull",
)  # fmt: skip
STORAGE: Final = ("total", "used")
COLUMNS: Final[Mapping[str, Sequence[str]]] = {"node": NODE, "qemu": GUEST, "lxc": GUEST, "storage": STORAGE}
"""By the first word of a series' name. Append only: stored points are these columns in this order."""

COLUMNS_LIMIT: Final = 64
UNKNOWN: Final = math.nan


class Fold(StrEnum):
    """How the values of one step become one (PVE's `cf`)."""

    AVERAGE = "AVERAGE"
    MAX = "MAX"


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One resolution: points of `step_s` are kept for `keep_s`. Each level's step is a multiple of the one before."""

    step_s: int
    keep_s: int


LEVELS: Final = (
    Level(step_s=10, keep_s=3_900),
    Level(step_s=60, keep_s=26 * 3_600),
    Level(step_s=1_800, keep_s=32 * 86_400),
    Level(step_s=21_600, keep_s=370 * 86_400),
)
"""Points a series at most: 390 + 1,560 + 1,536 + 1,480. The coarser two keep the highest value of each step too."""
WITH_HIGHEST: Final = 2
"""The first level whose points have the highest values as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What a graph of a `timeframe` shows: points of `level`, put together to `step_s`, over `span_s`."""

    level: int
    step_s: int
    span_s: int


FRAMES: Final[Mapping[str, Frame]] = {
    "hour": Frame(level=0, step_s=60, span_s=3_600),
    "day": Frame(level=1, step_s=60, span_s=86_400),
    "week": Frame(level=2, step_s=1_800, span_s=7 * 86_400),
    "month": Frame(level=2, step_s=1_800, span_s=31 * 86_400),
    "year": Frame(level=3, step_s=21_600, span_s=366 * 86_400),
    "decade": Frame(level=3, step_s=604_800, span_s=370 * 86_400),
}
"""PVE's words, with the steps of its version 9; a decade holds the year that is kept."""


@dataclass(frozen=True, slots=True)
class Point:
    """One step's values, in the order of the series' columns. `time` is the step's beginning, epoch seconds."""

    time: int
    values: tuple[float, ...]


def columns_of(series: str) -> Sequence[str]:
    """The columns of a series by its name."""
    return COLUMNS[series.partition("/")[0]]


def in_order(series: str, values: Mapping[str, float]) -> tuple[float, ...]:
    """Named values as a point's; what is missing is unknown."""
    return tuple(values.get(name, UNKNOWN) for name in columns_of(series))


def named(series: str, point: Point) -> dict[str, float]:
    """A point's known values by name."""
    pairs = zip(columns_of(series), point.values, strict=False)  # an old point may have fewer columns
    return {name: value for name, value in pairs if not math.isnan(value)}


def pack(values: Sequence[float]) -> bytes:
    """Little-endian 32-bit floats: relative error below 1e-7."""
    return struct.pack(f"<{len(values)}f", *values)


def unpack(data: bytes) -> tuple[float, ...]:
    """The reverse; anything that is no such thing is no values."""
    count = min(len(data) // 4, COLUMNS_LIMIT)
    return struct.unpack(f"<{count}f", data[: 4 * count])


def fold(points: Sequence[Sequence[float]], how: Fold) -> tuple[float, ...]:
    """The mean, or the highest, of each column's known values."""
    if not points:
        return ()
    width = max(len(point) for point in points)
    found: list[float] = []
    for column in range(width):
        known = [point[column] for point in points if column < len(point) and not math.isnan(point[column])]
        if not known:
            found.append(UNKNOWN)
        else:
            found.append(max(known) if how is Fold.MAX else sum(known) / len(known))
    return tuple(found)


def coarser(points: Sequence[Point], step_s: int, how: Fold) -> Sequence[Point]:
    """Points put together to steps of `step_s`, oldest first."""
    groups: dict[int, list[tuple[float, ...]]] = {}
    for point in points:
        groups.setdefault(point.time // step_s * step_s, []).append(point.values)
    return [Point(begin, fold(values, how)) for begin, values in sorted(groups.items())]


def rate(now: float, before: float | None, seconds: float) -> float:
    """What a counter rose a second; unknown for the first value, and when it has begun anew."""
    if before is None or seconds <= 0 or now < before:
        return UNKNOWN
    return (now - before) / seconds
