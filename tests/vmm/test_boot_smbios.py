"""SMBIOS: the structures one after the other, and both entry points."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from uuid import UUID

import pytest

from appliance.vmm.boot import smbios
from appliance.vmm.layout import GIB, MIB

IDENTITY = smbios.Identity(
    uuid="00112233-4455-6677-8899-aabbccddeeff", ram_bytes=40 * GIB, sockets=2, cores=3, serial="S1"
)


@dataclass
class Found:
    kind: int
    handle: int
    formatted: bytes
    strings: list[str]


def parse(tables: bytes) -> list[Found]:
    """As dmidecode does: formatted area by its length, strings up to the double zero."""
    found, at = [], 0
    while at < len(tables):
        kind, length, handle = struct.unpack_from("<BBH", tables, at)
        end = tables.index(b"\0\0", at + length)
        strings = [each.decode() for each in tables[at + length : end].split(b"\0") if each]
        found.append(Found(kind, handle, tables[at : at + length], strings))
        at = end + 2
    return found


def by_kind(identity: smbios.Identity, kind: int) -> list[Found]:
    return [each for each in parse(smbios.structures(identity)) if each.kind == kind]


def test_all_kinds_are_there_with_unique_handles_and_an_end() -> None:
    found = parse(smbios.structures(IDENTITY))
    assert [each.kind for each in found] == [0, 1, 3, 4, 4, 16, 17, 17, 17, 19, 19, 32, 127]
    assert len({each.handle for each in found}) == len(found)


def test_formatted_areas_have_the_lengths_of_the_specification() -> None:
    lengths = {each.kind: len(each.formatted) for each in parse(smbios.structures(IDENTITY))}
    assert lengths == {0: 0x18, 1: 0x1B, 3: 0x16, 4: 0x30, 16: 0x17, 17: 0x28, 19: 0x1F, 32: 0x0B, 127: 4}


def test_every_string_number_names_a_string_that_is_there() -> None:
    places = {0: (4, 5, 8), 1: (4, 5, 6, 7, 0x19, 0x1A), 3: (4, 6, 7, 8), 4: (4, 7, 0x10), 17: (0x10, 0x11)}
    for each in parse(smbios.structures(IDENTITY)):
        numbers = [each.formatted[at] for at in places.get(each.kind, ())]
        assert sorted(number for number in numbers if number) == list(range(1, len(each.strings) + 1))


def test_the_system_has_its_uuid_little_endian_and_its_serial_number() -> None:
    (system,) = by_kind(IDENTITY, 1)
    assert UUID(bytes_le=system.formatted[8:24]) == UUID(IDENTITY.uuid)
    assert system.strings[system.formatted[7] - 1] == "S1"
    assert system.formatted[6] == 0  # no version was given


def test_each_socket_has_its_cores() -> None:
    sockets = by_kind(IDENTITY, 4)
    assert [each.strings[0] for each in sockets] == ["CPU 0", "CPU 1"]
    assert all(each.formatted[0x23:0x26] == bytes([3, 3, 3]) for each in sockets)
    assert all(struct.unpack_from("<HHH", each.formatted, 0x2A) == (3, 3, 3) for each in sockets)


def test_memory_devices_and_mapped_ranges_add_up_to_the_ram() -> None:
    sizes = [struct.unpack_from("<H", each.formatted, 0x0C)[0] for each in by_kind(IDENTITY, 17)]
    assert sizes == [16384, 16384, 8192]
    ranges = [struct.unpack_from("<II", each.formatted, 4) for each in by_kind(IDENTITY, 19)]
    assert sum(last - first + 1 for first, last in ranges) * 1024 == IDENTITY.ram_bytes
    (array,) = by_kind(IDENTITY, 16)
    assert struct.unpack_from("<I", array.formatted, 7)[0] * 1024 == IDENTITY.ram_bytes


def test_ram_beyond_four_tebibytes_uses_the_extended_fields() -> None:
    huge = smbios.Identity(uuid=IDENTITY.uuid, ram_bytes=6 << 40)
    assert struct.unpack_from("<II", by_kind(huge, 19)[1].formatted, 4) == (0xFFFF_FFFF, 0xFFFF_FFFF)
    assert struct.unpack_from("<Q", by_kind(huge, 16)[0].formatted, 0x0F)[0] == 6 << 40


def test_both_entry_points_lead_to_the_structures_with_right_checksums() -> None:
    tables = smbios.structures(IDENTITY)
    old, new = smbios.anchor_21(tables, 0xF0040), smbios.anchor_30(tables, 0x1_0000_0000)
    assert (len(old), len(new)) == (31, 24)
    assert sum(old) & 0xFF == sum(old[16:]) & 0xFF == sum(new) & 0xFF == 0
    assert (old[:4], old[16:21], new[:5]) == (b"_SM_", b"_DMI_", b"_SM3_")
    count = len(parse(tables))
    assert struct.unpack_from("<HIHB", old, 22) == (len(tables), 0xF0040, count, 0x28)
    assert struct.unpack_from("<IQ", new, 12) == (len(tables), 0x1_0000_0000)
    assert (old[6:8], new[7:9]) == (b"\x02\x08", b"\x03\x00")


@pytest.mark.parametrize("text", ["x" * 65, "ü", "a\nb", "\0"])
def test_texts_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="SMBIOS text"):
        smbios.structures(smbios.Identity(uuid=IDENTITY.uuid, ram_bytes=64 * MIB, product=text))


def test_sixty_four_sockets_fit_the_bios_area() -> None:
    assert len(smbios.structures(smbios.Identity(uuid=IDENTITY.uuid, ram_bytes=1 << 40, sockets=64))) < 0xFFC0
