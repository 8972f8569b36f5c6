"""IPv6 of containers that the host addresses: fixed, or learned from a router's advertisements; nobody else's to use."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.errors import Conflict, InvalidParameter
from appliance.model.guest import GuestId, NicSpec
from appliance.network.backend import NetworkBackend
from appliance.services import ct_interfaces
from tests.network.lab import Guest, Lab

pytestmark = pytest.mark.host

A, B = GuestId(101), GuestId(102)
MAC_A, MAC_B = "BC:24:11:00:00:0A", "BC:24:11:00:00:0B"
ROUTER, FIXED = "2001:db8:1::1", "2001:db8:1::10"
LEARNED = "2001:db8:1:0:be24:11ff:fe00:a"
"""What MAC_A makes of the prefix (RFC 4291, appendix A)."""
LIMIT_S = 20.0


def nic(mac: str = MAC_A, **changes: object) -> NicSpec:
    values: dict[str, object] = {"slot": "net0", "model": "veth", "mac": mac, "bridge": "lan", "name": "eth0"}
    return NicSpec(**(values | {"host_managed": True} | changes))  # type: ignore[arg-type]  # fields of a test's own NIC


@pytest.fixture
async def lan(lab: Lab, backend: NetworkBackend, tmp_path: Path) -> AsyncIterator[NetworkBackend]:
    """A bridge of somebody else's, with a router on it that advertises a prefix and itself; the started backend."""
    lab.run("ip", "link", "add", "lan", "address", "02:00:00:00:00:01", "type", "bridge")
    lab.run("ip", "address", "add", f"{ROUTER}/64", "dev", "lan", "nodad")
    lab.run("ip", "link", "set", "lan", "up")
    lab.run("sysctl", "-q", "net.ipv6.conf.all.forwarding=1")
    router = subprocess.Popen(
        [
            *("ip", "netns", "exec", lab.name, "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0"),
            *("--interface=lan", "--bind-interfaces", "--enable-ra", "--dhcp-range=2001:db8:1::,ra-only,64"),
            *(f"--dhcp-leasefile={tmp_path / 'leases'}", "--user=root"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    await backend.start()
    yield backend
    router.terminate()
    await asyncio.to_thread(router.wait)


def has(guest: Guest, address: str) -> bool:
    return any(
        f" {address}/" in line and "tentative" not in line for line in guest.run("ip", "-6", "-o", "a").splitlines()
    )


async def reaches(guest: Guest, address: str) -> None:
    """Wait until it has this address."""
    async with asyncio.timeout(LIMIT_S):
        while not await asyncio.to_thread(has, guest, address):
            await asyncio.sleep(0.1)


async def test_a_fixed_address_can_be_used_at_once_and_the_way_out_is_set(lab: Lab, lan: NetworkBackend) -> None:
    guest = lab.guest()
    await lan.plug_ct(A, nic(ip="192.0.2.10/24", ip6=f"{FIXED}/64", gateway6=ROUTER), guest.netns)
    assert has(guest, FIXED)
    assert f"default via {ROUTER} dev eth0" in guest.run("ip", "-6", "route")
    assert guest.can_ping(ROUTER)
    rows = {row["name"]: row for row in await ct_interfaces.interfaces(guest.pid)}
    assert (rows["eth0"]["inet"], rows["eth0"]["inet6"]) == ("192.0.2.10/24", f"{FIXED}/64")
    assert not has(guest, LEARNED)


async def test_a_gateway_outside_the_prefix_is_reached_on_the_link(lab: Lab, lan: NetworkBackend) -> None:
    guest = lab.guest()
    lab.run("ip", "address", "add", "fe80::1/64", "dev", "lan", "nodad")
    await lan.plug_ct(A, nic(ip6="2001:db8:2::10/128", gateway6="fe80::1"), guest.netns)
    lab.run("ip", "-6", "route", "add", "2001:db8:2::10/128", "dev", "lan")
    assert guest.can_ping(ROUTER)


async def test_an_address_and_the_way_out_are_learned_from_the_router(lab: Lab, lan: NetworkBackend) -> None:
    guest = lab.guest()
    guest.run("sysctl", "-q", "net.ipv6.conf.all.forwarding=1")  # as where it runs containers of its own
    await lan.plug_ct(A, nic(ip6="auto"), guest.netns)
    await reaches(guest, LEARNED)
    assert guest.can_ping(ROUTER)
    assert "default via fe80::" in guest.run("ip", "-6", "route")
    row = next(row for row in await ct_interfaces.interfaces(guest.pid) if row["name"] == "eth0")
    addresses = row["ip-addresses"]
    assert isinstance(addresses, list)
    assert {"ip-address": LEARNED, "ip-address-type": "inet6", "prefix": 64} in addresses


async def test_a_fixed_address_is_its_ports_alone(lab: Lab, lan: NetworkBackend) -> None:
    owner, thief = lab.guest(), lab.guest()
    await lan.plug_ct(A, nic(ip6=f"{FIXED}/64"), owner.netns)
    with pytest.raises(Conflict, match=f"{FIXED} is in use by guest 101"):
        await lan.plug_ct(B, nic(MAC_B, ip6="2001:db8:1:0::0010/64"), thief.netns)
    await lan.plug_ct(B, nic(MAC_B, ip6="2001:db8:1::11/64"), thief.netns)
    assert thief.can_ping(ROUTER)
    thief.run("ip", "address", "add", f"{FIXED}/64", "dev", "eth0", "nodad")
    assert thief.cannot_ping(ROUTER, source=FIXED)
    owner.run("ip", "link", "set", "eth0", "down")  # and answers no more: the thief is alone to say that it has it
    lab.run("ip", "-6", "neighbour", "flush", "dev", "lan")
    assert not lab.can_ping(FIXED, within_s=2)
    owner.run("ip", "link", "set", "eth0", "up")
    owner.run("ip", "address", "replace", f"{FIXED}/64", "dev", "eth0", "nodad")
    lab.run("ip", "-6", "neighbour", "flush", "dev", "lan")
    assert lab.can_ping(FIXED)
    await lan.unplug(A)
    lab.run("ip", "-6", "neighbour", "flush", "dev", "lan")
    assert thief.can_ping(ROUTER, source=FIXED), "an address that no port owns is free"


async def test_claims_are_found_again_after_a_restart(lab: Lab, lan: NetworkBackend) -> None:
    guest = lab.guest()
    await lan.plug_ct(A, nic(ip6=f"{FIXED}/64"), guest.netns)
    before = lab.run("nft", "list", "ruleset")
    assert f'"veth101i0" . {FIXED}' in before
    await lan.close()
    await lan.start()
    assert f'"veth101i0" . {FIXED}' in lab.run("nft", "list", "ruleset")
    await lan.unplug(A)
    assert FIXED not in lab.run("nft", "list", "ruleset")


async def test_what_cannot_be_is_said(lab: Lab, lan: NetworkBackend) -> None:
    with pytest.raises(InvalidParameter, match="not an IPv6 address"):
        await lan.plug_ct(A, nic(ip6="192.0.2.1/24"), lab.guest().netns)
    assert "veth" not in lab.run("ip", "link")
