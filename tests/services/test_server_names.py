"""The certificate names what clients type: lasting addresses of the host, none that comes and goes."""

from __future__ import annotations

import socket
from ipaddress import IPv4Interface, ip_interface

from appliance.kernel.rtnetlink import Link
from appliance.network.names import bridge_alias
from appliance.services import server_names

LINKS = [Link(index=1, name="lo"), Link(index=2, name="eth0"), Link(index=7, name="vmbr0", alias=bridge_alias("a1b2"))]
TABLE = """\
00000000000000000000000000000001 01 80 10 80       lo
fe80000000000000505400fffe123456 02 40 20 80     eth0
20010db8000000000000000000000010 02 40 00 80     eth0
20010db8000000001c2d3e4f50617283 02 40 00 01     eth0
20010db8000000000000000000000020 02 40 00 a0     eth0
"""


def test_addresses_of_hardware_are_named_and_those_of_our_bridge_are_not() -> None:
    addresses = [
        (1, IPv4Interface("127.0.0.1/8")), (2, IPv4Interface("192.0.2.10/24")), (2, ip_interface("2001:db8::10/64")),
        (2, IPv4Interface("169.254.3.4/16")), (7, IPv4Interface("10.9.0.1/24")),
    ]  # fmt: skip
    assert list(server_names.lasting_ipv4(LINKS, addresses)) == ["192.0.2.10"]


def test_of_ipv6_only_what_stays_is_named() -> None:
    assert list(server_names.lasting_ipv6(TABLE)) == ["2001:db8::10"]


def test_one_address_to_listen_on_is_one_address_to_name() -> None:
    assert server_names.of_this_host("n1", "192.0.2.10") == ["n1", socket.gethostname(), "192.0.2.10"]


def test_every_address_is_named_where_every_one_is_listened_on() -> None:
    names = server_names.of_this_host("n1", "0.0.0.0")
    assert names[0] == "n1"
    assert len(names) <= 3 + server_names.ADDRESS_LIMIT
    assert "127.0.0.1" not in names, "that one is always in it"
