"""The managed bridge on a real kernel: DHCP, NAT, anti-spoofing, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
import tempfile
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.errors import Conflict, HostError, InvalidParameter, NotFound, Unsupported
from appliance.model.guest import GuestId, NicSpec
from appliance.model.network import BridgeSettings
from appliance.network.backend import NetworkBackend
from appliance.tasks import TaskScope
from tests.network.lab import WORLD_ADDRESS, Lab

pytestmark = pytest.mark.host

A, B = GuestId(101), GuestId(102)
MAC_A, MAC_B = "BC:24:11:00:00:0A", "BC:24:11:00:00:0B"


def nic(mac: str = MAC_A, **changes: object) -> NicSpec:
    values: dict[str, object] = {"slot": "net0", "model": "veth", "mac": mac, "bridge": "vmbr0", "name": "eth0"}
    return NicSpec(**(values | changes))  # type: ignore[arg-type]  # fields of a test's own NIC


async def test_a_container_gets_a_lease_and_reaches_the_world_through_nat(
    lab: Lab, backend: NetworkBackend, tmp_path: Path
) -> None:
    world, guest = lab.world(), lab.guest()
    state = await backend.start()
    await backend.plug_ct(A, nic(), guest.netns)
    said = guest.dhcp(tmp_path)
    leased = re.search(r"leased (\S+) router (\S+) dns (\S+)", said)
    assert leased, said
    assert leased[2] == leased[3] == str(state.settings.gateway)
    assert await backend.leases() == {MAC_A: leased[1]}
    assert guest.can_ping(WORLD_ADDRESS)
    assert world.cannot_ping(leased[1])
    received, sent = await backend.counters(A)
    assert received > 0
    assert sent > 0


async def test_a_guest_cannot_speak_with_a_strangers_mac_or_address(
    lab: Lab, backend: NetworkBackend, tmp_path: Path
) -> None:
    thief, owner = lab.guest(), lab.guest()
    state = await backend.start()
    gateway = str(state.settings.gateway)
    await backend.plug_ct(A, nic(), thief.netns)
    await backend.plug_ct(B, nic(MAC_B), owner.netns)
    assert "leased" in thief.dhcp(tmp_path)
    assert "leased" in owner.dhcp(tmp_path)
    theirs = (await backend.leases())[MAC_B]
    assert thief.can_ping(gateway)

    thief.run("ip", "address", "add", f"{theirs}/32", "dev", "eth0")
    assert thief.cannot_ping(gateway, source=theirs)
    thief.run("ip", "address", "del", f"{theirs}/32", "dev", "eth0")
    thief.run("busybox", "arping", "-U", "-c1", "-w1", "-I", "eth0", "-s", gateway, theirs, check=False)
    assert state.settings.gateway
    assert lab_mac_of(owner.run("ip", "neigh"), gateway) in (
        None,
        lab.run("cat", "/sys/class/net/vmbr0/address").strip(),
    )

    thief.run("ip", "link", "set", "eth0", "address", "bc:24:11:66:66:66")
    assert thief.cannot_ping(gateway)
    thief.run("ip", "link", "set", "eth0", "address", MAC_A.lower())
    assert thief.can_ping(gateway)


FRAGMENTED_RELEASE = """
import socket, struct, sys
own, theirs, server, mac = sys.argv[1:5]
pack = socket.inet_aton
message = struct.pack("!BBBBIHH", 1, 1, 6, 0, 7, 0, 0) + pack(theirs) + bytes(12) + bytes.fromhex(mac) + bytes(202)
message += bytes.fromhex("63825363350107") + b"\\x36\\x04" + pack(server) + b"\\xff"
datagram = struct.pack("!HHHH", 68, 67, 8 + len(message), 0) + message
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
for offset, more, part in ((0, 0x2000, datagram[:8]), (1, 0, datagram[8:])):
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(part), 77, more | offset, 64, 17, 0) + pack(own) + pack(server)
    raw.sendto(head + part, (server, 0))
"""


async def test_a_fragmented_request_cannot_give_up_a_strangers_lease(
    lab: Lab, backend: NetworkBackend, tmp_path: Path
) -> None:
    thief, owner = lab.guest(), lab.guest()
    gateway = str((await backend.start()).settings.gateway)
    await backend.plug_ct(A, nic(), thief.netns)
    await backend.plug_ct(B, nic(MAC_B), owner.netns)
    assert "leased" in thief.dhcp(tmp_path)
    assert "leased" in owner.dhcp(tmp_path)
    leases = await backend.leases()
    release = (sys.executable, "-c", FRAGMENTED_RELEASE, leases[MAC_A])
    thief.run(*release, leases[MAC_B], gateway, MAC_B.replace(":", ""))
    assert thief.can_ping(gateway)  # and so what was sent before has arrived
    assert await backend.leases() == leases


def lab_mac_of(neighbours: str, address: str) -> str | None:
    match = re.search(rf"^{re.escape(address)} .*lladdr (\S+)", neighbours, re.M)
    return match[1] if match else None


async def test_one_guest_cannot_take_more_than_its_own_lease(lab: Lab, backend: NetworkBackend, tmp_path: Path) -> None:
    guest = lab.guest()
    await backend.start()
    await backend.plug_ct(A, nic(), guest.netns)
    for client_id in ("01", "02", "03"):
        guest.dhcp(tmp_path, "-x", f"0x3d:{client_id}aabbcc")
    assert list(await backend.leases()) == [MAC_A]


async def test_a_static_address_belongs_to_its_port_alone(lab: Lab, backend: NetworkBackend) -> None:
    first, second = lab.guest(), lab.guest()
    state = await backend.start()
    assert state.settings.subnet is not None
    address = str(state.settings.subnet[10])
    await backend.plug_ct(A, nic(ip=f"{address}/22"), first.netns)
    with pytest.raises(Conflict, match="in use by guest 101"):
        await backend.plug_ct(B, nic(MAC_B, ip=f"{address}/22"), second.netns)
    assert lab.interfaces() == {"vmbr0", "veth101i0"}


async def test_a_vms_static_address_is_its_own_and_may_change_while_the_tap_stays(
    lab: Lab, backend: NetworkBackend
) -> None:
    guest = lab.guest()
    state = await backend.start()
    assert state.settings.subnet is not None
    first, second = (f"{state.settings.subnet[host]}" for host in (10, 11))
    for address in (first, second):
        await backend.plug_vm(A, nic(model="virtio", ip=f"{address}/22"))
        claims = lab.run("nft", "list", "ruleset")
        assert f'"tap101i0" . {address}' in claims
        with pytest.raises(Conflict, match="in use by guest 101"):
            await backend.plug_ct(B, nic(MAC_B, ip=f"{address}/22"), guest.netns)
    assert f'"tap101i0" . {first}' not in claims


async def test_no_guest_can_be_given_the_gateways_address(lab: Lab, backend: NetworkBackend) -> None:
    state = await backend.start()
    with pytest.raises(Conflict, match="is the gateway of bridge vmbr0"):
        await backend.plug_vm(A, nic(model="virtio", ip=f"{state.settings.gateway}/22"))
    assert lab.interfaces() == {"vmbr0"}


async def test_teardown_leaves_no_interface_table_process_or_setting(lab: Lab, backend: NetworkBackend) -> None:
    guest = lab.guest()
    before = lab.sysctl("net.ipv4.ip_forward")
    await backend.start()
    await backend.plug_ct(A, nic(rate_mbyte_s=5.0), guest.netns)
    await backend.plug_vm(B, nic(MAC_B, model="virtio"))
    assert lab.sysctl("net.ipv4.ip_forward") == "1"
    assert lab.interfaces() == {"vmbr0", "veth101i0", "tap102i0"}
    assert set(await backend.teardown()) == {"vmbr0", "veth101i0", "tap102i0"}
    assert lab.interfaces() == set()
    assert lab.tables() == ""
    assert lab.dnsmasq_pids() == set()
    assert lab.sysctl("net.ipv4.ip_forward") == before == "0"


async def test_closing_with_no_guest_removes_everything_and_with_one_keeps_it(
    lab: Lab, tmp_path: Path, backend: NetworkBackend
) -> None:
    await backend.start()
    await backend.close()
    assert lab.interfaces() == set()
    await backend.start()
    await backend.plug_vm(A, nic())
    await backend.close()
    assert lab.interfaces() == {"vmbr0", "tap101i0"}


async def test_unplug_is_complete_and_can_be_repeated(lab: Lab, backend: NetworkBackend) -> None:
    guest = lab.guest()
    await backend.start()
    await backend.plug_ct(A, nic(rate_mbyte_s=1.0), guest.netns)
    await backend.plug_ct(A, nic(MAC_B, slot="net1", name="lan"), guest.netns)
    assert "lan" in guest.run("ip", "link")
    for _ in range(2):
        await backend.unplug(A)
    assert lab.interfaces() == {"vmbr0"}
    assert "veth101" not in lab.run("nft", "list", "ruleset")


async def test_unplug_forgets_a_port_whose_container_has_gone(lab: Lab, backend: NetworkBackend) -> None:
    guest = lab.guest()
    await backend.start()
    await backend.plug_ct(A, nic(), guest.netns)
    guest.end()
    await backend.unplug(A)
    assert "veth101" not in lab.run("nft", "list", "ruleset")
    assert lab.interfaces() == {"vmbr0"}


async def test_a_tap_is_found_again_and_made_anew_when_its_queues_change(lab: Lab, backend: NetworkBackend) -> None:
    await backend.start()
    assert await backend.plug_vm(A, nic()) == "tap101i0"
    assert "inet6" not in lab.run("ip", "address", "show", "tap101i0"), "the host has no address on a guest's port"
    index = lab.run("cat", "/sys/class/net/tap101i0/ifindex")
    await backend.plug_vm(A, nic(link_down=True))
    assert lab.run("cat", "/sys/class/net/tap101i0/ifindex") == index
    assert "UP" not in lab.run("ip", "-o", "link", "show", "tap101i0").split(">")[0].split(",")
    await backend.plug_vm(A, nic(queues=2))
    assert lab.run("cat", "/sys/class/net/tap101i0/ifindex") != index


async def test_what_is_not_there_is_named(lab: Lab, backend: NetworkBackend) -> None:
    with pytest.raises(HostError, match="not been started"):
        await backend.check(nic())
    await backend.start()
    with pytest.raises(NotFound, match="bridge vmbr7 does not exist"):
        await backend.check(nic(bridge="vmbr7"))
    with pytest.raises(Unsupported, match="not a Linux bridge"):
        await backend.check(nic(bridge="lo"))
    with pytest.raises(InvalidParameter, match="not a name"):
        await backend.check(nic(bridge="../x"))
    with pytest.raises(InvalidParameter, match="unicast MAC"):
        await backend.check(nic("01:00:5e:00:00:01"))
    with pytest.raises(InvalidParameter, match="MTU 9000 is larger"):
        await backend.check(nic(mtu=9000))
    with pytest.raises(HostError, match="not a network namespace of its own"):
        await backend.plug_ct(A, nic(), lab.neighbour().netns)
    with pytest.raises(HostError, match="ended before"):
        await backend.plug_ct(A, nic(), Path("/proc/4194303/ns/net"))


async def test_a_vlan_tag_is_refused_where_the_kernel_has_no_filtering(lab: Lab, backend: NetworkBackend) -> None:
    await backend.start()
    if lab.run("cat", "/sys/class/net/vmbr0/bridge/vlan_filtering", check=False).strip() == "1":
        pytest.skip("this kernel has bridge VLAN filtering")
    with pytest.raises(Unsupported, match="VLAN tag 5"):
        await backend.check(nic(vlan=5))


async def test_a_foreign_interface_is_never_changed(lab: Lab, backend: NetworkBackend) -> None:
    lab.run("ip", "link", "add", "vmbr0", "type", "bridge")
    lab.run("ip", "link", "add", "tap102i0", "type", "veth", "peer", "name", "other")
    state = await backend.start()
    assert not state.managed
    assert lab.dnsmasq_pids() == set()
    await backend.plug_vm(A, nic())
    assert "master vmbr0" in lab.run("ip", "link", "show", "tap101i0")
    with pytest.raises(Conflict, match="tap102i0 exists and does not belong"):
        await backend.plug_vm(B, nic(MAC_B))
    await backend.teardown()
    assert lab.interfaces() == {"vmbr0", "tap102i0", "other"}
    assert "inet" not in lab.run("ip", "address", "show", "vmbr0")


async def test_settings_that_cannot_be_leave_the_guests_their_dhcp(lab: Lab, backend: NetworkBackend) -> None:
    before = await backend.start()
    with pytest.raises(Unsupported, match="no Linux bridge"):
        await backend.apply(replace(before.settings, name="lo"))
    async with asyncio.timeout(30):
        while not lab.dnsmasq_pids():
            await asyncio.sleep(0.02)


async def test_dnsmasq_is_started_again_when_it_dies(lab: Lab, backend: NetworkBackend, tmp_path: Path) -> None:
    guest = lab.guest()
    await backend.start()
    await backend.plug_ct(A, nic(), guest.netns)
    assert "leased" in guest.dhcp(tmp_path)
    (first,) = lab.dnsmasq_pids()
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(30):
        while not lab.dnsmasq_pids() - {first}:
            await asyncio.sleep(0.05)
    assert "leased" in await asyncio.to_thread(guest.dhcp, tmp_path)


async def test_a_second_appliance_is_told_whose_bridge_it_is(lab: Lab, backend: NetworkBackend, tmp_path: Path) -> None:
    await backend.start()
    await backend.plug_vm(A, nic())
    scope = TaskScope("second")
    same = NetworkBackend(tmp_path / "2", scope, SystemClock(), instance="t1", netns=lab.name)
    with pytest.raises(Conflict, match="another appliance of this instance"):
        await same.start()
    other = NetworkBackend(tmp_path / "3", scope, SystemClock(), instance="t2", netns=lab.name)
    with pytest.raises(Conflict, match="that runs here"):
        await other.start()
    with pytest.raises(HostError, match="that runs here"):
        await other.check(nic())
    await backend.close()
    with pytest.raises(Conflict, match="guests may still run"):
        await other.start()
    lab.run("ip", "link", "delete", "tap101i0")
    assert (await other.start()).managed
    for each in (same, other):
        await each.close()
    await scope.close()


async def test_settings_can_be_changed_while_guests_run(lab: Lab, backend: NetworkBackend, tmp_path: Path) -> None:
    guest = lab.guest()
    await backend.start()
    await backend.plug_ct(A, nic(), guest.netns)
    state = await backend.apply(BridgeSettings(subnet=IPv4Network("10.200.0.0/24"), dns=False))
    assert str(state.settings.gateway) == "10.200.0.1"
    await backend.plug_vm(B, nic(MAC_B))
    addresses = re.findall(r"inet (\S+)", lab.run("ip", "address", "show", "vmbr0"))
    assert addresses == ["10.200.0.1/24"]


async def test_ports_of_guests_that_do_not_run_are_removed(lab: Lab, backend: NetworkBackend) -> None:
    await backend.start()
    await backend.plug_vm(A, nic())
    await backend.plug_vm(B, nic(MAC_B))
    assert await backend.reconcile({(A, "net0")}) == ["tap102i0"]
    assert lab.interfaces() == {"vmbr0", "tap101i0"}
    assert "tap102" not in lab.run("nft", "list", "ruleset")


async def test_the_cable_of_a_port_can_be_pulled(lab: Lab, backend: NetworkBackend, tmp_path: Path) -> None:
    guest = lab.guest()
    state = await backend.start()
    await backend.plug_ct(A, nic(link_down=True), guest.netns)
    assert "NO-CARRIER" in guest.run("ip", "link", "show", "eth0")
    await backend.set_link(A, "net0", up=True)
    assert "leased" in guest.dhcp(tmp_path)
    assert guest.can_ping(str(state.settings.gateway))
    await backend.set_link(A, "net0", up=False)
    assert guest.cannot_ping(str(state.settings.gateway))
    with pytest.raises(NotFound, match="port net1"):
        await backend.set_link(A, "net1", up=False)


async def test_a_rate_limits_both_directions(lab: Lab, backend: NetworkBackend) -> None:
    await backend.start()
    await backend.plug_vm(A, nic(rate_mbyte_s=2.0))
    assert "rate 16777Kbit" in lab.run("tc", "qdisc", "show", "dev", "tap101i0")
    assert "rate over 2 mbytes/second" in lab.run("nft", "list", "limits")
    await backend.plug_vm(A, nic())
    assert "tbf" not in lab.run("tc", "qdisc", "show", "dev", "tap101i0")
    assert "rate over" not in lab.run("nft", "list", "limits")


async def test_dnsmasq_serves_without_privileges_where_its_files_can_be_reached(lab: Lab, tmp_path: Path) -> None:
    directory = Path(tempfile.mkdtemp(prefix=lab.name))
    directory.chmod(0o711)
    scope = TaskScope("unprivileged")
    backend = NetworkBackend(directory, scope, SystemClock(), instance="t3", netns=lab.name)
    try:
        await backend.start()
        for guest_id, mac in ((A, MAC_A), (B, MAC_B)):
            guest = lab.guest()
            await backend.plug_ct(guest_id, nic(mac), guest.netns)
            assert "leased" in guest.dhcp(tmp_path)
        (pid,) = lab.dnsmasq_pids()
        assert Path(f"/proc/{pid}").stat().st_uid != 0
    finally:
        await backend.teardown()
        await backend.close()
        await scope.close()
        shutil.rmtree(directory)
