"""PVE's strictness with parameters: every wrong field is named, and nothing but ValueError's family escapes."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta

from appliance.errors import InvalidParameter
from appliance.web.parameters import MISSING, UNKNOWN, PveBool, PveList, Rest, parse


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Sample(msgspec.Struct, kw_only=True):
    vmid: Annotated[int, Meta(ge=100, le=999_999_999)]
    name: Annotated[str, Meta(pattern=r"^[a-z]+$", max_length=10)] | None = None
    force: PveBool | None = None
    cores: int = 1
    limit: float | None = None
    tags: PveList = ()
    ids: tuple[int, ...] = ()
    mode: Literal["a", "b"] = "a"
    colour: Colour | None = None
    bridge_ports: str | None = msgspec.field(name="bridge-ports", default=None)


class Open(msgspec.Struct, kw_only=True):
    vmid: int
    config: Rest = msgspec.field(default_factory=dict)


def errors_of(raw: dict[str, object]) -> dict[str, str]:
    with pytest.raises(InvalidParameter) as caught:
        parse(Sample, raw)
    return caught.value.errors


def test_form_strings_become_typed_values() -> None:
    raw = {"vmid": "100", "force": "on", "cores": "4", "limit": "0.5", "tags": "a;b, c\0d", "ids": "1,2",
           "colour": "blue", "bridge-ports": "eno1"}  # fmt: skip
    parsed = parse(Sample, raw)
    assert (parsed.vmid, parsed.force, parsed.cores, parsed.limit) == (100, True, 4, 0.5)
    assert (parsed.tags, parsed.ids, parsed.colour) == (("a", "b", "c", "d"), (1, 2), Colour.BLUE)
    assert parsed.bridge_ports == "eno1"


def test_json_values_are_accepted_as_they_are() -> None:
    parsed = parse(Sample, {"vmid": 100, "force": False, "tags": ["a", "b"], "ids": [1], "name": None})
    assert (parsed.force, parsed.tags, parsed.ids, parsed.name) == (False, ("a", "b"), (1,), None)


@pytest.mark.parametrize("word", ["1", "true", "TRUE", "on", "Yes", 1, True])
def test_booleans_know_pves_words(word: object) -> None:
    assert parse(Sample, {"vmid": 100, "force": word}).force is True


def test_every_wrong_parameter_is_named_at_once() -> None:
    errors = errors_of({"name": "UP", "force": "maybe", "cores": "four", "mode": "c", "colour": "green", "zzz": "1"})
    assert errors["vmid"] == MISSING
    assert errors["zzz"] == UNKNOWN
    assert errors["cores"] == "type check ('integer') failed - got 'four'"
    assert errors["mode"] == "value 'c' does not have a value in the enumeration 'a, b'"
    assert errors["colour"] == "value 'green' does not have a value in the enumeration 'red, blue'"
    assert set(errors) == {"vmid", "zzz", "cores", "mode", "colour", "name", "force"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cores", "nan"), ("limit", "nan"), ("limit", "inf"), ("cores", "9" * 30), ("cores", True), ("name", ["a", 1]),
        ("name", "abc\n"), ("name", "a\0b"), ("tags", {"a": 1}), ("force", 2), ("vmid", [100]), ("name", {}),
        ("cores", ""), ("limit", ["1", "2"]),
    ],
)  # fmt: skip
def test_hostile_values_are_refused_by_name(name: str, value: object) -> None:
    assert set(errors_of({"vmid": 100, name: value})) == {name}


def test_a_rest_field_takes_what_no_other_field_declares() -> None:
    parsed = parse(Open, {"vmid": "100", "net0": "virtio,bridge=vmbr0", "onboot": True, "memory": 512})
    assert parsed.config == {"net0": "virtio,bridge=vmbr0", "onboot": "1", "memory": "512"}


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
_names = st.sampled_from([field.encode_name for field in msgspec.structs.fields(Sample)]) | st.text(max_size=8)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(_names, _values, max_size=8))
def test_any_input_is_parsed_or_refused_by_name(raw: dict[str, object]) -> None:
    wrong: dict[str, str] = {}
    try:
        parsed = parse(Sample, raw)
    except InvalidParameter as error:
        wrong = error.errors
    assert set(wrong) <= set(raw) | {"vmid"}
    assert all(wrong.values())
    if not wrong:
        assert 100 <= parsed.vmid <= 999_999_999
        assert parsed.name is None or parsed.name.isascii()
