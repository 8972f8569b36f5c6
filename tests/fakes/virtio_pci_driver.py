"""What an operating system does with a virtio PCI function: finds its structures by their capabilities, maps them, uses
them. Everything goes through the machine's buses and the function's configuration space."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.vmm.pci.function import PciFunction
from appliance.vmm.virtio import consts
from appliance.vmm.virtio.device import VirtioDevice
from tests.fakes.machine import FakeBridge, FakeMachine
from tests.fakes.virtio_driver import BASE, ROOM, DriverQueue, settle

CAPABILITIES, COMMAND, BAR0 = 0x34, 0x04, 0x10
COMMON, NOTIFY, ISR, DEVICE, WINDOW = 1, 2, 3, 4, 5


@dataclass(frozen=True)
class Structure:
    bar: int
    offset: int
    length: int
    at: int  # the capability's own offset


class PciDriver:
    """A driver of one function at `base`; `map` first."""

    def __init__(self, machine: FakeMachine, function: PciFunction, *, base: int = 0xC000_0000) -> None:
        self.machine, self.function, self.base = machine, function, base
        self.structures = dict(self._capabilities())
        self.msix_at = next((at for at, cap in self._list() if cap == 0x11), None)

    def _list(self) -> list[tuple[int, int]]:
        config, found = self.function.config, []
        at = config.read(CAPABILITIES, 1)
        while at:
            found.append((at, config.read(at, 1)))
            at = config.read(at + 1, 1)
        return found

    def _capabilities(self) -> list[tuple[int, Structure]]:
        config = self.function.config
        return [
            (
                config.read(at + 3, 1),
                Structure(config.read(at + 4, 1), config.read(at + 8, 4), config.read(at + 12, 4), at),
            )
            for at, cap in self._list()
            if cap == 0x09
        ]

    def map(self) -> None:
        """Place BAR 0 and switch memory decoding and bus mastering on."""
        self.function.config.write(BAR0, 4, self.base)
        self.function.config.write(COMMAND, 2, 0x6)

    def address(self, structure: int, offset: int = 0) -> int:
        return self.base + self.structures[structure].offset + offset

    def read(self, structure: int, offset: int, size: int) -> int:
        return self.machine.mmio.read(self.address(structure, offset), size)

    def write(self, structure: int, offset: int, size: int, value: int) -> None:
        self.machine.mmio.write(self.address(structure, offset), size, value)

    @property
    def status(self) -> int:
        return self.read(COMMON, 0x14, 1)

    @status.setter
    def status(self, value: int) -> None:
        self.write(COMMON, 0x14, 1, value)

    def offered(self) -> int:
        words = []
        for number in range(2):
            self.write(COMMON, 0x00, 4, number)
            words.append(self.read(COMMON, 0x04, 4))
        return words[1] << 32 | words[0]

    def accept(self, features: int) -> None:
        for number in range(2):
            self.write(COMMON, 0x08, 4, number)
            self.write(COMMON, 0x0C, 4, features >> 32 * number & 0xFFFF_FFFF)

    def enable_msix(self, *, address: int = 0xFEE0_0000) -> None:
        """Vector 0 for the configuration, n + 1 for queue n; all unmasked, data 0x40 + vector."""
        assert self.msix_at is not None
        table = self.function.config.read(self.msix_at + 4, 4) & ~7
        count = (self.function.config.read(self.msix_at + 2, 2) & 0x7FF) + 1
        self.function.config.write(self.msix_at + 2, 2, 0x8000)
        for vector in range(count):
            entry = self.base + table + 16 * vector
            for place, value in enumerate((address, 0, 0x40 + vector, 0)):
                self.machine.mmio.write(entry + 4 * place, 4, value)
        self.write(COMMON, 0x10, 2, 0)
        for queue in range(count - 1):
            self.write(COMMON, 0x16, 2, queue)
            self.write(COMMON, 0x1A, 2, queue + 1)

    def set_up(self, device: VirtioDevice, *, features: int | None = None) -> list[DriverQueue]:
        """virtio 1.2 §3.1.1, steps 1 to 8."""
        self.status = 0
        assert self.status == 0
        self.status = consts.STATUS_ACKNOWLEDGE
        self.status |= consts.STATUS_DRIVER
        self.accept(self.offered() if features is None else features)
        self.status |= consts.STATUS_FEATURES_OK
        assert self.status & consts.STATUS_FEATURES_OK
        queues = []
        for index in range(self.read(COMMON, 0x12, 2)):
            self.write(COMMON, 0x16, 2, index)
            queue = DriverQueue(self.machine.memory, BASE + ROOM * index, self.read(COMMON, 0x18, 2))
            queue.device, queue.index = device, index
            for register, value in ((0x20, queue.desc), (0x28, queue.avail), (0x30, queue.used_ring)):
                self.write(COMMON, register, 4, value & 0xFFFF_FFFF)
                self.write(COMMON, register + 4, 4, value >> 32)
            self.write(COMMON, 0x1C, 2, 1)
            queues.append(queue)
        self.status |= consts.STATUS_DRIVER_OK
        settle_of(device)
        return queues

    def kick(self, index: int) -> None:
        """Write the queue's doorbell, as without KVM: the handler hears it."""
        self.write(COMMON, 0x16, 2, index)
        where = self.read(COMMON, 0x1E, 2) * self.function.config.read(self.structures[NOTIFY].at + 16, 4)
        self.write(NOTIFY, where, 2, index)
        settle(self.machine.bridge)


def settle_of(device: VirtioDevice) -> None:
    assert isinstance(device.context.bridge, FakeBridge)
    settle(device.context.bridge)
