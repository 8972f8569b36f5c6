"""SeaBIOS, unmodified, on the real /dev/kvm draws on the display, and viewers see it and type."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from appliance.clock import SystemClock
from appliance.tasks import TaskScope
from appliance.vmm.board import BoardOptions
from appliance.vmm.display.display import OPTION_ROM, Display, make_display
from appliance.vmm.machine import Machine
from appliance.vmm.pci.bus import PciBus
from appliance.vmm.virtio.pci_transport import VirtioPci
from tests.fakes.rfb_viewer import ZLIB, RfbViewer
from tests.kvm.test_legacy_firmware import RAM_BYTES, SEABIOS, Pc

pytestmark = pytest.mark.host

DEADLINE_S = 60.0
DISPLAY_SLOT, TABLET_SLOT = 1, 2
ESC = 0xFF1B


@asynccontextmanager
async def pc_with_display() -> AsyncIterator[tuple[Pc, Display]]:
    if not SEABIOS.is_file() or not OPTION_ROM.is_file():
        pytest.skip("needs Debian's package seabios")
    scope = TaskScope("test")
    options = BoardOptions(label="vm 101", memory_bytes=RAM_BYTES)
    machine = await Machine.create(options, scope=scope, clock=SystemClock())
    display: Display | None = None
    try:
        pc = Pc(machine)
        display = await make_display("display", machine.context, keyboard=pc.keyboard)
        bus, tablet = pc.devices[0], VirtioPci(display.tablet)
        assert isinstance(bus, PciBus)
        for slot, function in ((DISPLAY_SLOT, display.function), (TABLET_SLOT, tablet)):
            bus.plug(function, slot)
            machine.add(function)
        await machine.start()
        yield pc, display
    finally:
        await machine.stop()
        if display is not None:
            await display.close()
        await scope.close()


def lines_of_text(viewer: RfbViewer) -> list[int]:
    """The lines of the firmware's text screen (16 rows each) that something is written on, but for the cursor's."""
    row_bytes = 4 * viewer.width
    found = []
    for line in range(25):
        pixels = bytes(viewer.shown[16 * line * row_bytes : (16 * line + 12) * row_bytes])
        if any(pixels):
            found.append(line)
    return found


async def until(viewer: RfbViewer, lines: list[int]) -> None:
    while lines_of_text(viewer) != lines:
        await viewer.picture(incremental=True)


async def test_viewers_see_seabios_and_type_and_what_is_shown_survives_saving() -> None:
    async with pc_with_display() as (pc, display), asyncio.timeout(DEADLINE_S):
        said = await pc.says("Press ESC for boot menu")
        assert "Other display found at 00:01.0" in said
        assert "bochs-display: using 1024x768, 32 bpp (4096 stride)" in said
        viewer = await RfbViewer(*await display.connect()).greet()
        viewer.encodings(ZLIB)
        await viewer.picture()
        await until(viewer, [0, 2])
        assert (viewer.title, viewer.width, viewer.height) == ("vm 101", 1024, 768)
        await pc.machine.pause()
        state = display.function.save()
        assert state is not None
        kept = display.function.bytes_at(0, 1 << 20)
        display.function.memory.fill([])
        await until(viewer, [])
        display.function.restore(state)
        assert display.function.bytes_at(0, 1 << 20) == kept
        await pc.machine.resume()
        await until(viewer, [0, 2])
        viewer.key(ESC, down=True)
        viewer.key(ESC, down=False)
        await until(viewer, [0, 2, 4])
        other = await RfbViewer(*await display.connect()).greet()  # without any encoding but Raw
        await other.picture()
        await until(other, [0, 2, 4])
        assert viewer.pixel(0, 4) == other.pixel(0, 4)
        await viewer.leave()
        await other.leave()
