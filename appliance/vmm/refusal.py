"""Why the native machine cannot run a specification: every reason, each one line. Pure.

What is refused here is QEMU's to run. A specification that names `engine=native` is held to the same, except that a host
without hardware virtualization is then only told of, not refused: firmware and small guests do run there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from appliance.kernel import huge_page_room, virtiofsd
from appliance.kernel.kvm_capabilities import KvmCapabilities
from appliance.kernel.virtiofsd import ShareOptions
from appliance.model.guest import NicSpec, VmDisk, VmShare, VmSpec
from appliance.vmm import layout
from appliance.vmm.block.offload import SERIAL_PROBLEM
from appliance.vmm.boot.cpu_models import MODELS
from appliance.vmm.places import DISK_SLOTS, NIC_SLOTS, share_problem

MACHINES = frozenset({"i440fx", "q35"})
DISPLAYS = frozenset({"std", "none", *(f"serial{number}" for number in range(4))})
CACHE_MODES = frozenset({"none", "writethrough", "writeback", "directsync", "unsafe"})
SERIAL_LIMIT = 4
MEMORY_MIN_MIB = 16

_MAC = re.compile(r"(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}")


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What the engine knows of its host. Empty strings mean usable, otherwise they hold the reason; `virtiofsd` is the
    program, `huge_pages_kib` the sizes there are."""

    kvm: KvmCapabilities
    no_firmware: str = ""
    no_ovmf: str = ""
    no_storage_daemon: str = ""
    virtiofsd: str | None = None
    huge_pages_kib: frozenset[int] = frozenset()


def reasons(spec: VmSpec, facts: HostFacts) -> list[str]:
    """Empty when it can run natively."""
    problem = facts.kvm.machine_problem() if spec.engine == "native" else facts.kvm.problem()
    found = [problem] if problem else []
    found += [*_machine(spec, facts), *_processor(spec, facts)]
    for disk in spec.disks:
        found += [f"{disk.slot}: {text}" for text in disk_reasons(disk)]
        if qcow2 := (disk.volume or "").endswith(".qcow2"):
            found += [f"{disk.slot}: {text}" for text in _qcow2(spec, facts)]
        if disk.serial and disk.volume and (qcow2 or spec.data_plane == "offload"):
            found.append(f"{disk.slot}: {SERIAL_PROBLEM}")
    for nic in spec.nics:
        found += [f"{nic.slot}: {text}" for text in nic_reasons(nic)]
    for share in spec.shares:
        found += [f"{share.slot}: {text}" for text in _share(share, spec, facts)]
    return found


def _machine(spec: VmSpec, facts: HostFacts) -> Iterator[str]:
    if spec.arch != "x86_64":
        yield f"architecture {spec.arch} needs emulation"
    if spec.machine.split("-")[0] not in MACHINES:
        yield f"machine {spec.machine!r} is not a PC"
    if spec.firmware == "ovmf":
        yield from _ovmf(spec, facts)
    elif facts.no_firmware and not spec.kernel:
        yield facts.no_firmware
    if spec.accelerator == "tcg":
        yield "emulation is asked for"
    if spec.os_type.startswith(("win", "w2k", "wxp", "wvista", "solaris")):
        yield f"operating system type {spec.os_type!r} needs devices that QEMU has"
    if spec.display not in DISPLAYS:
        yield f"display {spec.display!r} needs QEMU"
    if any(not 0 <= number < SERIAL_LIMIT for number in spec.serials) or len(set(spec.serials)) < len(spec.serials):
        yield f"serial ports {spec.serials}: 0 to {SERIAL_LIMIT - 1}, each once"
    if spec.extra_args:
        yield "arguments for QEMU are given"
    if not spec.acpi:
        yield "a machine without ACPI needs QEMU"
    if spec.efi_disk is not None and spec.firmware != "ovmf":
        yield "an EFI disk is of use with OVMF only"
    if sum(1 for disk in spec.disks if disk.cloudinit) > 1:
        yield "more than one cloud-init drive"


def _ovmf(spec: VmSpec, facts: HostFacts) -> Iterator[str]:
    if spec.engine != "native":
        yield "firmware 'ovmf' is experimental natively, and used when engine=native asks for it"
    if facts.no_ovmf and not spec.kernel:
        yield facts.no_ovmf
    if spec.efi_disk is not None and (spec.efi_disk.volume or "").endswith(".qcow2"):
        yield "efidisk0: the variables' volume must be raw natively"


def _processor(spec: VmSpec, facts: HostFacts) -> Iterator[str]:
    if spec.cpu_model not in MODELS:
        yield f"processor {spec.cpu_model!r} is not one of {', '.join(sorted(MODELS - {''}))}"
    if spec.cpu_flags:
        yield "processor flags are given"
    most = min(layout.MAX_VCPUS, facts.kvm.max_vcpus)
    if spec.sockets < 1 or spec.cores < 1 or not 1 <= spec.vcpus <= min(most, spec.sockets * spec.cores):
        yield f"{spec.vcpus} vCPUs do not fit {spec.sockets} sockets of {spec.cores} cores, or are more than {most}"
    if spec.cpu_limit:
        yield "processor time cannot be limited within one process"
    if spec.memory_mib < MEMORY_MIN_MIB:
        yield f"{spec.memory_mib} MiB of memory"
    if problem := huge_page_room.problem(spec.memory_backing.hugepages, facts.huge_pages_kib):
        yield problem


def _share(share: VmShare, spec: VmSpec, facts: HostFacts) -> Iterator[str]:
    """A guest that has it mounted cannot be saved, so that a restart of the appliance ends it: not to be chosen for it."""
    if spec.engine != "native":
        yield "a guest with a shared directory does not outlive a restart of the appliance natively"
    options = ShareOptions(cache=share.cache, direct_io=share.direct_io, acl=share.acl, xattr=share.xattr)
    if problem := virtiofsd.problem(facts.virtiofsd, options) or share_problem(share, spec.disks):
        yield problem


def _qcow2(spec: VmSpec, facts: HostFacts) -> Iterator[str]:
    if facts.no_storage_daemon:
        yield facts.no_storage_daemon
    if spec.data_plane == "python":
        yield "the data plane in Python has no qcow2"


def disk_reasons(disk: VmDisk) -> Iterator[str]:
    """Why the machine cannot have this disk."""
    if disk.volume is None:
        return  # an empty drive is no device here
    if disk.cdrom and not disk.cloudinit:
        yield "a CD-ROM drive needs QEMU"
    elif disk.bus != "virtio" and not disk.cloudinit:
        yield f"bus {disk.bus!r}: the native machine has virtio"
    elif not disk.cloudinit and disk.index >= DISK_SLOTS:
        yield f"the native machine has virtio0 to virtio{DISK_SLOTS - 1}"
    if disk.cache not in CACHE_MODES:
        yield f"cache {disk.cache!r} is not one of {', '.join(sorted(CACHE_MODES))}"


def nic_reasons(nic: NicSpec) -> Iterator[str]:
    """Why the machine cannot have this NIC."""
    if nic.model != "virtio":
        yield f"model {nic.model!r}: the native machine has virtio"
    if not _MAC.fullmatch(nic.mac):
        yield f"{nic.mac!r} is not a MAC address"
    if not 0 <= int(nic.slot.removeprefix("net")) < NIC_SLOTS:
        yield f"the native machine has net0 to net{NIC_SLOTS - 1}"
