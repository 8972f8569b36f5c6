"""Each way out of KVM_RUN has its meaning: a request, a readable fault. Without KVM: exits are made here."""

from __future__ import annotations

import errno
from typing import cast

import pytest

from appliance.errors import GuestFault
from appliance.kernel.kvm_cpu_abi import KvmRegs, KvmSregs, KvmTranslation
from appliance.kernel.kvm_run_abi import ExitReason, KvmRun
from appliance.kernel.kvm_vcpu import Vcpu as KvmVcpu
from appliance.vmm import fault
from appliance.vmm.bus import Bus
from appliance.vmm.device import MachineRequest
from appliance.vmm.guest_log import NOTES_AT_ONCE, GuestLog
from appliance.vmm.vcpu import Vcpu
from tests.fakes.clock import FakeClock


class FakeVcpu:
    """What of a KVM vCPU is looked at when it has returned."""

    name, index = "vm 101: vcpu 1", 1

    def __init__(self) -> None:
        self.kvm_run = KvmRun()
        self.regs, self.sregs = KvmRegs(rip=0x1FFC, rax=0xABC), KvmSregs(cr0=0x11, efer=0x500)
        self.translation = KvmTranslation(physical_address=0x1FFC, valid=1)
        self.refused: str | None = None

    def get_regs(self) -> KvmRegs:
        if self.refused:
            raise OSError(errno.EBADF, self.refused)
        return self.regs

    def get_sregs(self) -> KvmSregs:
        return self.sregs

    def translate(self, linear: int) -> KvmTranslation:
        return self.translation


class Host:
    def __init__(self) -> None:
        self.requests: list[tuple[MachineRequest, str]] = []
        self.failed: list[Exception] = []

    def request(self, request: MachineRequest, why: str) -> None:
        self.requests.append((request, why))

    def vcpu_failed(self, index: int, error: Exception) -> None:
        self.failed.append(error)


class Case:
    def __init__(self) -> None:
        self.kvm, self.host = FakeVcpu(), Host()
        kvm = cast(KvmVcpu, self.kvm)
        self.vcpu = Vcpu(kvm, self.host, ports=Bus("port"), mmio=Bus("address"), thread_name="vcpu-101-1")

    def exit(self, reason: int) -> None:
        self.kvm.kvm_run.exit_reason = reason
        self.vcpu._exit(reason)


@pytest.fixture
def case() -> Case:
    return Case()


def test_a_shutdown_is_a_triple_fault_and_asks_for_a_reset(case: Case) -> None:
    case.exit(ExitReason.SHUTDOWN)
    assert case.host.requests == [(MachineRequest.RESET, "vcpu 1: triple fault")]


@pytest.mark.parametrize(
    ("kind", "request_"),
    [(1, MachineRequest.POWER_OFF), (2, MachineRequest.RESET), (3, MachineRequest.PANIC)],
)
def test_a_system_event_asks_for_what_it_says(case: Case, kind: int, request_: MachineRequest) -> None:
    case.kvm.kvm_run.system_event.type = kind
    case.exit(ExitReason.SYSTEM_EVENT)
    assert case.host.requests == [(request_, f"vcpu 1: system event {kind}")]


def test_a_system_event_nobody_knows_is_a_fault(case: Case) -> None:
    case.kvm.kvm_run.system_event.type = 77
    with pytest.raises(GuestFault, match="vm 101: vcpu 1: KVM_EXIT_SYSTEM_EVENT of type 77"):
        case.exit(ExitReason.SYSTEM_EVENT)


def test_an_interrupted_run_is_nothing(case: Case) -> None:
    case.exit(ExitReason.INTR)
    assert case.host.requests == []


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (ExitReason.HLT, "unexpected KVM_EXIT_HLT"),
        (ExitReason.DEBUG, "unexpected KVM_EXIT_DEBUG"),
        (ExitReason.HYPERCALL, "unexpected KVM_EXIT_HYPERCALL"),
        (ExitReason.UNKNOWN, r"hardware exit reason 0x0 \(KVM_EXIT_UNKNOWN\)"),
        (ExitReason.FAIL_ENTRY, r"the processor refuses to enter the guest, hardware reason 0x0 \(KVM_EXIT_FAIL_ENTRY"),
        (4711, "unexpected exit 4711"),
    ],
)
def test_any_other_exit_is_a_fault_that_names_it(case: Case, reason: int, text: str) -> None:
    with pytest.raises(GuestFault, match=f"vm 101: vcpu 1: {text}"):
        case.exit(reason)


def test_an_emulation_failure_shows_the_instruction_where_kvm_tells_it() -> None:
    run = KvmRun(exit_reason=ExitReason.INTERNAL_ERROR)
    run.emulation_failure.suberror, run.emulation_failure.ndata = 1, 4
    run.emulation_failure.flags, run.emulation_failure.insn_size = 1, 3
    run.emulation_failure.insn_bytes[:3] = bytes.fromhex("0ff503")
    assert fault.exit_reason(run) == "KVM cannot emulate the instruction 0f f5 03 (KVM_EXIT_INTERNAL_ERROR 1)"
    run.emulation_failure.insn_size = 255  # never more than there is
    assert "0f f5 03 00" in fault.exit_reason(run)
    run.emulation_failure.ndata = 0
    assert fault.exit_reason(run) == "KVM cannot emulate the instruction (KVM_EXIT_INTERNAL_ERROR 1)"


@pytest.mark.parametrize(
    ("suberror", "text"),
    [
        (2, "an exception while another was delivered"),
        (3, "an exit while an event was delivered"),
        (4, "an exit of the processor that KVM does not know"),
        (99, "an internal error of KVM"),
    ],
)
def test_other_internal_errors_are_told_with_their_data(suberror: int, text: str) -> None:
    run = KvmRun(exit_reason=ExitReason.INTERNAL_ERROR)
    run.internal.suberror, run.internal.ndata = suberror, 2
    run.internal.data[0], run.internal.data[1] = 0x10, 0x20
    assert fault.exit_reason(run) == f"{text} (KVM_EXIT_INTERNAL_ERROR {suberror}: 0x10 0x20)"
    run.internal.ndata = 0xFFFF_FFFF
    assert fault.exit_reason(run).count("0x") == 16


def test_a_dump_has_registers_segments_control_registers_and_code_up_to_the_page(case: Case) -> None:
    text = dump(case, b"\x0f\x0b\x90\xf4" + bytes(12))
    assert text.splitlines()[0] == "vm 101: vcpu 1:"
    assert "  rip 0000000000001ffc  rflags 00000000" in text
    assert "rax 0000000000000abc" in text
    assert "  cs  0000 base 0000000000000000 limit 00000000 type 0 s 0" in text
    assert "gdt 0000000000000000:0000  idt 0000000000000000:0000" in text
    assert "cr0 0000000000000011" in text
    assert "efer 0000000000000500" in text
    assert text.splitlines()[-1] == "  code at 0x1ffc: 0f 0b 90 f4"


def test_a_dump_says_what_cannot_be_read(case: Case) -> None:
    case.kvm.translation.valid = 0
    assert dump(case, None).endswith("code at 0x1ffc: not mapped")
    case.kvm.translation.valid = 1
    assert dump(case, None).endswith("code at 0x1ffc: cannot be read: no memory there")
    case.kvm.refused = "KVM_GET_REGS"
    assert dump(case, None) == "vm 101: vcpu 1: no registers: KVM_GET_REGS"


def dump(case: Case, code: bytes | None) -> str:
    def read(address: int, length: int) -> bytes:
        if code is None:
            raise GuestFault("no memory there")
        return code[:length]

    return fault.dump(cast(KvmVcpu, case.kvm), read)


def test_a_guest_that_causes_many_notes_fills_no_log_and_what_was_left_out_is_counted() -> None:
    lines, clock = list[str](), FakeClock()
    log = GuestLog(lines.append, clock)
    for number in range(NOTES_AT_ONCE + 50):
        log.note(f"note {number}")
    assert len(lines) == NOTES_AT_ONCE
    log.line("always")
    assert lines[-1] == "always"
    clock._monotonic += 2.5
    for _ in range(10):
        log.note("again")
    assert lines[-2:] == ["again (50 lines left out before)", "again"]
