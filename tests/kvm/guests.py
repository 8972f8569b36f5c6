"""Small guests, assembled here: enough of the 80386 for tests, in real, flat protected and long mode.

A guest starts at `CODE` with flat segments, its stack below it, interrupts off, and the descriptor tables that
`tables()` puts into low memory. `Asm` emits instructions for the mode it was made for.
"""

from __future__ import annotations

import struct
from typing import Self

from appliance.kernel.kvm_cpu_abi import KvmSegment
from appliance.kernel.kvm_vcpu import Vcpu
from appliance.vmm.memory import GuestMemory

GDT, IDT, CODE = 0x500, 0x800, 0x1_0000
PAGE_TABLES = 0x2_0000
AP_CODE = 0x8000  # SIPI vector 8
LAPIC = 0xFEE0_0000
LAPIC_EOI, LAPIC_SPURIOUS, LAPIC_ICR_LOW, LAPIC_ICR_HIGH = LAPIC + 0xB0, LAPIC + 0xF0, LAPIC + 0x300, LAPIC + 0x310
ICR_INIT, ICR_SIPI = 0x4500, 0x4600
IDT_ENTRIES = 128


class Asm:
    """Instructions in order; `bits` is 16, 32 or 64. Memory is addressed absolutely (below 64 KiB with 16 bits)."""

    def __init__(self, bits: int = 32) -> None:
        self.bits = bits
        self._code = bytearray()

    def bytes(self) -> bytes:
        return bytes(self._code)

    @property
    def here(self) -> int:
        """The next instruction's offset, for `jump`."""
        return len(self._code)

    def raw(self, code: str) -> Self:
        """Hexadecimal."""
        self._code += bytes.fromhex(code)
        return self

    def set(self, register: str, value: int) -> Self:
        """mov r, imm of a general register: 16 bits with 16 bits, else 32 (and zero-extended)."""
        self._code.append(0xB8 + ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di").index(register))
        self._code += struct.pack("<H" if self.bits == 16 else "<I", value)
        return self

    def out(self, port: int, value: int, size: int = 1) -> Self:
        """mov eax, value; mov dx, port; out."""
        return self.set("ax", value).out_acc(port, size)

    def out_acc(self, port: int, size: int = 1) -> Self:
        return self.set("dx", port)._sized("ee", "ef", size)

    def read_port(self, port: int, size: int = 1) -> Self:
        """Into the accumulator."""
        return self.set("dx", port)._sized("ec", "ed", size)

    def load(self, address: int, size: int = 4) -> Self:
        """Into the accumulator."""
        return self._absolute("8a", "8b", address, size)

    def store_acc(self, address: int, size: int = 4) -> Self:
        return self._absolute("88", "89", address, size)

    def store(self, address: int, value: int, size: int = 4) -> Self:
        """With 8 bytes the value is sign-extended from 32 bits."""
        self._absolute("c6", "c7", address, size)
        self._code += value.to_bytes(min(size, 4), "little")
        return self

    def inc(self, address: int) -> Self:
        """lock inc: 32 bits wide, 16 with 16 bits."""
        self.raw("f0")
        return self._absolute("fe", "ff", address, 2 if self.bits == 16 else 4)

    def jump(self, target: int) -> Self:
        """To an offset in this code."""
        self._code.append(0xEB)
        self._code += struct.pack("<b", target - len(self._code) - 1)
        return self

    def halt(self) -> Self:
        """hlt, for ever."""
        start = self.here
        return self.raw("f4").jump(start)

    def spin(self) -> Self:
        return self.jump(self.here)

    def _sized(self, byte: str, word: str, size: int) -> Self:
        if size == 1:
            return self.raw(byte)
        if (size == 2) != (self.bits == 16):
            self.raw("66")
        return self.raw(("48" if size == 8 else "") + word)

    def _absolute(self, byte: str, word: str, address: int, size: int) -> Self:
        """ModR/M of [disp16], [disp32], or a SIB byte without base and index (SDM vol.2 §2.1.5), with register 0."""
        self._sized(byte, word, size)
        match self.bits:
            case 16:
                self.raw("06")
                self._code += struct.pack("<H", address)
            case 32:
                self.raw("05")
                self._code += struct.pack("<I", address)
            case _:
                self.raw("0425")
                self._code += struct.pack("<i", address)
        return self


def tables(memory: GuestMemory, handlers: dict[int, bytes] | None = None, *, at: int = 0x3_0000) -> None:
    """A GDT of flat 32-bit segments (8 code, 0x10 data), an IDT, and the `handlers` by vector."""
    flat = ("0000000000000000", "ffff0000009acf00", "ffff00000092cf00")
    memory.write(GDT, b"".join(bytes.fromhex(each) for each in flat))
    for vector, code in (handlers or {}).items():
        memory.write(at, code)
        memory.write(IDT + 8 * vector, struct.pack("<HHBBH", at & 0xFFFF, 8, 0, 0x8E, at >> 16))
        at += 0x100


def flat(vcpu: Vcpu, *, entry: int = CODE) -> None:
    """32-bit protected mode without paging."""
    sregs = vcpu.get_sregs()
    sregs.cs = KvmSegment(0, 0xFFFF_FFFF, 8, type=0xB, present=1, db=1, s=1, g=1)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, KvmSegment(0, 0xFFFF_FFFF, 0x10, type=3, present=1, db=1, s=1, g=1))
    sregs.gdt.base, sregs.gdt.limit = GDT, 23
    sregs.idt.base, sregs.idt.limit = IDT, IDT_ENTRIES * 8 - 1
    sregs.cr0 |= 1
    vcpu.set_sregs(sregs)
    _start(vcpu, entry)


def real(vcpu: Vcpu, *, entry: int) -> None:
    """Real mode, segments at 0."""
    sregs = vcpu.get_sregs()
    sregs.cs.base = sregs.cs.selector = 0
    vcpu.set_sregs(sregs)
    _start(vcpu, entry)


def long_mode(vcpu: Vcpu, memory: GuestMemory, *, entry: int = CODE) -> None:
    """64-bit mode, the first 4 GiB mapped one to one by pages of 2 MiB."""
    pml4, pdpt, directories = PAGE_TABLES, PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000
    memory.write(pml4, struct.pack("<Q", pdpt | 7))
    memory.write(pdpt, struct.pack("<4Q", *(directories + 0x1000 * each | 7 for each in range(4))))
    memory.write(directories, struct.pack("<2048Q", *(each << 21 | 0x87 for each in range(2048))))
    flat(vcpu, entry=entry)
    sregs = vcpu.get_sregs()
    sregs.cs.db, sregs.cs.l = 0, 1
    sregs.cr3, sregs.cr4, sregs.efer = pml4, sregs.cr4 | 0x20, 0x500  # PAE; LME, LMA
    sregs.cr0 |= 0x8000_0001
    vcpu.set_sregs(sregs)


def _start(vcpu: Vcpu, entry: int) -> None:
    regs = vcpu.get_regs()
    regs.rip, regs.rsp, regs.rflags = entry, entry, 2
    vcpu.set_regs(regs)


def mask_pic_but(*lines: int) -> Asm:
    """Both 8259As: vectors from 0x20, only these lines (below 8) open, automatic EOI (8259A data sheet, ICW1-4)."""
    code = Asm()
    for port, base, cascade in ((0x20, 0x20, 4), (0xA0, 0x28, 2)):
        code.out(port, 0x11).out(port + 1, base).out(port + 1, cascade).out(port + 1, 3)
    return code.out(0x21, 0xFF & ~sum(1 << line for line in lines)).out(0xA1, 0xFF)
