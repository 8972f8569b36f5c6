"""Addresses from a DHCP server on somebody else's bridge, for a container that the host addresses: had, kept, given back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from appliance.errors import Unsupported
from appliance.kernel import ns
from appliance.model.guest import GuestId, NicSpec
from appliance.network import dhcp_process
from appliance.network.backend import NetworkBackend
from tests.network.lab import Guest, Lab

pytestmark = pytest.mark.host

A = GuestId(101)
MAC = "BC:24:11:00:00:0A"
ROUTER4, ROUTER6 = "192.0.2.1", "2001:db8:1::1"
GIVEN4, GIVEN6 = "192.0.2.77", "2001:db8:1::77"
LIMIT_S = 20.0
LEASE_S = 120


def nic(**changes: object) -> NicSpec:
    values: dict[str, object] = {"slot": "net0", "model": "veth", "mac": MAC, "bridge": "lan", "name": "eth0"}
    return NicSpec(**(values | {"host_managed": True} | changes))  # type: ignore[arg-type]  # fields of a test's own NIC


class Server:
    """dnsmasq on the lab's bridge `lan`; it gives MAC the addresses above, with a router and name servers."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self._lab, self._log, self.leases = lab, directory / "server.log", directory / "leases"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        """Begin to answer."""
        argv = [
            *("ip", "netns", "exec", self._lab.name, "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0"),
            *("--interface=lan", "--bind-interfaces", "--enable-ra", "--user=root", "--log-dhcp"),
            f"--dhcp-range=192.0.2.70,192.0.2.79,{LEASE_S}",
            f"--dhcp-range=2001:db8:1::70,2001:db8:1::7f,64,{LEASE_S}",
            f"--dhcp-host={MAC},{GIVEN4},[::77]",
            *(f"--dhcp-leasefile={self.leases}", f"--log-facility={self._log}"),
            *(options or ("--dhcp-option=6,192.0.2.53", "--dhcp-option=option6:dns-server,[2001:db8:1::53]")),
        ]
        self._process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        """Answer no more."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def log(self) -> str:
        """What it did."""
        return self._log.read_text() if self._log.exists() else ""


@pytest.fixture
async def server(lab: Lab, backend: NetworkBackend, tmp_path: Path) -> AsyncIterator[Server]:
    """A bridge of somebody else's with a server on it; the backend is started."""
    lab.run("ip", "link", "add", "lan", "address", "02:00:00:00:00:01", "type", "bridge")
    lab.run("ip", "address", "add", f"{ROUTER4}/24", "dev", "lan")
    lab.run("ip", "address", "add", f"{ROUTER6}/64", "dev", "lan", "nodad")
    lab.run("ip", "link", "set", "lan", "up")
    lab.run("sysctl", "-q", "net.ipv6.conf.all.forwarding=1")
    server = Server(lab, tmp_path)
    server.start()
    await backend.start()
    yield server
    await asyncio.to_thread(server.stop)


@pytest.fixture
def confined(lab: Lab) -> Iterator[Guest]:
    """A guest whose network namespace belongs to a user namespace of its own, as an unprivileged container's."""
    made = ns.guest_namespaces(300000, 65536)
    entries = [f"--{kind if kind == 'user' else 'net'}={path}" for kind, path in made.paths.items()]
    guest = lab.guest(enter=("nsenter", *entries, "-S", "0", "-G", "0"))
    made.close()
    yield guest
    assert clients(guest) == set(), "a client was left behind"


def leader(guest: Guest) -> int:
    """The first process of the guest's one client; what it makes others for comes and goes."""
    (pid,) = (pid for pid in clients(guest) if os.getsid(pid) == pid)
    return pid


def bury(pids: set[int]) -> None:
    """As init does, once the appliance that started these is no more: here it is still there."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


async def until(rule: Callable[[], bool], what: str) -> None:
    """Wait until it is so."""
    try:
        async with asyncio.timeout(LIMIT_S):
            while not await asyncio.to_thread(rule):
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"never: {what}")


def has(guest: Guest, address: str) -> bool:
    lines = guest.run("ip", "-o", "address").splitlines()
    return any(f" {address}/" in line and "tentative" not in line for line in lines)


def remaining_s(guest: Guest) -> int:
    """How long its address is valid still."""
    lines = guest.run("ip", "-4", "address", "show", "eth0").splitlines()
    return int(next(line.split()[1] for line in lines if "valid_lft" in line).removesuffix("sec"))


def clients(guest: Guest) -> set[int]:
    """The processes of clients in the guest's network namespace."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text() == "dhcpcd\n" and os.stat(path.parent / "ns/net") == os.stat(guest.netns):
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


async def test_both_families_are_asked_for_and_kept(
    confined: Guest, lab: Lab, backend: NetworkBackend, server: Server
) -> None:
    await backend.plug_ct(A, nic(ip="dhcp", ip6="dhcp"), confined.netns)
    await until(lambda: has(confined, GIVEN4) and has(confined, GIVEN6), "both addresses")
    assert f"default via {ROUTER4} dev eth0" in confined.run("ip", "route")
    await until(lambda: "default via fe80::" in confined.run("ip", "-6", "route"), "the way out, from the router")
    assert confined.can_ping(ROUTER4)
    assert confined.can_ping(ROUTER6)
    row = next(line for line in confined.run("ip", "-o", "-4", "address", "show", "eth0").splitlines())
    assert "valid_lft" in row
    assert "forever" not in row, "an address that was given for a time ends with it"


async def test_the_client_is_root_of_the_container_only_and_unseen_by_it(
    confined: Guest, backend: NetworkBackend, server: Server
) -> None:
    await backend.plug_ct(A, nic(ip="dhcp"), confined.netns)
    await until(lambda: has(confined, GIVEN4), "the address")
    for pid in clients(confined):
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert int(status["Uid"].split()[0]) >= 300000
        assert not int(status["CapBnd"], 16) & (1 << 21), "CAP_SYS_ADMIN, even in the container"
        assert status["NoNewPrivs"].strip() == "1"
        assert not (Path(f"/proc/{pid}/root/run") / "systemd").exists()


async def test_a_container_without_a_user_namespace_has_a_client_too(
    lab: Lab, backend: NetworkBackend, server: Server
) -> None:
    guest = lab.guest()
    await backend.plug_ct(A, nic(ip="dhcp"), guest.netns)
    await until(lambda: has(guest, GIVEN4), "the address")
    await backend.unplug(A)
    assert clients(guest) == set()


async def test_each_family_is_asked_for_alone(confined: Guest, backend: NetworkBackend, server: Server) -> None:
    await backend.plug_ct(A, nic(ip="192.0.2.10/24", ip6="dhcp"), confined.netns)
    await until(lambda: has(confined, GIVEN6), "the address")
    assert has(confined, "192.0.2.10")
    assert "DHCPDISCOVER" not in server.log()
    solicited = server.log().count("DHCPSOLICIT")
    await backend.plug_ct(A, nic(ip="dhcp", ip6="2001:db8:1::10/64"), confined.netns)
    await until(lambda: has(confined, GIVEN4), "the address")
    assert has(confined, "2001:db8:1::10")
    assert server.log().count("DHCPSOLICIT") == solicited


async def test_with_the_port_the_addresses_are_given_back(
    confined: Guest, backend: NetworkBackend, server: Server, tmp_path: Path
) -> None:
    await backend.plug_ct(A, nic(ip="dhcp", ip6="dhcp"), confined.netns)
    await until(lambda: has(confined, GIVEN4) and has(confined, GIVEN6), "both addresses")
    await backend.unplug(A)
    await until(lambda: "DHCPRELEASE(lan) 192.0.2.77" in server.log(), "IPv4 given back")
    await until(lambda: "DHCPRELEASE(lan) 00:03:00:01" in server.log() or "release received" in server.log(), "IPv6")
    assert list((tmp_path / "network" / "dhcp").iterdir()) == []


async def test_name_servers_are_heard_of(confined: Guest, backend: NetworkBackend, server: Server) -> None:
    heard: list[GuestId] = []
    backend.on_learned(heard.append)
    await backend.plug_ct(A, nic(ip="dhcp", ip6="dhcp"), confined.netns)
    assert backend.learned_resolvers(A) == ()
    await until(lambda: len(backend.learned_resolvers(A)) == 2, "both name servers")
    assert backend.learned_resolvers(A) == ("192.0.2.53", "2001:db8:1::53")
    assert set(heard) == {A}
    await backend.unplug(A)
    assert backend.learned_resolvers(A) == ()


async def test_a_client_outlives_the_appliance_and_is_found_again(
    confined: Guest, backend: NetworkBackend, server: Server
) -> None:
    await backend.plug_ct(A, nic(ip="dhcp"), confined.netns)
    await until(lambda: has(confined, GIVEN4), "the address")
    before = leader(confined)
    await backend.close()
    await backend.start()
    await backend.reconcile({(A, "net0")})
    await until(lambda: backend.learned_resolvers(A) == ("192.0.2.53",), "what the earlier run learned")
    assert leader(confined) == before
    await backend.reconcile(set())
    assert clients(confined) == set()


async def test_a_client_whose_port_went_while_nobody_looked_is_ended(
    confined: Guest, lab: Lab, backend: NetworkBackend, server: Server
) -> None:
    await backend.plug_ct(A, nic(ip="dhcp"), confined.netns)
    await until(lambda: has(confined, GIVEN4), "the address")
    await backend.close()
    first = leader(confined)
    lab.run("ip", "link", "delete", "veth101i0")
    await backend.start()
    assert clients(confined) == set()
    await asyncio.to_thread(bury, {first})


@pytest.mark.parametrize("down", [False, True], ids=["while it looks", "while it is down"])
async def test_a_client_that_was_killed_is_started_again_and_has_the_same_address(
    confined: Guest, backend: NetworkBackend, server: Server, *, down: bool
) -> None:
    await backend.plug_ct(A, nic(ip="dhcp"), confined.netns)
    await until(lambda: has(confined, GIVEN4), "the address")
    first = clients(confined)
    if down:
        await backend.close()
    for pid in first:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    await until(lambda: not first & clients(confined), "their end")
    if down:
        await asyncio.to_thread(bury, first)
        await backend.start()
    await until(lambda: "DHCPACK" in server.log().partition("DHCPACK")[2], "a second acknowledgement")
    await until(lambda: has(confined, GIVEN4), "the address again")


async def test_a_server_that_comes_later_is_found(confined: Guest, backend: NetworkBackend, server: Server) -> None:
    server.stop()
    await backend.plug_ct(A, nic(ip="dhcp"), confined.netns)
    await until(lambda: len(clients(confined)) >= 3, "a client")
    server.start()
    await until(lambda: has(confined, GIVEN4), "the address")
    await backend.unplug(A)


async def test_a_lease_is_renewed_long_before_it_ends(confined: Guest, backend: NetworkBackend, server: Server) -> None:
    server.stop()
    server.start("--dhcp-option=option:T1,3")  # when the client is to ask for more time; half of the lease otherwise
    await backend.plug_ct(A, nic(ip="dhcp"), confined.netns)
    await until(lambda: has(confined, GIVEN4), "the address")
    looked_for, acknowledged = server.log().count("DHCPDISCOVER"), server.log().count("DHCPACK")
    await until(lambda: server.log().count("DHCPACK") >= acknowledged + 2, "two renewals")
    assert server.log().count("DHCPDISCOVER") == looked_for, "it was kept, not had anew"
    assert LEASE_S - 10 <= remaining_s(confined) <= LEASE_S


async def test_an_address_lives_no_longer_than_its_lease_without_its_client(
    confined: Guest, lab: Lab, backend: NetworkBackend, server: Server
) -> None:
    """The kernel itself counts down what dhcpcd set, so that an address is gone in time even with its client."""
    await backend.plug_ct(A, nic(ip="dhcp"), confined.netns)
    await until(lambda: has(confined, GIVEN4), "the address")
    assert 0 < remaining_s(confined) <= LEASE_S


async def test_what_cannot_be_is_said(
    lab: Lab, backend: NetworkBackend, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Unsupported, match="ip6=dhcp on the managed bridge vmbr0: it has no IPv6"):
        await backend.check(nic(bridge="vmbr0", ip6="dhcp"))
    monkeypatch.setattr(dhcp_process, "_PATH", "/nowhere")
    with pytest.raises(Unsupported, match="net0: ip=dhcp: the host has no DHCP client"):
        await backend.check(nic(ip="dhcp"))
    await backend.check(nic(ip6="auto"))
