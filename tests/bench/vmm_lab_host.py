"""Runs inside a lab host: the native machine against this host's QEMU, on the same kernel, image and taps, in turns.

    python -m tests.bench.vmm_lab_host DIRECTORY [PART…]     PART: boot, exits, load
Prints one JSON line a figure (`tests.bench.figures.Figure`) and one when it is done, and what it does on its standard error.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from appliance.clock import SystemClock
from appliance.model.guest import GuestId, NicSpec, VmDisk, VmResources, VmSpec
from appliance.model.volume import OpenedVolume, VolumeFormat
from appliance.serve import SWITCH_INTERVAL_S
from appliance.tasks import TaskScope
from appliance.vmm import vcpu as run_loop
from appliance.vmm.bus import Bus
from appliance.vmm.engine import NativeEngine
from tests.bench.figures import Figure
from tests.lab.guest_console import GuestConsole
from tests.lab.recipe import GUEST_DIR

MEMORY_MIB = 256
IMAGE_MIB = 256
CMDLINE = "console=ttyS0 quiet panic=-1"
BOOTS = {1: 3, 2: 3}  # vCPUs: rounds
ROUNDS, SECONDS, WORKERS = 8, 3, 4
PORT = 5000
NO_METRICS = "echo 1 >/proc/sys/net/ipv4/tcp_no_metrics_save"
"""A connection that a busy host has stalled would slow down every later one (tcp_metrics)."""
QEMU = "qemu-system-x86_64"
BLOCK_GOALS = {"offload": 1.0, "python": 0.4}
NET_GOALS = {"offload": 1.0, "python": 0.3}


@dataclass(frozen=True, slots=True)
class Equipment:
    """What the guests of a comparison have: an image that all read, a tap each."""

    image: Path | None = None
    tap: str = ""
    number: int = 0

    @property
    def mac(self) -> str:
        return f"02:00:00:00:09:{self.number:02x}"


class Guest:
    """One that runs, and its console."""

    def __init__(self, name: str, console: GuestConsole, number: int) -> None:
        self.name, self.console, self.number = name, console, number

    async def run(self, line: str, *, timeout_s: float = 120) -> str:
        answer = await self.console.run(line, timeout_s=timeout_s)
        if answer.status:
            raise RuntimeError(f"{self.name}: {line}: {answer.text}")
        return answer.text


class Bench:
    """One for the process."""

    def __init__(self, directory: Path, engine: NativeEngine) -> None:
        self.directory, self.engine = directory, engine
        self.initramfs = directory / "initramfs"
        self._number = 100

    # --- guests -------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def native(
        self, *, vcpus: int = 1, plane: str = "auto", has: Equipment = Equipment(), name: str = "native"
    ) -> AsyncIterator[Guest]:
        """A machine of the engine's, from the start call to its first process."""
        self._number += 1
        disks = {"kernel": Path(GUEST_DIR, "vmlinux"), "initrd": self.initramfs}
        spec = VmSpec(
            guest_id=GuestId(self._number),
            name="bench",
            uuid=f"3f2504e0-4f89-41d3-9a0c-0305e82c{self._number:04}",
            engine="native",
            cpu_model="host",
            memory_mib=MEMORY_MIB,
            cores=vcpus,
            vcpus=vcpus,
            serials=(0,),
            display="none",
            data_plane=plane,
            kernel="local:kernel",
            initrd="local:initrd",
            cmdline=CMDLINE,
            disks=(VmDisk(slot="virtio0", volume="local:0", read_only=True, cache="writeback"),) if has.image else (),
            nics=(NicSpec(slot="net0", model="virtio", mac=has.mac, bridge="none"),) if has.tap else (),
        )
        if has.image:
            disks["virtio0"] = has.image
        volumes = {slot: _raw(path) for slot, path in disks.items()}
        vm = await self.engine.start(
            spec,
            VmResources(disks=volumes, taps={"net0": has.tap} if has.tap else {}),
            on_state=lambda state, why: None,
            log=lambda line: say(f"{name}: {line}"),
        )
        attached = await vm.open_console("serial0")
        stream = asyncio.StreamReader()

        async def listen() -> None:
            said = attached.history()
            while said or (said := await attached.read()):
                stream.feed_data(said)
                said = b""

        listening = asyncio.create_task(listen(), name="console")
        try:
            console = GuestConsole(stream, _Typist(attached.write))  # type: ignore[arg-type]
            await console.ready()
            yield Guest(name, console, has.number)
        finally:
            listening.cancel()
            await vm.stop()

    @asynccontextmanager
    async def qemu(self, *, machine: str, vcpus: int = 1, has: Equipment = Equipment()) -> AsyncIterator[Guest]:
        """A QEMU of this host's, with KVM and vhost."""
        argv = [
            QEMU, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-machine", machine, "-accel", "kvm",
            "-cpu", "host", "-smp", str(vcpus), "-m", str(MEMORY_MIB), "-serial", "stdio",
            "-kernel", f"{GUEST_DIR}/vmlinux", "-initrd", str(self.initramfs), "-append", CMDLINE,
        ]  # fmt: skip
        if has.image:
            drive = f"if=none,id=disk,file={has.image},format=raw,readonly=on,cache=writeback,aio=threads"
            argv += ["-object", "iothread,id=io", "-drive", drive]
            argv += ["-device", "virtio-blk-pci,drive=disk,iothread=io,num-queues=1"]
        if has.tap:
            argv += ["-netdev", f"tap,id=net,ifname={has.tap},script=no,downscript=no,vhost=on"]
            argv += ["-device", f"virtio-net-pci,netdev=net,mac={has.mac},romfile="]
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            console = GuestConsole(process.stdout, process.stdin)
            await console.ready()
            yield Guest("qemu", console, has.number)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    # --- booting ------------------------------------------------------------------------------------------------------

    async def boot(self) -> AsyncIterator[Figure]:
        """From the start call to the first line from /init: ours over QEMU's microvm, in turns, medians."""
        for vcpus, rounds in BOOTS.items():
            ours, theirs = [], []
            for _ in range(rounds):
                ours.append(await _timed(self.native(vcpus=vcpus)))
                theirs.append(await _timed(self.qemu(machine="microvm", vcpus=vcpus)))
                say(f"boot, {vcpus} vCPUs: {ours[-1]:.1f} s, microvm {theirs[-1]:.1f} s")
            suffix = "" if vcpus == 1 else f"_{vcpus}"
            yield Figure(f"boot_s{suffix}", statistics.median(ours), "s", 60)
            yield Figure(f"boot_microvm_s{suffix}", statistics.median(theirs), "s", 60)
            yield Figure(f"boot_ratio{suffix}", statistics.median(ours) / statistics.median(theirs), "ratio", 0.8)

    async def exits(self) -> AsyncIterator[Figure]:
        """Of a quiet boot, those that come to this process, by what was accessed."""
        with _counting() as counted:
            async with self.native():
                pass
        yield Figure("boot_exits", sum(counted.values()), "exits", 5000)
        for kind, count in counted.most_common(12):
            say(f"{count:6} {kind}")

    # --- disk and network ---------------------------------------------------------------------------------------------

    async def load(self) -> AsyncIterator[Figure]:
        """The same image and load in three guests that run at the same time, measured one after the other, in turns."""
        image = self.directory / "image.raw"
        await asyncio.to_thread(_fill, image)
        await _host(NO_METRICS)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(
                _end, await asyncio.create_subprocess_exec(self.directory / "load", "serve", str(PORT))
            )
            guests: dict[str, Guest] = {}
            for number, plane in enumerate(("qemu", "offload", "python")):
                has = Equipment(image, await stack.enter_async_context(_tap(number)), number)
                machine = (
                    self.qemu(machine="q35", has=has)
                    if plane == "qemu"
                    else self.native(plane=plane, has=has, name=plane)
                )
                guests[plane] = await stack.enter_async_context(machine)
                await guests[plane].run(f"{NO_METRICS}; ip addr add 10.9.{number}.2/24 dev eth0; ip link set eth0 up")
            for guest in guests.values():  # until every page of the image is in memory
                await guest.run("load seq /dev/vda 3")
            measured: dict[str, dict[str, list[float]]] = {}
            for name, line in _LOADS.items():
                measured[name] = await _in_turns(guests.values(), line)
            for figure in _ratios(measured):
                yield figure


_LOADS: Mapping[str, str] = {
    "blk_rand": f"load rand /dev/vda {SECONDS} {WORKERS}",
    "blk_seq": f"load seq /dev/vda {SECONDS}",
    "net_send": f"load send 10.9.%d.1 {PORT} {SECONDS}",
    "net_receive": f"load receive 10.9.%d.1 {PORT + 1} {SECONDS}",
}


async def _in_turns(guests: Iterable[Guest], line: str) -> dict[str, list[float]]:
    """Each guest's results, round by round."""
    results: dict[str, list[float]] = {guest.name: [] for guest in guests}
    for _ in range(ROUNDS):
        for guest in guests:
            answer = await guest.run(line.replace("%d", str(guest.number)))
            results[guest.name].append(float(answer))
    say(f"{line}: {results}")
    return results


def _ratios(measured: Mapping[str, Mapping[str, Sequence[float]]]) -> Iterable[Figure]:
    """Medians; of a ratio, that of the rounds' ratios, for the machine is not as fast in one minute as in the next."""
    ratios: dict[str, float] = {}
    for name, by_guest in measured.items():
        unit = "reads/s" if name == "blk_rand" else "MiB/s"
        yield Figure(f"{name}_qemu", statistics.median(by_guest["qemu"]), unit, 0, at_most=False)
        for plane, goal in (BLOCK_GOALS if name.startswith("blk") else NET_GOALS).items():
            yield Figure(f"{name}_{plane}", statistics.median(by_guest[plane]), unit, 0, at_most=False)
            pairs = zip(by_guest[plane], by_guest["qemu"], strict=True)
            ratios[f"{name}_{plane}"] = ratio = statistics.median(ours / theirs for ours, theirs in pairs)
            yield Figure(f"{name}_ratio_{plane}", ratio, "ratio", goal, at_most=False)
    for plane, goal in NET_GOALS.items():
        worst = min(ratios[f"{name}_{plane}"] for name in ("net_send", "net_receive"))
        yield Figure(f"net_ratio_{plane}", worst, "ratio", goal, at_most=False)


class _Typist:
    """As much of a stream writer as `GuestConsole` uses."""

    def __init__(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        self._write, self._waiting = write, b""

    def write(self, data: bytes) -> None:
        self._waiting += data

    async def drain(self) -> None:
        typed, self._waiting = self._waiting, b""
        await self._write(typed)


async def _timed(guest: contextlib.AbstractAsyncContextManager[Guest]) -> float:
    began = time.monotonic()
    async with guest:
        return time.monotonic() - began


@contextlib.contextmanager
def _counting() -> Any:
    """Every exit that comes to this process, by what was accessed, before the machine sees it."""
    counted: Counter[str] = Counter()
    plain = {name: getattr(Bus, name) for name in ("read", "write")}
    other = run_loop.Vcpu._exit

    def counting(verb: str) -> Callable[..., Any]:
        def call(bus: Bus, address: int, *rest: int) -> Any:
            found = bus.find(address)
            counted[
                f"{verb} {found.name}+{address - found.base:#x}" if found else f"{verb} {bus.name} {address:#x}"
            ] += 1
            return plain[verb](bus, address, *rest)

        return call

    def count_other(vcpu: run_loop.Vcpu, reason: int) -> None:
        counted[f"exit {reason}"] += 1
        other(vcpu, reason)

    try:
        for name in plain:
            setattr(Bus, name, counting(name))
        run_loop.Vcpu._exit = count_other  # type: ignore[method-assign, assignment]
        yield counted
    finally:
        for name, method in plain.items():
            setattr(Bus, name, method)
        run_loop.Vcpu._exit = other  # type: ignore[method-assign]


@asynccontextmanager
async def _tap(number: int) -> AsyncIterator[str]:
    name = f"bench{number}"
    await _host(
        f"ip tuntap add {name} mode tap vnet_hdr; ip addr add 10.9.{number}.1/24 dev {name}; ip link set {name} up"
    )
    try:
        yield name
    finally:
        await _host(f"ip link delete {name}")


async def _host(script: str) -> None:
    process = await asyncio.create_subprocess_exec("sh", "-ec", script)
    if await process.wait():
        raise RuntimeError(script)


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def _fill(path: Path) -> None:
    """Of bytes that are not zero, so that nobody is quick about them."""
    piece = os.urandom(1 << 20)
    with path.open("wb") as file:
        for _ in range(IMAGE_MIB):
            file.write(piece)


def _raw(path: Path) -> OpenedVolume:
    return OpenedVolume(volume_id=None, path=path, format=VolumeFormat.RAW, size_bytes=path.stat().st_size)


def say(line: str) -> None:
    """What goes on."""
    print(line, file=sys.stderr, flush=True)


async def main(directory: Path, parts: Sequence[str]) -> None:
    """`directory` has `load` and `initramfs`."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    scope = TaskScope("bench")
    engine = NativeEngine(directory / "run", directory / "data", scope, SystemClock())
    await engine.probe()
    bench = Bench(directory, engine)
    for part in parts:
        try:
            async for figure in getattr(bench, part)():
                print(json.dumps({"figure": dataclasses.asdict(figure)}), flush=True)
        except Exception as error:  # noqa: BLE001  one part that cannot be taken does not hide the others
            print(json.dumps({"problem": f"{part}: {type(error).__name__}: {error}"}), flush=True)
    await engine.close()
    await scope.close()
    print(json.dumps({"done": True}), flush=True)


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), sys.argv[2:] or ["exits", "load", "boot"]))
