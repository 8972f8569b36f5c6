"""Why this host's QEMU cannot run a specification: every reason, each one line. Pure.

Also the last gate before the command line for words that go into plain option lists.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator

from appliance.kernel import huge_page_room, virtiofsd
from appliance.model.guest import NicSpec, VmDisk, VmSpec
from appliance.qemu.capabilities import Emulator, HostFacts
from appliance.qemu.cpu import FLAG, MODEL
from appliance.qemu.devices import DISPLAYS, NIC_LIMIT, NIC_MODELS, SERIAL_LIMIT, display_driver, has_display
from appliance.qemu.drives import CACHE_MODES, SCSI_CONTROLLERS, SLOT_LIMITS
from appliance.qemu.launch import VIRT, board_of, machine_name
from appliance.qemu.shares import options_of

_MAC = re.compile(r"(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}")


def reasons(spec: VmSpec, facts: HostFacts) -> list[str]:
    """Empty when it can run."""
    emulator = facts.emulators.get(spec.arch)
    if emulator is None:
        return [facts.missing.get(f"arch:{spec.arch}", f"architecture {spec.arch!r} is not known")]
    board = board_of(spec.machine, spec.arch)
    if not board:
        return [f"machine {spec.machine!r} is not one of {spec.arch}"]
    found = [*_machine(spec, facts, emulator, board), *_processor(spec, facts), *_drives(spec, emulator, board)]
    for nic in spec.nics:
        found.extend(_nic(nic, emulator))
    for share in spec.shares:
        if "vhost-user-fs-pci" not in emulator.types:
            found.append(f"{share.slot}: this QEMU was built without vhost-user-fs-pci")
        elif problem := virtiofsd.problem(facts.virtiofsd, options_of(share)):
            found.append(f"{share.slot}: {problem}")
    return found


def needs_uefi(spec: VmSpec) -> bool:
    """`virt` knows no other firmware."""
    return spec.firmware == "ovmf" or board_of(spec.machine, spec.arch) == VIRT


def _machine(spec: VmSpec, facts: HostFacts, emulator: Emulator, board: str) -> Iterator[str]:
    if machine_name(spec.machine, spec.arch) not in emulator.machines:
        yield f"machine {spec.machine!r} is not known to this QEMU"
    if spec.accelerator not in ("auto", "kvm", "tcg"):
        yield f"accelerator {spec.accelerator!r} is not one of auto, kvm, tcg"
    if spec.accelerator == "kvm" and (problem := facts.kvm_problem(spec.arch)):
        yield f"KVM is asked for and not usable: {problem}"
    if spec.firmware not in ("seabios", "ovmf"):
        yield f"firmware {spec.firmware!r} is not one of seabios, ovmf"
    if needs_uefi(spec) and emulator.firmware is None:
        yield f"no UEFI firmware for {spec.arch} is installed"
    if has_display(spec):
        if spec.display not in DISPLAYS:
            yield f"display {spec.display!r} is not supported"
        elif display_driver(spec) not in emulator.types:
            yield f"display {spec.display!r}: this QEMU was built without {display_driver(spec)}"
    if any(not 0 <= number < SERIAL_LIMIT for number in spec.serials) or len(set(spec.serials)) < len(spec.serials):
        yield f"serial ports {spec.serials}: 0 to {SERIAL_LIMIT - 1}, each once"
    if spec.keyboard and spec.keyboard not in facts.keymaps:
        yield f"keyboard {spec.keyboard!r} is not known to this QEMU"
    if spec.vsock:
        yield "vsock: only the native machine has it"
    if not _is_uuid(spec.uuid):
        yield f"uuid {spec.uuid!r} is not a UUID"


def _processor(spec: VmSpec, facts: HostFacts) -> Iterator[str]:
    if spec.cpu_model and not MODEL.fullmatch(spec.cpu_model):
        yield f"processor {spec.cpu_model!r} is not a model's name"
    yield from (f"processor flag {flag!r} is not +NAME or -NAME" for flag in spec.cpu_flags if not FLAG.fullmatch(flag))
    if spec.sockets < 1 or spec.cores < 1 or not 1 <= spec.vcpus <= spec.sockets * spec.cores:
        yield f"{spec.vcpus} vCPUs do not fit {spec.sockets} sockets of {spec.cores} cores"
    if spec.cpu_limit and facts.no_cpu_limit:
        yield f"processor time cannot be limited: {facts.no_cpu_limit}"
    if spec.memory_mib < 1:
        yield f"{spec.memory_mib} MiB of memory"
    if problem := huge_page_room.problem(spec.memory_backing.hugepages, facts.huge_pages_kib):
        yield problem


def _drives(spec: VmSpec, emulator: Emulator, board: str) -> Iterator[str]:
    driver = SCSI_CONTROLLERS.get(spec.scsi_controller)
    for disk in spec.disks:
        yield from (f"{disk.slot}: {text}" for text in _drive(disk, board))
        if disk.bus == "scsi" and driver not in emulator.types:
            yield f"{disk.slot}: controller {spec.scsi_controller!r} is not known to this QEMU"
    slots = [disk.slot for disk in spec.disks]
    yield from (f"{slot}: given twice" for slot in sorted(set(slots)) if slots.count(slot) > 1)


def _drive(disk: VmDisk, board: str) -> Iterator[str]:
    limit = SLOT_LIMITS.get(disk.bus)
    if limit is None or disk.index >= limit:
        yield "no such slot"
    if disk.bus == "ide" and board == VIRT:
        yield "this machine has no IDE, use scsi or sata"
    if disk.cache not in CACHE_MODES:
        yield f"cache {disk.cache!r} is not one of {', '.join(sorted(CACHE_MODES))}"
    if disk.volume is None and not disk.cdrom:
        yield "a disk needs a volume"


def _nic(nic: NicSpec, emulator: Emulator) -> Iterator[str]:
    driver, _ = NIC_MODELS.get(nic.model, ("", ""))
    if driver not in emulator.types:
        yield f"{nic.slot}: model {nic.model!r} is not known to this QEMU"
    if not _MAC.fullmatch(nic.mac):
        yield f"{nic.slot}: {nic.mac!r} is not a MAC address"
    if not re.fullmatch(r"net\d{1,2}", nic.slot) or int(nic.slot[3:]) >= NIC_LIMIT:
        yield f"{nic.slot}: no such slot"


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True
