"""Saving a whole machine into a file, and restoring it into one just built. On the loop; the heavy parts in threads.

    save      pause · every device's `save` · vCPUs, chips and clock · header and RAM into FILE.part · fsync · rename
    restore   start(incoming) · RAM · chips · devices in the order they were added · vCPUs · resume
A machine that cannot be saved runs on as before; one that cannot be restored is good for `stop` only. What its guest asked
for just before it was paused (a reset, power-off) is done first: it would be lost otherwise.
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
from appliance.errors import Conflict, HostError, NoSpace, Unsupported
from appliance.model.guest import VmResources, VmSpec
from appliance.model.volume import OpenedVolume, VolumeFormat, VolumeId
from appliance.threads import to_the_end
from appliance.vmm import saved
from appliance.vmm.cpu_state import VcpuState, VmState, decode, encode, restore_vcpu, restore_vm, save_vcpu, save_vm
from appliance.vmm.life import MachineState

if TYPE_CHECKING:
    from appliance.vmm.builder import Built
    from appliance.vmm.machine import Machine

MODE = 0o600  # it holds a guest's memory
SPARE_BYTES = 64 << 20  # of the file system, left to others (ADR 12)
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class SavedVolume(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`OpenedVolume`. `volume_id` "" for none."""

    volume_id: str
    path: str
    format: str
    size_bytes: int
    read_only: bool


class Life(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The machine's life until it was saved, and what it had of its host: "life" among the header's `extra`.

    `boot` is the host's boot ID then: taps and the world the guest spoke with are gone with it.
    """

    started_at: float
    was_running: bool
    boot: str
    volumes: dict[str, SavedVolume]
    taps: dict[str, str]
    directories: dict[str, str] = {}

    def resources(self) -> VmResources:
        """As they were. Raises `InvalidParameter` for a volume's name that cannot be."""
        return VmResources(
            disks={slot: _opened(each) for slot, each in self.volumes.items()},
            taps=self.taps,
            directories={slot: Path(path) for slot, path in self.directories.items()},
        )


def boot_id() -> str:
    """Of this host's present boot. Blocking. Raises `HostError`."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError as error:
        raise HostError.from_os_error(error, f"read {BOOT_ID}") from error


async def save_machine(
    built: Built,
    path: Path,
    *,
    started_at: float,
    clock: Clock,
    level: int = saved.COMPRESSION_LEVEL,
    durable: bool = True,
) -> int:
    """Pause it and write it to `path`, whole or not at all; it stays paused. The file's size in bytes.

    `durable`: it is to outlive the host's power. Raises `HostError` (`NoSpace`), `TimedOut`, `Conflict` when it has ended;
    after these, and when cancelled, it runs on if it ran before.
    """
    machine = built.machine
    was_running = machine.state is MachineState.RUNNING
    try:
        await machine.pause()
        await machine.settle()
        if machine.state is MachineState.STOPPED:
            raise Conflict(f"{machine.label}: it has just ended")
        vcpus = await _vcpu_states(machine)
        boot = await asyncio.to_thread(boot_id)
        header = _header(built, vcpus, _life(built, started_at, was_running, boot), clock)
        return await to_the_end(_write, path, header, machine, level, durable)
    except BaseException:
        if was_running:
            with contextlib.suppress(Conflict):  # it has ended
                await machine.resume()
        raise


def _header(built: Built, vcpus: list[VcpuState], life: Life, clock: Clock) -> saved.Header:
    machine = built.machine
    return saved.Header(
        guest_id=built.spec.guest_id,
        saved_at=clock.now(),
        ram_bytes=machine.board.memory.size,
        spec=msgspec.json.encode(built.spec),
        vm=encode(save_vm(machine.board.vm)),
        vcpus=[encode(state) for state in vcpus],
        devices=_device_states(machine),
        extra={
            "life": msgspec.json.encode(life),
            **{f"console:{name}": channel.history() for name, channel in built.serials.items()},
        },
    )


def _life(built: Built, started_at: float, was_running: bool, boot: str) -> Life:
    resources = built.resources
    directories = {slot: str(path) for slot, path in resources.directories.items()}
    return Life(started_at, was_running, boot, _volumes(built), dict(resources.taps), directories)


def _volumes(built: Built) -> dict[str, SavedVolume]:
    return {
        slot: SavedVolume(
            str(each.volume_id) if each.volume_id else "",
            str(each.path),
            each.format.value,
            each.size_bytes,
            each.read_only,
        )
        for slot, each in built.resources.disks.items()
    }


def _opened(told: SavedVolume) -> OpenedVolume:
    return OpenedVolume(
        volume_id=VolumeId.parse(told.volume_id) if told.volume_id else None,
        path=Path(told.path),
        format=VolumeFormat(told.format),
        size_bytes=told.size_bytes,
        read_only=told.read_only,
    )


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


def life_of(header: saved.Header) -> Life:
    """Its life until it was saved. Raises `Unsupported`."""
    try:
        return msgspec.json.decode(header.extra.get("life", b""), type=Life)
    except msgspec.MsgspecError as error:
        raise Unsupported(f"vm {header.guest_id}: saved life not understood: {error}") from error


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
    known = {device.name: device.state_type for device in machine.devices if device.state_type is not None}
    if strange := sorted(states.keys() - known.keys()):
        raise Unsupported(f"{machine.label}: saved with devices that are not here: {', '.join(strange)}")
    if missing := sorted(known.keys() - states.keys()):
        raise Unsupported(f"{machine.label}: saved without devices that are here: {', '.join(missing)}")
    for device in machine.devices:
        if device.name not in known:
            continue
        state = decode(known[device.name], states[device.name], about=device.label)
        with device.lock:
            device.restore(state)


def _write(path: Path, header: saved.Header, machine: Machine, level: int, durable: bool) -> int:
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _require_room(path.parent, machine)
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, MODE), "wb") as file:
            size = saved.save(file, header, machine.board.memory, level=level)
            if durable:
                os.fsync(file.fileno())
        part.rename(path)
        return size
    except OSError as error:
        raise HostError.from_os_error(error, f"{machine.label}: write {part}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _require_room(directory: Path, machine: Machine) -> None:
    """Before anything is written: a disk that is filled up is everybody's trouble. Raises `NoSpace`."""
    found = os.statvfs(directory)
    free, wanted = found.f_bavail * found.f_frsize, machine.board.memory.resident_bytes() + SPARE_BYTES
    if free < wanted:
        raise NoSpace(f"{machine.label}: {directory}: {free >> 20} MiB are free, saving it takes up to {wanted >> 20}")


def _read_ram(path: Path, machine: Machine) -> None:
    about = f"{machine.label}: {path}"
    try:
        with path.open("rb") as file:
            _, checksum = saved.read_header(file, about=about)
            saved.restore_ram(file, machine.board.memory, checksum, about=about)
    except OSError as error:
        raise HostError.from_os_error(error, f"read {path}") from error
