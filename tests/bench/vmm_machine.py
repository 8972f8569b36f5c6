"""Machines for the benchmarks: `appliance.vmm.machine.Machine` as the engine has it, without devices and without firmware."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from appliance.clock import SystemClock
from appliance.kernel.kvm_vcpu import Vcpu as KvmVcpu
from appliance.serve import SWITCH_INTERVAL_S
from appliance.tasks import TaskScope
from appliance.vmm.board import BoardOptions
from appliance.vmm.life import Boot
from appliance.vmm.machine import Machine
from tests.kvm import guests
from tests.kvm.guests import Asm

MIB = 1 << 20
REAL_CODE = 0x1000


@asynccontextmanager
async def machine(
    code: Asm, prepare: Callable[[KvmVcpu], None], *, at: int, label: str = "vm 101", vcpus: int = 1
) -> AsyncIterator[Machine]:
    """Built, with `code` in its memory; stopped afterwards."""
    scope = TaskScope("bench")
    options = BoardOptions(label=label, memory_bytes=MIB, vcpus=vcpus)
    made = await Machine.create(options, scope=scope, clock=SystemClock(), write_log=print)
    made.boot = Boot(load=lambda: made.board.memory.write(at, code.bytes()), prepare_vcpu=prepare)
    try:
        yield made
    finally:
        await made.stop()
        await scope.close()


def in_real_mode(vcpu: KvmVcpu) -> None:
    guests.real(vcpu, entry=REAL_CODE)


@contextmanager
def switch_interval_of_the_appliance() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
