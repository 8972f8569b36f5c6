"""A start that cannot succeed says why, naming the VM, and leaves no process and no directory."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.errors import HostError, Unsupported
from appliance.model.guest import NicSpec, VmDisk, VmResources, VmSpec
from appliance.model.volume import OpenedVolume, VolumeFormat
from appliance.qemu.engine import QemuEngine
from appliance.tasks import TaskScope
from tests.qemu.host import QemuHost, boot_spec, greeted, opened, qemu_host

pytestmark = pytest.mark.host

NIC = NicSpec(slot="net0", model="virtio", mac="BC:24:11:00:00:01", bridge="vmbr0")


async def refused(host: QemuHost, spec: VmSpec, resources: VmResources, match: str) -> None:
    """Start, expect the error, and look that nothing is left."""
    with pytest.raises(HostError, match=match) as caught:
        await host.start(spec, resources)
    assert "vm 100" in str(caught.value)
    assert not await asyncio.to_thread(host.paths().path.exists)
    assert list(await host.engine.running_ids()) == []


async def test_an_image_that_is_not_what_it_is_said_to_be() -> None:
    async with qemu_host() as host:
        disk = replace(host.disk(), format=VolumeFormat.QCOW2)
        await refused(host, boot_spec(), VmResources(disks={"virtio0": disk}), "not in qcow2 format")


async def test_a_missing_image_a_directory_and_a_volume_nobody_opened() -> None:
    async with qemu_host() as host:
        missing = OpenedVolume(volume_id=None, path=host.directory / "no", format=VolumeFormat.RAW, size_bytes=1)
        await refused(host, boot_spec(), VmResources(disks={"virtio0": missing}), "virtio0.*No such file")
        directory = replace(missing, path=host.directory)
        await refused(host, boot_spec(), VmResources(disks={"virtio0": directory}), "virtio0.*neither a file")
        await refused(host, boot_spec(), VmResources(), "virtio0: volume local:100/.* was not opened")


async def test_an_image_in_use_by_another_vm() -> None:
    async with qemu_host() as host:
        disk = VmResources(disks={"virtio0": host.disk()})
        await host.start(boot_spec(guest_id=101), disk)
        with pytest.raises(HostError, match=r"vm 100.*lock"):
            await host.start(boot_spec(), disk)
        assert list(await host.engine.running_ids()) == [101]


async def test_a_missing_tap_device_is_not_made() -> None:
    async with qemu_host() as host:
        spec = boot_spec(nics=(NIC,))
        disks = {"virtio0": host.disk()}
        await refused(
            host, spec, VmResources(disks=disks, taps={"net0": "no-such-tap"}), "net0: tap device no-such-tap"
        )
        await refused(host, spec, VmResources(disks=disks, taps={"net0": "lo"}), "net0: tap device lo")
        await refused(host, spec, VmResources(disks=disks), "net0: no tap device")


async def test_more_memory_than_there_is_address_space() -> None:
    async with qemu_host() as host:
        await refused(
            host, boot_spec(memory_mib=1 << 40), VmResources(disks={"virtio0": host.disk()}), "QEMU did not start"
        )


async def test_wrong_extra_arguments_are_quoted_in_qemus_own_words() -> None:
    async with qemu_host() as host:
        spec = boot_spec(extra_args=("-device", "warp-drive"))
        await refused(host, spec, VmResources(disks={"virtio0": host.disk()}), "warp-drive.*not a valid device")


async def test_a_run_directory_too_deep_for_sockets_is_refused_with_the_path() -> None:
    deep = Path(tempfile.gettempdir()) / ("d" * 90)
    scope = TaskScope("test")
    engine = QemuEngine(deep, scope, SystemClock())
    await engine.probe()
    with pytest.raises(HostError, match=r"vm 100: socket path .* the limit is 107"):
        await engine.start(boot_spec(), VmResources(), on_state=lambda *_: None, log=lambda _: None)
    assert not await asyncio.to_thread(deep.exists)
    await engine.close()
    await scope.close()


async def test_kvm_is_refused_where_only_its_device_node_is() -> None:
    async with qemu_host() as host:
        if "kvm" in (await host.engine.probe()).available:
            pytest.skip("this host has KVM")
        with pytest.raises(Unsupported, match=r"vm 100: KVM is asked for and not usable"):
            await host.start(boot_spec(accelerator="kvm"))


async def test_names_serials_and_paths_cannot_become_options() -> None:
    async with qemu_host() as host:
        evil = 'x,file=/etc/shadow,,id="y"\',\\ -monitor stdio'
        source = host.disk(name=f"a,b{evil[:20].replace('/', '_')}.raw")
        disks = (
            VmDisk(slot="virtio0", volume="local:a", serial="a,drive=b"),
            VmDisk(slot="scsi1", volume="local:b", serial='",\\'),
            VmDisk(slot="ide2", volume=None, cdrom=True),
            VmDisk(slot="sata0", volume="local:c", cdrom=True),
        )
        second, third = host.disk(name="b,,b.raw"), host.disk(name='c".iso')
        resources = VmResources(disks={"virtio0": source, "scsi1": second, "sata0": third})
        vm = await host.start(boot_spec(name=evil, disks=disks), resources)
        argv = (await asyncio.to_thread(Path(f"/proc/{vm.pid}/cmdline").read_bytes)).split(b"\0")
        assert argv[argv.index(b"-name") + 1].endswith(b",debug-threads=on")
        said = await vm._monitor.execute("query-name")
        assert said == {"name": f"vm 100 {evil}"}


async def test_every_bus_and_controller_is_taken_by_qemu() -> None:
    async with qemu_host() as host:
        for controller, machine in (
            ("virtio-scsi-single", "q35"),
            ("lsi", "i440fx"),
            ("pvscsi", "q35"),
            ("megasas", "i440fx"),
        ):
            slots = (
                "virtio0",
                "virtio9",
                "scsi0",
                "scsi8" if controller != "lsi" else "scsi9",
                "ide0",
                "ide3",
                "sata5",
            )
            disks = tuple(
                VmDisk(
                    slot=slot, volume=f"local:{slot}", cache=cache, iothread=True, ssd=True, discard=True, serial=slot
                )
                for slot, cache in zip(
                    slots, ("none", "writeback", "writethrough", "directsync", "unsafe", "none", "none"), strict=True
                )
            )
            volumes = {slot: host.disk(name=f"{slot}.raw") for slot in slots}
            spec = boot_spec(
                disks=disks,
                machine=machine,
                scsi_controller=controller,
                rng=True,
                agent=True,
                balloon_min_mib=0,
                serials=(0, 1, 2, 3),
                display="virtio" if machine == "q35" else "cirrus",
                boot_order=("scsi0", "ide3"),
                vcpus=2,
                sockets=2,
                local_time=True,
                keyboard="de",
                acpi=machine == "q35",
                cpu_model="x86-64-v2-AES",
                cpu_flags=("+aes", "-pcid"),
            )
            vm = await host.start(spec, VmResources(disks=volumes))
            await vm.stop()


async def test_a_qcow2_chain_runs_over_its_backing_file() -> None:
    async with qemu_host() as host:
        base, top = host.disk(name="base.raw"), host.directory / "top.qcow2"
        create = ("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(base.path), str(top))
        assert await (await asyncio.create_subprocess_exec(*create)).wait() == 0
        volume = replace(opened(top, VolumeFormat.QCOW2), size_bytes=1 << 20)
        vm = await host.start(resources=VmResources(disks={"virtio0": volume}))
        await (await greeted(vm)).close()
        await vm.resize_disk("virtio0", 4 << 20)
