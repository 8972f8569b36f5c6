"""Hosts on one network: what tests do to them is what they notice."""

from __future__ import annotations

import pytest

from tests.lab.conftest import MakeCluster
from tests.lab.host import LabHost

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]


async def test_networks_power_and_disks_fail_as_they_do_in_reality(lab_cluster: MakeCluster) -> None:
    one, two = await lab_cluster(2)
    assert await _reaches(one, two)
    assert await _reaches(two, one)

    one.cut_network()
    assert not await _reaches(one, two)
    assert not await _reaches(two, one)
    one.mend_network()
    assert await _reaches(one, two)

    await two.pause()
    assert not await _reaches(one, two)
    await two.cont()
    assert await _reaches(one, two)

    await two.shell("echo kept >/root/synced; sync -f /root/synced; cat /etc/machine-id >/root/id", timeout_s=60)
    machine_id = await two.shell("cat /etc/machine-id", timeout_s=60)
    await two.power_off_hard()
    assert not two.running
    assert not await _reaches(one, two)
    await two.start()
    assert await two.shell("cat /root/synced /etc/machine-id", timeout_s=60) == f"kept\n{machine_id}"
    assert machine_id != await one.shell("cat /etc/machine-id", timeout_s=60)
    assert await _reaches(one, two)


async def test_an_expired_watchdog_restarts_a_host(lab_cluster: MakeCluster) -> None:
    (host,) = await lab_cluster(1)
    before = await host.shell("cat /proc/sys/kernel/random/boot_id", timeout_s=60)
    await host.shell("modprobe softdog soft_margin=2; (exec 3>/dev/watchdog; sleep 60) >/dev/null 2>&1 &", timeout_s=60)
    await host.booted()
    assert await host.shell("cat /proc/sys/kernel/random/boot_id", timeout_s=60) != before


async def _reaches(source: LabHost, target: LabHost) -> bool:
    argv = ["ping", "-n", "-c", "3", "-i", "0.5", "-W", "2", target.address]
    return (await source.run(argv, timeout_s=60, check=False)).returncode == 0
