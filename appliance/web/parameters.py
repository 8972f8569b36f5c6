"""From what a client sent to a method's parameter struct: PVE's strictness, every wrong field named at once.

Values come from a query, a form or JSON, so a number may be the string "4", a boolean any of PVE's words, a list one
string with separators. Each field is converted alone (msgspec reports only the first error of a whole struct). Pure:
knows nothing of HTTP. Every value here is hostile.
"""

from __future__ import annotations

import functools
import math
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec

from appliance.errors import InvalidParameter

P = TypeVar("P", bound=msgspec.Struct)

PveBool = bool
"""A boolean parameter: 0/1, true/false, on/off, yes/no. Every field of type `bool` is read so; replies say 0/1."""

PveList = tuple[str, ...]
"""A list parameter: one string with `,`, `;`, NUL or white space between entries, a repeated key, or a JSON array.
Every field of a list or tuple type is read so, `tuple[int, ...]` too."""

_REST = msgspec.Meta(extra={"rest": True})
Rest = Annotated[dict[str, str], _REST]
"""A field of this type takes every parameter no other field declares, as strings (`net0`, `scsi1` … of a guest's
configuration); the handler must check the names itself. Declare it `field(default_factory=dict)`."""

UNLOGGED: dict[str, object] = {"unlogged": True}
"""`Meta(extra=UNLOGGED)` marks a parameter whose value may hold a secret although its name does not say so."""

UNKNOWN = "property is not defined in schema and the schema does not allow additional properties"
MISSING = "property is missing and it is not optional"
INTEGER_LIMIT = 1 << 63
_WORDS = {"1": True, "true": True, "on": True, "yes": True, "0": False, "false": False, "off": False, "no": False}
_SEPARATORS = re.compile(r"[,;\0\s]+")
_NOT_CONVERTED = object()


@dataclass(frozen=True, slots=True)
class Field:
    """One declared parameter. `type` is without its `None`; `kind` says how strings are read."""

    name: str
    attribute: str
    type: Any
    kind: Literal["bool", "list", "rest", "number", "text", "other"]
    required: bool
    choices: tuple[str, ...] = ()
    has_pattern: bool = False
    unlogged: bool = False


@functools.cache
def fields_of(struct: type[msgspec.Struct]) -> Mapping[str, Field]:
    """The parameters `struct` declares, by their name on the wire."""
    return {field.name: field for field in map(_field, msgspec.structs.fields(struct))}


def parse(struct: type[P], raw: Mapping[str, object]) -> P:
    """Build `struct` from `raw`; a JSON null counts as not given.

    Raises `InvalidParameter` naming every unknown, missing and wrong parameter.
    """
    errors: dict[str, str] = {}
    values: dict[str, object] = {}
    rest: dict[str, str] = {}
    fields = fields_of(struct)
    rest_field = next((field for field in fields.values() if field.kind == "rest"), None)
    for name, value in raw.items():
        if value is None:
            continue
        field = fields.get(name)
        try:
            if field is not None and field.kind != "rest":
                values[field.attribute] = convert(field, value)
            elif rest_field is not None:
                rest[name] = _as_text(value, nul=True)  # PVE separates by it in some; each key's own table judges
            else:
                errors[name] = UNKNOWN
        except ValueError as error:
            errors[name] = str(error)
    for field in fields.values():
        if field.required and field.attribute not in values and field.name not in errors:
            errors[field.name] = MISSING
    if errors:
        raise InvalidParameter(errors)
    if rest_field is not None:
        values[rest_field.attribute] = rest
    return struct(**values)


def convert(field: Field, value: object) -> object:
    """`value` as the field's type. Raises `ValueError` with the text for people."""
    match field.kind:
        case "bool":
            value = _as_bool(value)
        case "list":
            value = _as_list(value)
        case "text":
            value = _as_text(value)
        case "number" if not isinstance(value, (int, float, str)):
            raise ValueError("type check failed - a number is expected")
    try:
        converted: object = msgspec.convert(value, field.type, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(_explain(field, value, str(error))) from error
    if field.has_pattern and isinstance(converted, str) and converted.endswith("\n"):
        raise ValueError("value does not match the regex pattern")  # `$` in Python also matches before a last newline
    if field.kind == "number" and not _is_sane(converted):
        raise ValueError("value is out of range")
    return converted


def _field(info: msgspec.structs.FieldInfo) -> Field:
    inner, metas = _unwrap(_without_none(info.type))
    kind: Literal["bool", "list", "rest", "number", "text", "other"] = "other"
    if _REST in metas:
        kind = "rest"
    elif inner is bool:
        kind = "bool"
    elif inner is str or get_origin(inner) is Literal or (isinstance(inner, type) and issubclass(inner, Enum)):
        kind = "text"
    elif inner in (int, float) or (
        get_origin(inner) in (Union, types.UnionType) and set(get_args(inner)) <= {int, float}
    ):
        kind = "number"
    elif get_origin(inner) in (list, tuple, set, frozenset) or inner in (list, tuple, set, frozenset):
        kind = "list"
    return Field(
        name=info.encode_name,
        attribute=info.name,
        type=_without_none(info.type),
        kind=kind,
        required=info.required,
        choices=_choices(inner),
        has_pattern=any(meta.pattern is not None for meta in metas),
        unlogged=any(meta.extra == UNLOGGED for meta in metas),
    )


def _without_none(declared: Any) -> Any:
    if get_origin(declared) in (Union, types.UnionType):
        kept = tuple(arm for arm in get_args(declared) if arm is not type(None))
        return kept[0] if len(kept) == 1 else Union[kept]  # noqa: UP007  the arms are known only at run time
    return declared


def _unwrap(declared: Any) -> tuple[Any, tuple[msgspec.Meta, ...]]:
    metas: tuple[msgspec.Meta, ...] = ()
    while get_origin(declared) is Annotated:
        declared, *notes = get_args(declared)
        metas += tuple(note for note in notes if isinstance(note, msgspec.Meta))
        declared = _without_none(declared)
    return declared, metas


def _choices(inner: Any) -> tuple[str, ...]:
    if get_origin(inner) is Literal:
        return tuple(str(choice) for choice in get_args(inner))
    if isinstance(inner, type) and issubclass(inner, Enum):
        return tuple(str(member.value) for member in inner)
    return ()


def _as_bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, str)) and str(value).lower() in _WORDS:
        return _WORDS[str(value).lower()]
    raise ValueError(f"type check ('boolean') failed - got {_shown(value)}")


def _as_list(value: object) -> Sequence[object]:
    if isinstance(value, str):
        return [entry for entry in _SEPARATORS.split(value) if entry]
    if isinstance(value, list):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return [str(value)]
    raise ValueError("type check ('array') failed")


def _as_text(value: object, *, nul: bool = False) -> str:
    match value:
        case str() if "\0" in value and not nul:
            raise ValueError("type check ('string') failed - NUL is not allowed")
        case str():
            return value
        case bool():
            return str(int(value))
        case int() | float():
            return str(value)
        case list() if all(isinstance(entry, str) for entry in value):
            return ",".join(value)
    raise ValueError("type check ('string') failed")


def _is_sane(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and -INTEGER_LIMIT <= value < INTEGER_LIMIT


def _explain(field: Field, value: object, reason: str) -> str:
    if field.choices:
        return f"value {_shown(value)} does not have a value in the enumeration '{', '.join(field.choices)}'"
    reason = reason.replace("`", "")
    expected = {"Expected int, got": "integer", "Expected float, got": "number"}
    for start, word in expected.items():
        if reason.startswith(start) and field.kind == "number":
            return f"type check ('{word}') failed - got {_shown(value)}"
    return reason[:1].lower() + reason[1:]


def _shown(value: object) -> str:
    text = str(value)
    return repr(text if len(text) <= 40 else text[:40] + "…")
