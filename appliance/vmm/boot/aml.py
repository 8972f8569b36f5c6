"""ACPI machine language, written: each function returns the bytes of one term (ACPI 6.5 §20.2). Pure.

Names are paths as in ASL: "\\_SB.PCI0", "^X", "_CRS". Nothing is evaluated or resolved here; a misspelt reference is
found by the tests, which give the result to the ACPICA compiler.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import IntEnum
from uuid import UUID

_SEGMENT = re.compile(r"[A-Z_][A-Z0-9_]{0,3}")
_EISA = re.compile(r"[A-Z]{3}[0-9A-F]{4}")

_EXT = b"\x5b"
_NULL_NAME = b"\0"


class RegionSpace(IntEnum):
    """§20.2.5.2 RegionSpace."""

    SYSTEM_MEMORY = 0
    SYSTEM_IO = 1
    PCI_CONFIG = 2


class Access(IntEnum):
    """AccessType of a field."""

    ANY = 0
    BYTE = 1
    WORD = 2
    DWORD = 3


class Update(IntEnum):
    """UpdateRule of a field, in place."""

    PRESERVE = 0x00
    WRITE_AS_ONES = 0x20
    WRITE_AS_ZEROS = 0x40


# Names and data (§20.2.2, §20.2.3)


def name_string(path: str) -> bytes:
    """A NameString. `ValueError` for what is no ASL path."""
    rest = path.lstrip("\\^")
    prefix = path[: len(path) - len(rest)].encode()
    segments = rest.split(".") if rest else []
    if not all(_SEGMENT.fullmatch(each) for each in segments) or len(segments) > 255:
        raise ValueError(f"{path!r} is not an ACPI name")
    encoded = [each.ljust(4, "_").encode() for each in segments]
    match encoded:
        case []:
            return prefix + _NULL_NAME
        case [single]:
            return prefix + single
        case [first, second]:
            return prefix + b"\x2e" + first + second
        case _:
            return prefix + b"\x2f" + bytes([len(encoded)]) + b"".join(encoded)


def integer(value: int) -> bytes:
    """The shortest ComputationalData of an integer."""
    if value in (0, 1):
        return bytes([value])
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if 0 <= value < 1 << (8 * size):
            return bytes([prefix]) + value.to_bytes(size, "little")
    raise ValueError(f"{value} is not an ACPI integer")


def dword(value: int) -> bytes:
    """A DWordConst even when it would be shorter: for integers patched later, whose data begins at the second byte."""
    return b"\x0c" + value.to_bytes(4, "little")


def string(text: str) -> bytes:
    return b"\x0d" + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """ "PNP0A08" compressed into an integer (§19.3.4)."""
    if not _EISA.fullmatch(text):
        raise ValueError(f"{text!r} is not an EISA ID")
    letters = [ord(each) - 0x40 for each in text[:3]]
    packed = letters[0] << 10 | letters[1] << 5 | letters[2]
    return b"\x0c" + (packed << 16 | int(text[3:], 16)).to_bytes(4, "big")


def uuid(text: str) -> bytes:
    """ToUUID: a buffer with the first three fields little-endian (§19.6.142)."""
    return buffer(UUID(text).bytes_le)


def buffer(data: bytes) -> bytes:
    return b"\x11" + _with_length(integer(len(data)) + data)


def package(*elements: bytes) -> bytes:
    """At most 255 elements."""
    return b"\x12" + _with_length(bytes([len(elements)]) + b"".join(elements))


def _with_length(content: bytes) -> bytes:
    """PkgLength, which counts itself, then `content` (§20.2.4)."""
    if len(content) + 1 < 1 << 6:
        return bytes([len(content) + 1]) + content
    for more in (1, 2, 3):
        total = len(content) + 1 + more
        if total < 1 << (4 + 8 * more):
            return bytes([more << 6 | total & 0xF]) + (total >> 4).to_bytes(more, "little") + content
    raise ValueError(f"{len(content)} bytes do not fit one AML package")


# Namespace objects (§20.2.5)


def name(path: str, value: bytes) -> bytes:
    return b"\x08" + name_string(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    return b"\x10" + _with_length(name_string(path) + b"".join(terms))


def device(path: str, *terms: bytes) -> bytes:
    return _EXT + b"\x82" + _with_length(name_string(path) + b"".join(terms))


def method(path: str, arguments: int, *terms: bytes, serialized: bool = False) -> bytes:
    flags = arguments | (0x08 if serialized else 0)
    return b"\x14" + _with_length(name_string(path) + bytes([flags]) + b"".join(terms))


def mutex(path: str) -> bytes:
    return _EXT + b"\x01" + name_string(path) + b"\0"


def operation_region(path: str, space: RegionSpace, offset: int, length: int) -> bytes:
    return _EXT + b"\x80" + name_string(path) + bytes([space]) + integer(offset) + integer(length)


def field(
    region: str, access: Access, fields: Iterable[tuple[str | None, int]], *, update: Update = Update.PRESERVE
) -> bytes:
    """`fields` are (name or None for a gap, width in bits), from the region's start on."""
    content = name_string(region) + bytes([access | update])
    for title, bits in fields:
        content += (name_string(title) if title is not None else b"\0") + _field_width(bits)
    return _EXT + b"\x81" + _with_length(content)


def _field_width(bits: int) -> bytes:
    """A PkgLength used as a number, which does not count itself."""
    if bits < 1 << 6:
        return bytes([bits])
    for more in (1, 2, 3):
        if bits < 1 << (4 + 8 * more):
            return bytes([more << 6 | bits & 0xF]) + (bits >> 4).to_bytes(more, "little")
    raise ValueError(f"a field of {bits} bits")


def create_dword_field(source: bytes, offset: int, path: str) -> bytes:
    return b"\x8a" + source + integer(offset) + name_string(path)


# Operands (§20.2.6)


def local(number: int) -> bytes:
    """Local0 to Local7."""
    if not 0 <= number <= 7:
        raise ValueError(f"Local{number}")
    return bytes([0x60 + number])


def argument(number: int) -> bytes:
    """Arg0 to Arg6."""
    if not 0 <= number <= 6:
        raise ValueError(f"Arg{number}")
    return bytes([0x68 + number])


# Expressions and statements (§20.2.5.3, §20.2.5.4)


def store(value: bytes, target: bytes) -> bytes:
    return b"\x70" + value + target


def _binary(opcode: int, left: bytes, right: bytes, target: bytes) -> bytes:
    return bytes([opcode]) + left + right + target


def add(left: bytes, right: bytes, target: bytes = _NULL_NAME) -> bytes:
    return _binary(0x72, left, right, target)


def subtract(left: bytes, right: bytes, target: bytes = _NULL_NAME) -> bytes:
    return _binary(0x74, left, right, target)


def shift_left(value: bytes, count: bytes, target: bytes = _NULL_NAME) -> bytes:
    return _binary(0x79, value, count, target)


def shift_right(value: bytes, count: bytes, target: bytes = _NULL_NAME) -> bytes:
    return _binary(0x7A, value, count, target)


def bit_and(left: bytes, right: bytes, target: bytes = _NULL_NAME) -> bytes:
    return _binary(0x7B, left, right, target)


def bit_or(left: bytes, right: bytes, target: bytes = _NULL_NAME) -> bytes:
    return _binary(0x7D, left, right, target)


def increment(target: bytes) -> bytes:
    return b"\x75" + target


def index(source: bytes, position: bytes, target: bytes = _NULL_NAME) -> bytes:
    return _binary(0x88, source, position, target)


def logical_not(value: bytes) -> bytes:
    return b"\x92" + value


def equal(left: bytes, right: bytes) -> bytes:
    return b"\x93" + left + right


def greater(left: bytes, right: bytes) -> bytes:
    return b"\x94" + left + right


def less(left: bytes, right: bytes) -> bytes:
    return b"\x95" + left + right


def call(path: str, *arguments: bytes) -> bytes:
    return name_string(path) + b"".join(arguments)


def notify(path: str, value: bytes) -> bytes:
    return b"\x86" + name_string(path) + value


def return_(value: bytes) -> bytes:
    return b"\xa4" + value


def if_(condition: bytes, *terms: bytes) -> bytes:
    return b"\xa0" + _with_length(condition + b"".join(terms))


def else_(*terms: bytes) -> bytes:
    return b"\xa1" + _with_length(b"".join(terms))


def while_(condition: bytes, *terms: bytes) -> bytes:
    return b"\xa2" + _with_length(condition + b"".join(terms))


def acquire(path: str) -> bytes:
    """Wait for ever; the answer (timed out or not) is dropped."""
    return _EXT + b"\x23" + name_string(path) + b"\xff\xff"


def release(path: str) -> bytes:
    return _EXT + b"\x27" + name_string(path)
