"""Resource mappings, the node's system and the datacenter's notes in real Chromium, in two widths."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from tests.browser.fake_site import FakeSite, open_site
from tests.fakes.house import HOSTILE
from tests.fakes.office import NOTES

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(loop_scope="module")
async def site(file_browser: Browser, tmp_path: Path, screenshots: Path) -> AsyncIterator[FakeSite]:
    async with open_site(file_browser, tmp_path, screenshots) as opened:
        opened.world.extras.configs[100]["virtiofs0"] = "media"
        yield opened
    assert not opened.faults


@pytest.mark.parametrize(("size", "scheme"), [("wide", "light"), ("phone", "dark")])
async def test_mappings_system_and_notes_fit_and_are_accessible(site: FakeSite, size: str, scheme: str) -> None:
    mappings = site.world.extras.mappings
    await mappings.create("media", description=HOSTILE, paths={"testnode": "/srv/media", "other": "/mnt/media"})
    async with site.page(size, "dark" if scheme == "dark" else "light") as page:
        for name, path in {"mappings": "/mappings", "node-system": "/node/system"}.items():
            await site.visit(page, path)
            await site.look(page, f"{name}-{size}")
        for name, path in {"new": "", "edit": "?id=media", "remove": "/remove?id=media"}.items():
            await page.evaluate("(path) => htmx.ajax('GET', path, { target: '#dialog' })", f"/dialogs/mapping{path}")
            await page.wait_for_selector("#dialog[open] #dialog-title")
            await site.look(page, f"mapping-dialog-{name}-{size}")
            await page.keyboard.press("Escape")
            await page.wait_for_selector("#dialog[open]", state="detached")
        await site.visit(page, "/overview")
        await page.click("#notes button")
        await page.fill("#f-description", NOTES)
        await page.click("#dialog .primary")
        await expect(page.locator("#notes .prose strong")).to_have_text("web shop")
        await site.look(page, f"overview-notes-{size}")


async def test_a_directory_is_mapped_changed_and_forgotten(site: FakeSite) -> None:
    mappings = site.world.extras.mappings
    async with site.page(quiet=True) as page, site.page() as other:
        await site.visit(page, "/overview")
        await page.keyboard.press("Control+k")
        await page.fill("#palette-input", "resource mappings")
        await page.keyboard.press("Enter")
        await page.wait_for_url("**/mappings")
        await page.click("#add-mapping")
        await page.fill("#f-id", "media")
        await page.fill("#f-map", "/etc")
        await page.click("#confirm")
        await expect(page.locator("#e-map")).to_have_text("'/etc' belongs to the system")
        await page.fill("#f-map", "/srv/media")
        await page.click("text=On another node")
        await page.fill("#f-other-node", "second")
        await page.fill("#f-other-path", "/mnt/media")
        await page.click("#dialog .equivalent summary")
        await expect(page.locator("[data-equivalent=cli]")).to_contain_text(
            "appliance create /cluster/mapping/dir --id media --map node=testnode,path=/srv/media,node=second,path=/mnt/media"
        )
        await page.click("#confirm")
        await expect(page.locator("[data-mapping=media]")).to_contain_text("/mnt/media")
        assert (await mappings.get("media")).paths == {"testnode": "/srv/media", "second": "/mnt/media"}

        await site.visit(other, "/mappings")
        for each in (page, other):
            await expect(each.locator("body")).to_have_attribute("data-live", "connected")
            await each.click("[aria-label='Edit media']")
        await other.fill("#f-description", "Films")
        await other.fill("#f-map-1", "")  # not there any more
        await other.click("#confirm")
        await expect(other.locator("[data-mapping=media]")).to_contain_text("Films")
        await page.fill("#f-description", "Music")
        await page.click("#confirm")
        await expect(page.locator("[data-form-error]")).to_contain_text("Somebody else has changed this meanwhile")
        assert (await mappings.get("media")).description == "Films"
        assert (await mappings.get("media")).paths == {"testnode": "/srv/media"}

        await expect(other.locator("body")).to_have_attribute("data-live", "connected")
        await other.click("[aria-label='Remove media']")
        await expect(other.locator("#dialog")).to_contain_text("shop (100)")
        await other.click("#confirm")
        await expect(other.locator("[data-mapping=media]")).to_have_count(0)
