"""Sizes as PVE writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import InvalidParameter
from appliance.services.guest_config.sizes import GIB, SIZE_LIMIT_BYTES, format_size, parse_size, resize_target


@given(st.integers(0, SIZE_LIMIT_BYTES))
def test_parsing_a_formatted_size_gives_it_back(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "size"),
    [("32G", 32 << 30), ("528K", 528 << 10), ("1.5T", 3 << 39), ("1048576", 1 << 20), ("0.5G", 1 << 29)],
)
def test_sizes_are_read_with_their_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "1 G", "-1G", "1g", "1GB", "1e3", "٣G", "9" * 30, "300T", "1.G", "+1G", "1G\n"]
)
def test_anything_else_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("now", "text", "then"), [(GIB, "+5G", 6 * GIB), (GIB, "5G", 5 * GIB), (GIB, "1G", GIB), (GIB, "+1", GIB + 1024)]
)
def test_a_resize_adds_with_plus_and_sets_without(now: int, text: str, then: int) -> None:
    assert resize_target(now, text) == then


@pytest.mark.parametrize(("now", "text"), [(2 * GIB, "1G"), (GIB, "+"), (GIB, "x"), (SIZE_LIMIT_BYTES, "+1G")])
def test_shrinking_and_nonsense_are_refused_by_name(now: int, text: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        resize_target(now, text)
    assert list(caught.value.errors) == ["size"]
