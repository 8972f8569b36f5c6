"""Which data plane serves a disk, and what its device is told."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.errors import Conflict, Unsupported
from appliance.kernel.kvm_capabilities import KvmCapabilities
from appliance.model.guest import GuestId, VmDisk, VmSpec
from appliance.model.volume import OpenedVolume, VolumeFormat
from appliance.vmm.block.backend import CACHE_MODES
from appliance.vmm.block.disk import DiskOptions, chosen_plane, open_disk
from appliance.vmm.block.qsd import QsdImage, nodes
from appliance.vmm.refusal import HostFacts, reasons
from appliance.vmm.vhost.backend import DataPlane
from tests.fakes.machine import FakeMachine

RAW, QCOW2 = VolumeFormat.RAW, VolumeFormat.QCOW2
AUTO, PYTHON, OFFLOAD = DataPlane.AUTO, DataPlane.PYTHON, DataPlane.OFFLOAD


@pytest.mark.parametrize(
    ("volume_format", "wanted", "plane"),
    [
        (RAW, AUTO, PYTHON),
        (RAW, PYTHON, PYTHON),
        (RAW, OFFLOAD, OFFLOAD),
        (QCOW2, AUTO, OFFLOAD),
        (QCOW2, OFFLOAD, OFFLOAD),
    ],
)
def test_raw_images_are_served_in_python_unless_it_is_wanted_otherwise(
    volume_format: VolumeFormat, wanted: DataPlane, plane: DataPlane
) -> None:
    assert chosen_plane(volume_format, wanted, label="vm 101") is plane


@pytest.mark.parametrize(("volume_format", "wanted"), [(QCOW2, PYTHON), (VolumeFormat.SUBVOL, AUTO)])
def test_what_no_plane_can_serve_is_refused(volume_format: VolumeFormat, wanted: DataPlane) -> None:
    with pytest.raises(Unsupported, match="vm 101"):
        chosen_plane(volume_format, wanted, label="vm 101")


def test_a_disk_is_opened_as_its_guest_describes_it(machine: FakeMachine, tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(1 << 20))
    volume = OpenedVolume(volume_id=None, path=path, format=RAW, size_bytes=1 << 20)
    disk = VmDisk(slot="virtio3", volume="local:disk", cache="writethrough", discard=True, serial="S1")
    with closing(open_disk(machine.context, disk, volume, DiskOptions(run_dir=tmp_path, queues=64))) as device:
        assert device.name == "virtio3"
        assert device.data_plane == "python"
        assert device.size_bytes == 1 << 20
        assert len(device.queues) == 4
        assert device.read_config(32, 1) == 0
        with pytest.raises(Conflict, match="in use"):
            open_disk(machine.context, disk, volume, DiskOptions(run_dir=tmp_path))


def test_a_serial_number_that_would_not_be_shown_is_refused(machine: FakeMachine, tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(1 << 20))
    volume = OpenedVolume(volume_id=None, path=path, format=RAW, size_bytes=1 << 20)
    disk = VmDisk(slot="virtio3", volume="local:disk", serial="S1")
    with pytest.raises(Unsupported, match="virtio3: a serial number needs the data plane in Python"):
        open_disk(machine.context, disk, volume, DiskOptions(run_dir=tmp_path, data_plane=OFFLOAD))
    host = HostFacts(kvm=KvmCapabilities())
    spec = VmSpec(guest_id=GuestId(101), name="a", uuid="u", cpu_model="host")
    for changes in ({"data_plane": "offload", "disks": (disk,)}, {"disks": (replace(disk, volume="local:1.qcow2"),)}):
        assert any("serial number" in reason for reason in reasons(replace(spec, **changes), host))
    assert not any("serial number" in reason for reason in reasons(replace(spec, disks=(disk,)), host))


@pytest.mark.parametrize("mode", CACHE_MODES)
def test_the_daemon_is_told_the_cache_mode_of_both_nodes(mode: str) -> None:
    cache = CACHE_MODES[mode]
    for node in nodes(QsdImage(path=Path("/x,y.qcow2"), format="qcow2", cache=cache)):
        assert node["cache"] == {"direct": cache.direct, "no-flush": cache.ignore_flush}
        assert node["discard"] == "ignore"
