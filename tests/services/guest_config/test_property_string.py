"""Property strings: parsing and printing are inverse, and nothing hostile gets through or crashes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.services.guest_config import vm_devices
from appliance.services.guest_config.ct_schema import CT_KEYS
from appliance.services.guest_config.property_string import PropertySchema
from appliance.services.guest_config.vm_schema import VM_KEYS
from tests.services.guest_config.strategies import HOSTILE_TEXT, property_values

SCHEMAS = [key.value for table in (VM_KEYS, CT_KEYS) for key in table if isinstance(key.value, PropertySchema)]


@given(st.data())
def test_printing_then_parsing_gives_the_same_values(data: st.DataObject) -> None:
    schema = data.draw(st.sampled_from(SCHEMAS))
    values = data.draw(property_values(schema).filter(bool))
    assert schema.parse(schema.print_(values)) == values


@given(st.data())
def test_the_printed_form_is_a_fixed_point(data: st.DataObject) -> None:
    schema = data.draw(st.sampled_from(SCHEMAS))
    text = schema.print_(data.draw(property_values(schema).filter(bool)))
    assert schema.print_(schema.parse(text)) == text


@given(st.sampled_from(SCHEMAS), HOSTILE_TEXT)
def test_hostile_text_is_parsed_or_refused_and_what_is_accepted_can_be_printed(
    schema: PropertySchema, text: str
) -> None:
    try:
        values = schema.parse(text)
    except ValueError:
        return
    if values:
        printed = schema.print_(values)
        assert schema.parse(printed) == values
        assert "\n" not in printed
        assert "\0" not in printed


def test_a_model_carries_its_mac_address() -> None:
    values = vm_devices.NIC.parse("virtio=bc:24:11:00:00:01,bridge=vmbr0,tag=5")
    assert values == {"model": "virtio", "macaddr": "BC:24:11:00:00:01", "bridge": "vmbr0", "tag": "5"}
    assert vm_devices.NIC.print_(values) == "virtio=BC:24:11:00:00:01,bridge=vmbr0,tag=5"


def test_a_model_may_be_named_in_either_way() -> None:
    assert vm_devices.NIC.parse("virtio,bridge=vmbr0") == vm_devices.NIC.parse("model=virtio,bridge=vmbr0")
    assert vm_devices.NIC.print_({"model": "e1000", "bridge": "vmbr0"}) == "e1000,bridge=vmbr0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("virtio,model=e1000", "duplicate key"),
        ("virtio,virtio", "duplicate key"),
        ("virtio=BC:24:11:00:00:01,macaddr=BC:24:11:00:00:02", "duplicate key"),
        ("virtio,bogus=1", "invalid key in comma-separated list property: bogus"),
        ("virtio,bridge=", "missing key or value"),
        ("virtio,=vmbr0", "missing key or value"),
        ("bridge=vmbr0", "model: property is missing"),
        ("virtio=01:00:5e:00:00:01", "multicast"),
        ("virtio,tag=5000", "tag: value must have a maximum value of 4094"),
        ("virtio,bridge=vm br0", "bridge: value does not match"),
        ("virtio,trunks=1;2", "trunks: not supported by this appliance yet"),
        ("virtio,bridge=vmbr0\n", "bridge: value does not match"),
    ],
)
def test_a_bad_nic_is_refused_naming_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vm_devices.NIC.parse(text)


def test_values_that_cannot_be_written_are_not_printed() -> None:
    for value in ("a,b=1", ""):
        with pytest.raises(ValueError, match="comma"):
            vm_devices.DISKS["scsi"].print_({"file": "local:8", "serial": value})


def test_a_thousand_parts_are_refused_before_they_cost_anything() -> None:
    with pytest.raises(ValueError, match="more than"):
        vm_devices.NIC.parse("," * 100_000)
