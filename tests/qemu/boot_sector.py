"""The smallest guest: a boot sector that greets on COM1, echoes what is typed, and obeys a few single letters.

    q powers off (ACPI S5)   r resets (port 0xcf9)   f prints numbered lines for ever
    p tells of a panic (pvpanic), P for ever

`heeds_power_button=False` makes a guest that ignores the ACPI power button. SeaBIOS puts the ACPI block at port 0x600
on both boards. Between keys it halts until the next timer tick (55 ms), so an idle one costs no processor time.
"""

from __future__ import annotations

from pathlib import Path

GREETING = b"boot sector says hello\r\n"
ORIGIN = 0x7C00


class _Assembler:
    """8086 code with 8-bit relative jumps to labels."""

    def __init__(self) -> None:
        self.code = bytearray()
        self.labels: dict[str, int] = {}
        self.jumps: list[tuple[int, str, int]] = []

    def emit(self, text: str) -> None:
        self.code += bytes.fromhex(text)

    def label(self, name: str) -> None:
        self.labels[name] = len(self.code)

    def jump(self, opcode: str, target: str) -> None:
        """jmp EB, je/jz 74, jne/jnz 75: one byte of distance."""
        self.emit(opcode + "00")
        self.jumps.append((len(self.code) - 1, target, 1))

    def call(self, target: str) -> None:
        self.emit("e8 0000")
        self.jumps.append((len(self.code) - 2, target, 2))

    def finish(self) -> bytes:
        for position, target, width in self.jumps:
            distance = self.labels[target] - (position + width)
            self.code[position : position + width] = distance.to_bytes(width, "little", signed=True)
        assert len(self.code) <= 510
        return bytes(self.code).ljust(510, b"\0") + b"\x55\xaa"


def sector(greeting: bytes = GREETING, *, heeds_power_button: bool = True) -> bytes:
    """The 512 bytes."""
    asm = _Assembler()
    asm.emit("fa 31c0 8ed8 8ed0 bc007c fc")  # cli; ds = ss = 0; sp = 0x7c00; cld
    asm.emit("e4a1 0c02 e6a1")  # mask IRQ 9, the power button's interrupt
    asm.emit("ba0206 b80001 ef fb")  # PM1 enable: power button; sti
    asm.emit("be")
    message_at = len(asm.code)
    asm.emit("0000")  # mov si, message
    asm.label("print")
    asm.emit("ac 84c0")  # lodsb; test al, al
    asm.jump("74", "loop")
    asm.call("putc")
    asm.jump("eb", "print")
    asm.label("loop")
    asm.emit("bafd03 ec a801")  # line status: data ready?
    asm.jump("75", "key")
    asm.emit("ba0006 ed f6c401")  # PM1 status: power button?
    asm.jump("75", "button")
    asm.label("idle")
    asm.emit("f4")
    asm.jump("eb", "loop")
    asm.label("button")
    asm.jump("eb", "off" if heeds_power_button else "idle")
    asm.label("key")
    asm.emit("baf803 ec")
    for letter, target in ((b"q", "off"), (b"r", "reset"), (b"p", "panic"), (b"P", "panics"), (b"f", "flood")):
        asm.emit("3c" + letter.hex())
        asm.jump("74", target)
    asm.call("putc")
    asm.jump("eb", "loop")
    asm.label("off")
    asm.emit("ba0406 b80020 ef f4")  # PM1 control: S5
    asm.label("reset")
    asm.emit("baf90c b006 ee f4")
    asm.label("panic")
    asm.emit("ba0505 b001 ee")
    asm.jump("eb", "loop")
    asm.label("panics")
    asm.emit("ba0505 b001")
    asm.label("again")
    asm.emit("ee")
    asm.jump("eb", "again")
    asm.label("flood")
    asm.emit("31db")  # bx = 0
    asm.label("line")
    asm.emit("b90400")  # four hexadecimal digits of bx, highest first
    asm.label("digit")
    asm.emit("c1c304 88d8 240f 0430 3c3a")  # rol bx, 4; al = '0' + (bl & 15)
    asm.emit("7202 0427")  # above '9': 'a'
    asm.call("putc")
    asm.emit("e2")  # loop digit
    asm.emit("00")
    asm.jumps.append((len(asm.code) - 1, "digit", 1))
    asm.emit("b00a")
    asm.call("putc")
    asm.emit("43")
    asm.jump("eb", "line")
    asm.label("putc")
    asm.emit("50")
    asm.label("busy")
    asm.emit("bafd03 ec a820")  # line status: transmitter empty?
    asm.jump("74", "busy")
    asm.emit("58 baf803 ee c3")
    asm.code[message_at : message_at + 2] = (ORIGIN + len(asm.code)).to_bytes(2, "little")
    asm.code += greeting + b"\0"
    return asm.finish()


def write_disk(path: Path, boot: bytes | None = None, *, size_bytes: int = 1 << 20) -> Path:
    """A raw disk that begins with `boot`."""
    path.write_bytes((boot or sector()).ljust(size_bytes, b"\0"))
    return path
