"""Firmware images: which file, where in memory, and what a reset brings back.

SeaBIOS   a ROM that ends at 4 GiB; its last 128 KiB also as RAM at 0xe0000, where the BIOS of a PC is and works on
          itself: so it is put there anew at each reset
OVMF      two flash chips that end at 4 GiB: variables below, code above (experimental: `pflash`)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from appliance.errors import HostError, Unsupported
from appliance.vmm import layout
from appliance.vmm.boot.e820 import BIOS_AREA, BIOS_AREA_END
from appliance.vmm.layout import MIB, PAGE
from appliance.vmm.memory import GuestMemory

SEABIOS: Final = Path("/usr/share/seabios/bios-256k.bin")  # Debian's package seabios
OVMF_CODE: Final = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")  # Debian's package ovmf
OVMF_VARS: Final = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")

MOST_BYTES: Final = 8 * MIB
_SHADOW_BYTES: Final = BIOS_AREA_END - BIOS_AREA


@dataclass(frozen=True, slots=True)
class Rom:
    """Read-only memory at `base`."""

    base: int
    content: bytes

    @property
    def end(self) -> int:
        return self.base + len(self.content)

    def shadow(self, memory: GuestMemory) -> None:
        """Copy its end to just below 1 MiB: before the first start, and at each reset."""
        tail = self.content[-_SHADOW_BYTES:]
        memory.write(BIOS_AREA_END - len(tail), tail)


@dataclass(frozen=True, slots=True)
class FlashPair:
    """OVMF's chips. `variables` is the template from which a guest's own is made."""

    code: Rom
    variables: Rom


def problem(path: Path = SEABIOS) -> str:
    """Why there is no firmware; empty when there is. For `refusal.HostFacts`."""
    return "" if path.is_file() else f"firmware {path} does not exist"


def load_firmware(path: Path = SEABIOS) -> Rom:
    """Raises `Unsupported` when the file is missing or cannot be a firmware, `HostError` when it cannot be read."""
    return _ending_at(layout.FIRMWARE_END, path)


def load_flash(code: Path = OVMF_CODE, variables: Path = OVMF_VARS) -> FlashPair:
    """Raises as `load_firmware`."""
    upper = _ending_at(layout.FIRMWARE_END, code)
    return FlashPair(upper, _ending_at(upper.base, variables))


def _ending_at(end: int, path: Path) -> Rom:
    if missing := problem(path):
        raise Unsupported(missing)
    try:
        size = path.stat().st_size
        if not 0 < size <= MOST_BYTES or size % PAGE:
            raise Unsupported(f"firmware {path}: {size} bytes; whole pages, {MOST_BYTES // MIB} MiB at most")
        content = path.read_bytes()
    except OSError as error:
        raise HostError.from_os_error(error, f"read {path}") from error
    return Rom(end - len(content), content)
