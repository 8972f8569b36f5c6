"""Figures of the native machine on this host's /dev/kvm: what an exit costs, pausing, and what an idle guest costs.

The machines are `appliance.vmm.machine.Machine` as the engine has them, with a device that counts; no appliance around.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import psutil
import uvloop

from appliance.clock import SystemClock
from appliance.kernel.kvm_vcpu import Vcpu as KvmVcpu
from appliance.serve import SWITCH_INTERVAL_S
from appliance.tasks import TaskScope
from appliance.vmm.board import BoardOptions
from appliance.vmm.life import Boot
from appliance.vmm.machine import Machine
from tests.bench.figures import Benchmark, Figure, percentile
from tests.bench.vmm_saving import saving
from tests.kvm import guests
from tests.kvm.guests import Asm

MIB = 1 << 20
REAL_CODE, PORT, MMIO = 0x1000, 0x80, 0xD000_0000
OUT_FOR_EVER = Asm(16).raw("e680").jump(0)  # out 0x80, al
WINDOW, WINDOWS, ROUNDS = 500, 40, 9  # 7 ms each
IDLE_GUESTS, IDLE_S = 50, 10.0


class Meter:
    """A bus handler that notes the time of every `WINDOW`th access; after `WINDOWS` of them it calls `done`."""

    def __init__(self) -> None:
        self.count = 0
        self.times: list[float] = []
        self.done: Callable[[], None] = lambda: None

    def read(self, offset: int, size: int) -> int:
        self.write(offset, size, 0)
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self.count += 1
        if self.count == WINDOW:
            self.count = 0
            self.times.append(time.perf_counter())
            if len(self.times) == WINDOWS:
                self.done()


class Stopwatch(Meter):
    """Notes the time of every access as well."""

    def __init__(self) -> None:
        super().__init__()
        self.every: list[float] = []

    def write(self, offset: int, size: int, value: int) -> None:
        self.every.append(time.perf_counter())
        super().write(offset, size, value)


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


def exits() -> Iterable[Figure]:
    """A port write's exit through the run loop and the bus to a device, over the shortest loop in C on the same /dev/kvm.

    The two alternate, in windows so short that most are undisturbed on a busy host; of these each side's lower quartile
    counts, for a mean would compare what others did meanwhile. `busy`: from one exit to the next while another thread
    runs Python.
    """
    with switch_interval_of_the_appliance(), tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "exit_loop"
        source = Path(__file__).with_name("exit_loop.c")
        subprocess.run(["gcc", "-O2", "-o", program, source], check=True)
        ours, bare = uvloop.run(_alternate(program))
        busy = uvloop.run(_busy())
    ours_us, bare_us = percentile(ours, 0.25), percentile(bare, 0.25)
    yield Figure("exit_us", ours_us, "us", 30)
    yield Figure("exit_c_us", bare_us, "us", 30)
    yield Figure("exit_ratio", ours_us / bare_us, "ratio", 1.3)
    yield Figure("exit_p99_us_busy", percentile(busy, 0.99) * 1e6, "us", 500)


async def _alternate(program: Path) -> tuple[list[float], list[float]]:
    """Microseconds an exit, of each window."""
    ours: list[float] = []
    bare: list[float] = []
    for _ in range(ROUNDS):
        meter = Meter()
        await _measure(meter)
        ours += [(later - earlier) / WINDOW * 1e6 for earlier, later in itertools.pairwise(meter.times)]
        bare += await asyncio.to_thread(_bare, program)
    return ours, bare


def _bare(program: Path) -> list[float]:
    run: list[str | Path] = [program, str(WINDOW), str(WINDOWS), OUT_FOR_EVER.bytes().hex()]
    printed = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    return [float(line) for line in printed.split()]


async def _measure(meter: Meter) -> None:
    """Until `meter` is done."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def enough() -> None:
        loop.call_soon_threadsafe(done.set)

    meter.done = enough
    async with machine(OUT_FOR_EVER, in_real_mode, at=REAL_CODE) as made:
        made.ports.add(PORT, 1, meter, name="meter")
        await made.start()
        async with asyncio.timeout(60):
            await done.wait()


async def _busy() -> list[float]:
    stopwatch, stopping = Stopwatch(), threading.Event()

    def work() -> None:
        while not stopping.is_set():
            sum(number * number for number in range(1000))

    thread = threading.Thread(target=work, name="busy")
    thread.start()
    try:
        await _measure(stopwatch)
    finally:
        stopping.set()
        thread.join()
    return [later - earlier for earlier, later in itertools.pairwise(stopwatch.every[WINDOW:])]


def pause() -> Iterable[Figure]:
    """From the call to the machine's being PAUSED, four vCPUs in busy loops; median and worst of a hundred."""
    with switch_interval_of_the_appliance():
        took = uvloop.run(_pause())
    yield Figure("pause_ms", 1000 * statistics.median(took), "ms", 5)
    yield Figure("pause_worst_ms", 1000 * max(took), "ms", 50)


async def _pause() -> list[float]:
    def busy(vcpu: KvmVcpu) -> None:
        in_real_mode(vcpu)
        vcpu.set_mp_state(0)  # KVM_MP_STATE_RUNNABLE: nobody need wake it

    took = []
    async with machine(Asm(16).inc(0x5000).jump(0), busy, at=REAL_CODE, vcpus=4) as made:
        await made.start()
        for _ in range(100):
            await asyncio.sleep(0.01)
            began = time.perf_counter()
            await made.pause()
            took.append(time.perf_counter() - began)
            await made.resume()
    return took


def idle() -> Iterable[Figure]:
    """Fifty halted guests in one process: its own memory beside theirs, for each, and its CPU over ten seconds."""
    with switch_interval_of_the_appliance():
        overhead, spent = uvloop.run(_idle())
    yield Figure("guest_overhead_mib", overhead / MIB, "MiB", 5)
    yield Figure("guest_idle_cpu_pct", 100 * spent, "%", 1.0)


async def _idle() -> tuple[float, float]:
    process = psutil.Process()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(
            machine(Asm(16).halt(), in_real_mode, at=REAL_CODE)
        )  # what the first one imports
        gc.collect()
        before = _own_memory()
        for number in range(IDLE_GUESTS):
            made = await stack.enter_async_context(
                machine(Asm(16).halt(), in_real_mode, at=REAL_CODE, label=f"vm {200 + number}")
            )
            await made.start()
        gc.collect()
        overhead = (_own_memory() - before) / IDLE_GUESTS
        await asyncio.sleep(1)
        cpu, began = sum(process.cpu_times()[:2]), time.monotonic()
        await asyncio.sleep(IDLE_S)
        return overhead, (sum(process.cpu_times()[:2]) - cpu) / (time.monotonic() - began)


def _own_memory() -> int:
    """Resident bytes that are no shared memory: the guests' RAM is."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(lines[name].split()[0]) << 10 for name in ("RssAnon", "RssFile"))


BENCHMARKS: list[Benchmark] = [exits, pause, idle, saving]
