"""Disks and NICs come to a native guest that runs, and go when it lets go of them; what it has is what is saved."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.errors import Conflict, HostError, NotFound, TimedOut, Unsupported
from appliance.kernel import tuntap
from appliance.model.guest import GuestId, NicSpec, VmDisk, VmSpec
from appliance.vmm import vm as vm_module
from appliance.vmm.block.qsd import QsdBlk
from appliance.vmm.engine import NativeEngine
from appliance.vmm.saved_files import SavedFiles
from appliance.vmm.vm import NativeVm
from tests.kvm import plug_guest
from tests.kvm.native import Console, native_engine, native_vm, raw

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("kvm"), pytest.mark.timeout(240)]

SPEC = VmSpec(
    guest_id=GuestId(100),
    name="plugs",
    uuid="3f2504e0-4f89-41d3-9a0c-0305e82c3301",
    engine="native",
    cpu_model="host",
    memory_mib=64,
    serials=(0,),
    display="none",
    kernel="local:kernel",
    disks=(VmDisk(slot="virtio0", volume="local:100/virtio0.raw"),),
)
NIC = NicSpec(slot="net1", model="virtio", mac="BC:24:11:00:00:01", bridge="vmbr0")
TAP = f"plug{os.getpid() % 10**8}"


@pytest.fixture
def tap() -> Iterator[str]:
    """A persistent tap, as the network layer makes them."""
    with tuntap.new_tap(TAP, multi_queue=False) as made:
        made.persist()
    yield TAP
    subprocess.run(["ip", "link", "delete", TAP], check=True, timeout=20)


@asynccontextmanager
async def started(
    directory: Path, *, data_plane: str = "auto"
) -> AsyncIterator[tuple[NativeEngine, NativeVm, Console]]:
    async with native_engine(directory) as engine:
        kernel, first = plug_guest.write_kernel(directory / "kernel"), image(directory / "first.raw")
        async with native_vm(engine, replace(SPEC, data_plane=data_plane), {"kernel": kernel, "virtio0": first}) as vm:
            console = await Console.of(vm)
            await console.until(b"R")
            yield engine, vm, console


def disk(slot: str) -> VmDisk:
    return VmDisk(slot=slot, volume=f"local:100/{slot}.raw")


def image(path: Path) -> Path:
    path.write_bytes(bytes(1 << 20))
    return path


async def test_a_disk_is_plugged_in_and_the_guest_lets_go_of_it(tmp_path: Path) -> None:
    async with started(tmp_path) as (_, vm, console):
        second = raw(image(tmp_path / "second.raw"))
        await vm.attach_disk(disk("virtio1"), second)
        await console.until(b"U")
        assert vm.attached.keys() == {"virtio0", "virtio1"}
        await vm.detach_disk("virtio1")
        await console.until(b"E")
        assert vm.attached.keys() == {"virtio0"}
        await vm.attach_disk(disk("virtio2"), second)  # nobody has it any more
        await console.until(b"U")
        assert vm.attached["virtio2"] == disk("virtio2")


async def test_an_image_that_a_daemon_served_is_free_when_the_guest_has_let_go_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_back, free = QsdBlk.give_back, list[str]()

    def slowly(device: QsdBlk) -> None:
        time.sleep(0.3)
        give_back(device)
        free.append(device.name)

    monkeypatch.setattr(QsdBlk, "give_back", slowly)
    async with started(tmp_path, data_plane="offload") as (_, vm, console):
        second = raw(image(tmp_path / "second.raw"))
        for slot in ("virtio1", "virtio2", "virtio3"):
            await vm.attach_disk(disk(slot), second)
            await console.until(b"U")
            await vm.detach_disk(slot)
            assert free[-1:] == [slot]
        assert vm.attached.keys() == {"virtio0"}


async def test_a_nic_is_plugged_in_and_the_guest_lets_go_of_it(tmp_path: Path, tap: str) -> None:
    async with started(tmp_path) as (_, vm, console):
        for _ in range(2):  # the second time shows that the tap was let go
            await vm.attach_nic(NIC, tap)
            await console.until(b"U")
            await vm.set_link("net1", up=False)
            assert vm.attached["net1"] == replace(NIC, link_down=True)
            await vm.detach_nic("net1")
            await console.until(b"E")
            assert vm.attached.keys() == {"virtio0"}


async def test_what_cannot_be_plugged_in_changes_nothing(tmp_path: Path) -> None:
    async with started(tmp_path) as (_, vm, console):
        second = raw(image(tmp_path / "second.raw"))
        with pytest.raises(Conflict, match="vm 100: virtio0 is there already"):
            await vm.attach_disk(disk("virtio0"), second)
        with pytest.raises(Unsupported, match="vm 100: scsi1: bus 'scsi'"):
            await vm.attach_disk(disk("scsi1"), second)
        with pytest.raises(Conflict, match=r"first\.raw"):
            await vm.attach_disk(disk("virtio1"), raw(tmp_path / "first.raw"))
        with pytest.raises(HostError, match="no-such-tap"):
            await vm.attach_nic(NIC, "no-such-tap")
        assert vm.attached.keys() == {"virtio0"}
        await vm.attach_disk(disk("virtio1"), second)
        await console.until(b"U")


async def test_a_guest_that_does_not_let_go_keeps_its_disk_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(tmp_path) as (_, vm, console):
        await vm.attach_disk(disk("virtio1"), raw(image(tmp_path / "second.raw")))
        await console.until(b"U")
        monkeypatch.setattr(vm_module, "EJECT_TIMEOUT_S", 0.5)
        await console.type(plug_guest.STUBBORN)
        await console.until(plug_guest.STUBBORN)
        with pytest.raises(NotFound, match="disk virtio7"):
            await vm.detach_disk("virtio7")
        with pytest.raises(TimedOut, match="vm 100: virtio1: the guest letting go of it"):
            await vm.detach_disk("virtio1")
        assert "virtio1" in vm.attached
        await console.type(plug_guest.OBLIGING)
        await console.until(b"E")
        async with asyncio.timeout(20):
            while "virtio1" in vm.attached:
                await asyncio.sleep(0.05)


async def test_a_paused_guest_finds_what_was_plugged_in_and_cannot_let_go(tmp_path: Path) -> None:
    async with started(tmp_path) as (_, vm, console):
        await vm.pause()
        await vm.attach_disk(disk("virtio1"), raw(image(tmp_path / "second.raw")))
        with pytest.raises(Conflict, match="virtio1: the guest cannot let go of it: it is paused"):
            await vm.detach_disk("virtio1")
        await vm.resume()
        await console.until(b"U")


async def test_what_was_plugged_in_is_there_after_a_reset(tmp_path: Path) -> None:
    async with started(tmp_path) as (_, vm, console):
        await vm.attach_disk(disk("virtio2"), raw(image(tmp_path / "second.raw")))
        await console.until(b"U")
        await vm.reset()
        await console.until(b"R")


async def test_a_guest_saved_with_what_was_plugged_in_goes_on_with_it(tmp_path: Path, tap: str) -> None:
    second = image(tmp_path / "second.raw")
    async with started(tmp_path) as (_, vm, console):
        await vm.attach_disk(disk("virtio1"), raw(second))
        await console.until(b"U")
        await vm.attach_nic(NIC, tap)
        await console.until(b"U")
        await vm.detach()
    async with native_engine(tmp_path) as engine:
        again = await engine.adopt(SPEC, on_state=lambda state, reason: None)  # what the services know: no second disk
        assert again is not None
        assert again.attached == {"virtio0": disk("virtio0"), "virtio1": disk("virtio1"), "net1": NIC}
        console = await Console.of(again)
        await again.detach_disk("virtio1")
        await console.until(b"E")
        await again.stop()
        assert await engine.running_ids() == []


async def test_a_saved_guest_is_not_lost_when_taking_it_up_is_called_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(tmp_path) as (_, vm, _console):
        await vm.detach()
    removing, may_end = asyncio.Event(), threading.Event()
    loop, discard = asyncio.get_running_loop(), SavedFiles.discard

    def slowly(files: SavedFiles, guest_id: GuestId) -> None:
        loop.call_soon_threadsafe(removing.set)
        assert may_end.wait(20)
        discard(files, guest_id)

    monkeypatch.setattr(SavedFiles, "discard", slowly)
    async with native_engine(tmp_path) as engine:
        taking_up = asyncio.create_task(engine.adopt(SPEC, on_state=lambda state, reason: None))
        await removing.wait()
        taking_up.cancel()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await taking_up
        assert await engine.running_ids() == [SPEC.guest_id]
    async with native_engine(tmp_path) as engine:  # the one before saved it as it was closed
        again = await engine.adopt(SPEC, on_state=lambda state, reason: None)
        assert again is not None
        console = await Console.of(again)
        await console.type(plug_guest.STUBBORN)
        await console.until(plug_guest.STUBBORN)
        await again.stop()
