"""A guest that does anything: random bus accesses, ring contents, kicks, resets, on a machine with every device.

    python -m tests.fuzz.vmm [--operations N] [--seed N]

What must hold: nothing but a `GuestFault` comes out of a bus, nothing at all out of what the loop is told; each read has
the width it was asked for; what the machine keeps stays bounded; what is saved and restored is the same when saved again;
whatever is written to memory is in the dirty log. A run is repeatable by
its seed; a failure names it and the last operations. A neighbour of the same kind, of whom nothing is asked, stays as it is.
"""

from __future__ import annotations

import argparse
import logging
import random
import select
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from appliance.errors import GuestFault
from appliance.vmm import layout
from appliance.vmm.block.layout import RequestType
from appliance.vmm.device import Device, State
from appliance.vmm.virtio import consts
from appliance.vmm.virtio.blk import VirtioBlk
from appliance.vmm.virtio.console import VirtioConsole
from appliance.vmm.virtio.device import VirtioDevice
from appliance.vmm.virtio.vsock import RX, TX, VirtioVsock
from appliance.vmm.vsock.packet import HOST_CID, TYPE_STREAM, Header, Op
from tests.fakes import block
from tests.fakes.virtio_driver import DriverQueue, negotiate, set_up
from tests.fakes.vsock_guest import CID
from tests.fuzz.vmm_machine import MEMORY_MIB, SERVICE_PORT, FuzzMachine

RINGS, RING_ROOM, DEVICE_ROOM = 0x20_0000, 0x1_0000, 0x10_0000  # where well-meant rings lie
MAX_TIMERS = 64
SAVE_EVERY = 2000
SAMPLES = 20
SLOTS = (*range(1, 12), 0, 31)
_EDGES = (0, 1, 2, 3, 7, 8, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 1 << 63, (1 << 64) - 1)


@dataclass
class Findings:
    """What a run has seen."""

    operations: Counter[str] = field(default_factory=Counter)
    guest_faults: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    used: Counter[str] = field(default_factory=Counter)
    ejected: int = 0
    slowest_s: float = 0.0
    slowest: str = ""


class Fuzzer:
    """One machine and the random guest in it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.findings = Findings()
        self.trace: deque[str] = deque(maxlen=25)
        self.rings: dict[tuple[str, int], DriverQueue] = {}
        self.calm = False
        self.machine = FuzzMachine(self.random)
        self.fake = self.machine.fake
        self.memory = self.fake.memory
        self.before = b""  # RAM as it was when the dirty log was taken last
        self.neighbour = FuzzMachine(random.Random(0))
        self.neighbour_at_rest = self.of_neighbour()
        self.firmware()
        self.actions: list[tuple[int, Callable[[], None]]] = [
            (30, self.registers),
            (16, self.ports),
            (10, self.any_address),
            (8, self.configuration),
            (12, self.descriptors),
            (12, self.chains),
            (6, self.disk_request),
            (6, self.packet),
            (10, self.kick),
            (8, self.loop),
            (4, self.set_up_driver),
            (5, self.host),
            (2, self.pass_time),
            (2, self.firmware),
            (1, self.hot_plug),
            (1, self.driver_reset),
        ]

    def close(self) -> None:
        self.machine.close()
        self.neighbour.close()

    # The run

    def step(self) -> None:
        """One random operation, checked."""
        action = self.random.choices([each for _, each in self.actions], [weight for weight, _ in self.actions])[0]
        name = action.__name__
        self.calm ^= self.random.random() < 0.01
        self.trace.append(name)
        began = time.thread_time()
        try:
            action()
        except GuestFault:
            self.findings.guest_faults += 1
        took = time.thread_time() - began
        if took > self.findings.slowest_s:
            self.findings.slowest_s, self.findings.slowest = took, self.trace[-1]
        self.findings.operations[name] += 1
        self.close_ejected()
        self.check()

    def close_ejected(self) -> None:
        for gone in self.machine.close_ejected():
            self.findings.ejected += 1
            self.rings = {place: ring for place, ring in self.rings.items() if place[0] != gone}

    def check(self) -> None:
        """What must hold after each operation."""
        timers = [timer for timer in self.fake.bridge.timers if not timer.cancelled]
        assert len(timers) <= MAX_TIMERS, f"{len(timers)} timers"
        self.fake.bridge.timers[:] = timers
        for note in self.fake.notes:
            if "stands until its driver resets it" in note:
                self.findings.broken[note.split("; ")[-1].split()[0]] += 1
        for device in self.machine.virtio:
            for queue in device.queues:
                assert 0 <= queue.in_flight <= queue.max_size, f"{queue.label}: {queue.in_flight} in flight"
        self.fake.requests.clear()
        self.fake.notes.clear()

    def save_and_restore(self) -> None:
        """What was written is in the dirty log; what a pause saves is understood again, and is the same once restored.
        Then the guest goes on, or restarts."""
        devices = self.machine.devices
        for device in devices:
            device.pause()
        self.check_dirty_log()
        self.check_neighbour()
        states = {device.name: self.saved(device) for device in devices}
        self.reset()  # which takes out what was being unplugged
        if self.random.random() < 0.7:
            for device in devices:
                if (state := states[device.name]) is not None:
                    device.restore(state)
            for device in devices:
                lost = differences(states[device.name], self.saved(device))
                assert device.name == "vsock" or not lost, f"{device.name} is not restored as it was: {lost}"
        else:
            self.rings = {}
        for device in devices:
            device.resume()
        self.firmware()

    def saved(self, device: Device) -> State | None:
        """What `device` saves, having been encoded and read again."""
        state = device.save()
        if state is None or device.state_type is None:
            return None
        return msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=device.state_type)

    def of_neighbour(self) -> dict[str, State | None]:
        """What there is of the other guest: its devices, and that its RAM is untouched (an untouched memfd has no blocks)."""
        assert self.neighbour.fake.memory.resident_bytes() == 0, "a neighbour's memory was written"
        return {device.name: self.saved(device) for device in self.neighbour.devices}

    def check_neighbour(self) -> None:
        for name, state in self.of_neighbour().items():
            assert not (lost := differences(self.neighbour_at_rest[name], state)), f"a neighbour's {name}: {lost}"

    def reset(self) -> None:
        for device in list(self.machine.devices):
            device.reset()
        self.close_ejected()

    def check_dirty_log(self) -> None:
        """Every page that is another than before was marked: drivers and devices alike write through `GuestMemory`."""
        ram = self.memory.whole()
        if self.before:
            dirty = int.from_bytes(self.memory.take_dirty(), "little")
            for page in range(MEMORY_MIB << 8):
                start = page * layout.PAGE
                changed = ram[start : start + layout.PAGE] != self.before[start : start + layout.PAGE]
                assert not changed or dirty >> page & 1, f"page {page:#x} was written and not marked"
        else:
            self.memory.start_dirty_log()
        self.before = ram[:]

    # Values

    def number(self, bits: int) -> int:
        """Any, the edges more often."""
        mask = (1 << bits) - 1
        if self.random.random() < 0.4:
            return self.random.choice(_EDGES) & mask
        return self.random.getrandbits(bits) if self.random.random() < 0.5 else self.random.getrandbits(min(bits, 8))

    def address(self) -> int:
        """Of RAM mostly."""
        if self.random.random() < 0.7:
            return self.random.randrange(MEMORY_MIB << 20)
        return self.random.choice((0xA_0000, MEMORY_MIB << 20, layout.ECAM, layout.PCI_MEMORY, self.number(64)))

    # What a guest does

    def ports(self) -> None:
        claimed = self.random.choice(self.fake.ports.ranges())
        self.access("ports", claimed.base + self.random.randrange(claimed.length), self.random.choice((1, 2, 4)))

    def registers(self) -> None:
        """Memory-mapped ones, those at the beginning of a page more often; the 256 MiB of ECAM have `configuration`."""
        ranges = [each for each in self.fake.mmio.ranges() if each.base != layout.ECAM]
        if not ranges:
            return
        claimed = self.random.choice(ranges)
        offset = self.random.randrange(claimed.length)
        if self.random.random() < 0.8:
            offset = offset & ~0xFFF | self.random.randrange(0x60)
        self.access("mmio", claimed.base + min(offset, claimed.length - 1), self.random.choice((1, 2, 4, 8)))

    def any_address(self) -> None:
        if self.random.random() < 0.5:
            self.access("ports", self.number(16), self.random.choice((1, 2, 4)))
        else:
            self.access("mmio", self.address(), self.random.choice((1, 2, 4, 8)))

    def configuration(self) -> None:
        slot = self.random.choice(SLOTS)
        register = self.random.choice((self.random.randrange(0x140), self.random.randrange(4096)))
        if self.random.random() < 0.5:
            self.access("mmio", layout.ECAM + (slot << 15) + register, self.random.choice((1, 2, 4)))
        else:
            self.fake.ports.write(0xCF8, 4, 0x8000_0000 | slot << 11 | register & 0xFC)
            self.access("ports", 0xCFC + (register & 3), self.random.choice((1, 2, 4)))

    def access(self, space: str, address: int, size: int) -> None:
        bus = self.fake.ports if space == "ports" else self.fake.mmio
        if self.random.random() < 0.6:
            value = self.number(8 * size)
            self.trace[-1] += f" {space} {address:#x} size {size} := {value:#x}"
            bus.write(address, size, value)
        else:
            self.trace[-1] += f" {space} {address:#x} size {size}"
            value = bus.read(address, size)
            assert 0 <= value < 1 << 8 * size, f"{value:#x} from {space} {address:#x}, {size} bytes"

    # What its drivers do

    def ring(self) -> DriverQueue | None:
        return self.rings[self.random.choice(list(self.rings))] if self.rings else None

    def descriptors(self) -> None:
        """Anything in a ring; in calm times what makes sense, so that devices get to work at all."""
        if self.calm:
            self.chains()
            return
        if (ring := self.ring()) is None:
            return
        match self.random.randrange(4):
            case 0:
                for _ in range(self.random.randrange(1, 5)):
                    place = self.random.randrange(ring.size)
                    flags, following = self.number(3), self.random.randrange(ring.size + 1)
                    ring.describe(place, self.address(), self.number(16), flags, following)
            case 1:
                ring.make_available(self.random.randrange(ring.size + 1))
            case 2:
                self.memory.store_u16(ring.avail + 2, self.number(16))
            case 3:
                self.memory.store_u16(ring.avail + 4 + 2 * self.random.randrange(ring.size + 1), self.number(16))

    def chains(self) -> None:
        """A chain that is sound, of random content."""
        if (ring := self.ring()) is None:
            return
        readable = [
            self.random.randbytes(self.random.choice((1, 8, 10, 12, 64))) for _ in range(self.random.randrange(3))
        ]
        writable = [self.random.choice((1, 8, 64, 1500)) for _ in range(self.random.randrange(3))]
        if not readable and not writable:
            return
        self.offer(ring, readable, writable)

    def disk_request(self) -> None:
        """One that a driver might make, or nearly."""
        ring = self.ring_of(VirtioBlk, None)
        if ring is None:
            return
        kind = self.random.choice((*RequestType, 2, 99))
        head = block.header(kind, self.number(self.random.choice((4, 11, 64))))
        data: list[bytes] = []
        room = [1]
        match kind:
            case RequestType.IN | RequestType.GET_ID:
                room = [self.random.choice((20, 512, 1024, 1000)), *room]
            case RequestType.OUT:
                data = [self.random.randbytes(self.random.choice((512, 4096, 100)))]
            case RequestType.DISCARD | RequestType.WRITE_ZEROES:
                sectors, flags = self.number(self.random.choice((4, 32))), self.random.choice((0, 0, 1, 2))
                data = [block.block_range(self.number(self.random.choice((8, 64))), sectors, flags)]
                data *= self.random.choice((1, 1, 2, 33))
        self.offer(ring, [head, *data], room)

    def packet(self) -> None:
        """Of a socket device: right ones mostly, and buffers to answer in."""
        index = self.random.choice((RX, TX, TX))
        ring = self.ring_of(VirtioVsock, index)
        if ring is None:
            return
        if index == RX:
            self.offer(ring, [], [self.random.choice((44, 45, 1500, 4096))])
            return
        data = self.random.randbytes(self.random.choice((0, 0, 1, 3000)))
        odd = self.random.random() < 0.1
        header = Header(
            src_cid=self.number(64) if odd else CID,
            dst_cid=HOST_CID,
            src_port=self.random.choice((1024, 1025, 7)),
            dst_port=self.random.choice((SERVICE_PORT, 1 << 30, (1 << 30) + 1, self.number(32))),
            len=self.number(32) if odd else len(data),
            type=self.random.choice((TYPE_STREAM, TYPE_STREAM, TYPE_STREAM, self.number(16))),
            op=self.random.choice((*Op, Op.REQUEST, Op.RW, self.number(16))),
            flags=self.number(2),
            buf_alloc=self.number(32),
            fwd_cnt=self.number(32) if odd else 0,
        )
        self.offer(ring, [header.pack(), data] if data else [header.pack()], [])

    def ring_of(self, kind: type[VirtioDevice], index: int | None) -> DriverQueue | None:
        found = [
            ring
            for (_, number), ring in self.rings.items()
            if isinstance(ring.device, kind) and index in (None, number)
        ]
        return self.random.choice(found) if found else None

    def offer(self, ring: DriverQueue, readable: list[bytes], writable: list[int]) -> None:
        """Make it available, if there is room, and kick."""
        assert ring.device is not None
        ring.indirect = ring.device.has(consts.F_INDIRECT_DESC) and self.random.random() < 0.3
        try:
            ring.add(readable, writable)
        except ValueError:
            self.take_back(ring)
        if self.random.random() < 0.7:
            ring.device.doorbell(ring.index).signal()

    def take_back(self, ring: DriverQueue) -> None:
        """What the device has used, unless the ring's index is anything by now."""
        assert ring.device is not None
        if (self.memory.load_u16(ring.used_ring + 2) - ring.used_idx) & 0xFFFF <= ring.size:
            self.findings.used[f"{ring.device.name} {ring.index}"] += len(ring.used())

    def kick(self) -> None:
        if self.machine.virtio:
            device = self.random.choice(self.machine.virtio)
            device.doorbell(self.random.randrange(len(device.queues))).signal(self.random.choice((1, 1000)))

    def set_up_driver(self) -> None:
        """A driver that does all right, so that there is something to attack."""
        if not self.machine.virtio:
            return
        device = self.random.choice(self.machine.virtio)
        negotiate(device, None if self.random.random() < 0.7 else device.features & self.number(64) | 1 << 32)
        if not device.negotiated:
            return
        where = RINGS + DEVICE_ROOM * self.machine.virtio.index(device)
        for index, queue in enumerate(device.queues):
            size = min(queue.max_size, self.random.choice((4, 16, 64)))
            event_idx = device.has(consts.F_EVENT_IDX)
            at = where + RING_ROOM * index
            ring = DriverQueue(self.memory, at, size, event_idx=event_idx, room=RING_ROOM)
            ring.device, ring.index = device, index
            set_up(device, index, ring)
            self.rings[device.name, index] = ring
        with device.lock:
            device.write_status(device.status | consts.STATUS_DRIVER_OK)
        if isinstance(device, VirtioConsole):
            self.open_ports()

    def open_ports(self) -> None:
        ring = self.rings["console", 3]
        for number, event, value in ((0, 0, 1), (0, 3, 1), (1, 3, 1), (0, 6, 1), (1, 6, 1)):
            message = number.to_bytes(4, "little") + event.to_bytes(2, "little") + value.to_bytes(2, "little")
            try:
                ring.add([message])
            except ValueError:
                return

    def driver_reset(self) -> None:
        if self.machine.virtio:
            device = self.random.choice(self.machine.virtio)
            with device.lock:
                device.write_status(0)

    def firmware(self) -> None:
        """Every BAR of every function where there is room, and decoded."""
        for slot, function in list(self.machine.pci.functions.items()):
            for index, bar in function.bars.items():
                base = 0xD000 + 0x40 * slot if bar.kind.name == "IO" else layout.PCI_MEMORY + 0x10_0000 * slot
                function.config.write(0x10 + 4 * index, 4, base)
                if bar.register_bytes == 8:
                    function.config.write(0x14 + 4 * index, 4, 0)
            function.config.write(0x04, 2, 0x407 if self.random.random() < 0.2 else 7)

    def hot_plug(self) -> None:
        match self.random.randrange(3):
            case 0:
                self.machine.ask_to_unplug()
            case 1:
                self.machine.eject_what_was_asked()
            case 2:
                self.machine.plug_missing()

    # What the host does

    def loop(self) -> None:
        """The loop comes round a few times, and drivers look what has come back."""
        self.come_round()
        for ring in self.rings.values():
            self.take_back(ring)

    def come_round(self) -> None:
        for _ in range(8):
            poll = select.poll()
            for fd in self.fake.bridge.watched:
                poll.register(fd, select.POLLIN)
            ready = [fd for fd, _ in poll.poll(0)]
            if not ready:
                return
            for fd in ready:
                if fd in self.fake.bridge.watched:
                    self.fake.bridge.ready(fd)

    def host(self) -> None:
        self.trace[-1] += f" {self.machine.act()}"

    def pass_time(self) -> None:
        self.fake.bridge.advance(self.random.choice((0.001, 0.1, 2.5)))


def differences(before: object, after: object, path: str = "") -> list[str]:
    """Where two states are not the same: path, then the values, cut."""
    if isinstance(before, State | msgspec.Struct) and type(before) is type(after):
        names = before.__struct_fields__
        return [
            each
            for name in names
            for each in differences(getattr(before, name), getattr(after, name), f"{path}.{name}")
        ]
    if isinstance(before, bytes) and isinstance(after, bytes) and len(before) == len(after):
        return [
            f"{path}[{at:#x}]: {a:#x} {b:#x}" for at, (a, b) in enumerate(zip(before, after, strict=True)) if a != b
        ]
    return [] if before == after else [f"{path}: {str(before)[:200]} {str(after)[:200]}"]


def run(operations: int, seed: int, *, at_each: Callable[[int], None] = lambda number: None) -> Findings:
    """`operations` of them. Raises `AssertionError` naming the seed, the operation and what went before."""
    fuzzer = Fuzzer(seed)
    try:
        for number in range(operations):
            at_each(number)
            try:
                fuzzer.step()
                if number % SAVE_EVERY == SAVE_EVERY - 1:
                    fuzzer.save_and_restore()
            except Exception as error:
                before = "\n  ".join(fuzzer.trace)
                text = f"seed {seed}, operation {number}: {type(error).__name__}: {error}\n  {before}"
                raise AssertionError(text) from error
    finally:
        fuzzer.close()
    return fuzzer.findings


def resident_kib() -> int:
    """What this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * (layout.PAGE >> 10)


def main() -> None:
    """Run and say what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)  # a disk that fails says so
    samples: list[int] = []

    def sample(number: int) -> None:
        if number % max(1, chosen.operations // SAMPLES) == 0:
            samples.append(resident_kib() >> 10)

    findings = run(chosen.operations, chosen.seed, at_each=sample)
    print(", ".join(f"{count} {name}" for name, count in findings.operations.most_common()))
    print(f"used {dict(findings.used)}, broken {dict(findings.broken)}")
    print(f"{findings.ejected} devices ejected, {findings.guest_faults} guest faults")
    print(f"slowest {findings.slowest_s * 1000:.1f} ms: {findings.slowest}")
    print(f"MiB resident, from begin to end: {' '.join(map(str, samples))}")


if __name__ == "__main__":
    main()
