"""Runs inside a lab host: the native engine, obedient to lines on its standard input. `vmm_client` is the other end.

    → {"id": 1, "guest": 100, "do": "start", ...}      one line of JSON an order
    ← {"id": 1, "ok": ...} or {"id": 1, "error": "..."}
    ← {"guest": 100, "console": BASE64}                what serial0 said; "" at its end
    ← {"guest": 100, "log": "..."}, {"guest": 100, "state": "stopped", "detail": "..."}
It ends with its standard input, and takes what still runs with it.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from appliance.clock import SystemClock
from appliance.errors import ApplianceError
from appliance.kernel.kvm_cpu_abi import KVM_MP_STATE_RUNNABLE
from appliance.kernel.kvm_vcpu import Vcpu as KvmVcpu
from appliance.model.guest import GuestState, NicSpec, VmDisk, VmResources, VmSpec
from appliance.model.volume import OpenedVolume, VolumeFormat
from appliance.tasks import TaskScope
from appliance.vmm import vcpu as run_loop
from appliance.vmm.bus import Bus
from appliance.vmm.engine import NativeEngine
from appliance.vmm.vm import NativeVm

LINE_LIMIT_BYTES = 1 << 20
SWITCH_INTERVAL_S = 1e-4
"""As `appliance serve` has it."""
NO_MEMORY = 0xE000_0000
"""Neither RAM nor a device: the PCI hole of a machine with few devices."""


class Agent:
    """One for each process."""

    def __init__(self, directory: Path) -> None:
        self._scope = TaskScope("lab agent")
        self._engine = NativeEngine(directory / "run", directory / "data", self._scope, SystemClock())
        self._vms: dict[int, NativeVm] = {}

    async def serve(self, orders: asyncio.StreamReader) -> None:
        """Until the end of `orders`."""
        await self._engine.probe()
        say({"ready": True})
        while line := await orders.readline():
            self._scope.start(self._obey(json.loads(line)), name="order")
        for vm in list(self._vms.values()):
            if not vm.ended:
                await vm.stop()
        await self._engine.close()
        await self._scope.close()

    async def _obey(self, order: dict[str, Any]) -> None:
        number, guest, verb = order.pop("id"), order.pop("guest"), order.pop("do")
        try:
            say({"id": number, "ok": await getattr(self, f"do_{verb}")(guest, **order)})
        except ApplianceError as error:
            say({"id": number, "error": str(error)})

    # --- orders: their names are the protocol's ---------------------------------------------------------------------

    async def do_start(
        self,
        guest: int,
        spec: dict[str, Any],
        disks: dict[str, str],
        taps: dict[str, str],
        directories: dict[str, str],
    ) -> dict[str, Any]:
        """`disks`: slots to raw images; `directories`: slots to what is shared. How long building and starting took."""
        volumes = {slot: _volume(Path(path)) for slot, path in disks.items()}
        whole = {"guest_id": guest, "engine": "native", "display": "none", "cpu_model": "host", **spec}
        began = time.monotonic()
        vm = await self._engine.start(
            msgspec.convert(whole, VmSpec),
            VmResources(disks=volumes, taps=taps, directories={slot: Path(each) for slot, each in directories.items()}),
            on_state=partial(self._state, guest),
            log=lambda line: say({"guest": guest, "log": line}),
        )
        self._keep(guest, vm)
        return {"start_s": time.monotonic() - began, "pid": vm.pid}

    async def do_adopt(self, guest: int, spec: dict[str, Any]) -> bool:
        """Take up what an agent before this one saved."""
        whole = {"guest_id": guest, "engine": "native", **spec}
        vm = await self._engine.adopt(msgspec.convert(whole, VmSpec), on_state=partial(self._state, guest))
        if vm is not None:
            self._keep(guest, vm)
        return vm is not None

    async def do_detach(self, guest: int) -> None:
        """As the appliance does when it goes down."""
        await self._vms[guest].detach()

    async def do_type(self, guest: int, data: str) -> None:
        """`data`: base64."""
        await self._vms[guest].built.serials["serial0"].write(base64.b64decode(data))

    async def do_pause(self, guest: int) -> None:
        await self._vms[guest].pause()

    async def do_resume(self, guest: int) -> None:
        await self._vms[guest].resume()

    async def do_reset(self, guest: int) -> None:
        await self._vms[guest].reset()

    async def do_stop(self, guest: int) -> None:
        await self._vms[guest].stop()

    async def do_shutdown(self, guest: int) -> None:
        await self._vms[guest].shutdown()

    async def do_ended(self, guest: int) -> dict[str, str]:
        """Why, once it has."""
        reason = await self._vms[guest].wait()
        return {"kind": reason.kind, "detail": reason.detail}

    async def do_stats(self, guest: int) -> Any:
        return msgspec.to_builtins(await self._vms[guest].stats())

    async def do_balloon(self, guest: int, mib: int) -> None:
        """The guest shall keep `mib`."""
        vm = self._vms[guest]
        assert vm.built.balloon is not None
        vm.built.balloon.target_mib = mib

    async def do_attach_disk(self, guest: int, slot: str, path: str) -> None:
        await self._vms[guest].attach_disk(VmDisk(slot=slot, volume=f"local:{slot}"), _volume(Path(path)))

    async def do_detach_disk(self, guest: int, slot: str) -> None:
        await self._vms[guest].detach_disk(slot)

    async def do_attach_nic(self, guest: int, nic: dict[str, Any], tap: str) -> None:
        await self._vms[guest].attach_nic(msgspec.convert(nic, NicSpec), tap)

    async def do_detach_nic(self, guest: int, slot: str) -> None:
        await self._vms[guest].detach_nic(slot)

    async def do_resize(self, guest: int, slot: str, size_bytes: int) -> None:
        await self._vms[guest].resize_disk(slot, size_bytes)

    async def do_fault(self, guest: int) -> None:
        """Let its first processor execute where there is no memory: KVM gives up (KVM_EXIT_INTERNAL_ERROR)."""
        await self._vms[guest].built.machine.run_on(0, _derail)

    async def do_registers(self, guest: int) -> Any:
        """rip, cr0 and cr3 of each vCPU."""
        machine = self._vms[guest].built.machine
        return [await machine.run_on(number, _registers) for number in range(len(machine.vcpus))]

    async def do_exits(self, guest: int) -> Any:
        """By what was accessed, in this process since the last question; only with `--count`."""
        counted = dict(_counted.most_common(60))
        total = sum(_counted.values())
        _counted.clear()
        return {"total": total, "by_kind": counted}

    # --- inside -----------------------------------------------------------------------------------------------------

    def _keep(self, guest: int, vm: NativeVm) -> None:
        self._vms[guest] = vm
        self._scope.start(self._listen(guest, vm), name=f"vm {guest} console")

    async def _listen(self, guest: int, vm: NativeVm) -> None:
        if "serial0" not in vm.console_names():
            return
        console = await vm.open_console("serial0")
        said = console.history()
        try:
            while said or (said := await console.read()):
                say({"guest": guest, "console": base64.b64encode(said).decode()})
                said = b""
        finally:
            await console.close()
        say({"guest": guest, "console": ""})

    def _state(self, guest: int, state: GuestState, detail: str) -> None:
        say({"guest": guest, "state": state.value, "detail": detail})


def say(message: dict[str, Any]) -> None:
    """One line to whoever gives the orders."""
    os.write(1, json.dumps(message).encode() + b"\n")


def _volume(path: Path) -> OpenedVolume:
    kind = VolumeFormat.QCOW2 if path.suffix == ".qcow2" else VolumeFormat.RAW
    return OpenedVolume(volume_id=None, path=path, format=kind, size_bytes=path.stat().st_size)


def _registers(kvm: KvmVcpu) -> list[str]:
    sregs = kvm.get_sregs()
    return [hex(value) for value in (kvm.get_regs().rip, sregs.cr0, sregs.cr3)]


def _derail(kvm: KvmVcpu) -> None:
    sregs, regs = kvm.get_sregs(), kvm.get_regs()
    sregs.cr0 &= ~0x8000_0000  # no paging
    sregs.efer &= ~0x500  # no long mode
    sregs.cs.base, sregs.cs.l, sregs.cs.db, sregs.cs.limit, sregs.cs.g = 0, 0, 1, 0xFFFF_FFFF, 1
    sregs.cs.dpl = sregs.ss.dpl = 0  # at a user's level the guest itself would be told, by an exception
    regs.rip, regs.rflags = NO_MEMORY, 2
    kvm.set_sregs(sregs)
    kvm.set_regs(regs)
    kvm.set_mp_state(KVM_MP_STATE_RUNNABLE)  # it may have halted, and no interrupt wakes it any more


_counted: Counter[str] = Counter()


def _count_exits() -> None:
    """Every exit that comes to this process is counted by what it accessed, before the machine sees it."""

    def counting(method: Callable[..., Any], verb: str) -> Callable[..., Any]:
        def call(bus: Bus, address: int, *rest: int) -> Any:
            found = bus.find(address)
            name = f"{found.name}+{address - found.base:#x}" if found else f"{bus.name} {address:#x}"
            _counted[f"{verb} {name}"] += 1
            return method(bus, address, *rest)

        return call

    Bus.read = counting(Bus.read, "read")  # type: ignore[method-assign]
    Bus.write = counting(Bus.write, "write")  # type: ignore[method-assign]
    plain = run_loop.Vcpu._exit

    def other(self: run_loop.Vcpu, reason: int) -> None:
        _counted[f"exit {reason}"] += 1
        plain(self, reason)

    run_loop.Vcpu._exit = other  # type: ignore[method-assign]


async def main() -> None:
    """Orders from the standard input."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG
    if "--count" in sys.argv:
        _count_exits()
    orders = asyncio.StreamReader(limit=LINE_LIMIT_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    await Agent(Path(sys.argv[1])).serve(orders)


if __name__ == "__main__":
    uvloop.run(main())
