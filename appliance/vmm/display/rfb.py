"""One viewer's connection: an RFB 3.8 server (RFC 6143), and 3.7 and 3.3 for those who have no other.

Two tasks: one reads what the viewer says, one sends it what it asked for. RFB is driven by the viewer: it gets nothing
but answers to its update requests, so one that is slow asks seldom and gets what has changed meanwhile in one; all that
is kept for it is which columns of which rows that are (`Spans`). An update is encoded and sent rectangle by rectangle, so
at most one of them waits in memory, and each is made in a thread.

Extensions (RFB community specification): DesktopSize (-223), ExtendedDesktopSize (-308; a wish for another size is
refused, as the guest decides), QEMU's extended key events (-258), Zlib (6).

Security is none: who may connect is decided by whoever hands out connections. The viewer is hostile all the same: every
length is bounded, and who breaks the protocol is cut off, with the reason in the log.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable
from typing import Final

from appliance.clock import Clock
from appliance.threads import to_the_end
from appliance.vmm.display import rfb_messages as say
from appliance.vmm.display.encoder import LIMIT_PIXELS, ZLIB, Encoder, header
from appliance.vmm.display.inputs import Inputs
from appliance.vmm.display.pixels import SERVER_FORMAT, palette
from appliance.vmm.display.rfb_messages import ProtocolError, read_message
from appliance.vmm.display.surface import Picture, Rectangle, Spans, everything, merge, rectangles

HANDSHAKE_TIMEOUT_S: Final = 30.0
FRAME_S: Final = 1 / 30  # updates follow each other no faster
BATCH: Final = 64  # messages read before others on the loop get their turn

SECURITY_NONE: Final = 1
DESKTOP_SIZE, EXTENDED_KEY, EXTENDED_DESKTOP_SIZE = -223, -258, -308
REASON_SERVER, REASON_YOURS = 0, 1
STATUS_OK, STATUS_PROHIBITED = 0, 1

log = logging.getLogger(__name__)


class Viewer:
    """`run` is its life. `title` is what it may put above its window. `picture` tells what there is to see now; `wanted` is
    called when it asks for changes, and when it has typed or pointed, of which they may come. All on the loop."""

    def __init__(
        self,
        label: str,
        title: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        picture: Callable[[], Picture],
        inputs: Inputs,
        wanted: Callable[[], None],
        clock: Clock,
    ) -> None:
        self.label, self.title = label, title
        self.waits = False  # it has asked, and nothing has changed since
        self._reader, self._writer = reader, writer
        self._picture, self._inputs, self._wanted, self._clock = picture, inputs, wanted, clock
        self._encoder, self._format = Encoder(), SERVER_FORMAT
        self._encodings: frozenset[int] = frozenset()
        self._size = (0, 0)  # what the viewer knows
        self._dirty: Spans = {}
        self._requested = self._palette_due = self._keys_due = self._size_due = self._refusal_due = False
        self._work = asyncio.Event()

    async def run(self) -> None:
        """Until it goes, is aborted, or breaks the protocol. What it held down is let go then."""
        try:
            await self._greet()
            async with asyncio.TaskGroup() as both:
                both.create_task(self._receive(), name=f"{self.label}: receive")
                both.create_task(self._send(), name=f"{self.label}: send")
        except* ProtocolError as errors:
            log.info("%s: cut off: %s", self.label, errors.exceptions[0])
        except* (OSError, asyncio.IncompleteReadError):
            log.debug("%s: has gone", self.label)
        finally:
            self._inputs.gone(self)
            self._writer.close()

    def abort(self) -> None:
        """End the connection now; `run` returns soon."""
        self._writer.transport.abort()

    def changed(self, spans: Spans) -> None:
        """This much is new since the last time."""
        if self._dirty:
            merge(self._dirty, spans)
        else:
            self._dirty = dict(spans)
        self._work.set()

    # --- the beginning (§7.1 to §7.3) -------------------------------------------------------------------------------

    async def _greet(self) -> None:
        limit = asyncio.timeout(HANDSHAKE_TIMEOUT_S)
        try:
            async with limit:
                await self._shake_hands()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise ProtocolError(f"no greeting within {HANDSHAKE_TIMEOUT_S:g} s") from error

    async def _shake_hands(self) -> None:
        self._writer.write(b"RFB 003.008\n")
        minor = _minor_version(await self._reader.readexactly(12))
        if minor == 3:
            self._writer.write(SECURITY_NONE.to_bytes(4, "big"))
        else:
            self._writer.write(bytes([1, SECURITY_NONE]))
            chosen = (await self._reader.readexactly(1))[0]
            if chosen != SECURITY_NONE:
                raise ProtocolError(f"security type {chosen}")
            if minor == 8:
                self._writer.write(bytes(4))  # SecurityResult: OK
        await self._reader.readexactly(1)  # shared or not: always shared
        picture = self._picture()
        self._size = (picture.width, picture.height)
        self._dirty = everything(*self._size)
        name = self.title.encode()
        self._writer.write(struct.pack(">HH", *self._size) + SERVER_FORMAT.pack() + struct.pack(">I", len(name)) + name)
        await self._writer.drain()

    # --- what it says -----------------------------------------------------------------------------------------------

    async def _receive(self) -> None:
        count = 0
        while True:
            self._hear(await read_message(self._reader))
            count += 1
            if count % BATCH == 0:  # what is buffered is read without ever letting the loop go
                await asyncio.sleep(0)

    def _hear(self, message: say.Message) -> None:
        match message:
            case say.KeyEvent():
                self._inputs.key(self, message)
                self._wanted()
            case say.PointerEvent():
                self._inputs.pointer(self, message, self._size)
                self._wanted()
            case say.UpdateRequest():
                self._request(incremental=message.incremental)
            case say.SetEncodings(encodings):
                self._set_encodings(frozenset(encodings))
            case say.SetPixelFormat(form):
                self._format, self._palette_due = form, not form.true_colour
            case say.SetDesktopSize():
                self._refusal_due = EXTENDED_DESKTOP_SIZE in self._encodings
            case say.CutText():
                pass  # there is nobody in the guest to give it to

    def _request(self, *, incremental: bool) -> None:
        if not incremental:
            self._dirty = everything(*self._size)
        self._requested = True
        self._wanted()
        self._work.set()

    def _set_encodings(self, encodings: frozenset[int]) -> None:
        new = encodings - self._encodings
        self._encodings = encodings
        self._keys_due |= EXTENDED_KEY in new
        self._size_due |= EXTENDED_DESKTOP_SIZE in new

    # --- what it gets -----------------------------------------------------------------------------------------------

    async def _send(self) -> None:
        last = float("-inf")
        while True:
            await self._work.wait()
            self._work.clear()
            if not self._requested:
                continue
            await self._clock.sleep(last + FRAME_S - self._clock.monotonic())
            last = self._clock.monotonic()
            if not await self._update():
                self.waits = True
                self._wanted()  # whoever looked between its asking and now did not know that it waits

    async def _update(self) -> bool:
        """Answer the request; False when there is nothing to tell."""
        picture = self._picture()
        news, alone = self._news(picture)
        areas = [] if alone else self._areas(picture)
        if not news and not areas:
            return False
        self._requested = self.waits = False
        form, compressed = self._format, ZLIB in self._encodings
        if self._palette_due:
            self._palette_due = False
            self._writer.write(_palette_message())
        self._writer.write(struct.pack(">BxH", 0, len(news) + len(areas)) + b"".join(news))
        for area in areas:
            self._writer.write(await to_the_end(self._encoder.encode, picture, area, form, compressed=compressed))
            await self._writer.drain()
        return True

    def _news(self, picture: Picture) -> tuple[list[bytes], bool]:
        """What is to be told that is no picture; and whether pixels must not come with it, as with a new size."""
        size, found, alone = (picture.width, picture.height), list[bytes](), False
        if self._keys_due:
            self._keys_due = False
            found.append(header(Rectangle(0, 0, *size), EXTENDED_KEY))
        if size != self._size or self._size_due:
            if EXTENDED_DESKTOP_SIZE in self._encodings:
                found.append(_desktop(REASON_SERVER, STATUS_OK, size))
                alone = True
            elif DESKTOP_SIZE in self._encodings:
                found.append(header(Rectangle(0, 0, *size), DESKTOP_SIZE))
                alone = True
            self._size_due = False
        if alone:
            self._size, self._dirty = size, everything(*size)
        if self._refusal_due:
            self._refusal_due = False
            found.append(_desktop(REASON_YOURS, STATUS_PROHIBITED, self._size))
            alone = True
        return found, alone

    def _areas(self, picture: Picture) -> list[Rectangle]:
        """What has changed, of that which the viewer has room for."""
        dirty, self._dirty = self._dirty, {}
        width, height = min(picture.width, self._size[0]), min(picture.height, self._size[1])
        inside = {
            row: (left, min(right, width)) for row, (left, right) in dirty.items() if row < height and left < width
        }
        return rectangles(inside, LIMIT_PIXELS)


def _minor_version(greeting: bytes) -> int:
    """3, 7 or 8; whatever else claims to be RFB 3 is treated as 3.3 (RFC 6143 §7.1.1)."""
    if not greeting.startswith(b"RFB 003.") or greeting[-1:] != b"\n" or not greeting[8:11].isdigit():
        raise ProtocolError(f"a greeting of {greeting!r}")
    minor = int(greeting[8:11])
    return minor if minor in (7, 8) else 8 if minor > 8 else 3


def _desktop(reason: int, status: int, size: tuple[int, int]) -> bytes:
    """ExtendedDesktopSize: one screen, all of it."""
    screen = struct.pack(">IHHHHI", 0, 0, 0, *size, 0)
    return header(Rectangle(reason, status, *size), EXTENDED_DESKTOP_SIZE) + struct.pack(">Bxxx", 1) + screen


def _palette_message() -> bytes:
    """SetColourMapEntries (§7.6.2), all of them."""
    colours = palette()
    return struct.pack(">BxHH", 1, 0, len(colours)) + b"".join(struct.pack(">HHH", *each) for each in colours)
