"""Terminals and displays in real Chromium: typing, replay, search, download, viewers, keys, pictures, tiles, windows."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import Page, Route, expect

from appliance.model.guest import GuestKind, GuestState
from tests.browser.fake_site import FakeSite
from tests.fakes.viewer import FakeViewer

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

WIDTH, HEIGHT = 320, 200
TEXT = """(id) => { const buffer = document.getElementById(id).terminal.buffer.active;
  return [...Array(buffer.length).keys()].map((n) => buffer.getLine(n).translateToString(true)).join("\\n"); }"""


class Vnc:
    """An RFB server (RFC 6143) with one picture, which keeps the keys and the clipboard it was given."""

    def __init__(self) -> None:
        self.keys: list[tuple[int, bool]] = []
        self.clipboard = b""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[tuple[str, int]]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._talk(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"RFB 003.008\n")
        await reader.readexactly(12)
        writer.write(b"\x01\x01")
        await reader.readexactly(1)
        writer.write(bytes(4))
        await reader.readexactly(1)
        form = struct.pack(">BBBBHHHBBB3x", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)
        writer.write(struct.pack(">HH", WIDTH, HEIGHT) + form + struct.pack(">I", 4) + b"test")
        drawn = False
        while True:
            kind = (await reader.readexactly(1))[0]
            match kind:
                case 0:
                    await reader.readexactly(19)
                case 2:
                    _, count = struct.unpack(">BH", await reader.readexactly(3))
                    await reader.readexactly(4 * count)
                case 3:
                    await reader.readexactly(9)
                    if not drawn:
                        drawn = True
                        head = struct.pack(">BxHHHHHi", 0, 1, 0, 0, WIDTH, HEIGHT, 0)
                        writer.write(head + bytes((200, 120, 40, 0)) * (WIDTH * HEIGHT))
                case 4:
                    down, _, key = struct.unpack(">BHI", await reader.readexactly(7))
                    self.keys.append((key, bool(down)))
                case 5:
                    await reader.readexactly(5)
                case 6:
                    size = struct.unpack(">3xi", await reader.readexactly(7))[0]
                    self.clipboard = await reader.readexactly(abs(size))
                case other:
                    raise AssertionError(f"message {other}")


def console_of(site: FakeSite, guest_id: int, name: str) -> FakeViewer:
    site.world.guests.consoles[guest_id, name] = viewer = FakeViewer(echo=True)
    return viewer


async def connected(page: Page, element: str) -> None:
    await expect(page.locator(f"#{element}")).to_have_attribute("data-status", "connected")


async def says(page: Page, text: str, *, element: str = "console") -> None:
    await page.wait_for_function(f"(text) => ({TEXT})('{element}').includes(text)", arg=text)


@pytest.mark.parametrize(("size", "scheme"), [("wide", "light"), ("phone", "dark")])
async def test_a_terminal_takes_keys_finds_words_and_gives_its_text(site: FakeSite, size: str, scheme: str) -> None:
    viewer = console_of(site, 101, "console")
    await viewer.say(b"\x1b[1;32mwelcome\x1b[0m to \x1b[38;2;250;120;10mdns\x1b[0m\r\n")
    async with site.page(size, "dark" if scheme == "dark" else "light") as page:
        await site.visit(page, "/guests/101/console")
        await connected(page, "console")
        await says(page, "welcome to dns")
        await page.keyboard.type("uptime")
        await says(page, "uptime")
        assert bytes(viewer.typed) == b"uptime"
        assert viewer.sizes[-1][0] > 30
        await page.keyboard.press("Control+Shift+F")
        await page.fill("#console-find", "nowhere")
        await expect(page.locator("[data-find-none]")).to_be_visible()
        await page.fill("#console-find", "welcome")
        await expect(page.locator("[data-find-none]")).to_be_hidden()
        await site.look(page, f"console-terminal-{size}")
        async with page.expect_download() as download:
            await page.click("[data-do=download]")
        saved = await (await download.value).path()
        assert "welcome to dns" in await asyncio.to_thread(Path(saved).read_text)


async def test_a_console_that_ends_is_opened_again_and_two_viewers_see_each_other(site: FakeSite) -> None:
    first = console_of(site, 101, "console")
    async with site.page() as page, site.page() as other:
        await site.visit(page, "/guests/101/console")
        await connected(page, "console")
        await expect(page.locator("#guest-viewers")).to_be_hidden()
        second = console_of(site, 101, "console")
        await second.say(b"here again")
        await first.end()
        await says(page, "here again")
        await other.goto("/console/101")
        await connected(other, "console")
        await expect(page.locator("#guest-viewers")).to_contain_text("2 viewers")
        await site.look(other, "console-window-wide")
        await other.close()
        await expect(page.locator("#guest-viewers")).to_be_hidden()


@pytest.mark.parametrize(("size", "scheme"), [("wide", "light"), ("phone", "dark")])
async def test_a_display_takes_key_combinations_text_and_pictures(site: FakeSite, size: str, scheme: str) -> None:
    vnc = Vnc()
    async with vnc.serving() as (host, port), site.page(size, "dark" if scheme == "dark" else "light") as page:
        site.world.guests.displays[100] = lambda: asyncio.open_connection(host, port)
        await site.visit(page, "/guests/100/display")
        await connected(page, "display")
        await page.wait_for_selector("#display-screen canvas")
        await page.click("text=Keys")
        await page.click("[data-keys='Control Alt Delete']")
        await page.click("[data-do=clipboard]")
        await page.fill("#display-clipboard", "root\n")
        await page.click("text=Type it")
        await page.wait_for_timeout(300)
        await page.click("text=To its clipboard")
        await site.look(page, f"console-display-{size}")
        async with page.expect_download() as download:
            await page.click("[data-do=screenshot]")
        picture = await asyncio.to_thread(Path(await (await download.value).path()).read_bytes)
        assert picture.startswith(b"\x89PNG")
        assert struct.unpack(">II", picture[16:24]) == (WIDTH, HEIGHT)
    pressed = [key for key, down in vnc.keys if down]
    assert pressed[:3] == [0xFFE3, 0xFFE9, 0xFFFF]
    assert pressed[3:8] == [*b"root", 0xFF0D]
    assert vnc.clipboard == b"root\n"


async def test_consoles_stand_side_by_side_at_most_sixteen(site: FakeSite) -> None:
    for number in range(20):
        site.world.guests.add(300 + number, GuestKind.LXC, name=f"node-{number}", state=GuestState.RUNNING)
        await console_of(site, 300 + number, "console").say(f"this is node {number}".encode())
    query = "&".join(f"guest={300 + number}" for number in range(20))
    async with site.page("large") as page:
        await site.visit(page, f"/consoles?{query}")
        await expect(page.locator(".tile")).to_have_count(16)
        for number in (0, 15):
            await connected(page, f"tile-{300 + number}")
            await says(page, f"this is node {number}", element=f"tile-{300 + number}")
        await site.look(page, "consoles-tiles-large")
        await page.set_viewport_size({"width": 390, "height": 844})
        await site.look(page, "consoles-tiles-phone")


async def test_a_page_whose_script_did_not_arrive_is_fetched_again(site: FakeSite) -> None:
    console_of(site, 101, "console")
    asked = 0

    async def break_once(route: Route) -> None:
        nonlocal asked
        asked += 1
        await (route.abort("connectionreset") if asked == 1 else route.continue_())

    async with site.page(quiet=True) as page:
        await page.route("**/js/terminal_view.js", break_once)
        await page.goto("/guests/101/console")
        await connected(page, "console")
    assert asked == 2


async def test_a_page_is_not_fetched_again_while_somebody_types_in_it(site: FakeSite) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        if route.request.method == "HEAD":
            asked.set()
            await answer.wait()
        await route.continue_()

    context = await site.browser.new_context(base_url=site.url)
    page = await context.new_page()
    await page.route("**/css/pages.css", lambda route: route.abort("connectionreset"))
    await page.route("**/login", hold)
    await page.goto("/login")
    await asyncio.wait_for(asked.wait(), 20)
    await page.fill("#username", "admin")
    async with page.expect_response(lambda response: response.request.method == "HEAD"):
        answer.set()
    await page.fill("#password", "typed")
    await page.wait_for_timeout(500)
    assert await page.input_value("#username") == "admin"
    assert await page.get_attribute("html", "data-whole") is None
    await context.close()


async def test_a_script_that_never_arrives_does_not_have_the_page_fetched_for_ever(site: FakeSite) -> None:
    console_of(site, 101, "console")
    asked: asyncio.Queue[None] = asyncio.Queue()

    async def break_always(route: Route) -> None:
        asked.put_nowait(None)
        await route.abort("connectionreset")

    async with site.page(quiet=True) as page:
        await page.route("**/js/terminal_view.js", break_always)
        await page.goto("/guests/101/console")
        for _ in range(4):
            await asyncio.wait_for(asked.get(), 20)
        await page.wait_for_load_state()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asked.get(), 3)
        assert await page.locator("h1").count()
