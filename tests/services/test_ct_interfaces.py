"""Interfaces of a container in PVE's form."""

from __future__ import annotations

import os

import pytest

from appliance.services.ct_interfaces import interfaces, row


def test_an_interface_shows_its_first_addresses_and_all_of_them() -> None:
    link = {
        "ifname": "eth0", "address": "bc:24:11:00:00:01",
        "addr_info": [
            {"family": "inet", "local": "10.0.0.2", "prefixlen": 24}, {"family": "inet", "local": "10.0.0.3", "prefixlen": 24},
            {"family": "inet6", "local": "fe80::1", "prefixlen": 64}, {"family": "inet"},
        ],
    }  # fmt: skip
    shown = row(link)
    assert (shown["name"], shown["hwaddr"], shown["inet"], shown["inet6"]) == (
        "eth0", "bc:24:11:00:00:01", "10.0.0.2/24", "fe80::1/64",
    )  # fmt: skip
    assert shown["ip-addresses"] == [
        {"ip-address": "10.0.0.2", "ip-address-type": "inet", "prefix": 24},
        {"ip-address": "10.0.0.3", "ip-address-type": "inet", "prefix": 24},
        {"ip-address": "fe80::1", "ip-address-type": "inet6", "prefix": 64},
    ]


def test_an_interface_without_addresses_has_none() -> None:
    assert row({"ifname": "eth0"})["ip-addresses"] == []


@pytest.mark.host
async def test_the_namespace_of_a_process_is_read() -> None:
    rows = await interfaces(os.getpid())
    assert "lo" in {entry["name"] for entry in rows}
