"""Showing replies: `table` for people, `json` for programs, `text` (tab-separated) for pipes. Pure."""

from __future__ import annotations

import json
import time
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

FORMATS = ("table", "json", "text")
_SIZES = {"mem", "maxmem", "disk", "maxdisk", "swap", "maxswap", "size", "used", "avail", "total", "netin", "netout"}
_TIMES = {"time", "starttime", "endtime", "expire", "ctime"}


def render(value: Any, form: str, columns: Sequence[str] = ()) -> str:
    """`value` as text without a last newline; "" for nothing. `columns` chooses and orders those of a table."""
    if form == "json":
        return json.dumps(value, indent=2, ensure_ascii=False)
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return _pairs(value, form)
    if isinstance(value, list):
        if (value or (columns and form == "table")) and all(isinstance(row, Mapping) for row in value):
            return _rows(value, form, columns or _columns_of(value))
        return "\n".join(_cell(entry) for entry in value)
    return _cell(value)


def size(value: object) -> str:
    """Bytes for people: 512.0 MiB."""
    number = float(str(value))
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(number) < 1024:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def when(value: float) -> str:
    """A point in time for people, in local time; 0 is never."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value)) if value else "never"


def duration(seconds: float) -> str:
    """Seconds for people: 45s, 12m 5s, 3h 2m, 8d 1h."""
    left = int(seconds)
    for name, length, smaller, smaller_length in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if left >= length:
            return f"{left // length}{name} {left % length // smaller_length}{smaller}"
    return f"{left}s"


def _columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    seen: dict[str, None] = {}
    for row in rows:
        seen.update(dict.fromkeys(row))
    return list(seen)


def _rows(rows: Sequence[Mapping[str, Any]], form: str, columns: Sequence[str]) -> str:
    if form == "text":
        return "\n".join("\t".join(_cell(row.get(name)) for name in columns) for row in rows)
    cells = [[_shown(name, row.get(name)) for name in columns] for row in rows]
    heads = [name.upper() for name in columns]
    widths = [max(_width(text) for text in column) for column in zip(heads, *cells, strict=True)]
    lines = (
        "  ".join(_padded(text, width) for text, width in zip(row, widths, strict=True)) for row in [heads, *cells]
    )
    return "\n".join(line.rstrip() for line in lines)


def _pairs(value: Mapping[str, Any], form: str) -> str:
    if form == "text":
        return "\n".join(f"{name}\t{_cell(entry)}" for name, entry in value.items())
    width = max((_width(name) for name in value), default=0)
    return "\n".join(f"{_padded(name, width)}  {_shown(name, entry)}" for name, entry in sorted(value.items()))


def _shown(name: str, value: Any) -> str:
    if name in _SIZES and isinstance(value, (int, float)):
        return size(value)
    if name in _TIMES and isinstance(value, (int, float)):
        return when(value)
    if name == "uptime" and isinstance(value, (int, float)):
        return duration(value)
    if isinstance(value, float):
        return f"{value:.3g}"
    return _cell(value)


def _cell(value: Any) -> str:
    """One line; control characters (a guest chose this name) never reach the terminal."""
    if value is None:
        return ""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)
    return "".join(char if unicodedata.category(char)[0] != "C" else " " for char in text)


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _width(text))
