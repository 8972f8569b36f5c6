"""A host's processor that has lost its global interrupt flag (GIF) gets it back.

QEMU's emulation of SVM (7.2 and 10.0, multi-threaded) at times leaves a processor with GIF off long after its guest has
exited. Why is not known: the host's kernel sets it again with STGI after each exit. The processor then idles, its local APIC
full of interrupts that are never taken, and sooner or later all others wait for it: the host stands still. No kernel halts
so by itself: with interrupts enabled in RFLAGS, requests in its APIC and GIF off. With GIF on it goes on as if nothing had
been (seen after ten minutes).

QEMU shows all of that but GIF, and can set none of it. So the flag is set where it is, in QEMU's memory: `hflags2` of the
processor's CPUX86State, found by the sixteen registers, RIP and RFLAGS that stand before it. What does not look as it
should is left alone.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

ROUND_S: Final = 5.0
TIMEOUT_S: Final = 30.0
REGISTERS: Final = (
    "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", *(f"R{number}" for number in range(8, 16)), "RIP",
)  # fmt: skip
"""As CPUX86State has them, from its beginning."""
RFLAGS_IF: Final = 1 << 9
HFLAGS_LONG_MODE: Final = 1 << 14 | 1 << 15
HFLAGS2_GIF: Final = 1 << 0
BEHIND: Final = struct.Struct("<4Q4I")
"""What follows RIP: eflags, cc_dst, cc_src, cc_src2, cc_op, df, hflags, hflags2."""


@dataclass(frozen=True, slots=True)
class Processor:
    """One of them as QEMU tells it: `registers` in the order of REGISTERS, none when it is not in 64-bit mode; `waiting` when
    an interrupt should wake it."""

    registers: tuple[int, ...]
    waiting: bool


def processors(registers: str, apics: Iterable[str]) -> list[Processor]:
    """From the answers to `info registers -a` and, for each, `info lapic N`."""
    told = registers.split("CPU#")[1:]
    return [_processor(each, apic) for each, apic in zip(told, apics, strict=True)]


def _processor(told: str, apic: str) -> Processor:
    if "RIP=" not in told:  # not in 64-bit mode: it runs a guest that is not, or still boots
        return Processor((), waiting=False)
    values = tuple(int(_found(rf"\b{name} *=([0-9a-f]+)", told), 16) for name in REGISTERS)
    enabled = bool(int(_found(r"RFL=([0-9a-f]+)", told), 16) & RFLAGS_IF)
    requested = bool(re.search(r"^IRR\s+\d", apic, re.MULTILINE)) and not re.search(r"^ISR\s+\d", apic, re.MULTILINE)
    return Processor(values, enabled and requested and "HLT=1" in told)


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"QEMU's registers hold no {pattern}")
    return found[1]


def flag_offset(memory: bytes, processor: Processor) -> int | None:
    """Where in `memory` its `hflags2` is, when it is there once, with GIF off, in long mode."""
    pattern = struct.pack(f"<{len(REGISTERS)}Q", *processor.registers)
    at = memory.find(pattern)
    if at < 0 or memory.find(pattern, at + 1) >= 0 or len(memory) < at + len(pattern) + BEHIND.size:
        return None
    eflags, *_, hflags, hflags2 = BEHIND.unpack_from(memory, at + len(pattern))
    if not eflags & RFLAGS_IF or hflags & HFLAGS_LONG_MODE != HFLAGS_LONG_MODE or hflags2 & HFLAGS2_GIF:
        return None
    return at + len(pattern) + BEHIND.size - 4


class Keeper(threading.Thread):
    """Looks every `ROUND_S` until `stop`; tells `say` of each flag it has set."""

    def __init__(self, name: str, pid: int, qmp: Path, say: Callable[[str], None]) -> None:
        super().__init__(name=f"interrupt flags of {name}", daemon=True)
        self._pid, self._qmp, self._say = pid, qmp, say
        self._over = threading.Event()

    def stop(self) -> None:
        """No more rounds; the one under way ends with QEMU."""
        self._over.set()

    def run(self) -> None:
        before: list[Processor] = []
        while not self._over.wait(ROUND_S):
            try:
                with _monitor(self._qmp) as ask:
                    now = _look(ask) if "running" in ask("info status") else []
                    if any(each.waiting and each in before for each in now):
                        self._set_flags(ask)
                        now = []
                    before = now
            except OSError:
                before = []  # it is busy with another client, paused, or has ended

    def _set_flags(self, ask: Callable[[str], str]) -> None:
        """While it is stopped, so that nobody else changes them."""
        ask("stop")
        try:
            for number, each in enumerate(_look(ask)):
                if each.waiting and self._set_flag(each):
                    self._say(f"processor {number} had lost its global interrupt flag")
        finally:
            ask("cont")

    def _set_flag(self, processor: Processor) -> bool:
        with Path(f"/proc/{self._pid}/mem").open("r+b", buffering=0) as memory:
            for start, end in _heap(Path(f"/proc/{self._pid}/maps").read_text()):
                memory.seek(start)
                found = flag_offset(_read(memory, end - start), processor)
                if found is not None:
                    memory.seek(start + found)
                    value = int.from_bytes(memory.read(4), "little")
                    memory.seek(start + found)
                    memory.write((value | HFLAGS2_GIF).to_bytes(4, "little"))
                    return True
        return False


def _look(ask: Callable[[str], str]) -> list[Processor]:
    registers = ask("info registers -a")
    return processors(registers, [ask(f"info lapic {number}") for number in range(registers.count("CPU#"))])


def _heap(maps: str) -> Iterator[tuple[int, int]]:
    for start, end in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) rw\S+ .*\[heap\]$", maps, re.MULTILINE):
        yield int(start, 16), int(end, 16)


def _read(memory: IO[bytes], size: int) -> bytes:
    taken = bytearray()
    while len(taken) < size and (piece := memory.read(size - len(taken))):
        taken += piece
    return bytes(taken)


@contextmanager
def _monitor(qmp: Path) -> Iterator[Callable[[str], str]]:
    """A function that has QEMU's human monitor answer one line. Raises `OSError`, also for what it does not understand."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.connect(str(qmp))
        with connection.makefile("rwb") as stream:
            stream.readline()

            def execute(request: dict[str, Any]) -> Any:
                stream.write(json.dumps(request).encode() + b"\n")
                stream.flush()
                while line := stream.readline():
                    message = json.loads(line)
                    if "return" in message:
                        return message["return"]
                    if "error" in message:
                        raise OSError(message["error"]["desc"])
                raise ConnectionResetError("QEMU has closed its control socket")

            def ask(line: str) -> str:
                arguments = {"command-line": line}
                return str(execute({"execute": "human-monitor-command", "arguments": arguments}))

            execute({"execute": "qmp_capabilities"})
            yield ask
