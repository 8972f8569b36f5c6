"""Which processor of a lab host has lost its interrupts, and where QEMU keeps the flag."""

from __future__ import annotations

import struct

import pytest

from tests.lab.interrupt_flag import (
    BEHIND,
    HFLAGS2_GIF,
    HFLAGS_LONG_MODE,
    REGISTERS,
    RFLAGS_IF,
    flag_offset,
    processors,
)

IDLE = """
CPU#0
RAX=ffffffff8b6178a0 RBX=0000000000000000 RCX=0000000000000001 RDX=4000000000000000
RSI=0000000000000002 RDI=0000000000191bec RBP=ffffffff8c61aa40 RSP=ffffffff8c603e98
R8 =ffffffffffe65e7f R9 =000000003457ac05 R10=00000000fffffffb R11=0000000000000003
R12=0000000000000004 R13=0000000000000005 R14=0000000000000006 R15=0000000000014790
RIP=ffffffff8b617a0b RFL=00000212 [----A--] CPL=0 II=0 A20=1 SMM=0 HLT=1
"""
REQUESTS = "ISR\t (none)\nIRR\t 39 236 251 253 \n\nAPR 0x00 TPR 0x10\n"
NO_REQUEST = "ISR\t (none)\nIRR\t (none)\n"
IN_SERVICE = "ISR\t 253\nIRR\t 39\n"


def test_a_halted_processor_with_requests_should_have_woken() -> None:
    (found,) = processors(IDLE, [REQUESTS])
    assert found.waiting
    assert dict(zip(REGISTERS, found.registers, strict=True))["RSP"] == 0xFFFFFFFF8C603E98
    assert found.registers[8:10] == (0xFFFFFFFFFFE65E7F, 0x3457AC05)


@pytest.mark.parametrize(
    ("told", "apic"),
    [
        (IDLE, NO_REQUEST),
        (IDLE, IN_SERVICE),
        (IDLE.replace("HLT=1", "HLT=0"), REQUESTS),
        (IDLE.replace("RFL=00000212", "RFL=00000012"), REQUESTS),
    ],
    ids=["nobody calls", "it serves one", "it runs", "it takes none"],
)
def test_any_other_is_left_alone(told: str, apic: str) -> None:
    (found,) = processors(told, [apic])
    assert not found.waiting


def test_each_processor_goes_with_its_own_apic() -> None:
    told = IDLE + IDLE.replace("CPU#0", "CPU#1")
    assert [each.waiting for each in processors(told, [NO_REQUEST, REQUESTS])] == [False, True]


def test_one_that_runs_its_guests_older_code_is_left_alone() -> None:
    told = "\nCPU#0\r\nEAX=00e41038 EBX=001600f0 ECX=00000001 EDX=00000000\r\nEIP=0000fff0 EFL=00000202 II=0 HLT=1\r\n"
    (found,) = processors(told, [REQUESTS])
    assert not found.waiting


def _memory(*, eflags: int = RFLAGS_IF, hflags: int = HFLAGS_LONG_MODE, hflags2: int = 0) -> bytes:
    (processor,) = processors(IDLE, [REQUESTS])
    registers = struct.pack(f"<{len(REGISTERS)}Q", *processor.registers)
    return b"\1" * 40 + registers + BEHIND.pack(eflags, 2, 3, 4, 5, 1, hflags, hflags2) + b"\1" * 8


def test_the_flag_is_found_behind_the_registers() -> None:
    (processor,) = processors(IDLE, [REQUESTS])
    memory = _memory(hflags2=1 << 5)
    at = flag_offset(memory, processor)
    assert at is not None
    assert memory[at : at + 4] == (1 << 5).to_bytes(4, "little")


@pytest.mark.parametrize(
    "memory",
    [
        b"", b"\0" * 400, _memory(hflags2=HFLAGS2_GIF), _memory(hflags=0), _memory(eflags=2), _memory() * 2,
        _memory()[:-12],
    ],
    ids=["nothing", "not there", "not lost", "not in long mode", "other flags", "there twice", "cut off"],
)  # fmt: skip
def test_what_does_not_look_as_it_should_is_not_touched(memory: bytes) -> None:
    (processor,) = processors(IDLE, [REQUESTS])
    assert flag_offset(memory, processor) is None
