"""What must be true on disk before a launch: resources checked, the cloud-init drive written, UEFI variables in place.

The checks turn QEMU's habits into clear errors: given a tap name that does not exist QEMU would make a new device, joined
to nothing; given a file system without O_DIRECT it would refuse the disk.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from pathlib import Path

from appliance.cloud_init import render, write_drive
from appliance.errors import HostError
from appliance.kernel.cgroup_limits import Limits
from appliance.kernel.huge_page_room import chosen_kib, make_room
from appliance.model.guest import VmDisk, VmResources, VmSpec
from appliance.model.volume import OpenedVolume
from appliance.qemu.capabilities import HostFacts
from appliance.qemu.drives import needs_direct_io
from appliance.qemu.firmware import VarsStore, temporary_vars, volume_vars
from appliance.qemu.launch import Launch
from appliance.qemu.refusal import needs_uefi
from appliance.qemu.run_dir import RunDir


async def prepare(spec: VmSpec, resources: VmResources, facts: HostFacts, paths: RunDir) -> tuple[Launch, list[str]]:
    """Check, write, decide. Returns the launch and notes for the task's log. Raises `HostError`; `paths` exists."""
    notes: list[str] = []
    buffered = await asyncio.to_thread(_check_resources, spec, resources)
    notes += [f"{slot}: no O_DIRECT on its file system, using the host's page cache" for slot in sorted(buffered)]
    await _write_cloud_init(spec, resources)
    pages_kib = await asyncio.to_thread(_make_room, spec)
    problem = facts.kvm_problem(spec.arch)
    accelerator = "tcg" if spec.accelerator == "tcg" or problem else "kvm"
    if accelerator == "tcg" and spec.accelerator == "auto":
        notes.append(f"no KVM ({problem}): emulating the processor, which is slow")
    if spec.cpu_units != Limits().cpu_units and facts.no_cpu_limit:
        notes.append(f"cpuunits {spec.cpu_units} has no effect: {facts.no_cpu_limit}")
    variables = await _variables(spec, resources, facts, paths, notes)
    launch = Launch(
        facts=facts,
        emulator=facts.emulators[spec.arch],
        paths=paths,
        accelerator=accelerator,
        vars=variables,
        buffered=buffered,
        hugepages_kib=pages_kib,
    )
    return launch, notes


def _make_room(spec: VmSpec) -> int:
    """Blocking. The size of the pages its memory is made of, in KiB (0: usual ones); there is room for them now."""
    backing, about = spec.memory_backing, f"vm {spec.guest_id}"
    try:
        size_kib = chosen_kib(backing.hugepages, [node.memory_mib for node in backing.numa] or [spec.memory_mib])
    except OSError as error:
        raise HostError.from_os_error(error, about) from error
    if size_kib:
        make_room(size_kib, spec.memory_mib, keep=backing.keep_hugepages, about=about)
    return size_kib


def _check_resources(spec: VmSpec, resources: VmResources) -> frozenset[str]:
    """Blocking. Returns the slots to open without O_DIRECT."""
    name = f"vm {spec.guest_id}"
    for slot, tap in resources.taps.items():
        check_tap(name, slot, tap)
    buffered: set[str] = set()
    for disk in spec.disks:
        volume = resources.disks.get(disk.slot)
        if volume is not None and check_disk(name, disk, volume):
            buffered.add(disk.slot)
    return frozenset(buffered)


def check_tap(name: str, slot: str, tap: str) -> None:
    """Blocking. Raises `HostError`."""
    if "/" in tap or not Path(f"/sys/class/net/{tap}/tun_flags").is_file():
        raise HostError(f"{name}: {slot}: tap device {tap} is missing")


def check_disk(name: str, disk: VmDisk, volume: OpenedVolume) -> bool:
    """Blocking. Whether it is to be opened without O_DIRECT. Raises `HostError`."""
    try:
        mode = volume.path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise HostError(f"{name}: {disk.slot}: {volume.path} is neither a file nor a block device")
        return needs_direct_io(disk) and not _opens_direct(volume.path)
    except OSError as error:
        raise HostError.from_os_error(error, f"{name}: {disk.slot}: open {volume.path}") from error


def _opens_direct(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


async def _write_cloud_init(spec: VmSpec, resources: VmResources) -> None:
    if spec.cloud_init is None:
        return
    files = render(spec.cloud_init, hostname=spec.name, nics=spec.nics)
    for disk in spec.disks:
        volume = resources.disks.get(disk.slot)
        if disk.cloudinit and volume is not None:
            await write_drive(volume, files)


async def _variables(
    spec: VmSpec, resources: VmResources, facts: HostFacts, paths: RunDir, notes: list[str]
) -> VarsStore | None:
    firmware = facts.emulators[spec.arch].firmware
    if not needs_uefi(spec) or firmware is None:
        return None
    volume = resources.disks.get(spec.efi_disk.slot) if spec.efi_disk else None
    if volume is None:
        notes.append("no EFI disk: UEFI variables are forgotten when the VM stops")
        return await temporary_vars(firmware, paths.vars)
    return await volume_vars(firmware, volume)
