"""A container without a DHCP client, on a bridge with somebody else's server: the host asks, and tells it who resolves names."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.model.application import Application
from appliance.model.guest import CtResources, CtSpec, GuestId, NicSpec
from appliance.network.backend import NetworkBackend
from appliance.tasks import TaskScope
from tests.ct.conftest import SPEC, Host, opening
from tests.network.lab import Lab

pytestmark = pytest.mark.host

NIC = NicSpec(
    slot="net0",
    model="veth",
    mac="BC:24:11:00:00:0A",
    bridge="lan",
    name="eth0",
    ip="dhcp",
    host_managed=True,
)
PROGRAM = Application(image="docker.io/library/x:1")
LIMIT_S = 20.0


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[NetworkBackend]:
    """In a network namespace of its own, with a server on the bridge `lan`."""
    scope = TaskScope("network")
    with Lab() as lab:
        lab.run("ip", "link", "add", "lan", "type", "bridge")
        lab.run("ip", "address", "add", "192.0.2.1/24", "dev", "lan")
        lab.run("ip", "link", "set", "lan", "up")
        server = await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", lab.name, "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0"),
            *("--interface=lan", "--bind-interfaces", "--user=root", "--dhcp-range=192.0.2.70,192.0.2.79,120"),
            *("--dhcp-option=6,192.0.2.53", f"--dhcp-leasefile={tmp_path / 'leases'}"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        backend = NetworkBackend(tmp_path, scope, SystemClock(), instance="t2", netns=lab.name)
        await backend.start()
        yield backend
        await backend.teardown()
        await backend.close()
        await scope.close()
        server.terminate()
        await server.wait()


@pytest.mark.skipif(shutil.which("dhcpcd", path="/usr/sbin:/sbin") is None, reason="dhcpcd is not installed")
@pytest.mark.parametrize(
    "spec", [SPEC, replace(SPEC, application=PROGRAM)], ids=["a system's container", "an application's"]
)
async def test_its_address_and_its_name_servers_are_the_servers(
    host: Host, network: NetworkBackend, spec: CtSpec
) -> None:
    learned = asyncio.Event()
    network.on_learned(lambda guest_id: learned.set())

    async def connect(namespace: Path) -> None:
        await network.plug_ct(GuestId(101), NIC, namespace)

    guest = await host.engine.start(
        spec,
        CtResources(open=opening({"rootfs": host.volume}), connect=connect),
        on_state=host.on_state,
        log=lambda line: None,
    )
    async with asyncio.timeout(LIMIT_S):
        await learned.wait()
    await guest.renew_resolver(network.learned_resolvers(GuestId(101)), "example.org")
    said = (await guest.execute(["/bin/cat", "/etc/resolv.conf", "/proc/net/fib_trie"], timeout_s=10)).text
    assert "search example.org\nnameserver 192.0.2.53\n" in said
    assert " 192.0.2.7" in said
    await guest.stop()
    await network.unplug(GuestId(101))
