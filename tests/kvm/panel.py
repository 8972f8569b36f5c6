"""A real machine with a device that tests look at: what the guest writes arrives on the loop, what it reads is set."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from appliance.clock import SystemClock
from appliance.kernel.kvm_vcpu import Vcpu as KvmVcpu
from appliance.tasks import TaskScope
from appliance.vmm.board import BoardOptions
from appliance.vmm.device import Device, DeviceContext
from appliance.vmm.life import RESETS, Boot
from appliance.vmm.machine import Machine
from tests.kvm import guests

PORT, PORTS = 0x80, 16
MMIO, MMIO_BYTES = 0xD000_0000, 0x2000
DEADLINE_S = 20.0
MIB = 1 << 20

Write = tuple[int, int, int]
"""(offset, size, value)"""


class Registers:
    """A bus handler that keeps what is written and answers with `value`, cut to size."""

    def __init__(self, context: DeviceContext) -> None:
        self._bridge = context.bridge
        self.value: Callable[[int], int] = lambda offset: 0
        self.reads: list[tuple[int, int]] = []
        self.writes: asyncio.Queue[Write] = asyncio.Queue()

    def read(self, offset: int, size: int) -> int:
        self.reads.append((offset, size))
        return self.value(offset) & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:
        self._bridge.post(lambda: self.writes.put_nowait((offset, size, value)))

    async def written(self, count: int = 1) -> list[Write]:
        """The next `count` writes."""
        async with asyncio.timeout(DEADLINE_S):
            return [await self.writes.get() for _ in range(count)]


class Panel(Device):
    """Ports from `PORT`, memory from `MMIO`; notes what happens to it."""

    def __init__(self, context: DeviceContext) -> None:
        super().__init__("panel", context)
        self.ports, self.mmio = Registers(context), Registers(context)
        self.calls: list[str] = []
        self._ranges = (
            context.ports.add(PORT, PORTS, self.ports, name=self.name),
            context.mmio.add(MMIO, MMIO_BYTES, self.mmio, name=self.name),
        )

    def reset(self) -> None:
        self.calls.append("reset")

    def pause(self) -> None:
        self.calls.append("pause")

    def resume(self) -> None:
        self.calls.append("resume")

    def close(self) -> None:
        self.calls.append("close")
        self.context.ports.remove(self._ranges[0])
        self.context.mmio.remove(self._ranges[1])


class Case:
    """A machine not yet started, its panel and what was logged."""

    def __init__(self, machine: Machine, logged: list[str]) -> None:
        self.machine, self.logged = machine, logged
        self.panel = Panel(machine.context)
        machine.add(self.panel)

    async def run(
        self,
        code: guests.Asm,
        *,
        handlers: dict[int, bytes] | None = None,
        prepare: Callable[[KvmVcpu], None] | None = None,
    ) -> Machine:
        """Start with `code` at `guests.CODE`; vCPU 0 in flat protected mode unless `prepare` says otherwise."""
        memory = self.machine.board.memory

        def load() -> None:
            guests.tables(memory, handlers)
            memory.write(guests.CODE, code.bytes())

        def enter(vcpu: KvmVcpu) -> None:
            if vcpu.index == 0:
                (prepare or guests.flat)(vcpu)

        self.machine.boot = Boot(load=load, prepare_vcpu=enter)
        await self.machine.start()
        return self.machine


@asynccontextmanager
async def case(
    *, label: str = "vm 101", vcpus: int = 1, memory_mib: int = 2, resets: bool = True
) -> AsyncIterator[Case]:
    """A machine on the real /dev/kvm, stopped afterwards."""
    scope, logged = TaskScope("test"), list[str]()
    options = BoardOptions(label=label, memory_bytes=memory_mib * MIB, vcpus=vcpus)
    machine = await Machine.create(
        options, scope=scope, clock=SystemClock(), write_log=logged.append, resets=RESETS if resets else frozenset()
    )
    try:
        yield Case(machine, logged)
    finally:
        await machine.stop()
        await scope.close()


async def ended(machine: Machine) -> tuple[str, str]:
    """(kind, detail), once it has."""
    async with asyncio.timeout(DEADLINE_S):
        reason = await machine.wait()
    return reason.kind, reason.detail
