"""Storages in real Chromium: looked at in two widths, added, changed by two people at once, and forgotten."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from appliance.model.volume import ContentType
from appliance.services.storage_config import StorageDocument
from tests.browser.fake_site import FakeSite, open_site

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(loop_scope="module")
async def site(file_browser: Browser, tmp_path: Path, screenshots: Path) -> AsyncIterator[FakeSite]:
    async with open_site(file_browser, tmp_path, screenshots) as opened:
        documents = opened.world.extras.storage.documents
        documents["vault"] = StorageDocument(
            path="/srv/vault", content=(ContentType.BACKUP,), prune_backups="keep-last=3,keep-weekly=4"
        )
        documents["aside"] = StorageDocument(path="/srv/aside", disable=True, nodes=("testnode",))
        yield opened
    assert not opened.faults


@pytest.mark.parametrize(("size", "scheme"), [("wide", "light"), ("phone", "dark")])
async def test_the_list_and_every_dialog_of_storages_fits_and_is_accessible(
    site: FakeSite, size: str, scheme: str
) -> None:
    dialogs = {"add": "add-storage", "edit": "storage/vault/edit", "remove": "storage/vault/remove",
               "in-use": "storage/local/remove"}  # fmt: skip
    async with site.page(size, "dark" if scheme == "dark" else "light") as page:
        await site.visit(page, "/storage")
        await site.look(page, f"storages-{size}")
        for name, path in dialogs.items():
            await page.evaluate("(path) => htmx.ajax('GET', path, { target: '#dialog' })", f"/dialogs/{path}")
            await page.wait_for_selector("#dialog[open] #dialog-title")
            await site.look(page, f"storage-dialog-{name}-{size}")
            await page.keyboard.press("Escape")
            await page.wait_for_selector("#dialog[open]", state="detached")


async def test_a_storage_is_added_from_the_palette_edited_and_forgotten_while_another_page_looks_on(
    site: FakeSite,
) -> None:
    documents = site.world.extras.storage.documents
    async with site.page() as page, site.page("phone") as other:
        await site.visit(other, "/storage")
        await site.visit(page, "/overview")
        await page.keyboard.press("Control+k")
        await page.fill("#palette-input", "add a storage")
        await page.keyboard.press("Enter")
        await page.fill("#f-storage", "big")
        await page.fill("#f-path", "/mnt/big")
        await page.check("input[name=content][value=iso]")
        await page.check("[name=is_mountpoint]")
        await page.fill("#f-keep-daily", "7")
        await page.click("#dialog .equivalent summary")
        await expect(page.locator("[data-equivalent=cli]")).to_contain_text(
            "appliance create /storage --type dir --storage big --path /mnt/big --content images,rootdir,iso"
        )
        await page.click("#confirm")
        await page.wait_for_url("**/storage/big")
        await expect(other.locator("[data-storage=big]")).to_contain_text("ISO images")
        assert documents["big"] == StorageDocument(
            path="/mnt/big", content=(ContentType.IMAGES, ContentType.ROOTDIR, ContentType.ISO), is_mountpoint="yes",
            prune_backups="keep-daily=7",
        )  # fmt: skip
        await page.click("#storage-menu summary")
        await page.click("[data-action=edit]")
        await page.uncheck("[name=disable]")
        await page.fill("#f-keep-daily", "")
        await page.click("#confirm")
        await expect(other.locator("[data-storage=big]")).to_contain_text("Disabled")
        assert (documents["big"].disable, documents["big"].prune_backups) == (True, "")
        await other.click("[aria-label='Remove big']")
        await expect(other.locator("#dialog")).to_contain_text("All files stay where they are, in /mnt/big")
        await other.click("#confirm")
        await expect(other.locator("[data-storage=big]")).to_have_count(0)


async def test_two_people_editing_one_storage_get_a_conflict_and_not_a_lost_update(site: FakeSite) -> None:
    documents = site.world.extras.storage.documents
    async with site.page(quiet=True) as page, site.page() as other:
        for each in (page, other):
            await site.visit(each, "/storage")
            await each.click("[aria-label='Edit vault']")
        await other.check("[name=shared]")
        await other.click("#confirm")
        await expect(page.locator("[data-storage=vault]")).to_contain_text("Shared")
        await page.fill("#f-keep-last", "9")
        await page.click("#confirm")
        await expect(page.locator("[data-form-error]")).to_contain_text("Somebody else has changed this meanwhile")
        assert documents["vault"].prune_backups == "keep-last=3,keep-weekly=4"
        await page.click("text=Save mine over it")
        await expect(page.locator("#dialog[open]")).to_have_count(0)
        assert documents["vault"].prune_backups == "keep-last=9,keep-weekly=4"
