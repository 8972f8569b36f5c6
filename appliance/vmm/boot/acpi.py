"""The ACPI tables of a machine, and how they point at each other (ACPI 6.5 §5.2). Pure.

    RSDP ─▶ RSDT, XSDT ─▶ FADT ─▶ FACS, DSDT ─▶ generation ID page
                          MADT, MCFG, SRAT (of a machine with NUMA nodes)
`build` answers blobs with addresses still relative, and links; `table_loader` places them or tells the firmware how to.
Not hardware-reduced: PM1a, the PM timer and GPE0 are ports (`legacy.acpi_pm`); buttons and reset register are the fixed
ones; ACPI mode is switched on by the SMI command port.
"""

from __future__ import annotations

import struct
from typing import Final

from appliance.vmm import layout
from appliance.vmm.boot.dsdt import Platform, definition, generation_id_name
from appliance.vmm.boot.srat import affinities
from appliance.vmm.boot.table_loader import Blob, Checksum, Link, Pointer, Tables, WritePointer, Zone
from appliance.vmm.legacy.acpi_pm import ACPI_DISABLE, ACPI_ENABLE, GPE0_BYTES, PORT_SMI_COMMAND
from appliance.vmm.legacy.vmgenid import FILE_ADDRESS, FILE_GUID, GUID_OFFSET

FILE_TABLES, FILE_RSDP = "etc/acpi/tables", "etc/acpi/rsdp"

OEM_ID, OEM_TABLE_ID, CREATOR_ID = b"APPLNC", b"NATIVE  ", b"APLC"
_HEADER = struct.Struct("<4sIBB6s8sI4sI")  # §5.2.6
_LENGTH_AT, _CHECKSUM_AT = 4, 9

# FADT (§5.2.9)
FADT_BYTES: Final = 276
PM1_EVENT, PM1_CONTROL, PM_TIMER = layout.PORT_PM_BASE, layout.PORT_PM_BASE + 4, layout.PORT_PM_BASE + 8
RESET_VALUE: Final = 0x0F  # ICH9's RST_CNT: a full reset
_FADT_FLAGS: Final = (
    1 << 0  # WBINVD works
    | 1 << 2  # C1 on every processor
    | 1 << 10  # RESET_REG_SUP
    # clear: PWR_BUTTON (4) and SLP_BUTTON (5), both buttons are fixed ones; TMR_VAL_EXT (8), the timer has 24 bits
)
_FORCE_CLUSTER: Final = 1 << 18  # more than eight local APICs: flat logical addressing does not reach them
_BOOT_LEGACY, _BOOT_8042 = 1 << 0, 1 << 1
_SCI = layout.GSI_SCI

# MADT (§5.2.12)
_PCAT_COMPAT, _CPU_ENABLED = 1, 1
_LEVEL_HIGH: Final = 0x0D  # MPS INTI flags: active high, level-triggered


def build(platform: Platform) -> Tables:
    """All tables of `platform`. `ValueError` for more processors than local APIC entries can name."""
    if not platform.apic_ids or max(platform.apic_ids) > 254:
        raise ValueError(f"APIC IDs {platform.apic_ids}: one at least, none above 254")
    tables = _Tables()
    facs = tables.append(_facs())
    dsdt = tables.append(_table(b"DSDT", 2, definition(platform)))
    fadt = tables.append(_fadt(platform))
    tables.point(fadt + 36, 4, facs)
    for at, size in ((40, 4), (140, 8)):  # DSDT, X_DSDT
        tables.point(fadt + at, size, dsdt)
    roots = [fadt, tables.append(_madt(platform)), tables.append(_mcfg())]
    if platform.numa:
        roots.append(tables.append(srat(platform)))
    rsdt = tables.append(_table(b"RSDT", 1, bytes(4 * len(roots))))
    xsdt = tables.append(_table(b"XSDT", 1, bytes(8 * len(roots))))
    for number, root in enumerate(roots):
        tables.point(rsdt + _HEADER.size + 4 * number, 4, root)
        tables.point(xsdt + _HEADER.size + 8 * number, 8, root)
    blobs, links = tables.finish(dsdt, platform)
    rsdp = struct.pack("<8sB6sBIIQB3s", b"RSD PTR ", 0, OEM_ID, 2, rsdt, 36, xsdt, 0, b"\0\0\0")
    return Tables(
        (Blob(FILE_RSDP, rsdp, align=16, zone=Zone.FSEG), *blobs),
        (
            *links,
            Pointer(FILE_RSDP, 16, 4, FILE_TABLES),
            Pointer(FILE_RSDP, 24, 8, FILE_TABLES),
            Checksum(FILE_RSDP, 8, 0, 20),
            Checksum(FILE_RSDP, 32, 0, 36),
        ),
    )


class _Tables:
    """The blob of all tables while it grows; pointers within it hold offsets, to which the placement adds its address."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._starts: list[int] = []
        self._pointers: list[tuple[int, int]] = []

    def append(self, table: bytes) -> int:
        """Where it begins; 64-byte boundaries, as the FACS needs."""
        self._data += bytes(-len(self._data) % 64)
        self._starts.append(len(self._data))
        self._data += table
        return self._starts[-1]

    def point(self, at: int, size: int, target: int) -> None:
        self._data[at : at + size] = target.to_bytes(size, "little")
        self._pointers.append((at, size))

    def finish(self, dsdt: int, platform: Platform) -> tuple[list[Blob], list[Link]]:
        links: list[Link] = [Pointer(FILE_TABLES, at, size, FILE_TABLES) for at, size in self._pointers]
        blobs = []
        if platform.vmgenid:
            blobs.append(Blob(FILE_GUID, bytes(layout.PAGE), align=layout.PAGE, zone=Zone.HIGH, devices_own=True))
            patched = generation_id_name()
            at = self._data.index(patched, dsdt) + len(patched) - 4
            links.append(Pointer(FILE_TABLES, at, 4, FILE_GUID))
            links.append(WritePointer(FILE_ADDRESS, 0, 8, FILE_GUID, GUID_OFFSET))
        blobs.append(Blob(FILE_TABLES, bytes(self._data), align=64, zone=Zone.HIGH))
        for start in self._starts:
            if self._data[start : start + 4] != b"FACS":  # it has no checksum
                length = int.from_bytes(self._data[start + _LENGTH_AT : start + _LENGTH_AT + 4], "little")
                links.append(Checksum(FILE_TABLES, start + _CHECKSUM_AT, start, length))
        return blobs, links


def _table(signature: bytes, revision: int, content: bytes) -> bytes:
    """With its header; the checksum is the placement's."""
    length = _HEADER.size + len(content)
    return _HEADER.pack(signature, length, revision, 0, OEM_ID, OEM_TABLE_ID, 1, CREATOR_ID, 1) + content


def _facs() -> bytes:
    """§5.2.10: version 2, nothing wakes."""
    return struct.pack("<4sIIIIIQB31x", b"FACS", 64, 0, 0, 0, 0, 0, 2)


def _port(address: int, width_bytes: int, access: int) -> bytes:
    """A generic address structure for ports (§5.2.3.2). `access` 1 byte, 2 word, 3 dword, 0 undefined."""
    return struct.pack("<BBBBQ", 1, 8 * width_bytes, 0, access, address)


_NO_PORT: Final = bytes(12)


def _fadt(platform: Platform) -> bytes:
    flags = _FADT_FLAGS | (_FORCE_CLUSTER if len(platform.apic_ids) > 8 else 0)
    boot = _BOOT_LEGACY | (_BOOT_8042 if platform.i8042 else 0)
    content = b"".join(
        (
            struct.pack("<IIBBHI", 0, 0, 1, 0, _SCI, PORT_SMI_COMMAND),  # FACS, DSDT, model, profile
            struct.pack("<4B", ACPI_ENABLE, ACPI_DISABLE, 0, 0),
            struct.pack("<8I", PM1_EVENT, 0, PM1_CONTROL, 0, 0, PM_TIMER, layout.PORT_ACPI_GPE, 0),
            struct.pack("<8B", 4, 2, 0, 4, GPE0_BYTES, 0, 0, 0),  # lengths of the blocks, GPE1 base, _CST
            struct.pack("<4H", 0xFFF, 0xFFF, 0, 0),  # no C2, no C3; flush size and stride: WBINVD works
            struct.pack("<5BHBI", 0, 0, 0, 0, _CENTURY, boot, 0, flags),
            _port(layout.PORT_RESET, 1, 1),
            struct.pack("<BHB", RESET_VALUE, 0, 5),  # reset value, ARM flags, minor version
            bytes(16),  # X_FIRMWARE_CTRL: only one of the two may be set; X_DSDT
            _port(PM1_EVENT, 4, 2) + _NO_PORT + _port(PM1_CONTROL, 2, 2) + _NO_PORT + _NO_PORT,
            _port(PM_TIMER, 4, 3) + _port(layout.PORT_ACPI_GPE, GPE0_BYTES, 1) + _NO_PORT,
            _NO_PORT + _NO_PORT,  # sleep registers: of hardware-reduced machines
            b"KVM".ljust(8, b"\0"),  # hypervisor vendor identity
        )
    )
    return _table(b"FACP", 6, content)


_CENTURY: Final = 0x32  # CMOS


def _madt(platform: Platform) -> bytes:
    entries = [struct.pack("<BBBBI", 0, 8, uid, apic, _CPU_ENABLED) for uid, apic in enumerate(platform.apic_ids)]
    entries.append(struct.pack("<BBBBII", 1, 12, 0, 0, layout.IOAPIC, 0))
    entries.append(struct.pack("<BBBBIH", 2, 10, 0, 0, 2, 0))  # the timer is wired to pin 2
    entries.append(struct.pack("<BBBBIH", 2, 10, 0, _SCI, _SCI, _LEVEL_HIGH))
    entries.append(struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1))  # NMI at LINT1 of every processor
    return _table(b"APIC", 5, struct.pack("<II", layout.LOCAL_APIC, _PCAT_COMPAT) + b"".join(entries))


def _mcfg() -> bytes:
    """PCI Firmware 3.3 §4.1.2: segment 0, the buses there are.

    Linux looks for devices on every bus named here that ACPI did not find: 16,000 exits for all of the ECAM's 256.
    """
    return _table(b"MCFG", 1, bytes(8) + struct.pack("<QHBBI", layout.ECAM, 0, 0, layout.LAST_BUS, 0))


def srat(platform: Platform) -> bytes:
    """§5.2.16: revision 3."""
    return _table(b"SRAT", 3, struct.pack("<IQ", 1, 0) + affinities(platform))
