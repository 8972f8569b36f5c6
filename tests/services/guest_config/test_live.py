"""What a changed configuration means for a VM that runs: a table of before, after and the steps between."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from appliance.model.guest import NicSpec, VmDisk, VmSpec
from appliance.services import guest_config
from appliance.services.guest_config import Attach, Detach, SetLink

NIC = "virtio=BC:24:11:00:00:01,bridge=vmbr0"


def spec(config: Mapping[str, str]) -> VmSpec:
    return guest_config.to_vm_spec(100, config)


def devices(config: Mapping[str, str]) -> dict[str, VmDisk | NicSpec]:
    machine = spec(config)
    return {disk.slot: disk for disk in machine.disks} | {nic.slot: nic for nic in machine.nics}


def plan(before: Mapping[str, str], after: Mapping[str, str], **more: str) -> tuple[list[str], list[str]]:
    """Steps as words, and the slots that wait."""
    config = {**after, **more}
    made = guest_config.live_plan(
        {*before, *after}, devices(before), spec(config), kinds=guest_config.hotplug_kinds(config)
    )
    words = {Attach: "in", Detach: "out", SetLink: "link"}
    return [f"{words[type(step)]} {step.device.slot}" for step in made.steps], list(made.waiting)


def disk(number: int, options: str = "") -> str:
    return f"local:100/vm-100-disk-{number}.raw,size=1G{options}"


@pytest.mark.parametrize(
    ("before", "after", "steps"),
    [
        ({}, {"virtio1": disk(1)}, ["in virtio1"]),
        ({"virtio1": disk(1)}, {}, ["out virtio1"]),
        ({"virtio1": disk(1)}, {"virtio1": disk(2)}, ["out virtio1", "in virtio1"]),
        ({"virtio1": disk(1)}, {"scsi0": disk(1)}, ["out virtio1", "in scsi0"]),
        ({"virtio1": disk(1)}, {"virtio1": disk(1)}, []),
        ({"virtio1": disk(1)}, {"virtio1": disk(1).replace("size=1G", "size=2G")}, []),
        ({}, {"net0": NIC}, ["in net0"]),
        ({"net0": NIC}, {}, ["out net0"]),
        ({"net0": NIC}, {"net0": NIC + ",link_down=1"}, ["link net0"]),
        ({"net0": NIC}, {"net1": NIC}, ["out net0", "in net1"]),
        ({"net0": NIC}, {"net0": NIC.replace("00:01", "00:02")}, ["out net0", "in net0"]),
        ({"net0": NIC}, {"net0": NIC + ",queues=2"}, ["out net0", "in net0"]),
    ],
)
def test_what_comes_and_goes(before: dict[str, str], after: dict[str, str], steps: list[str]) -> None:
    assert plan(before, after) == (steps, [])


@pytest.mark.parametrize(
    ("before", "after", "waiting"),
    [
        ({"virtio1": disk(1)}, {"virtio1": disk(1, ",discard=on")}, "virtio1"),
        ({"net0": NIC}, {"net0": NIC.replace("vmbr0", "vmbr1")}, "net0"),
        ({}, {"ide2": "local:iso/debian.iso,media=cdrom"}, "ide2"),
        ({}, {"ide2": "local:100/vm-100-cloudinit.raw,media=cdrom"}, "ide2"),
    ],
)
def test_what_waits_for_the_next_start(before: dict[str, str], after: dict[str, str], waiting: str) -> None:
    assert plan(before, after) == ([], [waiting])


@pytest.mark.parametrize(
    ("hotplug", "steps"),
    [
        ("0", ["link net1"]),
        ("1", ["in net0", "link net1", "in virtio1"]),
        ("network", ["in net0", "link net1"]),
        ("disk,usb", ["link net1", "in virtio1"]),
    ],
)
def test_the_key_hotplug_says_what_may_be_plugged_and_a_cable_always_may(hotplug: str, steps: list[str]) -> None:
    after = {"virtio1": disk(1), "net0": NIC, "net1": NIC + ",link_down=1"}
    done, waiting = plan({"net1": NIC}, after, hotplug=hotplug)
    assert done == steps
    assert waiting == [slot for slot in ("net0", "virtio1") if f"in {slot}" not in steps]


def test_only_what_was_changed_is_looked_at() -> None:
    config = {"virtio1": disk(1), "virtio2": disk(2)}
    made = guest_config.live_plan({"virtio2", "cores"}, {}, spec(config), kinds=("disk",))
    assert [step.device.slot for step in made.steps] == ["virtio2"]
