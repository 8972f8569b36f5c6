"""QEMU's two option syntaxes, so that a name, serial number or path can never become another option.

`-device`, `-netdev`, `-object` and `-blockdev` take JSON (QEMU 7.0 and later); the older options take `key=value` lists, in
which a comma within a value is doubled (qemu(1), "-name").
"""

from __future__ import annotations

import json
from collections.abc import Mapping


def as_json(options: Mapping[str, object]) -> str:
    """One argument in JSON; members that are None are left out."""
    return json.dumps({key: value for key, value in options.items() if value is not None}, separators=(",", ":"))


def escape(value: object) -> str:
    """A value for a `key=value` list."""
    return str(value).replace(",", ",,")


def as_list(head: str, options: Mapping[str, object]) -> str:
    """`head,key=value,...` with every value escaped; members that are None are left out."""
    return ",".join([head, *(f"{key}={escape(value)}" for key, value in options.items() if value is not None)])
