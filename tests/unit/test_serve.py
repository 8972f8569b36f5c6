"""The process's arguments: a wrong one is named before anything is made."""

from __future__ import annotations

import pytest

from appliance import serve
from appliance.errors import InvalidParameter


@pytest.mark.parametrize(
    ("option", "value"),
    [("listen", "here"), ("listen", "127.0.0.1:99999"), ("listen", "[::1:80"), ("node-name", "Ä"), ("bridge", "a;b"),
     ("bridge", ""), ("bridge", "x" * 16), ("bridge", "../x")],
)  # fmt: skip
def test_a_wrong_value_is_named(option: str, value: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        serve.parse([f"--{option}", value])
    assert list(caught.value.errors) == [option]
