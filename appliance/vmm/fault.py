"""What is written when a guest cannot go on: the reason in one line, the registers in a few more. Pure but for `dump`."""

from __future__ import annotations

from collections.abc import Callable

from appliance.errors import GuestFault
from appliance.kernel import kvm_cpu_abi as cpu
from appliance.kernel import kvm_run_abi as run_abi
from appliance.kernel.kvm_run_abi import ExitReason, KvmRun
from appliance.kernel.kvm_vcpu import Vcpu

CODE_BYTES = 16
_PAGE = 4096
_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
_REGISTERS = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *(f"r{number}" for number in range(8, 16)))
_INTERNAL_ERRORS = {
    run_abi.KVM_INTERNAL_ERROR_SIMUL_EX: "an exception while another was delivered",
    run_abi.KVM_INTERNAL_ERROR_DELIVERY_EV: "an exit while an event was delivered",
    run_abi.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: "an exit of the processor that KVM does not know",
}


def exit_reason(run: KvmRun) -> str:
    """Why KVM_RUN returned, for an exit a guest does not survive (api.rst, "The kvm_run structure")."""
    match run.exit_reason:
        case ExitReason.INTERNAL_ERROR:
            return _internal_error(run)
        case ExitReason.FAIL_ENTRY:
            reason = run.fail_entry.hardware_entry_failure_reason
            return f"the processor refuses to enter the guest, hardware reason {reason:#x} (KVM_EXIT_FAIL_ENTRY)"
        case ExitReason.UNKNOWN:
            return f"hardware exit reason {run.hw.hardware_exit_reason:#x} (KVM_EXIT_UNKNOWN)"
        case number if number in list(ExitReason):
            return f"unexpected KVM_EXIT_{ExitReason(number).name}"
        case number:
            return f"unexpected exit {number}"


def _internal_error(run: KvmRun) -> str:
    suberror = run.internal.suberror
    if suberror != run_abi.KVM_INTERNAL_ERROR_EMULATION:
        what = _INTERNAL_ERRORS.get(suberror, "an internal error of KVM")
        data = " ".join(f"{value:#x}" for value in run.internal.data[: min(run.internal.ndata, 16)])
        return f"{what} (KVM_EXIT_INTERNAL_ERROR {suberror}{': ' + data if data else ''})"
    failure = run.emulation_failure
    # api.rst: the flags and what they announce are there from ndata 1 on; ndata counts 64-bit words
    has_bytes = failure.ndata >= 3 and failure.flags & run_abi.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
    code = bytes(failure.insn_bytes[: min(failure.insn_size, 15)]).hex(" ") if has_bytes else ""
    return f"KVM cannot emulate the instruction{' ' + code if code else ''} (KVM_EXIT_INTERNAL_ERROR 1)"


def dump(vcpu: Vcpu, read_physical: Callable[[int, int], bytes]) -> str:
    """Registers and the code at RIP, of a vCPU that does not run, in its thread. Never raises: what cannot be read is said.

    `read_physical(address, length)` raises `GuestFault` where no memory is.
    """
    try:
        regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    except OSError as error:
        return f"{vcpu.name}: no registers: {error.strerror}"
    lines = [f"{vcpu.name}:", *register_lines(regs), *segment_lines(sregs), *control_lines(sregs)]
    linear = (sregs.cs.base + regs.rip) & 0xFFFF_FFFF_FFFF_FFFF
    return "\n".join([*lines, f"  code at {linear:#x}: {_code(vcpu, linear, read_physical)}"])


def register_lines(regs: cpu.KvmRegs) -> list[str]:
    """The general registers, four a line."""
    values = [f"{name:<3} {getattr(regs, name):016x}" for name in _REGISTERS]
    rows = ["  " + "  ".join(values[start : start + 4]) for start in range(0, len(values), 4)]
    return [f"  rip {regs.rip:016x}  rflags {regs.rflags:08x}", *rows]


def segment_lines(sregs: cpu.KvmSregs) -> list[str]:
    """Segment registers with their hidden parts, and the descriptor tables."""
    lines = []
    for name in _SEGMENTS:
        each = getattr(sregs, name)
        bits = f"type {each.type:x} s {each.s} dpl {each.dpl} p {each.present} l {each.l} db {each.db} g {each.g}"
        lines.append(f"  {name:<3} {each.selector:04x} base {each.base:016x} limit {each.limit:08x} {bits}")
    tables = (f"{name} {table.base:016x}:{table.limit:04x}" for name, table in (("gdt", sregs.gdt), ("idt", sregs.idt)))
    return [*lines, "  " + "  ".join(tables)]


def control_lines(sregs: cpu.KvmSregs) -> list[str]:
    """Control registers, EFER and the local APIC's base."""
    names = (("cr0", "cr2", "cr3", "cr4"), ("cr8", "efer", "apic_base"))
    return ["  " + "  ".join(f"{name} {getattr(sregs, name):016x}" for name in row) for row in names]


def _code(vcpu: Vcpu, linear: int, read_physical: Callable[[int, int], bytes]) -> str:
    """As far as its page goes."""
    try:
        found = vcpu.translate(linear)
        if not found.valid:
            return "not mapped"
        length = min(CODE_BYTES, _PAGE - found.physical_address % _PAGE)
        return read_physical(found.physical_address, length).hex(" ")
    except OSError as error:
        return f"cannot be told: {error.strerror}"
    except GuestFault as error:
        return f"cannot be read: {error}"
