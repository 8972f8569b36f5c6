"""A virtio device as a processor sees it: registers, a kick that causes no exit, an interrupt by irqfd, on the real /dev/kvm."""

from __future__ import annotations

import dataclasses
import select
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from appliance.kernel.kvm_vcpu import Vcpu
from appliance.kernel.kvm_vm import Vm
from appliance.vmm.pci.bus import PciBus
from appliance.vmm.virtio import consts
from appliance.vmm.virtio.pci_transport import COMMON, MSIX_TABLE, NOTIFY, VirtioPci
from appliance.vmm.virtio.rng import VirtioRng
from tests.fakes.machine import FakeMachine
from tests.fakes.virtio_driver import DriverQueue, settle
from tests.fakes.virtio_pci_driver import PciDriver
from tests.kvm.pci_machine import pci_machine
from tests.kvm.test_pci_guest import (
    CODE,
    COUNT,
    DONE,
    READY,
    SLOT,
    VECTOR,
    protected_mode,
    run_until_it_tells,
    store,
    tell,
    wait_for_count,
)
from tests.kvm.test_pci_guest import MASKED as KICKED
from tests.kvm.test_pci_guest import OURS as CONFIG

pytestmark = pytest.mark.host

BAR, RING, SIZE = 0xC000_0000, 0x10_0000, 8
FEATURES = consts.bits(consts.F_VERSION_1, consts.F_EVENT_IDX)


def store16(address: int, value: int) -> bytes:
    """mov word [address], value"""
    return b"\x66\xc7\x05" + struct.pack("<IH", address, value)


def store8(address: int, value: int) -> bytes:
    """mov byte [address], value"""
    return b"\xc6\x05" + struct.pack("<IB", address, value)


def program(ring: DriverQueue, msix_at: int) -> bytes:
    """virtio 1.2 §3.1.1 for one queue with a vector, then two kicks."""
    common = BAR + COMMON
    entry = BAR + MSIX_TABLE + 16  # vector 1
    areas = ((0x20, ring.desc), (0x28, ring.avail), (0x30, ring.used_ring))
    return b"".join(
        (
            store(CONFIG + 0x10, BAR),
            store(CONFIG + 4, 6),
            store8(common + 0x14, 0),
            store8(common + 0x14, 3),
            *(store(common + 8, word) + store(common + 12, FEATURES >> 32 * word & 0xFFFF_FFFF) for word in range(2)),
            store8(common + 0x14, 11),
            store(0xFEE0_00F0, 0x1FF),  # the local APIC: on
            *(store(entry + 4 * place, value) for place, value in enumerate((0xFEE0_0000, 0, VECTOR, 0))),
            store(CONFIG + msix_at, 1 << 31),
            store16(common + 0x16, 0),
            store16(common + 0x18, SIZE),
            store16(common + 0x1A, 1),
            *(store(common + register, value) + store(common + register + 4, 0) for register, value in areas),
            store16(common + 0x1C, 1),
            store8(common + 0x14, 15),
            tell(READY),
            store16(BAR + NOTIFY, 0),
            tell(KICKED),
            b"\xfb",  # sti
            wait_for_count(1),
            tell(DONE),
            store16(BAR + NOTIFY, 0),
            store16(BAR + NOTIFY, 0),
            tell(KICKED),
            wait_for_count(2),
            tell(DONE),
        )
    )


@dataclass
class Bench:
    machine: FakeMachine
    device: VirtioRng
    ring: DriverQueue
    vcpu: Vcpu

    def runs_until(self, port: int) -> None:
        assert run_until_it_tells(self.vcpu, self.machine) == port

    def kicks(self) -> int:
        """How often the doorbell was rung, and let the device hear it."""
        event = self.device.doorbell(0)
        count = event.drain()
        event.signal(max(count, 1))
        settle(self.machine.bridge)
        return count


@pytest.fixture
def bench(vm: Vm) -> Iterator[Bench]:
    with pci_machine(vm) as machine:
        machine.context = dataclasses.replace(machine.context, doorbells=vm)
        bus = PciBus("pci", machine.context)
        device = VirtioRng("rng", machine.context)
        function = VirtioPci(device)
        bus.plug(function, SLOT)
        msix_at = PciDriver(machine, function).msix_at
        assert msix_at is not None
        ring = DriverQueue(machine.memory, RING, SIZE)
        vcpu = protected_mode(vm, machine)
        machine.memory.write(CODE, program(ring, msix_at))
        yield Bench(machine, device, ring, vcpu)
        function.close()
        bus.close()


def test_a_guest_drives_a_device_with_kicks_that_cause_no_exit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.runs_until(READY)
    assert bench.device.live
    assert bench.device.negotiated == FEATURES
    settle(bench.machine.bridge)

    def exited(index: int) -> None:
        raise AssertionError(f"the kick of queue {index} was an exit")

    monkeypatch.setattr(bench.device, "kick", exited)
    first = bench.ring.add(writable=[64])
    bench.runs_until(KICKED)
    assert bench.kicks() == 1
    assert bench.ring.used() == [(first, 64)]
    assert bench.ring.read_back(first) != bytes(64)
    bench.runs_until(DONE)
    assert bench.machine.memory.load_u32(COUNT) == 1
    second = bench.ring.add(writable=[32])
    bench.runs_until(KICKED)
    assert bench.kicks() == 2
    assert bench.ring.used() == [(second, 32)]
    bench.runs_until(DONE)
    assert bench.machine.memory.load_u32(COUNT) == 2


def test_the_doorbell_goes_with_the_bar(bench: Bench) -> None:
    bench.runs_until(READY)
    settle(bench.machine.bridge)
    bench.machine.mmio.write(CONFIG + 0x10, 4, BAR + 0x10_0000)
    bench.runs_until(KICKED)  # at the old place, where nobody is
    assert not select.select([bench.device.doorbell(0)], [], [], 0)[0]
