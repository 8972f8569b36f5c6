"""The tabs and dialogs of a guest's page in real Chromium: looked at in two widths, and used."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.browser.fake_site import FakeSite
from tests.browser.office_site import open_office_site
from tests.fakes.office import Office

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]

Place = tuple[FakeSite, Office]
TABS = {
    "summary": "/guests/100", "hardware": "/guests/100/hardware", "options": "/guests/100/options",
    "cloudinit": "/guests/100/cloudinit", "snapshots": "/guests/100/snapshots", "permissions": "/guests/100/permissions",
    "tasks": "/guests/100/tasks", "ct-resources": "/guests/101/hardware", "ct-options": "/guests/101/options",
}  # fmt: skip
DIALOGS = {
    "edit-net": "/dialogs/guest/100/edit/net0", "edit-processor": "/dialogs/guest/100/edit/processor",
    "edit-disk": "/dialogs/guest/100/edit/scsi0", "edit-drive": "/dialogs/guest/100/edit/ide0",
    "add-disk": "/dialogs/guest/100/add/disk", "add-cdrom": "/dialogs/guest/100/add/cdrom",
    "add-net": "/dialogs/guest/101/add/net", "add-mount": "/dialogs/guest/101/add/mp",
    "remove-disk": "/dialogs/guest/100/remove/scsi0", "destroy-disk": "/dialogs/guest/100/remove/unused0",
    "notes": "/dialogs/guest/100/notes", "snapshot": "/dialogs/guest/100/snapshot",
    "rollback": "/dialogs/guest/100/snapshot/clean/rollback", "clone": "/dialogs/guest/104/clone",
    "template": "/dialogs/guest/103/template", "sshkeys": "/dialogs/guest/100/edit/sshkeys",
}  # fmt: skip


@pytest_asyncio.fixture(loop_scope="module")
async def place(file_browser: Browser, tmp_path: Path, screenshots: Path) -> AsyncIterator[Place]:
    async with open_office_site(file_browser, tmp_path, screenshots) as opened:
        yield opened
    assert not opened[0].faults


@pytest.mark.parametrize(("size", "scheme"), [("wide", "light"), ("phone", "dark")])
async def test_every_tab_and_dialog_of_a_guest_fits_and_is_accessible(place: Place, size: str, scheme: str) -> None:
    site, _ = place
    async with site.page(size, "dark" if scheme == "dark" else "light") as page:
        for name, path in TABS.items():
            await site.visit(page, path)
            await site.look(page, f"guest-{name}-{size}")
        for name, path in DIALOGS.items():
            await page.evaluate("(path) => htmx.ajax('GET', path, { target: '#dialog' })", path)
            await page.wait_for_selector("#dialog[open] #dialog-title")
            await site.look(page, f"guest-dialog-{name}-{size}")
            await page.keyboard.press("Escape")
            await page.wait_for_selector("#dialog[open]", state="detached")
