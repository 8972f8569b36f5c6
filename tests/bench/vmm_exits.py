"""What an exit costs in our run loop, against the shortest loop in C on the same /dev/kvm."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import uvloop

from tests.bench.figures import Figure, percentile
from tests.bench.vmm_machine import REAL_CODE, in_real_mode, machine, switch_interval_of_the_appliance
from tests.kvm.guests import Asm

PORT = 0x80
OUT_FOR_EVER = Asm(16).raw("e680").jump(0)  # out 0x80, al
WARM_UP, WINDOW, WINDOWS = 50, 500, 300  # a window is 4 to 8 ms
BUSY_EXITS = 100_000
BUSY_ROUNDS = 100  # at least, or that thread was not busy


@dataclass(frozen=True, slots=True)
class Taken:
    """Microseconds an exit of one window: by the clock, and of the thread's own processor time."""

    wall_us: float
    cpu_us: float


def exits() -> Iterable[Figure]:
    """A port write's exit through the run loop and the bus to a device, over the same in C: medians of windows that take
    turns, one of ours, one of C's, so that what else the host does falls on both.

    `exit_ratio` is by the clock. On a busy host that hides the difference, as both wait for the processor: so
    `exit_cpu_ratio` compares what the threads themselves have used. `busy`: from one exit to the next while another
    thread of the process runs Python.
    """
    with switch_interval_of_the_appliance():
        duel = uvloop.run(_duel())
        busy = uvloop.run(_busy())
    ours_us, bare_us = (statistics.median(each.wall_us for each in taken) for taken in (duel.ours, duel.bare))
    ours_cpu_us, bare_cpu_us = (statistics.median(each.cpu_us for each in taken) for taken in (duel.ours, duel.bare))
    yield Figure("exit_us", ours_us, "us", 30)
    yield Figure("exit_c_us", bare_us, "us", 30)
    yield Figure("exit_ratio", ours_us / bare_us, "ratio", 1.3)
    yield Figure("exit_cpu_ratio", ours_cpu_us / bare_cpu_us, "ratio", 1.3)
    yield Figure("exit_p99_us_busy", percentile(busy, 0.99) * 1e6, "us", 500)


class Duel:
    """A bus handler that measures windows of its own exits; after each it has the program in C take one, and waits."""

    def __init__(self, bare: subprocess.Popen[str]) -> None:
        self.ours: list[Taken] = []
        self.bare: list[Taken] = []
        self.done: Callable[[], None] = lambda: None
        self._bare = bare
        self._left = WARM_UP
        self._began: tuple[float, float] | None = None

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self._left -= 1
        if not self._left:
            self._turn()

    def _turn(self) -> None:
        now, cpu = time.perf_counter(), time.thread_time()
        if self._began is None or len(self.ours) == WINDOWS:
            self._left, self._began = WINDOW, (time.perf_counter(), time.thread_time())
            return
        self.ours.append(Taken((now - self._began[0]) / WINDOW * 1e6, (cpu - self._began[1]) / WINDOW * 1e6))
        assert self._bare.stdin is not None
        assert self._bare.stdout is not None
        self._bare.stdin.write("\n")
        self._bare.stdin.flush()
        wall, processor = self._bare.stdout.readline().split()
        self.bare.append(Taken(float(wall), float(processor)))
        self._left, self._began = WARM_UP, None
        if len(self.ours) == WINDOWS:
            self.done()


async def _duel() -> Duel:
    with tempfile.TemporaryDirectory() as directory:
        program, source = Path(directory) / "exit_loop", Path(__file__).with_name("exit_loop.c")
        await asyncio.to_thread(_compile, source, program)
        with subprocess.Popen(
            [program, str(WARM_UP), str(WINDOW), OUT_FOR_EVER.bytes().hex()],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as bare:  # fmt: skip
            duel = Duel(bare)
            await _run(duel, limit_s=120)
        return duel


def _compile(source: Path, program: Path) -> None:
    subprocess.run(["gcc", "-O2", "-o", program, source], check=True)


class Stopwatch:
    """A bus handler that notes the time of every exit."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.done: Callable[[], None] = lambda: None

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self.times.append(time.perf_counter())
        if len(self.times) == BUSY_EXITS:
            self.done()


async def _busy() -> list[float]:
    """Seconds from each exit to the next."""
    stopwatch, stopping, rounds = Stopwatch(), threading.Event(), 0

    def work() -> None:
        nonlocal rounds
        while not stopping.is_set():
            sum(number * number for number in range(1000))
            rounds += 1

    thread = threading.Thread(target=work, name="busy")
    thread.start()
    try:
        await _run(stopwatch, limit_s=60)
    finally:
        stopping.set()
        thread.join()
    if rounds < BUSY_ROUNDS:
        raise RuntimeError(f"the other thread was not busy: {rounds} rounds")
    return [later - earlier for earlier, later in itertools.pairwise(stopwatch.times[WINDOW:BUSY_EXITS])]


async def _run(handler: Duel | Stopwatch, *, limit_s: float) -> None:
    """The guest that writes to a port for ever, until `handler` is done."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def enough() -> None:
        loop.call_soon_threadsafe(done.set)

    handler.done = enough
    async with machine(OUT_FOR_EVER, in_real_mode, at=REAL_CODE) as made:
        made.ports.add(PORT, 1, handler, name="meter")
        await made.start()
        async with asyncio.timeout(limit_s):
            await done.wait()
