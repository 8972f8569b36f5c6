"""Values to PVE's JSON: `{"data": …}`, booleans as 0 and 1, None left out of objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set

import msgspec

_SCALARS = (str, int, float, bytes, msgspec.Raw)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A part of a longer list: `total` stands beside "data" in the reply."""

    data: object
    total: int


def encode_reply(value: object) -> bytes:
    """The body of a successful reply. A `msgspec.Raw` anywhere in `value` is taken as JSON already encoded."""
    if isinstance(value, Page):
        return msgspec.json.encode({"data": to_wire(value.data), "total": value.total})
    return msgspec.json.encode({"data": to_wire(value)})


def to_wire(value: object) -> object:
    """`value` with dataclasses and Structs as objects (Struct fields under their wire names), ready to encode."""
    if value is None:
        return None
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, _SCALARS):
        return value
    if isinstance(value, Mapping):
        return {str(key): to_wire(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, (list, tuple, Set)):
        return [to_wire(entry) for entry in value]
    if isinstance(value, msgspec.Struct):
        pairs = ((info.encode_name, getattr(value, info.name)) for info in msgspec.structs.fields(value))
        return {name: to_wire(entry) for name, entry in pairs if entry is not None}
    if dataclasses.is_dataclass(value):
        pairs = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {name: to_wire(entry) for name, entry in pairs if entry is not None}
    return str(value)
