"""The SMBIOS tables (DMTF DSP0134 3.4): what dmidecode says, and where guests find their UUID. Pure.

    0 BIOS   1 system (UUID)   3 chassis   4 processor, one for each socket   16 memory array   17 memory device, 16 GiB each
    19 where the array is mapped   32 boot status   127 end
Two entry points lead to the same structures: 2.8 ("_SM_", 32-bit address) and 3.0 ("_SM3_", 64-bit). A firmware that takes
them from fw_cfg patches the address and the checksums; placed directly they are complete.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from appliance.vmm import layout
from appliance.vmm.layout import GIB, KIB, MIB

FILE_ANCHOR, FILE_TABLES = "etc/smbios/smbios-anchor", "etc/smbios/smbios-tables"

ANCHOR_21_BYTES, ANCHOR_30_BYTES = 31, 24
DEVICE_BYTES: Final = 16 * GIB  # one memory device: the 16-bit size field says up to 32 GiB
MAX_STRING: Final = 64  # §6.1.3

RELEASE_DATE = "01/01/2024"

_OTHER, _UNKNOWN = 1, 2
_VIRTUAL_MACHINE: Final = 1 << 4  # BIOS characteristics extension byte 2 (§7.1.2.2)
_CENTRAL_PROCESSOR, _POPULATED_ENABLED = 3, 0x41
_NO_HANDLE: Final = 0xFFFE  # no error information structure


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """`uuid` in any form `uuid.UUID` takes. Texts are printable ASCII, 64 characters at most; empty ones are not said."""

    uuid: str
    ram_bytes: int
    sockets: int = 1
    cores: int = 1
    manufacturer: str = "Appliance"
    product: str = "Native machine (Q35)"
    version: str = ""
    serial: str = ""
    firmware: str = "native"


def structures(identity: Identity) -> bytes:
    """All of them, the end marker included. `ValueError` for texts or a UUID that cannot be."""
    devices = _device_sizes(identity.ram_bytes)
    parts = [
        _bios(identity),
        _system(identity),
        _chassis(identity),
        *(_processor(identity, number) for number in range(identity.sockets)),
        _array(identity.ram_bytes, len(devices)),
        *(_memory_device(number, size) for number, size in enumerate(devices)),
        *(_mapped(number, base, size) for number, (base, size) in enumerate(_ranges(identity.ram_bytes))),
        _structure(32, 0x2000, bytes(7)),  # no errors detected
        _structure(127, 0x7F00, b""),
    ]
    return b"".join(parts)


# Entry points (§5.2)


def anchor_21(tables: bytes, address: int) -> bytes:
    """The entry point of 2.8."""
    if len(tables) > 0xFFFF:
        raise ValueError(f"{len(tables)} bytes of SMBIOS structures")
    sizes = _sizes(tables)
    second = struct.pack("<5sBHIHB", b"_DMI_", 0, len(tables), address, len(sizes), 0x28)
    first = struct.pack("<4sBBBBHB5s", b"_SM_", 0, ANCHOR_21_BYTES, 2, 8, max(sizes), 0, bytes(5))
    second = _checked(second, 5)
    return _checked(first + second, 4)


def anchor_30(tables: bytes, address: int) -> bytes:
    """The entry point of 3.0."""
    entry = struct.pack("<5sBBBBBBBIQ", b"_SM3_", 0, ANCHOR_30_BYTES, 3, 0, 0, 1, 0, len(tables), address)
    return _checked(entry, 5)


def _checked(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([-sum(data) & 0xFF]) + data[at + 1 :]


def _sizes(tables: bytes) -> list[int]:
    """Of each structure with its strings."""
    sizes, at = [], 0
    while at < len(tables):
        end = tables.index(b"\0\0", at + tables[at + 1]) + 2
        sizes.append(end - at)
        at = end
    return sizes


# Structures (§6.1, §7)


class _Texts:
    """The strings of one structure: fields hold their numbers, 0 for an empty one."""

    def __init__(self) -> None:
        self._said: list[bytes] = []

    def __call__(self, text: str) -> int:
        if len(text) > MAX_STRING or not text.isascii() or not text.isprintable():
            raise ValueError(f"SMBIOS text {text!r}: {MAX_STRING} printable ASCII characters at most")
        if not text:
            return 0
        self._said.append(text.encode() + b"\0")
        return len(self._said)

    def encoded(self) -> bytes:
        return (b"".join(self._said) or b"\0") + b"\0"


def _structure(kind: int, handle: int, fields: bytes, texts: _Texts | None = None) -> bytes:
    header = struct.pack("<BBH", kind, 4 + len(fields), handle)
    return header + fields + (texts or _Texts()).encoded()


def _bios(identity: Identity) -> bytes:
    """§7.1: no characteristics worth telling, but that it is a virtual machine's."""
    text = _Texts()
    vendor, version, date = text(identity.manufacturer), text(identity.firmware), text(RELEASE_DATE)
    extension = _VIRTUAL_MACHINE << 8
    fields = struct.pack("<BBHBBQHBBBB", vendor, version, 0xE800, date, 0, 0x08, extension, 0, 0, 0xFF, 0xFF)
    return _structure(0, 0, fields, text)


def _system(identity: Identity) -> bytes:
    """§7.2: the UUID's first three fields little-endian; woken by the power switch; no SKU, no family."""
    text = _Texts()
    said = (identity.manufacturer, identity.product, identity.version, identity.serial)
    fields = bytes(text(each) for each in said) + UUID(identity.uuid).bytes_le + bytes([6, 0, 0])
    return _structure(1, 0x100, fields, text)


def _chassis(identity: Identity) -> bytes:
    """§7.4: of no particular kind, in good state."""
    text = _Texts()
    maker, version, serial = text(identity.manufacturer), text(identity.version), text(identity.serial)
    fields = struct.pack("<BBBBBBBBBIBBBBB", maker, _OTHER, version, serial, 0, 3, 3, 3, _UNKNOWN, 0, 0, 0, 0, 0, 0)
    return _structure(3, 0x300, fields, text)


def _processor(identity: Identity, number: int) -> bytes:
    """§7.5: a socket with its cores, one thread each. Identity and speed are CPUID's to say."""
    text = _Texts()
    socket, maker = text(f"CPU {number}"), text(identity.manufacturer)
    cores = min(identity.cores, 0xFF)
    fields = b"".join(
        (
            struct.pack("<BBBBQB", socket, _CENTRAL_PROCESSOR, _OTHER, maker, 0, 0),
            struct.pack("<BHHHBB", 0, 0, 0, 0, _POPULATED_ENABLED, _OTHER),  # voltage, clocks and speeds unknown
            struct.pack("<HHHBBB", 0xFFFF, 0xFFFF, 0xFFFF, 0, 0, 0),  # no cache structures; serial, asset, part
            struct.pack("<BBBHH", cores, cores, cores, _UNKNOWN, _OTHER),
            struct.pack("<HHH", identity.cores, identity.cores, identity.cores),
        )
    )
    return _structure(4, 0x400 + number, fields, text)


def _array(ram_bytes: int, devices: int) -> bytes:
    """§7.17: system memory; the largest capacity is what there is."""
    kib = ram_bytes // KIB
    said, extended = (kib, 0) if kib < 1 << 31 else (1 << 31, ram_bytes)
    fields = struct.pack("<BBBIHHQ", _OTHER, 3, 6, said, _NO_HANDLE, devices, extended)  # 6: multi-bit ECC
    return _structure(16, 0x1000, fields)


def _memory_device(number: int, size: int) -> bytes:
    """§7.18: a DIMM of unknown make; sizes in MiB."""
    text = _Texts()
    locator = text(f"DIMM {number}")
    fields = b"".join(
        (
            struct.pack("<HHHHHBBBB", 0x1000, _NO_HANDLE, 0xFFFF, 0xFFFF, size // MIB, 9, 0, locator, 0),  # 9: DIMM
            struct.pack("<BHH", 7, 1 << 1, 0),  # RAM, other
            struct.pack("<BBBBBIHHHH", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),  # texts, rank, extended size, speeds
        )
    )
    return _structure(17, 0x1100 + number, fields, text)


def _mapped(number: int, base: int, size: int) -> bytes:
    """§7.20: in KiB while that fits 32 bits, else in bytes."""
    first, last = base // KIB, (base + size) // KIB - 1
    if last < 0xFFFF_FFFF:
        fields = struct.pack("<IIHBQQ", first, last, 0x1000, 1, 0, 0)
    else:
        fields = struct.pack("<IIHBQQ", 0xFFFF_FFFF, 0xFFFF_FFFF, 0x1000, 1, base, base + size - 1)
    return _structure(19, 0x1300 + number, fields)


def _device_sizes(ram_bytes: int) -> list[int]:
    whole, rest = divmod(ram_bytes, DEVICE_BYTES)
    return [DEVICE_BYTES] * whole + ([rest] if rest else [])


def _ranges(ram_bytes: int) -> list[tuple[int, int]]:
    low, high = layout.split_ram(ram_bytes)
    return [(0, low)] + ([(layout.HIGH_RAM, high)] if high else [])
