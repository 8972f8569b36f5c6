"""Resource templates for _CRS: ACPI 6.5 §6.4's descriptors, written. Pure."""

from __future__ import annotations

import struct
from enum import IntEnum

from appliance.vmm.boot import aml

_END_TAG = b"\x79\0"  # a checksum of 0 is "not checked" (§6.4.2.9)


class _Kind(IntEnum):
    """Resource type of an address space descriptor (§6.4.3.5.1)."""

    MEMORY = 0
    IO = 1
    BUS = 2


_FIXED_RANGE = 0x0C  # minimum and maximum address are fixed; the consumer bit clear: a bridge produces it
_ENTIRE_RANGE = 0x03  # I/O: ISA and non-ISA
_READ_WRITE, _CACHEABLE, _PREFETCHABLE = 0x01, 0x02, 0x06


def template(*descriptors: bytes) -> bytes:
    """A ResourceTemplate buffer."""
    return aml.buffer(b"".join(descriptors) + _END_TAG)


def io(base: int, length: int) -> bytes:
    """Fixed ports, 16-bit decode (§6.4.2.5). `length` 1 to 255."""
    return struct.pack("<BBHHBB", 0x47, 0x01, base, base, 1, length)


def irq(line: int) -> bytes:
    """An ISA line: edge-triggered, active high, exclusive (§6.4.2.1)."""
    return struct.pack("<BH", 0x22, 1 << line)


def memory32_fixed(base: int, length: int, *, writable: bool = True) -> bytes:
    """§6.4.3.4."""
    return struct.pack("<BHBII", 0x86, 9, int(writable), base, length)


def bus_window(first: int, last: int) -> bytes:
    """Buses behind a bridge."""
    return _address_space(0x88, "H", _Kind.BUS, 0, first, last)


def io_window(first: int, last: int) -> bytes:
    """Ports a bridge forwards."""
    return _address_space(0x88, "H", _Kind.IO, _ENTIRE_RANGE, first, last)


def memory_window_32(first: int, last: int, *, cacheable: bool = False) -> bytes:
    """Memory below 4 GiB a bridge forwards."""
    flags = _READ_WRITE | (_CACHEABLE if cacheable else 0)
    return _address_space(0x87, "I", _Kind.MEMORY, flags, first, last)


def memory_window_64(first: int, last: int) -> bytes:
    """Memory above 4 GiB a bridge forwards."""
    return _address_space(0x8A, "Q", _Kind.MEMORY, _READ_WRITE | _PREFETCHABLE, first, last)


def _address_space(tag: int, width: str, kind: _Kind, flags: int, first: int, last: int) -> bytes:
    """Granularity, minimum, maximum, translation, length (§6.4.3.5.1 to §6.4.3.5.3)."""
    if first > last:
        raise ValueError(f"a window from {first:#x} to {last:#x}")
    numbers = struct.pack(f"<5{width}", 0, first, last, 0, last - first + 1)
    return struct.pack("<BHBBB", tag, 3 + len(numbers), kind, _FIXED_RANGE, flags) + numbers
