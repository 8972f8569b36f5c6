"""Backups and storages in a browser against a real appliance: a backup's whole life, and a volume that moves."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.test_end_to_end import TASK_LIMIT_MS, log_in, wait_for_screen
from tests.browser.visiting import visit
from tests.harness import Appliance

pytestmark = [pytest.mark.browser, pytest.mark.host, pytest.mark.timeout(420)]


@pytest.fixture(scope="module")
def appliance() -> Iterator[Appliance]:
    with Appliance() as running:
        yield running


@pytest.fixture(scope="module")
def template(appliance: Appliance, busybox_template: Path) -> str:
    return appliance.upload(appliance.api(), busybox_template, "vztmpl", "busybox_1_amd64.tar.gz")


def running_container(appliance: Appliance, template: str, hostname: str) -> int:
    """A container's VMID. They name network interfaces of the host, which other tests use too: hence by chance."""
    vmid = random.randint(20_000, 90_000)
    api = appliance.api()
    made = {"ostemplate": template, "rootfs": "local:0", "memory": 64, "hostname": hostname, "start": 1}
    appliance.finish(api, appliance.node(api).lxc.post(vmid=vmid, **made))
    return vmid


def type_in_console(page: Page, line: str, answer: str) -> None:
    """Type a line into the console on the screen, and wait until it shows what matches `answer`."""
    expect(page.locator("#console")).to_have_attribute("data-status", "connected")
    page.wait_for_timeout(300)
    page.keyboard.type(f"\n{line}\n")
    wait_for_screen(page, answer, limit_s=30)


def test_a_container_is_backed_up_looked_into_and_restored_without_leaving_the_browser(
    browser: Browser, appliance: Appliance, template: str
) -> None:
    vmid = running_container(appliance, template, "precious")
    page = log_in(browser, appliance)
    visit(page, f"/guests/{vmid}/console")
    type_in_console(page, "echo worth keeping >/srv-file; sync; echo do''ne", r"done")

    page.click(".tabs >> text=Backups")
    page.click("#back-up")
    page.fill("#f-notes-template", "{{guestname}}: first")
    page.check("[name=protected]")
    page.click("#confirm")
    row = page.locator("#guest-backups tbody tr")
    expect(row).to_contain_text("precious: first", timeout=TASK_LIMIT_MS)
    expect(row).to_contain_text("Protected")
    expect(page.locator("#task-log")).to_contain_text("Finished Backup")
    expect(page.locator("#guest-head")).to_have_attribute("data-state", "running")
    page.click("#drawer-bar")

    row.locator("[data-backup=config]").click()
    expect(page.locator("#dialog pre")).to_contain_text("hostname: precious")
    page.click("#dialog .dialog-foot [data-close]")
    row.locator("[data-backup=delete]").click()
    expect(page.locator("#dialog-title")).to_have_text("This backup is protected")
    page.click("#dialog .dialog-foot [data-close]")

    row.locator("a[title=Files]").click()
    expect(page.locator("#backup-files tbody")).to_contain_text("srv-file", timeout=TASK_LIMIT_MS)
    with page.expect_download() as waiting:
        page.click("[aria-label='Download srv-file']")
    assert waiting.value.path().read_text() == "worth keeping\n"
    page.go_back()

    page.locator("[data-backup=restore]").click()
    page.fill("#f-vmid", str(vmid + 1))
    page.check("[name=start]")
    page.click("#confirm")
    page.wait_for_url(f"**/guests/{vmid + 1}", timeout=TASK_LIMIT_MS)
    expect(page.locator("#guest-head")).to_have_attribute("data-state", "running", timeout=TASK_LIMIT_MS)
    page.click(".tabs >> text=Console")
    type_in_console(page, "cat /srv-file", r"\nworth keeping")

    visit(page, "/storage/local?content=backup")
    expect(page.locator("body")).to_have_attribute("data-live", "connected")
    page.locator("[data-backup=unprotect]").click()
    expect(page.locator("[data-backup=protect]")).to_be_visible()
    page.locator("[data-backup=delete]").click()
    page.click("#confirm")
    expect(page.locator("[data-volume]")).to_have_count(0, timeout=TASK_LIMIT_MS)


def test_a_changed_guest_is_as_it_was_after_its_backup_was_restored_over_it(
    browser: Browser, appliance: Appliance, template: str, screenshots: Path
) -> None:
    vmid = running_container(appliance, template, "ledger")
    api = appliance.api()
    node = appliance.node(api)
    page = log_in(browser, appliance)
    visit(page, f"/guests/{vmid}/console")
    type_in_console(page, "echo the first page >/ledger; sync; echo do''ne", r"done")
    page.click(".tabs >> text=Backups")
    page.click("#back-up")
    page.click("#confirm")
    row = page.locator("#guest-backups tbody tr")
    expect(row).to_have_count(1, timeout=TASK_LIMIT_MS)
    expect(page.locator("#task-log")).to_contain_text("Finished Backup", timeout=TASK_LIMIT_MS)
    page.click("#drawer-bar")

    # what was written and configured afterwards is what is lost: a file, a second file, the host name, the memory
    page.click(".tabs >> text=Console")
    type_in_console(page, "echo torn out >/ledger; touch /scribble; sync; echo agai''n", r"again")
    page.click(".tabs >> text=Backups")
    row.locator("[data-backup=replace]").click()
    expect(page.locator("#dialog .notice")).to_contain_text("ledger is running")  # nothing is restored over that
    page.click("#dialog .dialog-foot [data-close]")
    appliance.finish(api, node.lxc(vmid).status.stop.post())
    node.lxc(vmid).config.put(hostname="changed", memory=96)
    appliance.finish(api, node.lxc(vmid).snapshot.post(snapname="in-between"))
    before = dict(node.lxc(vmid).config.get())
    expect(page.locator("#guest-head")).to_have_attribute("data-state", "stopped", timeout=TASK_LIMIT_MS)
    expect(page.locator("#guest-head")).to_contain_text("changed")

    row.locator("[data-backup=replace]").click()
    expect(page.locator("#dialog-title")).to_have_text("Restore over changed?")
    expect(page.locator("#replaced")).to_contain_text(str(before["rootfs"]).partition(",")[0])
    expect(page.locator("#lost-snapshots")).to_contain_text("in-between")
    expect(page.locator("#confirm")).to_be_disabled()
    page.fill("#confirm-name", "ledger")  # the name it has now is asked for
    expect(page.locator("#confirm")).to_be_disabled()
    page.fill("#confirm-name", "changed")
    page.check("[name=start]")
    page.screenshot(path=screenshots / "real-restore-over.png")
    page.click("#confirm")
    expect(page.locator("#dialog[open]")).to_have_count(0)
    expect(page.locator("#task-head")).to_contain_text("Restore")
    expect(page.locator("#guest-head")).to_contain_text("ledger", timeout=TASK_LIMIT_MS)
    expect(page.locator("#guest-head")).to_have_attribute("data-state", "running", timeout=TASK_LIMIT_MS)
    page.click("#drawer-bar")

    page.click(".tabs >> text=Console")
    lost = r"\nthe first page\n(.*\n)*.*scribble: No such file.*\n(.*\n)*ledger\b"
    type_in_console(page, "cat /ledger; ls /scribble; hostname", lost)
    page.click(".tabs >> text=Snapshots")
    expect(page.locator("main")).not_to_contain_text("in-between")
    after = dict(node.lxc(vmid).config.get())
    assert (after["hostname"], str(after["memory"])) == ("ledger", "64")
    volumes = {str(each["volid"]) for each in node.storage("local").content.get(content="rootdir")}
    assert str(after["rootfs"]).partition(",")[0] in volumes
    assert len([volume for volume in volumes if f":{vmid}/" in volume]) == 1  # the old one is gone
    appliance.finish(api, node.lxc(vmid).status.stop.post())
    appliance.finish(api, node.lxc(vmid).delete())


def test_a_storage_is_added_a_volume_moved_to_it_and_it_cannot_be_forgotten_while_it_holds_that(
    browser: Browser, appliance: Appliance, template: str, tmp_path: Path, screenshots: Path
) -> None:
    vmid = random.randint(20_000, 90_000)
    api = appliance.api()
    node = appliance.node(api)
    appliance.finish(api, node.lxc.post(vmid=vmid, ostemplate=template, rootfs="local:0", memory=64, hostname="mover"))
    page = log_in(browser, appliance)
    visit(page, "/storage")
    expect(page.locator("body")).to_have_attribute("data-live", "connected")
    page.click("#add-storage")
    page.fill("#f-storage", "second")
    page.fill("#f-path", str(tmp_path / "second"))
    page.click("#confirm")
    page.wait_for_url("**/storage/second", timeout=TASK_LIMIT_MS)
    visit(page, f"/guests/{vmid}/hardware")
    expect(page.locator("body")).to_have_attribute("data-live", "connected")
    page.click("#move-rootfs")
    page.check("[name=delete]")
    page.click("#confirm")
    expect(page.locator("#config-rootfs")).to_contain_text(f"second:{vmid}/", timeout=TASK_LIMIT_MS)
    expect(page.locator("#config-unused0")).to_have_count(0)
    visit(page, "/storage")
    page.click("[aria-label='Remove second']")
    expect(page.locator("#dialog-title")).to_have_text("second is in use")
    page.click("#dialog .dialog-foot [data-close]")
    appliance.finish(api, node.lxc(vmid).delete())
    page.click("[aria-label='Remove second']")
    page.click("#confirm")
    expect(page.locator("[data-storage=local]")).to_be_visible()
    expect(page.locator("[data-storage=second]")).to_have_count(0, timeout=TASK_LIMIT_MS)

    visit(page, "/node/system")
    expect(page.locator("[data-certificate='pve-ssl.pem']")).to_contain_text("127.0.0.1")
    expect(page.locator("[data-certificate='pve-root-ca.pem']")).to_be_visible()
    page.screenshot(path=screenshots / "real-node-system.png", full_page=True)
