"""A guest's virtio driver: it writes real descriptors into real guest memory and reads what the device made of them.

queues = attach(device)                      negotiates, sets the queues up, sets DRIVER_OK; no PCI
head = queues[0].add([b"request"], [512])    a chain: readable buffers, then writable ones of these lengths
queues[0].kick()                             and the loop (a FakeBridge) runs until it has nothing to do
queues[0].used()                             [(head, bytes written)], what has come back since the last time
queues[0].read_back(head)                    what was written
transport_of(device).interrupts              which queues interrupted
"""

from __future__ import annotations

import select
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from appliance.vmm.irq import MessageVector
from appliance.vmm.memory import GuestMemory
from appliance.vmm.virtio import consts
from appliance.vmm.virtio.device import VirtioDevice
from appliance.vmm.virtio.queue import passed
from appliance.vmm.virtio.transport import NoTransport
from tests.fakes.machine import FakeBridge

BASE, ROOM = 0x10_0000, 0x10_0000  # the first queue's memory and what each has
NEXT, WRITE, INDIRECT = consts.DESC_F_NEXT, consts.DESC_F_WRITE, consts.DESC_F_INDIRECT

_DESCRIPTOR = struct.Struct("<QIHH")


class FakeTransport:
    """Counts what the device tells its driver. `vectors` may be given real ones."""

    def __init__(self) -> None:
        self.interrupts: list[int] = []
        self.config_interrupts = 0
        self.vectors: dict[int, MessageVector] = {}

    def queue_interrupt(self, index: int) -> None:
        self.interrupts.append(index)

    def config_interrupt(self) -> None:
        self.config_interrupts += 1

    def vector(self, index: int) -> MessageVector | None:
        return self.vectors.get(index)


class DriverQueue:
    """The driver's side of one queue: descriptor table, available ring, used ring, tables and buffers from `base` on."""

    def __init__(
        self,
        memory: GuestMemory,
        base: int,
        size: int,
        *,
        event_idx: bool = True,
        indirect: bool = False,
        room: int = ROOM,
    ) -> None:
        self.memory, self.size = memory, size
        self.event_idx, self.indirect = event_idx, indirect
        self.desc = base
        self.avail = base + 16 * size
        self.used_ring = (self.avail + 6 + 2 * size + 3) & ~3
        self._arena = (self.used_ring + 6 + 8 * size + 15) & ~15
        self._arena_end = base + room
        self._free = list(range(size))
        self._blocks: dict[int, tuple[int, int]] = {}
        self._chains: dict[int, tuple[list[int], list[tuple[int, int]]]] = {}
        self._results: dict[int, bytes] = {}
        self.avail_idx = self.used_idx = self._kicked_at = 0
        self.device: VirtioDevice | None = None
        self.index = 0
        memory.write(base, bytes(self._arena - base))

    # Making available

    def add(self, readable: Sequence[bytes] = (), writable: Sequence[int] = ()) -> int:
        """Make a chain available; no kick. With `indirect` it takes one descriptor. `ValueError` when there is no room."""
        lengths = [len(data) for data in readable] + list(writable)
        table = 16 * len(lengths) if self.indirect else 0
        wanted = 1 if self.indirect else len(lengths)
        if wanted > len(self._free):
            raise ValueError("no descriptors left")
        taken = [self._free.pop(0) for _ in range(wanted)]
        start = self._allocate(taken[0], table + sum(lengths))
        buffers, address = [], start + table
        for length in lengths:
            buffers.append((address, length))
            address += length
        for (address, _), data in zip(buffers, readable, strict=False):
            self.memory.write(address, data)
        flags = [0] * len(readable) + [WRITE] * len(writable)
        if self.indirect:
            self.write_chain(start, list(range(len(lengths))), buffers, flags)
            self.describe(taken[0], start, table, INDIRECT)
        else:
            self.write_chain(self.desc, taken, buffers, flags)
        self._chains[taken[0]] = (taken, buffers[len(readable) :])
        self.make_available(taken[0])
        return taken[0]

    def write_chain(
        self, table: int, numbers: Sequence[int], buffers: Sequence[tuple[int, int]], flags: Sequence[int]
    ) -> None:
        """Descriptors `numbers` of `table`, each leading to the next."""
        for place, number in enumerate(numbers):
            last = place == len(numbers) - 1
            following = 0 if last else numbers[place + 1]
            packed = _DESCRIPTOR.pack(*buffers[place], flags[place] | (0 if last else NEXT), following)
            self.memory.write(table + 16 * number, packed)

    def describe(self, number: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        """Write one descriptor as it is told, however wrong."""
        self.memory.write(self.desc + 16 * number, _DESCRIPTOR.pack(address, length, flags, following))

    def make_available(self, head: int) -> None:
        """Put `head` into the available ring and raise its index."""
        self.memory.store_u16(self.avail + 4 + 2 * (self.avail_idx % self.size), head)
        self.avail_idx = (self.avail_idx + 1) & 0xFFFF
        self.memory.store_u16(self.avail + 2, self.avail_idx)

    def kick_wanted(self) -> bool:
        """Whether the device wants to know of what was added since the last kick (§2.7.10)."""
        if not self.event_idx:
            return not self.memory.load_u16(self.used_ring) & consts.USED_F_NO_NOTIFY
        avail_event = self.memory.load_u16(self.used_ring + 4 + 8 * self.size)
        return passed(avail_event, self.avail_idx, (self.avail_idx - self._kicked_at) & 0xFFFF)

    def kick(self) -> None:
        """Ring the doorbell, wanted or not, and let a fake loop run."""
        assert self.device is not None, "attach the queue to a device"
        self._kicked_at = self.avail_idx
        self.device.doorbell(self.index).signal()
        if isinstance(self.device.context.bridge, FakeBridge):
            settle(self.device.context.bridge)

    # Taking back

    def used(self) -> list[tuple[int, int]]:
        """(head, bytes written) of what the device has given back since the last time; asks for the next interrupt."""
        found = []
        while self.used_idx != self.memory.load_u16(self.used_ring + 2):
            element = self.used_ring + 4 + 8 * (self.used_idx % self.size)
            head, written = self.memory.load_u32(element), self.memory.load_u32(element + 4)
            self._results[head] = self._content(head)[:written]
            self._release(head)
            found.append((head, written))
            self.used_idx = (self.used_idx + 1) & 0xFFFF
        if self.event_idx:
            self.memory.store_u16(self.avail + 4 + 2 * self.size, self.used_idx)
        return found

    def read_back(self, head: int) -> bytes:
        """What the device wrote into the chain that came back; of one still out, its writable buffers as they are."""
        return self._content(head) if head in self._chains else self._results[head]

    def request(self, readable: Sequence[bytes] = (), writable: Sequence[int] = ()) -> bytes:
        """Add, kick, and what was written; fails unless exactly this came back."""
        head = self.add(readable, writable)
        self.kick()
        assert [each for each, _ in self.used()] == [head]
        return self.read_back(head)

    def interrupts_wanted(self, wanted: bool) -> None:
        """Without event idx: the flag; with it an event far away."""
        self.memory.store_u16(self.avail, 0 if wanted else consts.AVAIL_F_NO_INTERRUPT)
        if self.event_idx:
            event = self.used_idx if wanted else self.used_idx - 1
            self.memory.store_u16(self.avail + 4 + 2 * self.size, event & 0xFFFF)

    def _content(self, head: int) -> bytes:
        _, writable = self._chains.get(head, ([], []))
        return b"".join(self.memory.read(address, length) for address, length in writable)

    def _release(self, head: int) -> None:
        taken, _ = self._chains.pop(head, ([], []))
        self._free.extend(taken)
        self._blocks.pop(head, None)

    def _allocate(self, head: int, length: int) -> int:
        """First fit."""
        length = (length + 15) & ~15
        start = self._arena
        for used_start, used_length in sorted(self._blocks.values()):
            if used_start - start >= length:
                break
            start = used_start + used_length
        if start + length > self._arena_end:
            raise ValueError("no memory left for buffers")
        self._blocks[head] = (start, length)
        return start


def settle(bridge: FakeBridge, rounds: int = 10_000) -> int:
    """Let the loop run until no watched descriptor is ready; returns how many callbacks that were."""
    for count in range(rounds):
        poll = select.poll()
        for fd in bridge.watched:
            poll.register(fd, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(0)]
        if not ready:
            return count
        for fd in ready:
            if fd in bridge.watched:
                bridge.ready(fd)
    raise AssertionError("the loop never comes to rest")


def transport_of(device: VirtioDevice) -> FakeTransport:
    """What `attach` gave the device."""
    assert isinstance(device.transport, FakeTransport)
    return device.transport


def negotiate(device: VirtioDevice, features: int | None = None) -> int:
    """Status up to FEATURES_OK with all the features offered, or those given; returns the status read back."""
    with device.lock:
        device.write_status(0)
        device.write_status(consts.STATUS_ACKNOWLEDGE)
        device.write_status(device.status | consts.STATUS_DRIVER)
        device.write_driver_features(device.features if features is None else features)
        device.write_status(device.status | consts.STATUS_FEATURES_OK)
        return device.read_status()


def attach(
    device: VirtioDevice,
    *,
    features: int | None = None,
    size: int | None = None,
    indirect: bool = False,
    base: int = BASE,
    start: bool = True,
) -> list[DriverQueue]:
    """A driver that does all right: every queue enabled, `size` entries each at most, DRIVER_OK with `start`."""
    if isinstance(device.transport, NoTransport):
        device.transport = FakeTransport()
    assert negotiate(device, features) & consts.STATUS_FEATURES_OK, "the device refused these features"
    queues = []
    for index, queue in enumerate(device.queues):
        entries = min(size or queue.max_size, queue.max_size)
        made = DriverQueue(
            device.context.memory,
            base + index * ROOM,
            entries,
            event_idx=device.has(consts.F_EVENT_IDX),
            indirect=indirect,
        )
        made.device, made.index = device, index
        set_up(device, index, made)
        queues.append(made)
    if start:
        go(device)
    return queues


def set_up(device: VirtioDevice, index: int, driver: DriverQueue) -> None:
    """Tell the device where the rings are, and enable the queue."""
    with device.lock:
        queue = device.queues[index]
        queue.size, queue.desc, queue.avail, queue.used = driver.size, driver.desc, driver.avail, driver.used_ring
        device.enable_queue(index)


def go(device: VirtioDevice) -> None:
    """DRIVER_OK, and let a fake loop run."""
    with device.lock:
        device.write_status(device.status | consts.STATUS_DRIVER_OK)
    if isinstance(device.context.bridge, FakeBridge):
        settle(device.context.bridge)


@contextmanager
def attached(device: VirtioDevice, **options: int) -> Iterator[list[DriverQueue]]:
    """`attach`, and close the device at the end."""
    try:
        yield attach(device, features=options.get("features"), size=options.get("size"))
    finally:
        device.close()
