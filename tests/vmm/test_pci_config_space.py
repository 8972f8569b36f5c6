"""Configuration space: which bits change by whom, at any width and alignment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.vmm.pci.config_space import CONFIG_BYTES, ConfigSpace


@pytest.fixture
def space() -> ConfigSpace:
    made = ConfigSpace()
    made.define(0x00, 4, 0x1042_1AF4)
    made.define(0x04, 2, 0, writable=0x0547)
    made.define(0x06, 2, 0x0010, clearable=0xF900)
    return made


def test_fixed_bits_stay(space: ConfigSpace) -> None:
    space.write(0, 4, 0xFFFF_FFFF)
    assert space.read(0, 4) == 0x1042_1AF4


def test_writable_bits_alone_take_what_is_written(space: ConfigSpace) -> None:
    space.write(4, 2, 0xFFFF)
    assert space.read(4, 2) == 0x0547
    space.write(5, 1, 0)
    assert space.read(4, 2) == 0x0047


def test_status_bits_are_cleared_by_ones_and_kept_by_zeros(space: ConfigSpace) -> None:
    space.poke(6, 2, 0xF910)
    space.write(6, 2, 0x0000)
    assert space.read(6, 2) == 0xF910
    space.write(6, 2, 0x4000)
    assert space.read(6, 2) == 0xB910
    space.write(4, 4, 0xFFFF_0000)  # through a doubleword that begins at the command register
    assert space.read(6, 2) == 0x0010


def test_an_access_over_registers_is_all_of_them(space: ConfigSpace) -> None:
    assert space.read(1, 2) == 0x421A
    space.write(3, 8, 0xFFFF_FFFF_FFFF_47FF)
    assert space.read(3, 2) == 0x4710


def test_beyond_the_end_are_ones(space: ConfigSpace) -> None:
    assert space.read(CONFIG_BYTES - 2, 4) == 0xFFFF_0000
    assert space.read(CONFIG_BYTES, 4) == 0xFFFF_FFFF
    space.write(CONFIG_BYTES - 1, 8, 2**64 - 1)
    space.write(CONFIG_BYTES + 8, 4, 1)


def test_reset_brings_power_on_values_and_forgets_what_the_device_did(space: ConfigSpace) -> None:
    space.write(4, 2, 7)
    space.poke(0x40, 4, 0x1234)
    space.reset()
    assert (space.read(4, 2), space.read(0x40, 4)) == (0, 0)


def test_a_saved_state_cannot_change_fixed_bits(space: ConfigSpace) -> None:
    space.restore(b"\xff" * CONFIG_BYTES)
    assert space.read(0, 4) == 0x1042_1AF4
    assert space.read(4, 2) == 0x0547
    with pytest.raises(ValueError, match="17 bytes"):
        space.restore(bytes(17))


@pytest.mark.parametrize(("offset", "value"), [(CONFIG_BYTES - 1, b"ab"), (-1, b"a")])
def test_a_register_outside_is_a_mistake_of_ours(offset: int, value: bytes) -> None:
    with pytest.raises(ValueError, match="configuration bytes"):
        ConfigSpace().define_bytes(offset, value)


@given(
    initial=st.integers(0, 2**32 - 1),
    writable=st.integers(0, 2**32 - 1),
    clearable=st.integers(0, 2**32 - 1),
    written=st.integers(0, 2**32 - 1),
)
def test_a_doubleword_write_is_its_four_byte_writes(initial: int, writable: int, clearable: int, written: int) -> None:
    clearable &= ~writable
    whole, bytewise = ConfigSpace(), ConfigSpace()
    for each in (whole, bytewise):
        each.define(0x40, 4, initial, writable=writable, clearable=clearable)
    whole.write(0x40, 4, written)
    for number in range(4):
        bytewise.write(0x40 + number, 1, written >> 8 * number & 0xFF)
    assert whole.save() == bytewise.save()
    assert whole.read(0x40, 4) == initial & ~writable & ~(written & clearable) | written & writable
