"""The display of one machine: the adapter, its surface, and everybody who looks at it. On the loop.

Nobody is served who does not look: without viewers there is no task, no timer and no copy of the picture. While somebody
waits for changes one task (`_follow`) has the surface look at the frame buffer, in a thread, up to 30 times a second
while it changes or somebody types, seldom while it does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from pathlib import Path
from typing import Final

from appliance.errors import ApplianceError, Conflict, HostError
from appliance.tasks import TaskScope
from appliance.threads import to_the_end
from appliance.vmm.device import DeviceContext
from appliance.vmm.display.bochs_display import BochsDisplay
from appliance.vmm.display.inputs import Inputs, Keyboard
from appliance.vmm.display.rfb import FRAME_S, Viewer
from appliance.vmm.display.surface import Picture, Surface
from appliance.vmm.display.virtio_input import VirtioTablet
from appliance.vmm.virtio.transport import NoTransport

OPTION_ROM: Final = Path("/usr/share/seabios/vgabios-bochs-display.bin")  # Debian's package seabios
MOST_VIEWERS: Final = 16
SELDOM_S: Final = 0.25
SLOWER: Final = 1.2  # how much longer each wait is while nothing changes

log = logging.getLogger(__name__)
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def make_display(
    name: str, context: DeviceContext, *, keyboard: Keyboard, rom_path: Path = OPTION_ROM
) -> Display:
    """A display whose `function` and `tablet` are to be plugged. Without the ROM, BIOS screens are not to be seen; that is
    noted. Raises `HostError`."""
    rom = b""
    try:
        rom = await asyncio.to_thread(rom_path.read_bytes)
    except FileNotFoundError:
        context.note(f"{context.label}: {name}: no {rom_path}: firmware and boot loaders have no screen")
    except OSError as error:
        raise HostError.from_os_error(error, f"read {rom_path}") from error
    function = BochsDisplay(name, context, rom=rom)
    try:
        tablet = VirtioTablet(f"{name}-tablet", context)
    except BaseException:
        function.close()
        raise
    return Display(function, tablet, keyboard=keyboard)


class Display:
    """`function` is the adapter, `tablet` a virtio device: the machine has them, and ends them. When `function` closes,
    every viewer is shown out; `close` also waits until the last has gone."""

    def __init__(self, function: BochsDisplay, tablet: VirtioTablet, *, keyboard: Keyboard) -> None:
        self.function, self.tablet = function, tablet
        self._context = function.context
        self._surface = Surface(function)
        self._inputs = Inputs(keyboard, tablet)
        self._scope = TaskScope(function.label)
        self._viewers: list[Viewer] = []
        self._count = 0
        self._following = self._closed = False
        self._one_look = asyncio.Lock()
        self._wanted = asyncio.Event()
        function.on_close = self._shut

    @property
    def picture(self) -> Picture:
        """As it was seen last."""
        return self._surface.picture

    async def connect(self) -> Connection:
        """A new viewer's end: RFB, security type None. Raises `Conflict`: it is over, or there are too many viewers."""
        if self._closed or len(self._viewers) >= MOST_VIEWERS:
            problem = "it is over" if self._closed else f"{MOST_VIEWERS} viewers are the most"
            raise Conflict(f"{self.function.label}: {problem}")
        ours, theirs = socket.socketpair()
        opened: list[Connection] = []
        try:
            for end in (ours, theirs):
                opened.append(await asyncio.open_connection(sock=end))
            self._admit(*opened[0])
        except BaseException:
            for _, writer in opened:
                writer.close()
            for end in (ours, theirs)[len(opened) :]:
                end.close()
            raise
        return opened[1]

    async def close(self) -> None:
        """No more viewers, and every task is over. Harmless when done twice."""
        self._shut()
        await self._scope.close()

    def _shut(self) -> None:
        self._closed = True
        for viewer in self._viewers:
            viewer.abort()
        self._wanted.set()
        if isinstance(self.tablet.transport, NoTransport):
            self.tablet.close()  # nobody has plugged it

    # --- viewers ----------------------------------------------------------------------------------------------------

    def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._count += 1
        viewer = Viewer(
            f"{self.function.label}: viewer {self._count}",
            self._context.label,
            reader,
            writer,
            picture=lambda: self._surface.picture,
            inputs=self._inputs,
            wanted=self._wanted.set,
            clock=self._context.clock,
        )
        self._scope.start(self._serve(viewer), name=f"viewer {self._count}")
        self._viewers.append(viewer)
        if not self._following:
            self._following = True
            self._scope.start(self._follow(), name="follow the guest")

    async def _serve(self, viewer: Viewer) -> None:
        try:
            await self._look()
            await viewer.run()
        finally:
            self._viewers.remove(viewer)
            self._wanted.set()

    # --- the guest's picture ----------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Look when somebody wants it, and again and again while somebody waits; ends with the last viewer."""
        wait_s = FRAME_S
        try:
            while self._viewers:
                await self._wanted.wait()
                self._wanted.clear()
                changed = await self._look()
                wait_s = FRAME_S if changed else min(wait_s * SLOWER, SELDOM_S)
                if await self._nap(wait_s):
                    wait_s = FRAME_S
                elif any(viewer.waits for viewer in self._viewers):
                    self._wanted.set()
        except ApplianceError as error:
            log.error("%s: %s", self.function.label, error)
            self._shut()
        finally:
            self._following = False
            self._surface.forget()

    async def _look(self) -> bool:
        """Bring the picture up to date and tell every viewer what has changed, if anything has."""
        async with self._one_look:
            spans = await to_the_end(self._surface.look)
        for viewer in self._viewers:
            if spans:
                viewer.changed(spans)
        return bool(spans)

    async def _nap(self, wait_s: float) -> bool:
        """A frame's time at least, `wait_s` at most; whether somebody has asked, typed, pointed or come meanwhile."""
        await self._context.clock.sleep(FRAME_S)
        if any(viewer.waits for viewer in self._viewers):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s - FRAME_S):
                    await self._wanted.wait()
        return self._wanted.is_set()
