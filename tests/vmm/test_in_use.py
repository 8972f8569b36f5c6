"""What is closed while others are inside is given back by the last of them, once."""

from __future__ import annotations

import errno

import pytest

from appliance.vmm.in_use import InUse


def test_it_is_given_back_when_the_last_one_leaves_and_nobody_enters_after_the_end() -> None:
    diary: list[str] = []
    held = InUse(lambda: diary.append("given back"))
    with held:
        with held:
            held.end()
            assert diary == []
            with pytest.raises(OSError) as refused, held:
                pass
            assert refused.value.errno == errno.EBADF
        assert diary == []
    assert diary == ["given back"]
    held.end()
    assert diary == ["given back"]


def test_nobody_inside_it_is_given_back_at_once() -> None:
    diary: list[str] = []
    held = InUse(lambda: diary.append("given back"))
    with held:
        pass
    held.end()
    held.end()
    assert diary == ["given back"]
