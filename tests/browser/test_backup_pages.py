"""Backups in real Chromium: looked at in two widths, and used; then all of a backup's life against a real appliance."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from appliance.model.guest import GuestKind
from appliance.services.guest_backup import BackupJob
from tests.browser.fake_site import FakeSite
from tests.browser.office_site import open_office_site
from tests.fakes.backups import FakeBackups
from tests.fakes.house import HOSTILE
from tests.fakes.office import Office

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]

Place = tuple[FakeSite, Office]


@pytest_asyncio.fixture(loop_scope="module")
async def place(file_browser: Browser, tmp_path: Path, screenshots: Path) -> AsyncIterator[Place]:
    async with open_office_site(file_browser, tmp_path, screenshots) as opened:
        opened[0].world.extras.backups.add(GuestKind.LXC, 101, notes=HOSTILE, days=3)
        yield opened
    assert not opened[0].faults


def backups_of(site: FakeSite) -> FakeBackups:
    made: FakeBackups = site.world.extras.backups
    return made


@pytest.mark.parametrize(("size", "scheme"), [("wide", "light"), ("phone", "dark")])
async def test_every_page_and_dialog_of_backups_fits_and_is_accessible(place: Place, size: str, scheme: str) -> None:
    site, _ = place
    volume = backups_of(site).add(GuestKind.LXC, 101, days=40)
    protected = backups_of(site).add(GuestKind.QEMU, 100, days=41, protected=True)
    stopped = backups_of(site).add(GuestKind.LXC, 103, days=42)
    pages = {
        "backups-guest": "/guests/101/backups", "backups-none": "/guests/104/backups",
        "backups-storage": "/storage/local?content=backup", "backups-files": f"/backup-files?volume={volume}",
    }  # fmt: skip
    dialogs = {
        "back-up": "/dialogs/backup?vmid=101", "back-up-many": "/dialogs/backup",
        "notes": f"/dialogs/backup/notes?volume={volume}",
        "restore": f"/dialogs/backup/restore?volume={volume}", "config": f"/dialogs/backup/config?volume={volume}",
        "delete": f"/dialogs/backup/delete?volume={volume}", "protected": f"/dialogs/backup/delete?volume={protected}",
        "prune": "/dialogs/backup/prune?storage=local",
        "over": f"/dialogs/backup/replace?volume={stopped}", "over-running": f"/dialogs/backup/replace?volume={volume}",
    }  # fmt: skip
    async with site.page(size, "dark" if scheme == "dark" else "light") as page:
        for name, path in pages.items():
            await site.visit(page, path)
            if name == "backups-files":
                await expect(page.locator("#backup-files tbody tr").first).to_be_visible()
            await site.look(page, f"{name}-{size}")
        for name, path in dialogs.items():
            await page.evaluate("(path) => htmx.ajax('GET', path, { target: '#dialog' })", path)
            await page.wait_for_selector("#dialog[open] #dialog-title")
            if name == "prune":
                await page.fill("#f-keep-last", "1")
                await expect(page.locator(".prune-list li").first).to_be_visible()
            for folded in await page.locator("#dialog details.disclosure:not(.equivalent) > summary").all():
                if await folded.is_visible():
                    await folded.click()
            await site.look(page, f"backup-dialog-{name}-{size}")
            await page.keyboard.press("Escape")
            await page.wait_for_selector("#dialog[open]", state="detached")


async def test_a_guest_is_backed_up_with_what_the_form_says_and_every_open_page_sees_it(place: Place) -> None:
    site, _ = place
    async with site.page() as page, site.page("phone") as other:
        await site.visit(page, "/guests/101/backups")
        await site.visit(other, "/guests/101/backups")
        before = await other.locator("#guest-backups tbody tr").count()
        await page.click("#back-up")
        await page.click("label:has(input[name=mode][value=stop])")
        await expect(page.locator("[data-when='mode=stop']")).to_be_visible()
        await page.fill("#f-notes-template", "{{guestname}} before the upgrade")
        await page.check("[name=protected]")
        await page.click("label:has(input[name=_older][value=prune])")
        await page.fill("#f-keep-last", "7")
        await page.fill("#f-keep-weekly", "4")
        await page.click("#dialog .equivalent summary")
        command = page.locator("[data-equivalent=cli]")
        await expect(command).to_contain_text("appliance create /nodes/testnode/vzdump --vmid 101 --storage local")
        await expect(command).to_contain_text("--prune-backups keep-last=7,keep-weekly=4")
        await page.click("#confirm")
        await expect(other.locator("#guest-backups tbody tr")).to_have_count(before + 1)
        await expect(page.locator("#drawer")).to_have_attribute("data-open", "true")  # its log is followed there
        await expect(page.locator("#task-head")).to_contain_text("Back up")
    asked, job = backups_of(site).calls[-1]
    assert asked == "back up"
    assert isinstance(job, BackupJob)
    assert (job.guest_ids, job.mode, job.compress, job.protected) == ([101], "stop", "zstd", True)
    assert (job.notes, job.keep) == ("{{guestname}} before the upgrade", {"keep-last": 7, "keep-weekly": 4})


async def test_several_guests_are_chosen_in_one_dialog_that_the_palette_opens(place: Place) -> None:
    site, _ = place
    async with site.page() as page:
        await site.visit(page, "/overview")
        await page.keyboard.press("Control+k")
        await page.fill("#palette-input", "back up guests")
        await page.keyboard.press("Enter")
        await page.click("label:has(input[name=_which][value=chosen])")
        await page.check("input[name=vmid][value='103']")
        await page.check("input[name=vmid][value='101']")
        await page.click("label:has(input[name=_older][value=keep])")
        await page.click("#confirm")
        await expect(page.locator("#dialog[open]")).to_have_count(0)
        job = backups_of(site).calls[-1][1]
        assert isinstance(job, BackupJob)
        assert (sorted(job.guest_ids), job.keep) == ([101, 103], {})
        await page.keyboard.press("Control+k")
        await page.fill("#palette-input", "back up dns")
        await page.keyboard.press("Enter")
        await expect(page.locator("#dialog-title")).to_have_text("Back up dns")


async def test_guests_chosen_in_the_list_are_backed_up_together(place: Place) -> None:
    site, _ = place
    async with site.page() as page:
        await site.visit(page, "/")
        for vmid in (101, 103):
            await page.check(f"[data-select='{vmid}']")
        await page.click("[data-bulk=backup]")
        await expect(page.locator("input[name=vmid]:checked")).to_have_count(2)
        await page.click("#confirm")
        await expect(page.locator("#drawer")).to_have_attribute("data-open", "true")
        job = backups_of(site).calls[-1][1]
        assert isinstance(job, BackupJob)
        assert sorted(job.guest_ids) == [101, 103]
        await site.visit(page, "/overview")
        await expect(page.locator("#drawer")).to_have_attribute("data-open", "false")


async def test_notes_and_protection_are_changed_and_a_protected_backup_is_not_deleted(place: Place) -> None:
    site, _ = place
    volume = backups_of(site).add(GuestKind.LXC, 103, notes="old words")
    async with site.page() as page, site.page() as other:
        await site.visit(other, "/storage/local?content=backup")
        await site.visit(page, "/guests/103/backups")
        row, seen = page.locator(f"[data-volume='{volume}']"), other.locator(f"[data-volume='{volume}']")
        await row.locator("[data-backup=notes]").click()
        await page.fill("#f-notes", "<b>new</b> words")
        await page.click("#confirm")
        await expect(seen).to_contain_text("<b>new</b> words")
        await row.locator("[data-backup=protect]").click()
        await expect(seen).to_contain_text("Protected")
        await row.locator("[data-backup=delete]").click()
        await expect(page.locator("#dialog .notice")).to_contain_text("A protected backup is not deleted")
        await page.click("#dialog .dialog-foot [data-close]")
        await row.locator("[data-backup=unprotect]").click()
        await expect(seen).not_to_contain_text("Protected")
        await row.locator("[data-backup=notes]").click()
        await page.fill("#f-notes", "")  # emptied is said, not left out
        await page.click("#confirm")
        await expect(seen).not_to_contain_text("words")
        await row.locator("[data-backup=delete]").click()
        await page.click("#confirm")
        await expect(seen).to_have_count(0)
        await expect(page.locator("#guest-backups .empty")).to_be_visible()


async def test_old_backups_are_removed_after_they_were_shown(place: Place) -> None:
    site, _ = place
    kept, *_ = [backups_of(site).add(GuestKind.LXC, 103, days=days) for days in (1, 2, 3)]
    async with site.page() as page:
        await site.visit(page, "/storage/local?content=backup")
        await page.click("#prune")
        await expect(page.locator("#prune-preview")).to_contain_text("Without any number")
        await page.fill("#f-keep-last", "1")
        await expect(page.locator(".prune-list")).to_contain_text("vzdump-lxc-103-")
        await page.click("#confirm")
        await expect(page.locator("[data-volume*='lxc-103']")).to_have_count(1)
        await expect(page.locator(f"[data-volume='{kept}']")).to_be_visible()
        await expect(page.locator("[data-volume*='lxc-101']").first).to_be_visible()


async def test_files_are_found_step_by_step_and_downloaded(place: Place) -> None:
    site, _ = place
    volume = backups_of(site).add(GuestKind.LXC, 103, days=5)
    backups_of(site).is_read.clear()
    async with site.page() as page:
        await site.visit(page, f"/backup-files?volume={volume}")
        await expect(page.locator("#backup-files")).to_contain_text("The archive is being read")
        backups_of(site).is_read.set()
        await page.click("#backup-files >> text=etc")
        await expect(page.locator(".path [aria-current]")).to_have_text("etc")
        async with page.expect_download() as waiting:
            await page.click("[aria-label='Download hostname']")
        download = await waiting.value
        assert download.suggested_filename == "hostname"
        assert (await download.path()).read_bytes() == b"dns\n"
        await page.fill("[name=q]", "no such")
        await page.keyboard.press("Enter")
        await expect(page.locator("#backup-files")).to_contain_text("Nothing here is called that")
        await page.click(".path a")
        await expect(page.locator("#backup-files")).to_contain_text("srv")


async def test_a_guest_is_restored_under_another_id_with_other_words(place: Place) -> None:
    site, _ = place
    vmid = random.randint(20_000, 90_000)
    async with site.page(quiet=True) as page:
        await site.visit(page, "/guests/101/backups")
        await page.locator("[data-backup=restore]").first.click()
        await page.fill("#f-vmid", "103")
        await expect(page.locator("#e-vmid")).to_have_text("103 is taken")
        await page.fill("#f-vmid", str(vmid))
        await page.click("text=Other than in the backup")
        await page.fill("#f-hostname", "second")
        await page.fill("#f-memory", "700")
        await page.check("[name=start]")
        await page.click("#confirm")
        await page.wait_for_url(f"**/guests/{vmid}")
    (_, plan), (_, made) = backups_of(site).calls[-2:]
    assert isinstance(plan, dict)
    assert (plan["hostname"], plan["memory"], plan["storage"], plan["unique"]) == ("second", "700", None, True)
    assert made == {"vmid": vmid, "pool": None, "start": True}


async def test_a_backup_goes_over_its_guest_once_the_guests_name_is_typed(place: Place) -> None:
    site, _ = place
    volume = backups_of(site).add(GuestKind.LXC, 103, days=2)
    async with site.page("phone") as page:
        await site.visit(page, "/guests/103/backups")
        await page.locator(f"[data-volume='{volume}'] [data-backup=restore]").click()
        await page.click("#restore-over")
        await expect(page.locator("#dialog-title")).to_have_text("Restore over staging-database?")
        await expect(page.locator("#replaced")).to_contain_text("vm-101-disk-0.raw")
        await page.check("[name=start]")
        await page.fill("#confirm-name", "staging")
        await expect(page.locator("#confirm")).to_be_disabled()
        await page.fill("#confirm-name", "staging-database")
        await page.click("#dialog .equivalent summary")
        await expect(page.locator("[data-equivalent=cli]")).to_contain_text("--force 1")
        await page.click("#confirm")
        await expect(page.locator("#dialog[open]")).to_have_count(0)
        await expect(page.locator("#task-head")).to_contain_text("Restore")  # its log is followed there
        await site.visit(page, "/guests/101/backups")
        await page.locator("[data-backup=replace]").first.click()
        await expect(page.locator("#dialog .notice")).to_contain_text("is running")
    (_, plan), (asked, over) = backups_of(site).calls[-2:]
    assert isinstance(plan, dict)
    assert (plan["volume"], plan["storage"], plan["unique"]) == (volume, None, False)
    assert (asked, over) == ("restore over", {"vmid": 103, "start": True})
