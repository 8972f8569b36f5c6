"""One thing the doctor says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    """As it should be."""
    LACKS = "lacks"
    """Something does not work, or less well: see its cost."""
    BROKEN = "broken"
    """The appliance does not start here, or a whole kind of guest does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`what` is a word for the thing, `found` a sentence; `cost` and `remedy` are empty when all is well."""

    level: Level
    what: str
    found: str
    cost: str = ""
    remedy: str = ""


def ok(what: str, found: str) -> Finding:
    """All is well."""
    return Finding(level=Level.OK, what=what, found=found)


def lacks(what: str, found: str, cost: str, remedy: str = "") -> Finding:
    """Something is missing that not everybody needs."""
    return Finding(level=Level.LACKS, what=what, found=found, cost=cost, remedy=remedy)


def broken(what: str, found: str, cost: str, remedy: str = "") -> Finding:
    """Something is missing that everybody needs."""
    return Finding(level=Level.BROKEN, what=what, found=found, cost=cost, remedy=remedy)


def install(*packages: str) -> str:
    """The remedy of a missing package."""
    return f"apt install {' '.join(packages)}"
