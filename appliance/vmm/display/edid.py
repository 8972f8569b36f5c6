"""What the monitor says of itself (VESA E-EDID 1.4 §3): one block of 128 bytes. Pure.

Its preferred mode is what SeaBIOS's option ROM and Linux's bochs driver begin with; the standard timings are the others
that fit the frame buffer twice, as Linux wants it.
"""

from __future__ import annotations

import struct
from typing import Final

EDID_BYTES: Final = 128
PREFERRED: Final = (1024, 768)  # the largest mode that both every VBE client and every Linux picks by itself

_HEADER = bytes.fromhex("00ffffffffffff00")
_VENDOR, _PRODUCT = "RHT", 0x1234  # as QEMU's monitor, which guests know
_DIGITAL_8_BITS = 0xA0  # §3.6.1: digital, 8 bits a primary colour, interface undefined
_FEATURES = 0x06  # §3.6.4: sRGB, the preferred timing is the native one
_SRGB = bytes.fromhex("ee91a3544c99260f5054")  # §3.7: the primaries of sRGB
_ESTABLISHED = bytes([0x21, 0x08, 0x00])  # §3.8: 640x480, 800x600, 1024x768, all at 60 Hz
_STANDARD: Final = ((1280, 720), (1280, 800), (1280, 1024), (1440, 900), (1600, 900), (1680, 1050), (1920, 1080))
_ASPECTS: Final = {(16, 10): 0, (4, 3): 1, (5, 4): 2, (16, 9): 3}
_UNUSED_TIMING = b"\x01\x01"
_CENTIMETRES = (27, 20)
_HERTZ = 60


def edid(name: str) -> bytes:
    """The block. `name` is cut to the 13 characters there are."""
    timings = b"".join(_standard(width, height) for width, height in _STANDARD)
    block = (
        _HEADER
        + _letters(_VENDOR)
        + struct.pack("<HIBB", _PRODUCT, 0, 1, 2020 - 1990)  # no serial number, week and year of make
        + bytes([1, 4, _DIGITAL_8_BITS, *_CENTIMETRES, 120, _FEATURES])  # version 1.4; gamma 2.2
        + _SRGB
        + _ESTABLISHED
        + timings.ljust(16, _UNUSED_TIMING[:1])
        + _detailed(*PREFERRED)
        + _text(0xFC, name)
        + _range_limits()
        + _text(0xFE, "")
        + b"\0"  # no extension
    )
    return block + bytes([-sum(block) & 0xFF])


def _letters(vendor: str) -> bytes:
    """§3.4.1: three letters of five bits."""
    first, second, third = (ord(letter) - ord("A") + 1 for letter in vendor)
    return (first << 10 | second << 5 | third).to_bytes(2, "big")


def _standard(width: int, height: int) -> bytes:
    """§3.9: the width in eights and the shape."""
    aspect = next(code for (across, down), code in _ASPECTS.items() if width * down == height * across)
    return bytes([width // 8 - 31, aspect << 6 | _HERTZ - 60])


def _detailed(width: int, height: int) -> bytes:
    """§3.10.2: with blanking as CVT's reduced blanking has it, which fixes the pixel clock."""
    front, sync, blank = 48, 32, 160
    front_lines, sync_lines, blank_lines = 3, 4, 23
    clock = (width + blank) * (height + blank_lines) * _HERTZ // 10_000
    across_mm, down_mm = (10 * each for each in _CENTIMETRES)
    return struct.pack(
        "<H16B",
        clock,
        width & 0xFF,
        blank & 0xFF,
        width >> 8 << 4 | blank >> 8,
        height & 0xFF,
        blank_lines & 0xFF,
        height >> 8 << 4 | blank_lines >> 8,
        front,
        sync,
        front_lines << 4 | sync_lines,
        0,
        across_mm & 0xFF,
        down_mm & 0xFF,
        across_mm >> 8 << 4 | down_mm >> 8,
        0,
        0,
        0x1A,  # digital, separate syncs, horizontal positive: reduced blanking's signature
    )


def _text(tag: int, text: str) -> bytes:
    """§3.10.3: a name or a remark, ended by a line feed and filled with spaces."""
    encoded = text.encode("ascii", "replace")[:13]
    if len(encoded) < 13:
        encoded = (encoded + b"\n").ljust(13)
    return bytes([0, 0, 0, tag, 0]) + encoded


def _range_limits() -> bytes:
    """§3.10.3.3: 50-75 Hz, 30-160 kHz, up to 600 MHz."""
    return bytes([0, 0, 0, 0xFD, 0, 50, 75, 30, 160, 60, 1]) + b"\n".ljust(7)
