"""RFB on a display whose guest is the test: RFC 6143, the extensions, several viewers, and hostile ones."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.errors import Conflict
from appliance.vmm.display.bochs_display import ENABLE, HEIGHT, WIDTH, BochsDisplay
from appliance.vmm.display.display import MOST_VIEWERS, Display, make_display
from appliance.vmm.display.pixels import PixelFormat
from tests.fakes.machine import FakeMachine
from tests.fakes.rfb_viewer import DESKTOP_SIZE, EXTENDED_DESKTOP_SIZE, EXTENDED_KEY, RAW, ZLIB, RfbViewer
from tests.vmm.test_display_inputs import FakeKeyboard

PATIENCE_S = 20.0
RGBX = PixelFormat(shifts=(0, 8, 16))  # what noVNC wants
W, H = 320, 200


class Guest:
    """Draws. Starts in a mode of 320 by 200, all black."""

    def __init__(self, display: Display, keyboard: FakeKeyboard) -> None:
        self.display, self.keyboard = display, keyboard
        self.viewers: list[RfbViewer] = []
        self.mode(W, H)

    async def connect(self) -> RfbViewer:
        self.viewers.append(RfbViewer(*await self.display.connect()))
        return self.viewers[-1]

    @property
    def adapter(self) -> BochsDisplay:
        return self.display.function

    def mode(self, width: int, height: int) -> None:
        for index, value in ((ENABLE, 0), (3, 32), (WIDTH, width), (HEIGHT, height), (ENABLE, 1)):
            with self.adapter.lock:
                self.adapter.write_register(index, value)

    def draw(self, x: int, y: int, colour: int, *, count: int = 1, width: int = W) -> None:
        self.adapter.memory.store(4 * (y * width + x), colour.to_bytes(4, "little") * count)


@pytest.fixture
async def guest(machine: FakeMachine) -> AsyncIterator[Guest]:
    keyboard = FakeKeyboard()
    context = dataclasses.replace(machine.context, clock=SystemClock())
    display = await make_display("display", context, keyboard=keyboard, rom_path=Path("/nonexistent"))
    made = Guest(display, keyboard)
    yield made
    for viewer in made.viewers:
        await viewer.leave()
    display.function.close()
    await display.close()


async def join(guest: Guest, *encodings: int, form: PixelFormat | None = None) -> RfbViewer:
    """A viewer that has seen everything there is."""
    viewer = await (await guest.connect()).greet()
    if form is not None:
        viewer.want(form)
    viewer.encodings(*encodings)
    await viewer.picture()
    return viewer


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


async def test_without_the_option_rom_it_is_noted_that_firmware_has_no_screen(
    guest: Guest, machine: FakeMachine
) -> None:
    assert "no /nonexistent: firmware and boot loaders have no screen" in machine.notes[0]


@pytest.mark.parametrize("version", [b"RFB 003.008\n", b"RFB 003.007\n", b"RFB 003.003\n", b"RFB 003.889\n"])
async def test_every_version_of_the_protocol_is_greeted(guest: Guest, version: bytes) -> None:
    viewer = await guest.connect()
    await viewer.greet(version)
    assert (viewer.title, viewer.width, viewer.height) == ("vm 101", W, H)


@pytest.mark.parametrize("encoding", [RAW, ZLIB])
@pytest.mark.parametrize("form", [None, RGBX])
async def test_a_viewer_sees_what_the_guest_draws_and_then_only_what_changes(
    guest: Guest, encoding: int, form: PixelFormat | None
) -> None:
    guest.draw(5, 7, 0x112233)
    viewer = await join(guest, encoding, form=form)
    expected = 0x112233 if form is None else 0x332211
    assert viewer.pixel(5, 7) == expected
    assert viewer.rectangles == [(0, 0, W, H, encoding)]
    guest.draw(100, 50, 0xFFFFFF, count=3)
    await viewer.picture(incremental=True)
    assert viewer.rectangles == [(100, 50, 3, 1, encoding)]
    assert viewer.pixel(102, 50) == 0xFFFFFF


async def test_eight_and_sixteen_bits_and_a_colour_map(guest: Guest) -> None:
    guest.draw(0, 0, 0xFF0000)
    guest.draw(1, 0, 0x00FF00)
    sixteen = await join(guest, ZLIB, form=PixelFormat(16, 16, True, maxima=(31, 63, 31), shifts=(11, 5, 0)))
    assert [sixteen.pixel(x, 0) for x in (0, 1)] == [0xF800, 0x07E0]
    mapped = await join(guest, RAW, form=PixelFormat(8, 8, true_colour=False))
    assert len(mapped.palette) == 256
    assert [mapped.palette[mapped.pixel(x, 0)] for x in (0, 1, 2)] == [(0xFFFF, 0, 0), (0, 0xFFFF, 0), (0, 0, 0)]


async def test_an_update_waits_until_something_changes_and_a_page_rewritten_alike_is_no_change(guest: Guest) -> None:
    viewer = await join(guest, ZLIB)
    viewer.ask()
    pending = asyncio.ensure_future(viewer.update())
    guest.draw(0, 0, 0, count=W)
    await asyncio.sleep(0.15)
    assert not pending.done()
    guest.draw(1, 1, 1)
    await pending
    assert viewer.rectangles == [(1, 1, 1, 1, ZLIB)]


async def test_a_viewer_that_asks_seldom_gets_all_that_changed_in_one(guest: Guest) -> None:
    lazy, keen = await join(guest, ZLIB), await join(guest, ZLIB)
    for x in range(5):
        guest.draw(x, 3, 0xABCDEF)
        await keen.picture(incremental=True)
    await lazy.picture(incremental=True)
    assert lazy.rectangles == [(0, 3, 5, 1, ZLIB)]
    assert lazy.shown == keen.shown


async def test_a_viewer_that_does_not_read_holds_up_nobody(guest: Guest) -> None:
    guest.mode(1920, 1080)
    stuck = await (await guest.connect()).greet()
    for _ in range(50):
        stuck.ask(incremental=False)
    keen = await join(guest, ZLIB)
    for x in range(5):
        guest.draw(x, 0, 0x777777, width=1920)
        await keen.picture(incremental=True)
    assert keen.pixel(4, 0) == 0x777777


async def test_frames_follow_each_other_no_faster_than_thirty_a_second(guest: Guest) -> None:
    viewer = await join(guest, ZLIB)
    began = asyncio.get_running_loop().time()
    for _ in range(10):
        await viewer.picture()
    assert asyncio.get_running_loop().time() - began >= 9 / 30


async def test_nobody_looks_at_the_guest_when_no_viewer_does(guest: Guest) -> None:
    viewer = await join(guest, ZLIB)
    await viewer.leave()
    await until(lambda: not guest.display._following)
    assert len(asyncio.all_tasks()) == 1
    guest.draw(3, 3, 0x123456)
    again = await join(guest, ZLIB)
    assert again.pixel(3, 3) == 0x123456


async def test_a_new_size_is_told_as_the_viewer_knows_it_alone_and_then_all_is_sent(guest: Guest) -> None:
    extended = await join(guest, ZLIB, EXTENDED_DESKTOP_SIZE, DESKTOP_SIZE)
    assert extended.rectangles == [(0, 0, W, H, EXTENDED_DESKTOP_SIZE)]
    plain, fixed = await join(guest, RAW, DESKTOP_SIZE), await join(guest, RAW)
    await extended.picture()
    guest.draw(0, 0, 0xFFFFFF, count=W * H)
    guest.mode(400, 100)
    for viewer, encoding in ((extended, EXTENDED_DESKTOP_SIZE), (plain, DESKTOP_SIZE)):
        while viewer.width != 400:
            await viewer.picture(incremental=True)
        assert viewer.rectangles == [(0, 0, 400, 100, encoding)]
        await viewer.picture(incremental=True)
        assert viewer.pixel(399, 99) == 0xFFFFFF
    while fixed.pixel(W - 1, 99) != 0xFFFFFF:
        await fixed.picture(incremental=True)
    assert (fixed.width, fixed.height) == (W, H)


async def test_a_wish_for_another_size_is_refused(guest: Guest) -> None:
    viewer = await join(guest, ZLIB, EXTENDED_DESKTOP_SIZE)
    await viewer.picture()
    viewer.writer.write(struct.pack(">BxHHBxIHHHHI", 251, 800, 600, 1, 0, 0, 0, 800, 600, 0))
    await viewer.picture()
    assert viewer.rectangles == [(1, 1, W, H, EXTENDED_DESKTOP_SIZE)]


async def test_keys_reach_the_keyboard_and_are_let_go_when_the_viewer_is_lost(guest: Guest) -> None:
    viewer = await join(guest, ZLIB, EXTENDED_KEY)
    assert (0, 0, W, H, EXTENDED_KEY) in viewer.rectangles
    viewer.key(ord("a"), down=True)
    viewer.extended_key(0xCB, down=True)
    viewer.point(3, 4)
    viewer.point(5, 5, 1)
    await until(lambda: len(guest.keyboard.typed) == 2 and len(guest.keyboard.moved) == 2)
    assert guest.keyboard.typed == [(0x1E, True), (0xCB, True)]
    assert guest.keyboard.moved == [(0, 0, 0, 0), (2, 1, 1, 0)]
    viewer.writer.transport.abort()
    await until(lambda: guest.keyboard.released == 1)
    assert guest.keyboard.typed[2:] == [(0x1E, False), (0xCB, False)]
    assert guest.keyboard.moved[2:] == [(0, 0, 0, 0)]


async def test_cut_text_is_swallowed(guest: Guest) -> None:
    viewer = await join(guest, ZLIB)
    viewer.writer.write(struct.pack(">BxxxI", 6, 300_000) + bytes(300_000))
    viewer.key(ord("b"), down=True)
    await until(lambda: bool(guest.keyboard.typed))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"\x07", "message type 7"),
        (struct.pack(">BxH", 2, 257), "257 encodings"),
        (struct.pack(">BxxxI", 6, 2 << 20), "a cut text of 2097152 bytes"),
        (struct.pack(">BxxxI", 6, 1 << 31), "a cut text of -2147483648 bytes"),
        (struct.pack(">BxHHBx", 251, 1, 1, 200), "200 screens"),
        (struct.pack(">BBHII", 255, 1, 0, 0, 0), "QEMU message 1"),
        (b"\0\0\0\0" + PixelFormat(bits=24).pack(), "a pixel format of 24 bits a pixel"),
        (b"\0\0\0\0" + PixelFormat(maxima=(3, 1000, 3)).pack(), "a pixel format of a colour of up to 1000"),
    ],
)
async def test_who_breaks_the_protocol_is_cut_off_with_the_reason_in_the_log(
    guest: Guest, said: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    good, bad = await join(guest, ZLIB), await join(guest, ZLIB)
    bad.writer.write(said)
    assert await bad.is_cut_off()
    assert f"vm 101: display: viewer 2: cut off: {reason}" in caplog.text
    await good.picture()


@pytest.mark.parametrize("greeting", [b"GET / HTTP/1", b"RFB 003.00x\n", b"RFB 004.001\n"])
async def test_who_does_not_speak_rfb_is_cut_off(guest: Guest, greeting: bytes) -> None:
    viewer = await guest.connect()
    viewer.writer.write(greeting)
    assert await viewer.is_cut_off()


async def test_another_security_type_is_cut_off(guest: Guest) -> None:
    viewer = await guest.connect()
    viewer.writer.write(b"RFB 003.008\n\x02")
    assert await viewer.is_cut_off()


async def test_a_flood_of_messages_leaves_the_loop_to_others(guest: Guest) -> None:
    viewer = await join(guest, ZLIB)
    loop, longest = asyncio.get_running_loop(), 0.0
    viewer.writer.write(struct.pack(">BBHH", 5, 0, 1, 1) * 20_000)
    async with asyncio.timeout(PATIENCE_S):
        while len(guest.keyboard.moved) < 20_000:
            began = loop.time()
            await asyncio.sleep(0)
            longest = max(longest, loop.time() - began)
    assert longest < 0.1  # all of it at once takes far longer


async def test_there_are_so_many_viewers_and_none_after_the_end(guest: Guest) -> None:
    viewers = [await join(guest, ZLIB) for _ in range(MOST_VIEWERS)]
    with pytest.raises(Conflict, match="16 viewers are the most"):
        await guest.display.connect()
    guest.display.function.close()
    for viewer in viewers:
        assert await viewer.is_cut_off()
        await guest.display.close()
    with pytest.raises(Conflict, match="it is over"):
        await guest.display.connect()


async def test_a_guest_that_changes_its_mode_all_the_time_shows_something_all_the_time(guest: Guest) -> None:
    viewer = await join(guest, ZLIB, EXTENDED_DESKTOP_SIZE)
    sizes = [(64, 64), (1920, 1080), (0, 0), (4096, 1000), (65535, 65535), (800, 600)]
    for number in range(30):
        guest.mode(*sizes[number % 6])
        guest.adapter.write_register(8 + number % 2, 50 * number)
        guest.draw(0, number, number + 1, count=1000)
        await viewer.picture()
    guest.adapter.write_register(8, 0)
    guest.adapter.write_register(9, 0)
    guest.mode(W, H)
    guest.draw(0, 0, 0x123456)
    async with asyncio.timeout(PATIENCE_S):
        while viewer.width != W or viewer.pixel(0, 0) != 0x123456:
            await viewer.picture()
