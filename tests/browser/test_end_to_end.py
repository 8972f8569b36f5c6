"""A person in a browser against a real appliance: a container made and typed into, a VM watched while it boots."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.visiting import visit
from tests.harness import Appliance

pytestmark = [pytest.mark.browser, pytest.mark.host, pytest.mark.timeout(420)]

TASK_LIMIT_MS = 90_000
BOOT_LIMIT_S = 240.0
SCREEN = """() => {
  const buffer = document.getElementById("console")?.terminal?.buffer.active;
  if (!buffer) return "";
  return [...Array(buffer.length).keys()].map((n) => buffer.getLine(n).translateToString(true)).join("\\n");
}"""
LIT_PIXELS = """() => {
  const canvas = document.querySelector("#display-screen canvas");
  if (!canvas || !canvas.width) return 0;
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let lit = 0;
  for (let at = 0; at < data.length; at += 4) if (data[at] + data[at + 1] + data[at + 2] > 150) lit += 1;
  return lit;
}"""


@pytest.fixture(scope="module")
def appliance() -> Iterator[Appliance]:
    with Appliance() as running:
        yield running


@pytest.fixture
def guest_id() -> int:
    """Ids name network interfaces of the host, which other tests use too."""
    return random.randint(20_000, 90_000)


def log_in(browser: Browser, appliance: Appliance) -> Page:
    """A new window, logged in through the form."""
    context = browser.new_context(
        base_url=f"https://127.0.0.1:{appliance.port}",
        ignore_https_errors=True,
        viewport={"width": 1280, "height": 800},
    )
    page = context.new_page()
    visit(page, "/")
    page.fill("#username", "admin")
    page.fill("#password", appliance.password)
    page.click("#login button")
    expect(page.locator("h1")).to_have_text("Guests")
    expect(page.locator("body")).to_have_attribute("data-live", "connected")  # its scripts run
    return page


def wait_for_screen(page: Page, pattern: str, *, limit_s: float) -> str:
    """The terminal's text, as soon as `pattern` stands in it."""
    deadline = time.monotonic() + limit_s
    while not re.search(pattern, text := str(page.evaluate(SCREEN))):
        assert time.monotonic() < deadline, f"{pattern!r} did not appear in {limit_s:g} s:\n{text[-2000:]}"
        page.wait_for_timeout(250)
    return text


def wait_for_picture(page: Page, *, limit_s: float) -> None:
    """Until the display shows something that is not black."""
    deadline = time.monotonic() + limit_s
    while not page.evaluate(LIT_PIXELS):
        assert time.monotonic() < deadline, f"the display stayed black for {limit_s:g} s"
        page.wait_for_timeout(250)


def test_a_container_is_made_in_the_dialog_typed_into_and_deleted_and_a_second_window_sees_it(
    browser: Browser, appliance: Appliance, busybox_template: Path, guest_id: int, screenshots: Path
) -> None:
    appliance.upload(appliance.api(), busybox_template, "vztmpl", "busybox_1_amd64.tar.gz")
    page, other = log_in(browser, appliance), log_in(browser, appliance)
    row = other.locator(f"#guest-row-{guest_id}")
    page.click("#create-ct")
    page.fill("#f-hostname", "typed-in")
    page.fill("#f-vmid", str(guest_id))
    page.click("#create")
    page.wait_for_url(f"**/guests/{guest_id}", timeout=TASK_LIMIT_MS)
    expect(row).to_have_attribute("data-state", "running", timeout=TASK_LIMIT_MS)

    page.click(".tabs >> text=Console")
    expect(page.locator("#console")).to_have_attribute("data-status", "connected")
    page.wait_for_timeout(300)
    page.keyboard.type("\necho seen-$((40+2))\n")
    wait_for_screen(page, r"seen-42", limit_s=30)
    page.screenshot(path=screenshots / "real-ct-console.png")
    page.reload()
    wait_for_screen(page, r"seen-42", limit_s=30)  # replayed

    page.click("[data-action=stop]")
    page.click("#confirm")
    expect(row).to_have_attribute("data-state", "stopped", timeout=TASK_LIMIT_MS)
    expect(page.locator("#console-state")).to_have_text("The guest does not run")
    page.click("[data-action=start]")
    expect(page.locator("#console")).to_have_attribute("data-status", "connected", timeout=TASK_LIMIT_MS)
    page.click("[data-action=stop]")
    page.click("#confirm")
    expect(page.locator("#guest-head")).to_have_attribute("data-state", "stopped", timeout=TASK_LIMIT_MS)

    page.click("#guest-menu summary")
    page.click("[data-action=delete]")
    expect(page.locator("#confirm")).to_be_disabled()
    page.fill("#confirm-name", "typed-in")
    page.click("#confirm")
    expect(row).to_have_count(0, timeout=TASK_LIMIT_MS)


@pytest.mark.images
def test_a_vm_is_made_in_the_dialog_and_boots_in_its_console_and_on_its_display(
    browser: Browser, appliance: Appliance, images: tuple[Path, Path], guest_id: int, screenshots: Path
) -> None:
    api = appliance.api()
    appliance.upload(api, images[0], "import", "debian-12.qcow2")
    page = log_in(browser, appliance)
    page.click("#create-vm")
    page.fill("#f-name", "booting")
    page.fill("#f-vmid", str(guest_id))
    page.fill("#f-cipassword", "guest-password")
    page.click("#create")
    page.wait_for_url(f"**/guests/{guest_id}", timeout=TASK_LIMIT_MS)
    try:
        page.click(".tabs >> text=Display")
        expect(page.locator("#display")).to_have_attribute("data-status", "connected", timeout=TASK_LIMIT_MS)
        wait_for_picture(page, limit_s=BOOT_LIMIT_S)
        page.screenshot(path=screenshots / "real-vm-display.png")
        page.click(".tabs >> text=Console")
        expect(page.locator("#console")).to_have_attribute("data-status", "connected")
        wait_for_screen(page, r"\[ +OK +\]|Linux version", limit_s=BOOT_LIMIT_S)
        page.screenshot(path=screenshots / "real-vm-console.png")
        config = appliance.node(api).qemu(guest_id).config.get()
        assert "size=10G" in config["scsi0"]
    finally:
        node = appliance.node(api)
        if node.qemu(guest_id).status.current.get()["status"] != "stopped":
            appliance.finish(api, node.qemu(guest_id).status.stop.post())


def test_a_file_is_uploaded_with_its_hash_checked_and_deleted(
    browser: Browser, appliance: Appliance, tmp_path: Path
) -> None:
    path = tmp_path / "small.iso"
    path.write_bytes(b"\0" * 300_000)
    page = log_in(browser, appliance)
    visit(page, "/storage/local?content=iso")
    expect(page.locator("body")).to_have_attribute("data-live", "connected")
    page.click("#upload")
    page.set_input_files("#f-filename", path)
    page.fill("#f-checksum", "0" * 64)
    page.click("#dialog .primary")
    failed = page.locator("#dialog [data-form-error], #toasts .bad").filter(visible=True)
    expect(failed.first).to_be_visible(timeout=TASK_LIMIT_MS)
    page.reload()
    expect(page.locator("body")).to_have_attribute("data-live", "connected")
    expect(page.locator("[data-volume]")).to_have_count(0)
    page.click("#upload")
    page.set_input_files("#f-filename", path)
    page.click("#dialog .primary")
    row = page.locator('[data-volume="local:iso/small.iso"]')
    expect(row).to_be_visible(timeout=TASK_LIMIT_MS)
    row.locator("button").click()
    page.click("#confirm")
    expect(row).to_have_count(0, timeout=TASK_LIMIT_MS)
