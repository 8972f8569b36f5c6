"""Saving a whole machine into a file, and restoring it into one just built. On the loop; the heavy parts in threads.

    save      pause · every device's `save` · vCPUs, chips and clock · header and RAM into FILE.part · fsync · rename
    restore   start(incoming) · RAM · chips · devices in the order they were added · vCPUs · resume
A machine that cannot be saved runs on as before; one that cannot be restored is good for `stop` only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec

from appliance.clock import Clock
from appliance.errors import HostError, Unsupported
from appliance.model.guest import VmSpec
from appliance.threads import to_the_end
from appliance.vmm import saved
from appliance.vmm.cpu_state import VcpuState, VmState, decode, encode, restore_vcpu, restore_vm, save_vcpu, save_vm
from appliance.vmm.device import State
from appliance.vmm.life import MachineState

if TYPE_CHECKING:
    from appliance.vmm.builder import Built
    from appliance.vmm.machine import Machine

MODE = 0o600  # it holds a guest's memory


async def save_machine(
    built: Built,
    spec: VmSpec,
    path: Path,
    *,
    started_at: float,
    clock: Clock,
    level: int = saved.COMPRESSION_LEVEL,
) -> int:
    """Pause it and write it to `path`, whole or not at all; it stays paused. The file's size in bytes.

    Raises `HostError` (`NoSpace`), `TimedOut`; it runs on then, if it ran before.
    """
    machine = built.machine
    was_running = machine.state is MachineState.RUNNING
    await machine.pause()
    try:
        header = saved.Header(
            guest_id=spec.guest_id,
            saved_at=clock.now(),
            ram_bytes=machine.board.memory.size,
            spec=msgspec.json.encode(spec),
            vm=encode(save_vm(machine.board.vm)),
            vcpus=[encode(state) for state in await _vcpu_states(machine)],
            devices=_device_states(machine),
            extra={
                "started_at": str(started_at).encode(),
                "was_running": b"1" if was_running else b"",
                **{f"console:{name}": channel.history() for name, channel in built.serials.items()},
            },
        )
        return await to_the_end(_write, path, header, machine, level)
    except BaseException:
        if was_running:
            await machine.resume()
        raise


def load_header(path: Path) -> saved.Header:
    """Who is in a file. Blocking. Raises `Unsupported`, `HostError`."""
    try:
        with path.open("rb") as file:
            return saved.read_header(file, about=str(path))[0]
    except OSError as error:
        raise HostError.from_os_error(error, f"open {path}") from error


def saved_spec(header: saved.Header) -> VmSpec:
    """The machine it was. Raises `Unsupported`."""
    try:
        return msgspec.json.decode(header.spec, type=VmSpec)
    except msgspec.MsgspecError as error:
        raise Unsupported(f"vm {header.guest_id}: saved specification not understood: {error}") from error


async def restore_machine(built: Built, path: Path, *, clock_goes_on: bool = True) -> saved.Header:
    """Into a machine BUILT of the saved specification; it is PAUSED then. Raises `Unsupported`, `HostError`."""
    machine = built.machine
    header = await asyncio.to_thread(load_header, path)
    if header.ram_bytes != machine.board.memory.size or len(header.vcpus) != len(machine.vcpus):
        raise Unsupported(f"{machine.label}: saved with other memory or vCPUs")
    await machine.start(incoming=True)
    await to_the_end(_read_ram, path, machine)
    await to_the_end(
        restore_vm,
        machine.board.vm,
        cast("VmState", decode(VmState, header.vm, about=machine.label)),
        clock_goes_on=clock_goes_on,
    )
    _restore_devices(machine, header.devices)
    for index, encoded in enumerate(header.vcpus):
        state = cast("VcpuState", decode(VcpuState, encoded, about=machine.label))
        await machine.run_on(index, partial(_restore_vcpu, state=state))
    for name, channel in built.serials.items():
        channel.restore_history(header.extra.get(f"console:{name}", b""))
    return header


def _restore_vcpu(vcpu: object, *, state: VcpuState) -> None:
    restore_vcpu(vcpu, state)  # type: ignore[arg-type]  # `run_on` gives the vCPU


async def _vcpu_states(machine: Machine) -> list[VcpuState]:
    indices = machine.board.msr_indices
    return [
        await machine.run_on(number, lambda kvm: save_vcpu(kvm, indices)) for number in range(len(machine.vcpus))
    ]  # one after the other: all of them are parked


def _device_states(machine: Machine) -> dict[str, bytes]:
    states: dict[str, bytes] = {}
    for device in machine.devices:
        with device.lock:
            state = device.save()
        if state is not None:
            states[device.name] = encode(state)
    return states


def _restore_devices(machine: Machine, states: dict[str, bytes]) -> None:
    known = {device.name for device in machine.devices}
    if strange := sorted(set(states) - known):
        raise Unsupported(f"{machine.label}: saved with devices that are not here: {', '.join(strange)}")
    for device in machine.devices:
        kind: type[State] | None = device.state_type
        if kind is None or device.name not in states:
            continue
        state = decode(kind, states[device.name], about=device.label)
        with device.lock:
            device.restore(state)


def _write(path: Path, header: saved.Header, machine: Machine, level: int) -> int:
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, MODE), "wb") as file:
            size = saved.save(file, header, machine.board.memory, level=level)
            os.fsync(file.fileno())
        part.rename(path)
        return size
    except OSError as error:
        raise HostError.from_os_error(error, f"{machine.label}: write {part}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _read_ram(path: Path, machine: Machine) -> None:
    about = f"{machine.label}: {path}"
    try:
        with path.open("rb") as file:
            _, checksum = saved.read_header(file, about=about)
            saved.restore_ram(file, machine.board.memory, checksum, about=about)
    except OSError as error:
        raise HostError.from_os_error(error, f"read {path}") from error
