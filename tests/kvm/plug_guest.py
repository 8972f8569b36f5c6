"""A kernel of a few bytes that obeys ACPI hot-plug's registers, as an operating system's driver would, and says so on COM1.

    R   it runs          U   something was plugged in          E   it has let go of what was asked for
Typing S makes it stubborn (it lets go of nothing), any other key obliging again; it says what was typed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from appliance.vmm import layout
from appliance.vmm.pci.hotplug import DOWN, EJECT, UP
from tests.fakes.kernels import NOTE_PVH, elf_kernel, note

STUBBORN, OBLIGING = b"S", b"o"

_ADDRESS, _MODE = 2 << 20, 3 << 20
_COM1, _LINE_STATUS = 0x3F8, 0x3FD


def _dx(port: int) -> str:
    return "66ba" + port.to_bytes(2, "little").hex()


def _say(letter: str) -> str:
    return _dx(_COM1) + f"b0{ord(letter):02x}ee"


_UP, _DOWN, _EJECT = (layout.PORT_ACPI_PCI_HOTPLUG + register for register in (UP, DOWN, EJECT))
CODE: Final = bytes.fromhex(  # 32-bit, entered as PVH has it
    "bf00003000 c60700"  # 00  edi = where the mode is kept; not stubborn
    + _say("R")  # 08
    + (_dx(_UP) + "ed 85c0 7407")  # 0f  eax = up; anything?
    + _say("U")  # 18
    + (_dx(_DOWN) + "ed 85c0 7411")  # 1f  eax = down; anything?
    + "803f53 740c"  # 28  stubborn?
    + (_dx(_EJECT) + "ef")  # 2d  eject = eax
    + _say("E")  # 32
    + (_dx(_LINE_STATUS) + "ec a801 74cd")  # 39  has anything been typed? else to 0f
    + (_dx(_COM1) + "ec 8807 ee ebc3")  # 42  keep it and say it; to 0f
)


def write_kernel(path: Path) -> Path:
    """It, as a file to boot directly."""
    return write_code(path, CODE)


def write_code(path: Path, code: bytes) -> Path:
    """A kernel of any 32-bit code."""
    path.write_bytes(elf_kernel(code, address=_ADDRESS, notes=note(b"Xen", NOTE_PVH, _ADDRESS)))
    return path
