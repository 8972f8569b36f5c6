"""The application over a furnished world, and pages of a browser logged in to it. One server and one browser a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, ConsoleMessage, Page, expect

from appliance.web.application import build_application
from appliance.web.static import StaticFiles
from tests.browser.accessibility import violations
from tests.fakes.house import furnished, settle_in
from tests.fakes.services import World
from tests.harness import ROOT

SIZES = {"phone": (390, 844), "tablet": (768, 1024), "wide": (1280, 800), "large": (1920, 1080)}
EXPECT_TIMEOUT_MS = 20_000
"""A busy machine is no failure."""
Scheme = Literal["light", "dark"]


def _is_fault(message: ConsoleMessage) -> bool:
    if "ERR_NETWORK_CHANGED" in message.text:  # another test has made or removed an interface of this host
        return False
    return message.type == "error" or "Content Security Policy" in message.text


def _told(page: Page, message: ConsoleMessage) -> str:
    return f"{page.url}: {message.text} ({message.location.get('url', '')})"


@dataclass(slots=True)
class FakeSite:
    """`faults` collects what goes wrong in any page: script errors, refused content, too wide pages, axe's findings."""

    browser: Browser
    url: str
    world: World
    application: web.Application
    screenshots: Path
    faults: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def page(
        self, size: str = "wide", scheme: Scheme = "light", *, user: str = "admin@pve", quiet: bool = False
    ) -> AsyncIterator[Page]:
        """A window of a logged-in user. With `quiet` its console's errors are expected ones."""
        width, height = SIZES[size]
        context = await self.browser.new_context(
            base_url=self.url, viewport={"width": width, "height": height}, color_scheme=scheme
        )
        ticket = self.world.access.ticket(user)
        for sign, code in ((":", "%3A"), ("+", "%2B"), ("/", "%2F"), ("=", "%3D")):
            ticket = ticket.replace(sign, code)
        await context.add_cookies([{"name": "PVEAuthCookie", "value": ticket, "url": self.url}])
        page = await context.new_page()
        page.on("pageerror", lambda error: self.faults.append(f"{page.url}: {error}"))
        page.on("dialog", lambda dialog: self.faults.append(f"{page.url}: a dialog: {dialog.message}"))
        if not quiet:
            page.on("console", lambda each: self.faults.append(_told(page, each)) if _is_fault(each) else None)
        try:
            yield page
        finally:
            await context.close()

    async def visit(self, page: Page, path: str) -> None:
        """Go there, and wait until its scripts run and its websocket is connected."""
        await page.goto(path)
        await expect(page.locator("body")).to_have_attribute("data-live", "connected")

    async def look(self, page: Page, name: str) -> None:
        """Take a screenshot; note what is wider than the screen and what axe finds."""
        await page.screenshot(path=self.screenshots / f"{name}.png")
        if await page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
            self.faults.append(f"{name}: wider than the screen")
        self.faults += await violations(page, where=name)


@asynccontextmanager
async def open_site(browser: Browser, directory: Path, screenshots: Path) -> AsyncIterator[FakeSite]:
    """Serve the furnished world."""
    expect.set_options(timeout=EXPECT_TIMEOUT_MS)
    services, world = furnished(directory)
    settle_in(world)
    static = await asyncio.to_thread(StaticFiles.scan, ROOT / "static")
    application = build_application(services, static=static)
    async with TestServer(application) as server:
        yield FakeSite(browser, f"http://127.0.0.1:{server.port}", world, application, screenshots)
