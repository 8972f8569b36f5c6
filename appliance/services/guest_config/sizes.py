"""Sizes as PVE writes them: `32G`, `528K`, `1.5T`, bytes without a unit, `+5G` to grow by."""

from __future__ import annotations

import math
import re

from appliance.errors import InvalidParameter

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
SIZE_LIMIT_BYTES = 256 * TIB
"""No single volume may be larger: protects the arithmetic and the file systems below from typing errors."""

_UNITS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
_SIZE = re.compile(r"([0-9]{1,18})(\.[0-9]{1,9})?([KMGT]?)")
_RESIZE_GRAIN_BYTES = KIB  # PVE rounds a new size up to whole KiB


def parse_size(text: str) -> int:
    """Bytes of `32G`, `0.5G`, `1048576`. Raises `ValueError` on anything else and above `SIZE_LIMIT_BYTES`."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"unable to parse size '{text}'")
    unit = _UNITS[match[3]]
    size = int(match[1]) * unit
    if match[2]:
        size += math.ceil(int(match[2][1:]) * unit / 10 ** (len(match[2]) - 1))
    if size > SIZE_LIMIT_BYTES:
        raise ValueError(f"size '{text}' is over the limit of {format_size(SIZE_LIMIT_BYTES)}")
    return size


def format_size(size_bytes: int) -> str:
    """The shortest exact form: 34359738368 is `32G`, 1536 MiB is `1536M`, odd numbers stay bytes."""
    unit, text = 1, ""
    for letter, factor in _UNITS.items():
        if size_bytes >= factor and size_bytes % factor == 0:
            unit, text = factor, letter
    return f"{size_bytes // unit}{text}"


def resize_target(current_bytes: int, text: str) -> int:
    """The size asked for by PVE's resize parameter: `+5G` adds, `32G` is absolute; whole KiB.

    Raises `InvalidParameter` naming `size` for bad text and for shrinking.
    """
    try:
        wanted = current_bytes + parse_size(text[1:]) if text.startswith("+") else parse_size(text)
    except ValueError as error:
        raise InvalidParameter({"size": str(error)}) from error
    wanted = -(-wanted // _RESIZE_GRAIN_BYTES) * _RESIZE_GRAIN_BYTES
    if wanted < current_bytes:
        raise InvalidParameter({"size": f"shrinking disks is not supported ({format_size(current_bytes)} now)"})
    if wanted > SIZE_LIMIT_BYTES:
        raise InvalidParameter({"size": f"over the limit of {format_size(SIZE_LIMIT_BYTES)}"})
    return wanted
