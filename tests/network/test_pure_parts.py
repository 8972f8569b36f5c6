"""Names, addresses, leases and configuration: rules that need no kernel."""

from __future__ import annotations

import tempfile
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import Conflict, InvalidParameter
from appliance.model.guest import GUEST_ID_MAX, GUEST_ID_MIN, GuestId
from appliance.model.network import BridgeSettings
from appliance.network import addresses, dnsmasq, names
from appliance.network.addresses import Reservations
from appliance.network.dnsmasq import DnsmasqFiles
from appliance.network.names import Port

SUBNET = IPv4Network("10.64.0.0/22")
guest_ids = st.integers(GUEST_ID_MIN, GUEST_ID_MAX)
slots = st.integers(0, 31).map(lambda number: f"net{number}")
macs = st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":"))


@given(st.sampled_from(["tap", "veth"]), guest_ids, slots)
def test_a_port_name_fits_into_the_kernels_15_characters(word: str, guest_id: int, slot: str) -> None:
    assert len(names.port_name(word, guest_id, slot)) <= names.NAME_LIMIT


@given(guest_ids, slots, guest_ids, slots, st.sampled_from(["tap", "veth"]), st.sampled_from(["tap", "veth"]))
def test_two_ports_never_have_one_name(a: int, slot_a: str, b: int, slot_b: str, word_a: str, word_b: str) -> None:
    same = names.port_name(word_a, a, slot_a) == names.port_name(word_b, b, slot_b)
    assert same == ((word_a, a, slot_a) == (word_b, b, slot_b))


@pytest.mark.parametrize("slot", ["", "net", "net100", "scsi0", "net-1", "net0\n"])
def test_only_nics_have_ports(slot: str) -> None:
    with pytest.raises(ValueError, match="slot"):
        names.port_name("tap", 100, slot)


@given(word=st.sampled_from(["tap", "veth"]), guest_id=st.integers(100, 999_999_999), slot=st.integers(0, 31))
def test_ports_of_two_appliances_never_meet(word: str, guest_id: int, slot: int) -> None:
    found = {names.port_name(word, guest_id, f"net{slot}", space=space) for space in ("", "one", "two")}
    assert len(found) == 3
    assert all(len(name) <= names.NAME_LIMIT for name in found)


@given(
    guest_ids,
    slots,
    macs,
    st.sampled_from(["", "10.0.0.1"]),
    st.integers(0, 1 << 40),
    st.integers(0, 4094),
    st.sampled_from(["", "2001:db8::10"]),
)
def test_a_ports_mark_says_all_its_rules_need(
    guest_id: int, slot: str, mac: str, address: str, rate: int, vlan: int, address6: str
) -> None:
    port = Port(
        name="tap",
        guest_id=GuestId(guest_id),
        slot=slot,
        mac=mac,
        bridge="vmbr0",
        address=address,
        rate_bytes_s=rate,
        vlan=vlan,
        address6=address6,
    )
    alias = port.alias("0123456789ab")
    assert len(alias) < 256
    assert Port.parse("tap", alias) == port
    assert names.tag_in(alias) == "0123456789ab"


@given(st.text(max_size=60))
def test_an_alias_of_somebody_else_is_no_port(alias: str) -> None:
    if not alias.startswith(names.ALIAS_PREFIX):
        assert names.tag_in(alias) is None
    Port.parse("x", alias)


def test_tags_are_short_and_tell_instances_apart() -> None:
    assert names.tag_of("demo1") == "demo1"
    tags = {names.tag_of(f"/var/lib/appliance{number}") for number in range(100)}
    assert len(tags) == 100
    assert all(tag.isalnum() and len(tag) <= 12 for tag in tags)
    assert names.group_of("a") != names.group_of("b")


def test_a_subnet_is_chosen_that_meets_no_route() -> None:
    assert addresses.choose_subnet([IPv4Network("0.0.0.0/0")]) == SUBNET
    assert addresses.choose_subnet([IPv4Network("10.64.0.0/16")]) == IPv4Network("10.65.0.0/22")
    with pytest.raises(Conflict, match="no free subnet"):
        addresses.choose_subnet([IPv4Network("10.0.0.0/8")])


def test_new_macs_are_unicast_of_our_prefix_and_unused() -> None:
    draws = iter([1, 1, 2])
    first = addresses.new_mac((), random=lambda _: next(draws))
    assert first == "BC:24:11:00:00:01"
    assert addresses.new_mac([first.lower()], random=lambda _: next(draws)) == "BC:24:11:00:00:02"
    assert addresses.is_unicast_mac(addresses.new_mac(()))
    with pytest.raises(Conflict):
        addresses.new_mac([first], random=lambda _: 1)


@pytest.mark.parametrize(
    "text", ["01:00:00:00:00:00", "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "bc:24:11", "bc-24-11-00-00-00", ""]
)
def test_a_mac_no_guest_may_have_is_known(text: str) -> None:
    assert not addresses.is_unicast_mac(text)


@given(st.lists(macs, unique=True, max_size=40))
def test_reservations_are_distinct_stable_and_within_the_pool(wanted: list[str]) -> None:
    table = Reservations(SUBNET)
    given_out = [table.reserve(mac) for mac in wanted]
    assert len(set(given_out)) == len(wanted)
    assert all(int(address) in addresses.pool_of(SUBNET) for address in given_out)
    assert [table.reserve(mac.upper()) for mac in wanted] == given_out
    again = Reservations(SUBNET, dnsmasq.parse_hosts(dnsmasq.hosts_text(table.items())))
    assert again.items() == table.items()


def test_a_full_pool_gives_up_only_what_is_not_in_use() -> None:
    table = Reservations(IPv4Network("10.0.0.0/29"))
    assert len(addresses.pool_of(IPv4Network("10.0.0.0/29"))) == 5
    for number in range(5):
        table.reserve(f"02:00:00:00:00:0{number}")
    in_use = {f"02:00:00:00:00:0{number}" for number in range(1, 5)}
    table.reserve("02:00:00:00:00:09", in_use=in_use)
    assert "02:00:00:00:00:00" not in dict(table.items())
    with pytest.raises(Conflict, match="no free address"):
        table.reserve("02:00:00:00:00:0a", in_use=in_use | {"02:00:00:00:00:09"})


def test_a_reservation_another_port_claims_is_replaced() -> None:
    table = Reservations(SUBNET)
    first = table.reserve("02:00:00:00:00:01")
    assert table.reserve("02:00:00:00:00:01", avoid={str(first)}) != first


@given(st.text(max_size=200))
def test_no_lease_file_is_too_damaged_to_read(text: str) -> None:
    dnsmasq.parse_leases(text, now=0)
    dnsmasq.parse_hosts(text)


def test_leases_that_are_over_are_not_shown() -> None:
    text = "100 bc:24:11:00:00:01 10.0.0.5 * *\n300 bc:24:11:00:00:02 10.0.0.6 evil name 01:02\n"
    text += "0 bc:24:11:00:00:03 10.0.0.7 x *\nrubbish\n"
    assert dnsmasq.parse_leases(text, now=200) == {"BC:24:11:00:00:02": "10.0.0.6", "BC:24:11:00:00:03": "10.0.0.7"}


def test_dnsmasq_is_bound_to_the_bridge_and_serves_known_macs_only() -> None:
    files = DnsmasqFiles(Path("/run/x"), tag="t", bridge="vmbr0")
    text = dnsmasq.configuration(
        BridgeSettings(subnet=SUBNET, dns=False), files, user=("nobody", "nogroup"), pool_size=700
    )
    for line in ("interface=vmbr0", "except-interface=lo", "bind-interfaces", "port=0", "user=nobody"):
        assert line in text.splitlines()
    assert "dhcp-range=10.64.0.0,static,255.255.252.0,3600" in text
    assert "dns-server" not in text


@pytest.mark.parametrize(("mode", "user"), [(0o755, "nobody"), (0o700, "root")])
def test_dnsmasq_drops_to_nobody_where_nobody_can_reach_its_files(mode: int, user: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(mode)
        assert dnsmasq.user_for(Path(name))[0] == user


@pytest.mark.parametrize(
    ("values", "parameter"),
    [({"name": "a/b"}, "iface"), ({"subnet": IPv4Network("10.0.0.0/30")}, "cidr"), ({"mtu": 100}, "mtu")],
)
def test_bad_bridge_settings_are_refused_by_name(values: dict[str, object], parameter: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        BridgeSettings(**values)  # type: ignore[arg-type]  # wrong on purpose
    assert list(caught.value.errors) == [parameter]


def test_the_gateway_is_the_first_address() -> None:
    assert BridgeSettings(subnet=SUBNET).gateway == IPv4Address("10.64.0.1")
