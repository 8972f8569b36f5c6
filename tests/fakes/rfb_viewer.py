"""An RFB viewer that does what RFC 6143 says, and keeps what it was shown as rows of bytes."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import zlib
from dataclasses import dataclass, field

from appliance.vmm.display.pixels import SERVER_FORMAT, PixelFormat

PATIENCE_S = 20.0
RAW, ZLIB, DESKTOP_SIZE, EXTENDED_KEY, EXTENDED_DESKTOP_SIZE = 0, 6, -223, -258, -308


@dataclass
class RfbViewer:
    """`shown` is the picture, `rectangles` what the last update had: (x, y, width, height, encoding)."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    form: PixelFormat = SERVER_FORMAT
    width: int = 0
    height: int = 0
    title: str = ""
    shown: bytearray = field(default_factory=bytearray)
    rectangles: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    palette: list[tuple[int, int, int]] = field(default_factory=list)
    bytes_received: int = 0

    async def greet(self, version: bytes = b"RFB 003.008\n") -> RfbViewer:
        """§7.1 to §7.3."""
        assert await self.reader.readexactly(12) == b"RFB 003.008\n"
        self.writer.write(version)
        if version[8:11] == b"003":
            assert await self.reader.readexactly(4) == b"\0\0\0\1"
        else:
            count = (await self.reader.readexactly(1))[0]
            assert 1 in await self.reader.readexactly(count)
            self.writer.write(b"\1")
            if version[8:11] >= b"008":
                assert await self.reader.readexactly(4) == bytes(4)
        self.writer.write(b"\1")
        self._resize(*struct.unpack(">HH", await self.reader.readexactly(4)))
        assert await self.reader.readexactly(16) == SERVER_FORMAT.pack()
        (length,) = struct.unpack(">I", await self.reader.readexactly(4))
        self.title = (await self.reader.readexactly(length)).decode()
        self._inflate = zlib.decompressobj()
        return self

    def _resize(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.shown = bytearray(width * height * self.form.bytes_per_pixel)

    def want(self, form: PixelFormat) -> None:
        self.form = form
        self._resize(self.width, self.height)
        self.writer.write(b"\0\0\0\0" + form.pack())

    def encodings(self, *encodings: int) -> None:
        self.writer.write(struct.pack(f">BxH{len(encodings)}i", 2, len(encodings), *encodings))

    def ask(self, *, incremental: bool = True) -> None:
        self.writer.write(struct.pack(">BBHHHH", 3, incremental, 0, 0, self.width, self.height))

    def key(self, keysym: int, *, down: bool) -> None:
        self.writer.write(struct.pack(">BBxxI", 4, down, keysym))

    def extended_key(self, code: int, *, down: bool, keysym: int = 0) -> None:
        self.writer.write(struct.pack(">BBHII", 255, 0, down, keysym, code))

    def point(self, x: int, y: int, buttons: int = 0) -> None:
        self.writer.write(struct.pack(">BBHH", 5, buttons, x, y))

    async def update(self) -> list[tuple[int, int, int, int, int]]:
        """The next update, into `shown`."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._update()

    async def _update(self) -> list[tuple[int, int, int, int, int]]:
        while (kind := (await self.reader.readexactly(1))[0]) == 1:
            (count,) = struct.unpack(">xxxH", await self.reader.readexactly(5))
            for _ in range(count):
                self.palette.append(struct.unpack(">HHH", await self.reader.readexactly(6)))
        assert kind == 0
        (count,) = struct.unpack(">xH", await self.reader.readexactly(3))
        self.rectangles = []
        for _ in range(count):
            await self._rectangle()
        return self.rectangles

    async def _rectangle(self) -> None:
        x, y, width, height, encoding = struct.unpack(">HHHHi", await self.reader.readexactly(12))
        self.rectangles.append((x, y, width, height, encoding))
        size = self.form.bytes_per_pixel
        match encoding:
            case 0:
                self._put(x, y, width, await self.reader.readexactly(width * height * size))
            case 6:
                (length,) = struct.unpack(">I", await self.reader.readexactly(4))
                data = self._inflate.decompress(await self.reader.readexactly(length))
                assert len(data) == width * height * size
                self.bytes_received += length
                self._put(x, y, width, data)
            case -223:
                self._resize(width, height)
            case -308:
                screens = (await self.reader.readexactly(4))[0]
                await self.reader.readexactly(16 * screens)
                if x != 1:
                    self._resize(width, height)
            case -258:
                pass
            case _:
                raise AssertionError(f"encoding {encoding}")

    def _put(self, x: int, y: int, width: int, data: bytes) -> None:
        size = self.form.bytes_per_pixel
        for number, start in enumerate(range(0, len(data), width * size)):
            at = ((y + number) * self.width + x) * size
            self.shown[at : at + width * size] = data[start : start + width * size]

    async def picture(self, *, incremental: bool = False) -> bytes:
        """Ask, wait, and all that is shown then."""
        self.ask(incremental=incremental)
        await self.update()
        return bytes(self.shown)

    def pixel(self, x: int, y: int) -> int:
        size = self.form.bytes_per_pixel
        at = (y * self.width + x) * size
        order = "big" if self.form.big_endian else "little"
        return int.from_bytes(self.shown[at : at + size], order)  # type: ignore[arg-type]

    async def leave(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def is_cut_off(self) -> bool:
        """Whether the server ends the connection, once everything it had to say is read."""
        with contextlib.suppress(OSError):
            async with asyncio.timeout(PATIENCE_S):
                while await self.reader.read(1 << 16):
                    pass
        return True
