"""What a viewer says once it is connected (RFC 6143 §7.5, and two extensions), read from a stream and bounded.

     0  SetPixelFormat            20 bytes
     2  SetEncodings              4 bytes and 4 for each encoding
     3  FramebufferUpdateRequest  10 bytes
     4  KeyEvent                  8 bytes
     5  PointerEvent              6 bytes
     6  ClientCutText             8 bytes and the text, which nobody wants here
   251  SetDesktopSize            8 bytes and 16 for each screen       RFB community specification
   255  QEMU: extended key event  12 bytes                             the same
Everything else, and whatever is larger than its bound, is a `ProtocolError`: the connection ends.
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass
from typing import Final

from appliance.vmm.display.pixels import FORMAT_BYTES, PixelFormat

MOST_ENCODINGS: Final = 256
MOST_SCREENS: Final = 16
MOST_CUT_TEXT_BYTES: Final = 1 << 20
_SKIP_BYTES: Final = 64 << 10

_UPDATE = struct.Struct(">BHHHH")
_KEY = struct.Struct(">BxxI")
_POINTER = struct.Struct(">BHH")
_EXTENDED_KEY = struct.Struct(">BHII")


class ProtocolError(Exception):
    """The viewer said something that cannot be; the text says what. Never leaves `rfb`."""


@dataclass(frozen=True, slots=True)
class SetPixelFormat:
    format: PixelFormat


@dataclass(frozen=True, slots=True)
class SetEncodings:
    encodings: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class UpdateRequest:
    incremental: bool


@dataclass(frozen=True, slots=True)
class KeyEvent:
    """`code`: a set 1 scan code, 0 when the viewer does not know it."""

    down: bool
    keysym: int
    code: int = 0


@dataclass(frozen=True, slots=True)
class PointerEvent:
    """`buttons`: bit 0 left, 1 middle, 2 right, 3-6 wheel up, down, left, right."""

    buttons: int
    x: int
    y: int


@dataclass(frozen=True, slots=True)
class CutText:
    """It was `length` bytes long."""

    length: int


@dataclass(frozen=True, slots=True)
class SetDesktopSize:
    """The viewer would like another size."""


Message = SetPixelFormat | SetEncodings | UpdateRequest | KeyEvent | PointerEvent | CutText | SetDesktopSize


async def read_message(reader: asyncio.StreamReader) -> Message:
    """The next one. Raises `ProtocolError`, `IncompleteReadError` when the viewer has gone."""
    kind = (await reader.readexactly(1))[0]
    match kind:
        case 0:
            return await _pixel_format(reader)
        case 2:
            return await _encodings(reader)
        case 3:
            incremental, *_ = _UPDATE.unpack(await reader.readexactly(_UPDATE.size))
            return UpdateRequest(bool(incremental))
        case 4:
            down, keysym = _KEY.unpack(await reader.readexactly(_KEY.size))
            return KeyEvent(bool(down), keysym)
        case 5:
            return PointerEvent(*_POINTER.unpack(await reader.readexactly(_POINTER.size)))
        case 6:
            return await _cut_text(reader)
        case 251:
            return await _desktop_size(reader)
        case 255:
            return await _qemu(reader)
        case _:
            raise ProtocolError(f"message type {kind}")


async def _pixel_format(reader: asyncio.StreamReader) -> SetPixelFormat:
    data = await reader.readexactly(3 + FORMAT_BYTES)
    try:
        return SetPixelFormat(PixelFormat.parse(data[3:]))
    except ValueError as error:
        raise ProtocolError(f"a pixel format of {error}") from error


async def _encodings(reader: asyncio.StreamReader) -> SetEncodings:
    (count,) = struct.unpack(">xH", await reader.readexactly(3))
    if count > MOST_ENCODINGS:
        raise ProtocolError(f"{count} encodings; {MOST_ENCODINGS} at most")
    return SetEncodings(struct.unpack(f">{count}i", await reader.readexactly(4 * count)))


async def _cut_text(reader: asyncio.StreamReader) -> CutText:
    (length,) = struct.unpack(">xxxi", await reader.readexactly(7))
    if not 0 <= length <= MOST_CUT_TEXT_BYTES:
        raise ProtocolError(f"a cut text of {length} bytes; {MOST_CUT_TEXT_BYTES} at most")
    left = length
    while left:
        left -= len(await reader.readexactly(min(left, _SKIP_BYTES)))
    return CutText(length)


async def _desktop_size(reader: asyncio.StreamReader) -> SetDesktopSize:
    screens = (await reader.readexactly(7))[5]
    if screens > MOST_SCREENS:
        raise ProtocolError(f"{screens} screens; {MOST_SCREENS} at most")
    await reader.readexactly(16 * screens)
    return SetDesktopSize()


async def _qemu(reader: asyncio.StreamReader) -> KeyEvent:
    kind, down, keysym, code = _EXTENDED_KEY.unpack(await reader.readexactly(_EXTENDED_KEY.size))
    if kind != 0:
        raise ProtocolError(f"QEMU message {kind}")
    return KeyEvent(bool(down), keysym, code)
