"""Figures of the native machine on this host's /dev/kvm: what an exit costs, pausing, what an idle guest costs, saving.

Those against QEMU with Linux in the guest need a processor with virtualization, or a lab host: `./dev bench vmm-lab`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import psutil
import uvloop

from appliance.clock import SystemClock
from appliance.kernel import tuntap
from appliance.kernel.kvm_vcpu import Vcpu as KvmVcpu
from appliance.model.guest import GuestId, NicSpec, VmDisk, VmResources, VmSpec
from appliance.model.volume import OpenedVolume, VolumeFormat
from appliance.tasks import TaskScope
from appliance.vmm.engine import NativeEngine
from appliance.vmm.vm import NativeVm
from tests.bench.figures import Benchmark, Figure
from tests.bench.vmm_exits import exits
from tests.bench.vmm_machine import MIB, REAL_CODE, in_real_mode, machine, switch_interval_of_the_appliance
from tests.bench.vmm_saving import saving
from tests.fakes.kernels import NOTE_PVH, elf_kernel, note
from tests.kvm.guests import Asm

IDLE_GUESTS, IDLE_S = 50, 10.0
IDLE_MEMORY_MIB = 64
FIRST = 200


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
    """Fifty guests of the engine in one process, each with a disk, a NIC, serial line, agent, balloon and random numbers,
    whose kernel halts: the process's own memory beside theirs, for each, and its processor time over ten seconds, for each.
    """
    with (
        switch_interval_of_the_appliance(),
        tempfile.TemporaryDirectory() as directory,
        _taps(range(FIRST, FIRST + IDLE_GUESTS + 1)),
    ):
        overhead, spent, stopping_s = uvloop.run(_idle(Path(directory)))
    yield Figure("guest_overhead_mib", overhead / MIB, "MiB", 8)
    yield Figure("guest_idle_cpu_pct", 100 * spent, "%", 0.2)
    yield Figure("guests_stop_s", stopping_s, "s", 30)


async def _idle(directory: Path) -> tuple[float, float, float]:
    process = psutil.Process()
    async with _engine(directory) as engine:
        await (await _start(engine, directory, FIRST)).stop()  # what the first one imports
        gc.collect()
        before = _own_memory()
        vms = [await _start(engine, directory, FIRST + 1 + number) for number in range(IDLE_GUESTS)]
        await asyncio.sleep(1)
        gc.collect()
        overhead = (_own_memory() - before) / IDLE_GUESTS
        cpu, began = sum(process.cpu_times()[:2]), time.monotonic()
        await asyncio.sleep(IDLE_S)
        spent = (sum(process.cpu_times()[:2]) - cpu) / (time.monotonic() - began)
        if any(vm.ended for vm in vms):
            raise RuntimeError("a guest has ended")
        began = time.monotonic()
        await asyncio.gather(*(vm.stop() for vm in vms))
        return overhead, spent / IDLE_GUESTS, time.monotonic() - began


@asynccontextmanager
async def _engine(directory: Path) -> AsyncIterator[NativeEngine]:
    scope = TaskScope("bench")
    engine = NativeEngine(directory / "run", directory / "data", scope, SystemClock())
    await engine.probe()
    try:
        yield engine
    finally:
        await engine.close()
        await scope.close()


async def _start(engine: NativeEngine, directory: Path, number: int) -> NativeVm:
    """A guest whose kernel halts at once."""
    disk, kernel = directory / f"{number}.raw", directory / "kernel"
    disk.touch()
    os.truncate(disk, 16 * MIB)
    kernel.write_bytes(elf_kernel(Asm(32).halt().bytes(), notes=note(b"Xen", NOTE_PVH, 2 * MIB)))
    spec = VmSpec(
        guest_id=GuestId(number),
        name="idle",
        uuid=f"3f2504e0-4f89-41d3-9a0c-0305e82c{number:04}",
        engine="native",
        cpu_model="host",
        memory_mib=IDLE_MEMORY_MIB,
        balloon_min_mib=IDLE_MEMORY_MIB,
        serials=(0,),
        display="none",
        agent=True,
        rng=True,
        disks=(VmDisk(slot="virtio0", volume=f"local:{number}/disk.raw"),),
        nics=(
            NicSpec(slot="net0", model="virtio", mac=f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}", bridge="x"),
        ),
        kernel="local:kernel",
    )
    volumes = {"virtio0": _raw(disk), "kernel": _raw(kernel)}
    resources = VmResources(disks=volumes, taps={"net0": _tap(number)})
    return await engine.start(spec, resources, on_state=lambda state, why: None, log=lambda line: None)


@contextmanager
def _taps(numbers: Iterable[int]) -> Iterator[None]:
    """One for each guest, gone afterwards."""
    made: list[str] = []
    try:
        for name in map(_tap, numbers):
            with tuntap.new_tap(name, multi_queue=False) as tap:
                tap.persist()
            made.append(name)
        yield
    finally:
        for name in made:
            subprocess.run(["ip", "link", "delete", name], check=True)


def _tap(number: int) -> str:
    return f"bench{os.getpid() % 100_000}-{number}"


def _raw(path: Path) -> OpenedVolume:
    return OpenedVolume(volume_id=None, path=path, format=VolumeFormat.RAW, size_bytes=path.stat().st_size)


def _own_memory() -> int:
    """Resident bytes that are no shared memory: the guests' RAM is."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(lines[name].split()[0]) << 10 for name in ("RssAnon", "RssFile"))


BENCHMARKS: list[Benchmark] = [exits, pause, idle, saving]
