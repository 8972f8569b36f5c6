"""What the command line is made from besides specification and resources: the host's side, decided before the launch."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.qemu.capabilities import Emulator, HostFacts
from appliance.qemu.firmware import VarsStore
from appliance.qemu.run_dir import RunDir

I440FX, Q35, VIRT = "i440fx", "q35", "virt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One launch. `accelerator` is "kvm" or "tcg"; `buffered` names the slots whose file system has no O_DIRECT;
    `hugepages_kib` is the size of the pages its memory is made of, 0 for usual ones."""

    facts: HostFacts
    emulator: Emulator
    paths: RunDir
    accelerator: str
    vars: VarsStore | None = None
    buffered: frozenset[str] = frozenset()
    hugepages_kib: int = 0


def board_of(machine: str, arch: str) -> str:
    """The kind of board behind a machine's name ("pc-q35-7.2" is q35). aarch64 has only `virt`; "" for an unknown name."""
    if arch == "aarch64":
        # i440fx is what a specification says when nothing was chosen.
        return VIRT if machine in (I440FX, VIRT) or machine.startswith("virt-") else ""
    if machine in (I440FX, "pc") or machine.startswith("pc-i440fx-"):
        return I440FX
    return Q35 if machine == Q35 or machine.startswith("pc-q35-") else ""


def machine_name(machine: str, arch: str) -> str:
    """QEMU's name of the machine."""
    board = board_of(machine, arch)
    if board == VIRT:
        return machine if machine.startswith("virt-") else VIRT
    return "pc" if machine == I440FX else machine
