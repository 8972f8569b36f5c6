"""`kill -9` of the appliance disturbs no guest, and the next start finds everything again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Appliance

pytestmark = [pytest.mark.host, pytest.mark.timeout(240)]

VM, CT = 100, 101


@pytest.fixture
def crashed(busybox_template: Path) -> Iterator[tuple[Appliance, dict[str, int]]]:
    """An appliance that was killed with a VM and a container running, and started again; their pids before."""
    with Appliance() as appliance:
        api = appliance.api()
        node = appliance.node(api)
        template = appliance.upload(api, busybox_template, "vztmpl", "busybox_1_amd64.tar.gz")
        net = f"bridge={appliance.bridge}"
        appliance.finish(api, node.qemu.post(vmid=VM, memory=64, serial0="socket", vga="serial0", net0=f"virtio,{net}"))
        appliance.finish(
            api,
            node.lxc.post(
                vmid=CT, ostemplate=template, rootfs="local:0.1", memory=64, net0=f"name=eth0,{net},ip=manual"
            ),
        )
        for guest in (node.qemu(VM), node.lxc(CT)):
            appliance.finish(api, guest.status.start.post())
        with appliance.terminal(api, f"lxc/{CT}") as console:
            console.type("echo before-$((40+2))\n")
            console.wait_for("before-42", timeout_s=60)
        pids = {row["id"]: node(row["id"]).status.current.get()["pid"] for row in api.cluster.resources.get(type="vm")}
        running = node.qemu(VM).status.shutdown.post(timeout=60)
        assert node.tasks(running).status.get()["status"] == "running"
        appliance.kill()
        appliance.start()
        yield appliance, pids
        api = appliance.api()
        for guest in (appliance.node(api).qemu(VM), appliance.node(api).lxc(CT)):
            appliance.finish(api, guest.status.stop.post())


def test_guests_consoles_and_tasks_survive_a_killed_appliance(crashed: tuple[Appliance, dict[str, int]]) -> None:
    appliance, pids = crashed
    api = appliance.api()
    node = appliance.node(api)
    now = {row["id"]: node(row["id"]).status.current.get() for row in api.cluster.resources.get(type="vm")}
    assert {name: status["status"] for name, status in now.items()} == {f"qemu/{VM}": "running", f"lxc/{CT}": "running"}
    assert {name: status["pid"] for name, status in now.items()} == pids
    for pid in pids.values():
        os.kill(pid, 0)
    with appliance.terminal(api, f"lxc/{CT}") as console:
        console.wait_for("before-42", timeout_s=60)  # history from before the crash
        console.type("echo after-$((40+2))\n")
        console.wait_for("after-42", timeout_s=60)
    with appliance.terminal(api, f"qemu/{VM}") as console:
        console.wait_for("SeaBIOS", timeout_s=60)
    tasks = node.tasks.get(limit=100)
    interrupted = [task for task in tasks if task["type"] == "qmshutdown"]
    assert len(interrupted) == 1
    assert "interrupted" in interrupted[0]["status"]
    assert all(task.get("status") for task in tasks), "no task may still look running"


def test_an_orderly_end_with_nothing_running_leaves_nothing_on_the_host(busybox_template: Path) -> None:
    with Appliance() as appliance:
        api = appliance.api()
        node = appliance.node(api)
        template = appliance.upload(api, busybox_template, "vztmpl", "busybox_1_amd64.tar.gz")
        net0 = f"name=eth0,bridge={appliance.bridge},ip=manual"
        upid = node.lxc.post(vmid=CT, ostemplate=template, rootfs="local:0.1", memory=64, net0=net0, start=1)
        appliance.finish(api, upid)
        kinds = {line.partition(":")[0] for line in appliance.traces()}
        assert {"process", "mount", "cgroup", "link", "nft table", "loop device"} <= kinds
        appliance.finish(api, node.lxc(CT).status.stop.post())
    assert appliance.lasting_traces() == []
