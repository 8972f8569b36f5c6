"""A native machine through the public API and a real process: used, restarted with the appliance, lost with a kill."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from proxmoxer import ResourceException

from tests.harness import Appliance, TaskFailed

pytestmark = [pytest.mark.host, pytest.mark.timeout(240)]

VM = 700
ECHO = (
    bytes.fromhex(  # a boot sector: says R on COM1, keeps the last byte typed, says it when asked by "?"
        "fa 31c0 8ed8 baf803 b052 ee"  # cli; ds = 0; out COM1, 'R'
        "bafd03 ec a801 74f8"  # loop: until the line status says that a byte is there
        "baf803 ec 3c3f 7405 a20006 ebeb"  # read it; if it is no "?", keep it at 0x600 and loop
        "a00006 ee ebe5"  # say what is kept; loop
    ).ljust(510, b"\0")
    + b"\x55\xaa"
)


@pytest.fixture
def appliance() -> Iterator[Appliance]:
    with Appliance() as started:
        api = started.api()
        node = started.node(api)
        started.finish(
            api,
            node.qemu.post(
                vmid=VM, engine="native", memory=64, cpu="host", serial0="socket", vga="none", agent=1,
                virtio0="local:1,format=raw", net0=f"virtio,bridge={started.bridge}", rng0="source=/dev/urandom",
            ),
        )  # fmt: skip
        disk = next(started.data_dir.rglob(f"vm-{VM}-disk-0.raw"))
        with disk.open("r+b") as file:
            file.write(ECHO)
        yield started
        api = started.api()
        node = started.node(api)
        started.finish(api, node.qemu(VM).status.stop.post())
        started.finish(api, node.qemu(VM).delete())
        assert not list(started.data_dir.rglob(f"{VM}*.saved"))
        assert not (started.run_dir / "vmm" / str(VM)).exists()


def guest_of(appliance: Appliance) -> tuple[Any, Any]:
    api = appliance.api()
    return api, appliance.node(api).qemu(VM)


def started(appliance: Appliance) -> Any:
    """The guest, running and ready for input."""
    api, guest = guest_of(appliance)
    appliance.finish(api, guest.status.start.post())
    with appliance.terminal(api, f"qemu/{VM}") as console:
        console.wait_for("R", timeout_s=60)
    return guest


def own_pid(appliance: Appliance) -> int:
    assert appliance.process is not None
    return appliance.process.pid


def test_it_is_started_used_paused_and_reset_like_any_other(appliance: Appliance) -> None:
    guest = started(appliance)
    api = appliance.api()
    status = guest.status.current.get()
    assert status["status"] == "running"
    assert status["pid"] == own_pid(appliance), "it lives in the appliance's process"
    with appliance.terminal(api, f"qemu/{VM}") as console:
        console.type("A?")
        console.wait_for("A", timeout_s=30)
    appliance.finish(api, guest.status.suspend.post())
    assert guest.status.current.get()["qmpstatus"] == "paused"
    appliance.finish(api, guest.status.resume.post())
    appliance.finish(api, guest.status.reset.post())
    with appliance.terminal(api, f"qemu/{VM}") as console:
        console.wait_for("RA", timeout_s=60)
        console.wait_for(r"\.\.R", timeout_s=60)
    appliance.finish(api, guest.status.stop.post())
    appliance.finish(api, guest.config.post(delete="engine"))
    appliance.finish(api, guest.status.start.post())
    chosen_natively = guest.status.current.get()["pid"] == own_pid(appliance)
    assert chosen_natively != ("hardware virtualization" in appliance.log_tail(200_000)), "the host decides"


def test_an_orderly_restart_of_the_appliance_is_a_pause_to_it_and_a_kill_a_power_cut(appliance: Appliance) -> None:
    before = started(appliance).status.current.get()
    with appliance.terminal(appliance.api(), f"qemu/{VM}") as console:
        console.type("K")
    assert appliance.stop() == 0
    appliance.start()
    api, guest = guest_of(appliance)
    after = guest.status.current.get()
    assert after["status"] == "running"
    assert after["uptime"] >= before["uptime"]
    with appliance.terminal(api, f"qemu/{VM}") as console:
        console.type("?")
        console.wait_for("K", timeout_s=30)
    appliance.kill()
    appliance.start()
    assert guest_of(appliance)[1].status.current.get()["status"] == "stopped"
    assert started(appliance).status.current.get()["status"] == "running"


@pytest.mark.parametrize("engine", ["native", "qemu"])
def test_what_is_plugged_in_is_there_at_once_and_a_guest_that_does_not_let_go_of_it_is_told_of(
    appliance: Appliance, engine: str
) -> None:
    api, guest = guest_of(appliance)
    appliance.finish(api, guest.config.post(engine=engine))
    started(appliance)

    def waiting() -> set[str]:
        return {row["key"] for row in guest.pending.get() if {"pending", "delete"} & row.keys()}

    guest.config.put(virtio1="local:1,format=raw", net1=f"virtio,bridge={appliance.bridge}")
    assert waiting() == set()
    guest.config.put(hotplug="0", virtio2="local:1,format=raw")
    assert waiting() == {"virtio2"}
    with pytest.raises(ResourceException, match=r"virtio1.*hotplug problem.*letting go of it"):
        guest.config.put(hotplug="1", delete="virtio1")
    assert waiting() == {"virtio1", "virtio2"}
    assert "unused0" in guest.config.get()


def test_disks_of_a_running_machine_are_kept_and_backed_up(appliance: Appliance) -> None:
    api = appliance.api()
    node = appliance.node(api)
    other = {
        "engine": "native",
        "memory": 64,
        "cpu": "host",
        "serial0": "socket",
        "vga": "none",
        "virtio0": "local:0.01",
    }
    appliance.finish(api, node.qemu.post(vmid=701, **other))
    guest = node.qemu(701)
    image = next(appliance.data_dir.rglob("vm-701-disk-0.qcow2"))
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 64k", image], check=True, capture_output=True)
    appliance.finish(api, guest.status.start.post())
    appliance.finish(api, guest.snapshot.post(snapname="one"))
    with pytest.raises(TaskFailed, match="memory"):
        appliance.finish(api, guest.snapshot.post(snapname="two", vmstate=1))
    assert [row["name"] for row in guest.snapshot.get()] == ["one", "current"]
    appliance.finish(api, node.vzdump.post(vmid=701, storage="local", compress="zstd"))
    assert guest.status.current.get()["qmpstatus"] == "running"
    appliance.finish(api, guest.status.stop.post())
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 9 0 64k", image], check=True, capture_output=True)
    appliance.finish(api, guest.snapshot("one").rollback.post())
    (backup,) = node.storage("local").content.get(content="backup")
    appliance.finish(api, node.qemu.post(vmid=702, archive=backup["volid"], unique=1))
    for path in (image, next(appliance.data_dir.rglob("vm-702-disk-0.qcow2"))):
        read: list[str | Path] = ["qemu-io", "-f", "qcow2", "-c", "read -P 7 0 64k", path]
        assert b"failed" not in subprocess.run(read, check=True, capture_output=True).stdout
    for vmid in (701, 702):
        appliance.finish(api, node.qemu(vmid).delete())
