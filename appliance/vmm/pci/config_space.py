"""Configuration space of a PCI function: bytes, and for each bit whether a guest may change it. No locks, no effects.

Each bit is one of: fixed; writable (what the guest writes stays); cleared by writing one (PCI 3.0 §6.2.3, status bits).
`define` and `define_bytes` say so and give the power-on value; `poke` is the device changing a value by itself.
An access may have any width and alignment: what lies beyond the end reads as ones and is ignored when written.
"""

from __future__ import annotations

from typing import Final

CONFIG_BYTES: Final = 4096  # PCIe 5.0 §7.2.2; what the 0xcf8 mechanism reaches is the first 256

# Type 0 header (PCI 3.0 §6.1)
VENDOR_ID, DEVICE_ID, COMMAND, STATUS, REVISION = 0x00, 0x02, 0x04, 0x06, 0x08
CLASS_CODE, CACHE_LINE, LATENCY, HEADER_TYPE = 0x09, 0x0C, 0x0D, 0x0E
BAR0, SUBSYSTEM_VENDOR, SUBSYSTEM, ROM_BAR = 0x10, 0x2C, 0x2E, 0x30
CAPABILITIES, INTERRUPT_LINE, INTERRUPT_PIN, HEADER_END = 0x34, 0x3C, 0x3D, 0x40
BARS: Final = 6

COMMAND_IO, COMMAND_MEMORY, COMMAND_MASTER = 1 << 0, 1 << 1, 1 << 2
COMMAND_PARITY, COMMAND_SERR, COMMAND_INTX_DISABLE = 1 << 6, 1 << 8, 1 << 10
COMMAND_WRITABLE: Final = (
    COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER | COMMAND_PARITY | COMMAND_SERR | COMMAND_INTX_DISABLE
)
STATUS_INTX, STATUS_CAPABILITIES = 1 << 3, 1 << 4
STATUS_CLEARED_BY_ONES: Final = 0xF900  # parity, system and abort errors


class ConfigSpace:
    """The 4096 bytes. All begins fixed at zero."""

    def __init__(self) -> None:
        self._data = bytearray(CONFIG_BYTES)
        self._power_on = bytearray(CONFIG_BYTES)
        self._writable = bytearray(CONFIG_BYTES)
        self._clearable = bytearray(CONFIG_BYTES)

    # As the device describes itself

    def define(self, offset: int, size: int, value: int, *, writable: int = 0, clearable: int = 0) -> None:
        """The register at `offset`: its power-on value, the bits a guest may write, those it clears by ones."""
        self.define_bytes(
            offset,
            value.to_bytes(size, "little"),
            writable=writable.to_bytes(size, "little"),
            clearable=clearable.to_bytes(size, "little"),
        )

    def define_bytes(self, offset: int, value: bytes, *, writable: bytes = b"", clearable: bytes = b"") -> None:
        """The same for any number of bytes; masks shorter than `value` are zero from there on."""
        end = offset + len(value)
        if not 0 <= offset <= end <= CONFIG_BYTES or max(len(writable), len(clearable)) > len(value):
            raise ValueError(f"configuration bytes {offset:#x}-{end:#x} with masks {len(writable)}, {len(clearable)}")
        self._data[offset:end] = self._power_on[offset:end] = value
        self._writable[offset:end] = writable.ljust(len(value), b"\0")
        self._clearable[offset:end] = clearable.ljust(len(value), b"\0")

    def poke(self, offset: int, size: int, value: int) -> None:
        """The device's own change of a register; masks do not matter, power-on stays."""
        self._data[offset : offset + size] = value.to_bytes(size, "little")

    def get(self, offset: int, size: int) -> int:
        """The register as it is. For the device; a guest's door is `read`."""
        return int.from_bytes(self._data[offset : offset + size], "little")

    # As the guest does it

    def read(self, offset: int, size: int) -> int:
        """Any width and alignment."""
        part = self._data[offset : offset + size] if 0 <= offset < CONFIG_BYTES else b""
        return int.from_bytes(bytes(part).ljust(size, b"\xff"), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Any width and alignment: each bit as its masks allow."""
        for position in range(max(offset, 0), min(offset + size, CONFIG_BYTES)):
            byte = value >> 8 * (position - offset) & 0xFF
            writable = self._writable[position]
            kept = self._data[position] & ~(byte & self._clearable[position])
            self._data[position] = kept & ~writable | byte & writable

    # Life

    def reset(self) -> None:
        """Power-on values."""
        self._data[:] = self._power_on

    def save(self) -> bytes:
        return bytes(self._data)

    def restore(self, saved: bytes) -> None:
        """Take the bits a guest can change; the fixed ones are this device's own, whatever `saved` says.
        `ValueError` unless it has the right length."""
        if len(saved) != CONFIG_BYTES:
            raise ValueError(f"{len(saved)} bytes of configuration space")
        for position, byte in enumerate(saved):
            mutable = self._writable[position] | self._clearable[position]
            self._data[position] = self._data[position] & ~mutable | byte & mutable
