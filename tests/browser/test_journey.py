"""From an empty host to guests and back, by the browser alone: the guided set-up, a template, container and VM, console,
snapshot, resize, clone, delete."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, Page, expect

from tests.browser.test_end_to_end import TASK_LIMIT_MS, log_in, wait_for_picture, wait_for_screen
from tests.browser.visiting import visit
from tests.harness import Appliance

OWN_PASSWORD = "chosen in the browser"
pytestmark = [pytest.mark.browser, pytest.mark.host, pytest.mark.timeout(420)]


@pytest.fixture(scope="module")
def appliance() -> Iterator[Appliance]:
    with Appliance(makes_password=True) as running:
        yield running


def go(page: Page, path: str) -> None:
    visit(page, path)
    expect(page.locator("body")).to_have_attribute("data-live", "connected")


def open_tab(page: Page, word: str, ready: str) -> None:
    """Open a tab and wait until its scripts run. Chromium drops what it is loading while interfaces of this host come and go."""
    page.click(f".tabs >> text={word}")
    for _ in range(6):
        try:
            expect(page.locator(ready).first).to_be_attached(timeout=10_000)
            return
        except AssertionError:
            page.reload()
    raise AssertionError(f"{word}: {ready} did not come")


def state_is(page: Page, state: str) -> None:
    expect(page.locator("#guest-head")).to_have_attribute("data-state", state, timeout=TASK_LIMIT_MS)


def stop(page: Page) -> None:
    page.click("[data-action=stop]")
    page.click("#confirm")
    state_is(page, "stopped")


def delete(page: Page, guest_id: int, name: str) -> None:
    go(page, f"/guests/{guest_id}")
    page.click("#guest-menu summary")
    page.click("[data-action=delete]")
    expect(page.locator("#confirm")).to_be_disabled()
    page.fill("#confirm-name", name)
    page.click("#confirm")
    try:
        page.wait_for_url(re.compile(r".*/$"), timeout=TASK_LIMIT_MS)
    except Error:  # dropped by Chromium, as above
        visit(page, "/")
    expect(page.locator(f"#guest-row-{guest_id}")).to_have_count(0, timeout=TASK_LIMIT_MS)


def set_up(page: Page, appliance: Appliance, screenshots: Path) -> None:
    """Walk the guided set-up as after an installation: a password of one's own, and on without a template."""
    page.click("#setup-offer >> text=Begin")
    page.wait_for_url("**/setup/password")
    page.fill("#f-confirmation-password", appliance.password)
    page.fill("#f-password", OWN_PASSWORD)
    page.screenshot(path=screenshots / "journey-setup.png")
    page.click("#password-form .primary")
    expect(page.locator("#login")).to_be_visible()  # the old password's session has ended
    appliance.password = OWN_PASSWORD
    page.fill("#username", "admin")
    page.fill("#password", OWN_PASSWORD)
    page.click("#login button")
    expect(page.locator("body")).to_have_attribute("data-live", "connected")
    go(page, "/setup")
    for step in ("storage", "network", "template"):
        page.wait_for_url(f"**/setup/{step}")
        expect(page.locator("body")).to_have_attribute("data-live", "connected")
        page.click("#go-on")
    page.wait_for_url("**/setup/done")
    page.click("text=To the guests")
    expect(page.locator("#setup-offer")).to_have_count(0)


def test_the_whole_life_of_guests_by_the_browser_alone(
    browser: Browser, appliance: Appliance, busybox_template: Path, screenshots: Path
) -> None:
    ct, vm, copy = (random.randint(20_000, 90_000) for _ in range(3))
    page = log_in(browser, appliance)
    set_up(page, appliance, screenshots)

    go(page, "/storage/local?content=vztmpl")
    page.click("#upload")
    page.set_input_files("#f-filename", busybox_template)
    page.click("#dialog .primary")
    expect(page.locator('[data-volume="local:vztmpl/busybox_1_amd64.tar.gz"]')).to_be_visible(timeout=TASK_LIMIT_MS)

    go(page, "/")
    page.click("#create-ct")
    page.fill("#f-hostname", "travelled")
    page.fill("#f-vmid", str(ct))
    page.fill("#f-disk", "0")  # a directory: it has snapshots on every file system
    page.click("#create")
    page.wait_for_url(f"**/guests/{ct}", timeout=TASK_LIMIT_MS)
    state_is(page, "running")
    open_tab(page, "Console", "#console[data-status=connected]")
    page.wait_for_timeout(300)
    page.keyboard.type("\necho kept > /note; cat /note\n")
    wait_for_screen(page, r"\nkept", limit_s=30)

    open_tab(page, "Snapshots", "body[data-live=connected]")
    page.click("#take-snapshot")
    page.fill("#f-snapname", "before")
    page.fill("#f-description", "Before anything was changed")
    page.click("#confirm")
    expect(page.locator('[data-snapshot="before"]')).to_be_visible(timeout=TASK_LIMIT_MS)
    page.screenshot(path=screenshots / "journey-snapshots.png")

    stop(page)
    page.click("#guest-menu summary")
    page.click("[data-action=clone]")
    page.fill("#f-hostname", "copied")
    page.fill("#f-newid", str(copy))
    page.click("#confirm")
    page.wait_for_url(f"**/guests/{copy}", timeout=TASK_LIMIT_MS)
    state_is(page, "stopped")
    page.click("[data-action=start]")
    state_is(page, "running")
    open_tab(page, "Console", "#console[data-status=connected]")
    page.wait_for_timeout(300)
    page.keyboard.type("\ncat /note\n")
    wait_for_screen(page, r"\nkept", limit_s=30)
    stop(page)
    delete(page, copy, "copied")

    page.click("#create-vm")
    page.check("[name=_source][value=empty]", force=True)
    page.fill("#f-name", "machine")
    page.fill("#f-vmid", str(vm))
    page.fill("#f-disk", "1")
    page.click("#create")
    page.wait_for_url(f"**/guests/{vm}", timeout=TASK_LIMIT_MS)
    state_is(page, "running")
    open_tab(page, "Display", "#display[data-status=connected]")
    wait_for_picture(page, limit_s=60)
    page.screenshot(path=screenshots / "journey-display.png")
    open_tab(page, "Hardware", "body[data-live=connected]")
    page.click("#config-scsi0 >> text=Resize")
    page.fill("#f-size", "1")
    page.click("#dialog .primary")
    expect(page.locator("#config-scsi0")).to_contain_text("2 GiB", timeout=TASK_LIMIT_MS)
    page.click("#config-processor [aria-label^=Edit]")
    page.fill("#f-cores", "2")
    page.click("#confirm")
    expect(page.locator("#config-processor .runs")).to_contain_text("1 (1 × 1)")
    page.screenshot(path=screenshots / "journey-pending.png")
    page.click("#config-processor >> text=Take back")
    expect(page.locator("#config-processor .runs")).to_have_count(0)
    stop(page)
    delete(page, vm, "machine")
    delete(page, ct, "travelled")
    go(page, "/")
    for guest_id in (ct, vm, copy):
        expect(page.locator(f"#guest-row-{guest_id}")).to_have_count(0)
