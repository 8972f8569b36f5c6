"""What becomes of the network when the appliance is killed and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.model.guest import GuestId, NicSpec
from appliance.network.backend import NetworkBackend
from tests.network.lab import Lab

pytestmark = pytest.mark.host


def killed_while_guests_run(lab: Lab, run_dir: Path, pid: int, repository: Path) -> None:
    """An appliance that plugs both guests and dies by kill -9."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.network.killed_appliance", lab.name, str(run_dir), str(pid)],
        stdout=subprocess.PIPE,
        cwd=repository,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"plugged\n"
    process.stdout.close()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


async def test_ports_rules_and_dhcp_survive_a_killed_appliance_and_are_never_doubled(
    lab: Lab, backend: NetworkBackend, tmp_path: Path, repository: Path
) -> None:
    guest = lab.guest()
    killed_while_guests_run(lab, tmp_path, guest.pid, repository)
    (orphan,) = lab.dnsmasq_pids()
    first = guest.dhcp(tmp_path)
    assert "leased" in first, "DHCP goes on without the appliance"

    state = await backend.start()
    async with asyncio.timeout(30):
        while not (pids := lab.dnsmasq_pids()):
            await asyncio.sleep(0.01)
    assert len(pids) == 1
    assert pids != {orphan}
    assert first.split("leased ")[1] == guest.dhcp(tmp_path).split("leased ")[1]
    guest.run("ip", "link", "set", "eth0", "address", "bc:24:11:66:66:66")
    assert guest.cannot_ping(str(state.settings.gateway)), "the firewall still guards the port"

    assert lab.interfaces() == {"vmbr0", "veth101i0", "tap102i0"}
    await backend.unplug(GuestId(101))
    assert lab.interfaces() == {"vmbr0", "tap102i0"}
    await backend.teardown()
    assert lab.interfaces() == set()
    assert lab.dnsmasq_pids() == set()
    assert lab.sysctl("net.ipv4.ip_forward") == "0"


async def test_teardown_alone_removes_what_a_killed_appliance_left(
    lab: Lab, backend: NetworkBackend, tmp_path: Path, repository: Path
) -> None:
    killed_while_guests_run(lab, tmp_path, lab.guest().pid, repository)
    await backend.teardown()
    assert lab.interfaces() == set()
    assert lab.tables() == ""
    assert lab.dnsmasq_pids() == set()


async def test_a_port_that_was_never_finished_is_removed_at_the_next_start(lab: Lab, backend: NetworkBackend) -> None:
    await backend.start()
    await backend.plug_vm(GuestId(101), NicSpec(slot="net0", model="virtio", mac="BC:24:11:00:00:0A", bridge="vmbr0"))
    await backend.close()
    lab.run("ip", "link", "set", "tap101i0", "alias", "")
    await backend.start()
    assert lab.interfaces() == {"vmbr0"}
