"""Every page and dialog at both widths, light and dark: no error, nothing wider than the screen, screenshots kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, Page, expect

from appliance.model.guest import GuestKind, GuestState
from appliance.web.application import build_application
from appliance.web.static import StaticFiles
from tests.fakes.house import HOSTILE, furnished, settle_in
from tests.fakes.services import World

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

SIZES = {"wide": (1280, 800), "phone": (390, 844)}
PAGES = {
    "guests": "/",
    "guest-vm": "/guests/100",
    "guest-ct": "/guests/101",
    "guest-configuration": "/guests/100/hardware",
    "guest-tasks": "/guests/100/tasks",
    "guest-console-off": "/guests/103/console",
    "node": "/node",
    "storage": "/storage/local",
    "storages": "/storage",
    "storage-backups": "/storage/local?content=backup",
    "not-found": "/guests/999",
    "api": "/api-docs",
}
DIALOGS = {
    "create-vm": ("/", "#create-vm"),
    "create-ct": ("/", "#create-ct"),
    "stop": ("/guests/100", "[data-action=stop]"),
    "edit": ("/guests/100/hardware", "#config-memory button"),
    "grow": ("/guests/100/hardware", "#config-scsi0 button"),
    "upload": ("/storage/local", "#upload"),
    "download": ("/storage/local", "#download"),
    "build": ("/storage/local", "#build"),
}


@pytest.fixture
async def site(tmp_path: Path, repository: Path) -> AsyncIterator[tuple[str, World]]:
    services, world = furnished(tmp_path)
    settle_in(world)
    static = await asyncio.to_thread(StaticFiles.scan, repository / "static")
    async with TestServer(build_application(services, static=static)) as server:
        yield f"http://127.0.0.1:{server.port}", world


async def opened(browser: Browser, site: tuple[str, World], size: str, scheme: str, faults: list[str]) -> Page:
    """A page logged in as the administrator; what goes wrong in it is added to `faults`."""
    url, world = site
    width, height = SIZES[size]
    context = await browser.new_context(
        base_url=url, viewport={"width": width, "height": height}, color_scheme="dark" if scheme == "dark" else "light"
    )
    ticket = world.access.ticket("admin@pve").replace(":", "%3A").replace("+", "%2B").replace("/", "%2F")
    await context.add_cookies([{"name": "PVEAuthCookie", "value": ticket.replace("=", "%3D"), "url": url}])
    page = await context.new_page()
    page.on("pageerror", lambda error: faults.append(f"{page.url}: {error}"))
    page.on("dialog", lambda dialog: faults.append(f"{page.url}: a dialog of the browser: {dialog.message}"))
    page.on("console", lambda message: faults.append(f"{page.url}: {message.text}") if is_fault(message.text) else None)
    return page


def is_fault(text: str) -> bool:
    return "Content Security Policy" in text or "Refused" in text or "is not defined" in text


async def is_too_wide(page: Page) -> bool:
    return bool(await page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))


@pytest.mark.parametrize(
    ("size", "scheme"), [("wide", "light"), ("wide", "dark"), ("phone", "light"), ("phone", "dark")]
)
async def test_every_page_and_dialog_fits_and_has_no_error(
    loop_browser: Browser, site: tuple[str, World], screenshots: Path, size: str, scheme: str
) -> None:
    faults: list[str] = []
    page = await opened(loop_browser, site, size, scheme, faults)
    for name, path in PAGES.items():
        await page.goto(path)
        if path != "/api-docs":
            await page.wait_for_selector("#task-view", state="attached")
        await page.wait_for_load_state("networkidle")
        await page.screenshot(path=screenshots / f"{name}-{size}-{scheme}.png")
        if await is_too_wide(page):
            faults.append(f"{path} is wider than the screen")
    for name, (path, opener) in DIALOGS.items():
        if page.url.partition("://")[2].partition("/")[2] != path[1:]:
            await page.goto(path)
        await expect(page.locator("body")).to_have_attribute("data-live", "connected")  # its scripts run
        await page.click(opener)
        await page.wait_for_selector("#dialog[open] #dialog-title")
        await page.screenshot(path=screenshots / f"dialog-{name}-{size}-{scheme}.png")
        await page.keyboard.press("Escape")
        await page.wait_for_selector("#dialog[open]", state="detached")
    await page.goto("/")
    await page.click("#drawer-bar")
    await page.click(".task-row:has-text('debian-13')")
    await page.wait_for_selector("text=512 MiB of 2 GiB")
    await page.screenshot(path=screenshots / f"tasks-{size}-{scheme}.png")
    await page.context.clear_cookies()
    await page.goto("/login")
    await page.screenshot(path=screenshots / f"login-{size}-{scheme}.png")
    await page.context.close()
    assert not faults


async def test_changes_arrive_by_push_and_hostile_names_stay_text(
    loop_browser: Browser, site: tuple[str, World]
) -> None:
    faults: list[str] = []
    _, world = site
    page = await opened(loop_browser, site, "wide", "light", faults)
    await page.goto("/")
    await page.wait_for_selector("#guest-row-103[data-state=stopped]")
    world.guests.set_state(103, GuestState.RUNNING)  # with a task, as in life: both are in one message
    world.tasks.finish(world.tasks.begin("vzstart", object_id="103"))
    await page.wait_for_selector("#guest-row-103[data-state=running]")
    world.guests.add(300, GuestKind.LXC, name=HOSTILE, description=HOSTILE, tags=(HOSTILE,))
    await page.wait_for_selector("#guest-row-300")
    assert await page.inner_text("#guest-row-300 .name") == HOSTILE
    await page.fill("#find", "staging run")
    await page.wait_for_selector("#guest-row-100", state="hidden")
    world.guests.set_state(103, GuestState.STOPPING)  # no longer matches
    await page.wait_for_selector("#none-found", state="visible")
    world.tasks.finish(world.tasks.begin("vzstart", object_id="300"), HOSTILE)
    await expect(page.locator("#drawer-bar .latest")).to_contain_text(HOSTILE)
    await page.goto("/guests/300")
    assert await page.inner_text("h1") == HOSTILE
    await page.context.close()
    assert not faults


async def test_a_refused_form_shows_each_error_at_its_field_and_keeps_what_was_typed(
    loop_browser: Browser, site: tuple[str, World]
) -> None:
    faults: list[str] = []
    page = await opened(loop_browser, site, "wide", "light", faults)
    await page.goto("/")
    await expect(page.locator("body")).to_have_attribute("data-live", "connected")
    await page.click("#create-ct")
    await page.fill("#f-hostname", "not a host name!")
    await page.click("#create")
    await page.wait_for_selector("#e-hostname", state="visible")
    assert await page.get_attribute("#f-hostname", "aria-invalid") == "true"
    assert await page.input_value("#f-hostname") == "not a host name!"
    await page.fill("#f-hostname", "better")
    await page.wait_for_selector("#e-hostname", state="hidden")
    await page.context.close()
    assert not faults
