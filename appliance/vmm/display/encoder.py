"""Rectangles of a picture as RFB sends them: Raw (RFC 6143 §7.7.1) and Zlib (RFB community specification, "Zlib").

Zlib is what noVNC and others have besides: the raw pixels through one deflate stream for the connection, flushed at the
end of each rectangle. It is the cheapest here by far, for all its work is done by zlib, which lets the interpreter go
meanwhile. (Tight and ZRLE look at each tile's colours, which Python cannot do in time.)
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

from appliance.vmm.display.pixels import PixelFormat, convert
from appliance.vmm.display.surface import Picture, Rectangle

RAW, ZLIB = 0, 6
LEVEL: Final = (
    1  # 3 makes text a sixth smaller (29 KB for 35 KB, a screen full), and takes a third longer for photographs
)
LIMIT_PIXELS: Final = 64 << 10  # of one rectangle: 256 KiB at most before compression, 1 ms for text, 12 ms for noise

_HEADER = struct.Struct(">HHHHi")


def header(area: Rectangle, encoding: int) -> bytes:
    """What precedes every rectangle (§7.6.1)."""
    return _HEADER.pack(area.x, area.y, area.width, area.height, encoding)


class Encoder:
    """Of one connection. `encode` in one thread at a time."""

    def __init__(self) -> None:
        self._stream = zlib.compressobj(LEVEL)

    def encode(self, picture: Picture, area: Rectangle, form: PixelFormat, *, compressed: bool) -> bytes:
        """`area`, which is inside the picture, with its header. Blocking for some milliseconds: in a thread."""
        pixels = convert(picture.cut(area), picture.format, form)
        if not compressed:
            return header(area, RAW) + pixels
        packed = self._stream.compress(pixels) + self._stream.flush(zlib.Z_SYNC_FLUSH)
        return header(area, ZLIB) + len(packed).to_bytes(4, "big") + packed
