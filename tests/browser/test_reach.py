"""Behind a proxy and its prefix, in German, by keyboard alone, without a request to a foreign host."""

from __future__ import annotations

import dataclasses
import re

import pytest
from playwright.async_api import Page, expect

from appliance.web import keys
from tests.browser.fake_site import FakeSite
from tests.browser.proxy import proxied
from tests.fakes.house import PASSWORD
from tests.fakes.viewer import FakeViewer

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

PREFIX = "/pve/one"
ENGLISH = re.compile(
    r"\b(the|and|your|Settings?|Start|Stop|Shut down|Delete|Edit|Create|Memory|Address(es)?|Network|Running|Guests?"
    r"|Storage|Permissions|Overview|Tasks|Users|Groups|Roles|Save|Cancel|Close|Name of|Search|Options|Notes|None|Yes|No)\b"
)
VISIBLE = """() => [...document.querySelectorAll("main *, .sidebar *, .topbar *, #dialog *, .drawer *")]
  .filter((e) => e.checkVisibility() && !e.closest("pre, code, .mono, .hint, [dir=auto], .console-pad, option, .name, .detail"))
  .flatMap((e) => [...e.childNodes].filter((n) => n.nodeType === 3).map((n) => n.textContent.trim()).concat(
    ["title", "aria-label", "placeholder"].map((a) => e.getAttribute(a) ?? "")))
  .filter(Boolean)"""
GERMAN_PAGES = (
    "/", "/overview", "/guests/100", "/guests/100/hardware", "/guests/100/options", "/guests/100/cloudinit",
    "/guests/100/snapshots", "/guests/100/tasks", "/guests/101/hardware", "/guests/101/console", "/consoles", "/storage",
)  # fmt: skip


async def test_everything_works_below_a_proxys_prefix(site: FakeSite) -> None:
    services = site.application[keys.SERVICES]
    believing = dataclasses.replace(services.config, proxies=frozenset({"127.0.0.1"}))
    object.__setattr__(services, "config", believing)
    site.world.guests.consoles[101, "console"] = viewer = FakeViewer(echo=True)
    await viewer.say(b"hello behind the proxy")
    strays: list[str] = []
    async with proxied(site.url, PREFIX) as front:
        context = await site.browser.new_context(base_url=front)
        page = await context.new_page()
        page.on("request", lambda each: strays.append(each.url) if not _is_ours(each.url, front) else None)
        page.on("response", lambda each: strays.append(f"{each.status} {each.url}") if each.status >= 400 else None)
        page.on("pageerror", lambda error: site.faults.append(str(error)))
        await page.goto(f"{PREFIX}/guests/101/console")
        await page.wait_for_url(f"**{PREFIX}/login?next=**")
        await page.fill("#username", "admin")
        await page.fill("#password", PASSWORD)
        async with page.expect_response("**/login") as answer:
            await page.click("#login button")
        cookie = (await (await answer.value).all_headers())["set-cookie"]
        assert f"Path={PREFIX}" in cookie
        # the cookie is for TLS only, which this proxy has not: it is put in by hand
        value = re.match(r"PVEAuthCookie=([^;]+)", cookie)
        assert value
        await context.add_cookies([{"name": "PVEAuthCookie", "value": value[1], "url": f"{front}{PREFIX}/"}])
        await page.goto(f"{PREFIX}/guests/101/console")
        await expect(page.locator("body")).to_have_attribute("data-live", "connected")
        await expect(page.locator("#console")).to_have_attribute("data-status", "connected")
        await page.goto(f"{PREFIX}/guests/103")
        await expect(page.locator("body")).to_have_attribute("data-live", "connected")
        await page.click("[data-action=start]")
        await expect(page.locator("#guest-head")).to_have_attribute("data-state", "running")
        await page.click("#tree .tree-item:has-text('shop')")
        await page.wait_for_url(f"**{PREFIX}/guests/100")
        await page.click(".tabs >> text=Hardware")
        await page.wait_for_url(f"**{PREFIX}/guests/100/hardware")
        await expect(page.locator("body")).to_have_attribute("data-live", "connected")
        await page.click("#config-memory button")
        await page.wait_for_selector("#dialog[open] #dialog-title")
        await context.close()
    object.__setattr__(services, "config", dataclasses.replace(believing, proxies=frozenset()))
    assert not strays


def _is_ours(url: str, front: str) -> bool:
    return url.startswith((front + PREFIX, front.replace("http", "ws") + PREFIX, "data:", "blob:"))


async def in_german(site: FakeSite, page: Page) -> None:
    await page.context.add_cookies([{"name": "language", "value": "de", "url": site.url}])


async def test_pages_are_german_from_end_to_end(site: FakeSite) -> None:
    site.world.guests.consoles[101, "console"] = FakeViewer()
    left: set[str] = set()
    async with site.page(quiet=True) as page:
        await in_german(site, page)
        for path in GERMAN_PAGES:
            await site.visit(page, path)
            await expect(page.locator("html")).to_have_attribute("lang", "de")
            if path in ("/guests/100", "/guests/100/hardware", "/"):
                await site.look(page, f"german{path.replace('/', '-')}")
            left |= {text for text in await page.evaluate(VISIBLE) if ENGLISH.search(text)}
    assert not left, "\n".join(sorted(left))


async def test_the_browsers_language_is_taken_where_nobody_has_chosen(site: FakeSite) -> None:
    context = await site.browser.new_context(base_url=site.url, locale="de-AT")
    page = await context.new_page()
    await page.goto("/login")
    await expect(page.locator("#login button")).to_have_text("Anmelden")
    await context.close()


async def test_a_setting_is_changed_by_keyboard_alone_and_focus_returns(site: FakeSite) -> None:
    async with site.page() as page:
        await site.visit(page, "/guests/100/hardware")
        await page.keyboard.press("Tab")
        await expect(page.locator(".skip")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.locator("#main")).to_be_focused()
        edit = page.locator("#config-memory button")
        await edit.focus()
        await page.keyboard.press("Enter")
        await expect(page.locator("#f-memory-current")).to_be_focused()
        await page.keyboard.press("Shift+Tab")
        await page.keyboard.press("Shift+Tab")  # never out of the dialog
        assert await page.evaluate(
            "document.querySelector('#dialog').contains(document.activeElement) || document.activeElement === document.body"
        )
        await page.keyboard.press("Escape")
        await expect(edit).to_be_focused()


async def test_no_page_asks_a_foreign_host_for_anything(site: FakeSite) -> None:
    foreign: list[str] = []
    async with site.page(quiet=True) as page:
        page.on("request", lambda each: None if _is_own(each.url, site.url) else foreign.append(each.url))
        for path in (*GERMAN_PAGES, "/node"):
            await page.goto(path)
            await page.wait_for_load_state("networkidle") if path == "/" else None
    assert not foreign


def _is_own(url: str, own: str) -> bool:
    return url.startswith((own, own.replace("http", "ws"), "data:", "blob:"))
