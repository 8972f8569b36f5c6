"""A guest that does anything: random bus accesses, ring contents, kicks, resets, on a machine with every device.

    python -m tests.fuzz.vmm [--operations N] [--seed N]

What must hold: nothing but a `GuestFault` comes out of a bus, nothing at all out of what the loop is told; each read has
the width it was asked for; what the machine keeps stays bounded; what is saved can be read again. A run is repeatable by
its seed; a failure names it and the last operations.
"""

from __future__ import annotations

import argparse
import random
import select
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from appliance.errors import GuestFault
from appliance.vmm import layout
from appliance.vmm.device import Device
from appliance.vmm.legacy.acpi_pm import AcpiPm
from appliance.vmm.legacy.debug_port import DebugPort
from appliance.vmm.legacy.fw_cfg import FwCfg
from appliance.vmm.legacy.i8042 import I8042
from appliance.vmm.legacy.port92 import A20Gate, Port92
from appliance.vmm.legacy.pvpanic import PvPanic
from appliance.vmm.legacy.rtc import Rtc
from appliance.vmm.legacy.serial import SerialPort
from appliance.vmm.legacy.vmgenid import VmGenId
from appliance.vmm.legacy.watchdog import Watchdog
from appliance.vmm.pci.bus import PciBus
from appliance.vmm.pci.function import PciFunction
from appliance.vmm.pci.hotplug import PciHotplug
from appliance.vmm.vhost.backend import DataPlane
from appliance.vmm.virtio import consts
from appliance.vmm.virtio.balloon import VirtioBalloon
from appliance.vmm.virtio.console import PortOptions, VirtioConsole
from appliance.vmm.virtio.device import VirtioDevice
from appliance.vmm.virtio.net import NetOptions, VirtioNet
from appliance.vmm.virtio.pci_transport import VirtioPci
from appliance.vmm.virtio.rng import RngLimit, VirtioRng
from tests.fakes.cable import FakeCable
from tests.fakes.machine import FakeMachine
from tests.fakes.virtio_driver import DriverQueue, negotiate, set_up

MEMORY_MIB = 16
_MAC = b"\x02\0\0\0\0\x01"
RINGS, RING_ROOM = 0x20_0000, 0x1_0000  # where well-meant rings lie
MAX_TIMERS = 64
_EDGES = (0, 1, 2, 3, 7, 8, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 1 << 63, (1 << 64) - 1)


@dataclass
class Findings:
    """What a run has seen."""

    operations: Counter[str] = field(default_factory=Counter)
    guest_faults: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    used: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    slowest: str = ""


class Fuzzer:
    """One machine and the random guest in it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.machine = FakeMachine(MEMORY_MIB)
        self.findings = Findings()
        self.trace: deque[str] = deque(maxlen=25)
        self.devices: list[Device] = []
        self.virtio: list[VirtioDevice] = []
        self.rings: dict[tuple[str, int], DriverQueue] = {}
        self.calm = False
        self.cable = FakeCable()
        self.pci = PciBus("pci", self.machine.context)
        self._build()
        self.actions: list[tuple[int, Callable[[], None]]] = [
            (30, self.registers),
            (16, self.ports),
            (10, self.any_address),
            (8, self.configuration),
            (12, self.descriptors),
            (12, self.chains),
            (10, self.kick),
            (8, self.loop),
            (4, self.set_up_driver),
            (3, self.host),
            (2, self.pass_time),
            (2, self.firmware),
            (1, self.driver_reset),
        ]

    def _build(self) -> None:
        context = self.machine.context
        power, fw_cfg, a20 = AcpiPm("acpi-pm", context), FwCfg("fw-cfg", context), A20Gate()
        hotplug = PciHotplug("hotplug", context, self.pci, gpe=power.raise_gpe, ejected=lambda function: None)
        generation = uuid.UUID("00000000-0000-4000-8000-000000000001")
        self.devices = [
            self.pci,
            power,
            fw_cfg,
            hotplug,
            VmGenId("vmgenid", context, guid=generation, gpe=power.raise_gpe, fw_cfg=fw_cfg),
            I8042("i8042", context, a20=a20),
            Port92("port92", context, a20=a20),
            Rtc("rtc", context),
            DebugPort("debug-port", context),
            PvPanic("pvpanic", context),
            *(SerialPort(f"serial{index}", context, index) for index in range(2)),
        ]
        self.plug(Watchdog("watchdog", context))
        self.console = VirtioConsole("console", context, ports=[PortOptions(console=True), PortOptions("agent")])
        self.balloon = VirtioBalloon("balloon", context)
        for device in (
            VirtioRng("rng", context, limit=RngLimit(1 << 14)),
            self.console,
            self.balloon,
            VirtioNet("net0", context, cable=self.cable, options=NetOptions(mac=_MAC, data_plane=DataPlane.PYTHON)),
        ):
            self.virtio.append(device)
            self.plug(VirtioPci(device))
        self.firmware()

    def plug(self, function: PciFunction) -> None:
        self.pci.plug(function)
        self.devices.append(function)

    def close(self) -> None:
        for device in reversed(self.devices):
            device.close()
        self.machine.close()

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
        self.check()

    def check(self) -> None:
        """What must hold after each operation."""
        timers = [timer for timer in self.machine.bridge.timers if not timer.cancelled]
        assert len(timers) <= MAX_TIMERS, f"{len(timers)} timers"
        self.machine.bridge.timers[:] = timers
        for note in self.machine.notes:
            if "stands until its driver resets it" in note:
                self.findings.broken[note.split(": ")[1]] += 1
        for device in self.virtio:
            for queue in device.queues:
                assert 0 <= queue.in_flight <= queue.max_size, f"{queue.label}: {queue.in_flight} in flight"
        self.machine.requests.clear()
        self.machine.notes.clear()

    def save_and_restart(self) -> None:
        """What a pause saves is understood again; then the guest restarts."""
        for device in self.devices:
            device.pause()
            state = device.save()
            if state is not None and device.state_type is not None:
                data = msgspec.msgpack.encode(state)
                assert msgspec.msgpack.decode(data, type=device.state_type) == state, device.name
        for device in self.devices:
            device.reset()
        self.rings = {}
        for device in self.devices:
            device.resume()
        self.firmware()

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
        claimed = self.random.choice(self.machine.ports.ranges())
        self.access("ports", claimed.base + self.random.randrange(claimed.length), self.random.choice((1, 2, 4)))

    def registers(self) -> None:
        """Memory-mapped ones, those at the beginning of a page more often; the 256 MiB of ECAM have `configuration`."""
        ranges = [each for each in self.machine.mmio.ranges() if each.base != layout.ECAM]
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
        slot = self.random.choice((0, 31, *range(1, 8)))
        register = self.random.choice((self.random.randrange(0x140), self.random.randrange(4096)))
        if self.random.random() < 0.5:
            self.access("mmio", layout.ECAM + (slot << 15) + register, self.random.choice((1, 2, 4)))
        else:
            self.machine.ports.write(0xCF8, 4, 0x8000_0000 | slot << 11 | register & 0xFC)
            self.access("ports", 0xCFC + (register & 3), self.random.choice((1, 2, 4)))

    def access(self, space: str, address: int, size: int) -> None:
        bus = self.machine.ports if space == "ports" else self.machine.mmio
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
                self.machine.memory.store_u16(ring.avail + 2, self.number(16))
            case 3:
                self.machine.memory.store_u16(
                    ring.avail + 4 + 2 * self.random.randrange(ring.size + 1), self.number(16)
                )

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
        ring.indirect = (
            ring.device is not None and ring.device.has(consts.F_INDIRECT_DESC) and self.random.random() < 0.3
        )
        try:
            ring.add(readable, writable)
        except ValueError:
            self.take_back(ring)
        if ring.device is not None and self.random.random() < 0.7:
            ring.device.doorbell(ring.index).signal()

    def take_back(self, ring: DriverQueue) -> None:
        """What the device has used, unless the ring's index is anything by now."""
        assert ring.device is not None
        if (self.machine.memory.load_u16(ring.used_ring + 2) - ring.used_idx) & 0xFFFF <= ring.size:
            self.findings.used[f"{ring.device.name} {ring.index}"] += len(ring.used())

    def kick(self) -> None:
        device = self.random.choice(self.virtio)
        device.doorbell(self.random.randrange(len(device.queues))).signal(self.random.choice((1, 1000)))

    def set_up_driver(self) -> None:
        """A driver that does all right, so that there is something to attack."""
        device = self.random.choice(self.virtio)
        negotiate(device, None if self.random.random() < 0.7 else device.features & self.number(64) | 1 << 32)
        if not device.negotiated:
            return
        where = RINGS + 0x10_0000 * self.virtio.index(device)
        for index, queue in enumerate(device.queues):
            size = min(queue.max_size, self.random.choice((4, 16, 64)))
            event_idx = device.has(consts.F_EVENT_IDX)
            at = where + RING_ROOM * index
            ring = DriverQueue(self.machine.memory, at, size, event_idx=event_idx, room=RING_ROOM)
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
        device = self.random.choice(self.virtio)
        with device.lock:
            device.write_status(0)

    def firmware(self) -> None:
        """Every BAR of every function where there is room, and decoded."""
        for slot, function in list(self.pci.functions.items()):
            for index, bar in function.bars.items():
                base = 0xD000 + 0x40 * slot if bar.kind.name == "IO" else layout.PCI_MEMORY + 0x10_0000 * slot
                function.config.write(0x10 + 4 * index, 4, base)
                if bar.register_bytes == 8:
                    function.config.write(0x14 + 4 * index, 4, 0)
            function.config.write(0x04, 2, 0x407 if self.random.random() < 0.2 else 7)

    # What the host does

    def loop(self) -> None:
        """The loop comes round a few times, and drivers look what has come back."""
        self.come_round()
        for ring in self.rings.values():
            self.take_back(ring)

    def come_round(self) -> None:
        for _ in range(8):
            poll = select.poll()
            for fd in self.machine.bridge.watched:
                poll.register(fd, select.POLLIN)
            ready = [fd for fd, _ in poll.poll(0)]
            if not ready:
                return
            for fd in ready:
                if fd in self.machine.bridge.watched:
                    self.machine.bridge.ready(fd)

    def host(self) -> None:
        match self.random.randrange(4):
            case 0:
                self.random.choice(self.console.ports).receive(self.random.randbytes(self.random.randrange(1, 5000)))
            case 1:
                self.balloon.target_mib = self.random.randrange(-1, MEMORY_MIB + 2)
            case 2:
                self.random.choice(self.console.ports).resize(self.number(17), self.number(17))
            case 3:
                self.arrive()

    def arrive(self) -> None:
        if not self.cable.waiting():
            self.cable.arrive(b"\xff" * 6 + self.random.randbytes(self.random.randrange(8, 1508)))

    def pass_time(self) -> None:
        self.machine.bridge.advance(self.random.choice((0.001, 0.1, 2.5)))


def run(operations: int, seed: int) -> Findings:
    """`operations` of them. Raises `AssertionError` naming the seed, the operation and what went before."""
    fuzzer = Fuzzer(seed)
    try:
        for number in range(operations):
            try:
                fuzzer.step()
                if number % 2000 == 1999:
                    fuzzer.save_and_restart()
            except Exception as error:
                before = "\n  ".join(fuzzer.trace)
                text = f"seed {seed}, operation {number}: {type(error).__name__}: {error}\n  {before}"
                raise AssertionError(text) from error
    finally:
        fuzzer.close()
    return fuzzer.findings


def main() -> None:
    """Run and say what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    findings = run(chosen.operations, chosen.seed)
    print(", ".join(f"{count} {name}" for name, count in findings.operations.most_common()))
    print(f"used {dict(findings.used)}, broken {dict(findings.broken)}")
    print(f"{findings.guest_faults} guest faults; slowest {findings.slowest_s * 1000:.1f} ms: {findings.slowest}")


if __name__ == "__main__":
    main()
