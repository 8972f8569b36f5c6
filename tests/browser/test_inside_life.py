"""Programs and files inside a container of a real appliance, without leaving the browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.test_backup_life import running_container
from tests.browser.test_end_to_end import log_in
from tests.browser.visiting import visit
from tests.harness import Appliance

pytestmark = [pytest.mark.browser, pytest.mark.host, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def appliance() -> Iterator[Appliance]:
    with Appliance() as running:
        yield running


def test_programs_run_and_files_are_edited_uploaded_and_downloaded_inside_a_container(
    browser: Browser, appliance: Appliance, busybox_template: Path, screenshots: Path
) -> None:
    api = appliance.api()
    vmid = running_container(
        appliance, appliance.upload(api, busybox_template, "vztmpl", "busybox_1_amd64.tar.gz"), "inner"
    )
    page = log_in(browser, appliance)
    visit(page, f"/guests/{vmid}/inside?path=/etc")
    page.fill("#f-line", 'echo "$(hostname)" >&2; echo said; cat; exit 3')
    page.check("#f-shell")
    page.click("text=Input, time limit, user")
    page.fill("#f-input-data", "and typed\n")
    page.click("#run")
    expect(page.locator("[data-run-state]")).to_have_text("Exit code 3")
    expect(page.locator("[data-stream=stderr]")).to_have_text("inner\n")
    expect(page.locator("[data-stream=stdout]").last).to_contain_text("and typed\n")

    page.fill("#f-line", "sleep 1000")
    page.fill("#f-timeout", "1")
    page.uncheck("#f-shell")
    page.click("#run")
    expect(page.locator("[data-run-output]")).to_have_text("it took longer than 1 s and was killed")

    page.click("[data-directory] >> text=hosts")
    expect(page.locator("#f-text")).not_to_have_value("")
    page.fill("#f-text", "127.0.0.1 localhost inner\n")
    page.click("#save")
    expect(page.locator("[data-file-state]")).to_have_text("Saved")
    page.screenshot(path=screenshots / "real-inside.png", full_page=True)
    page.fill("#f-line", "cat /etc/hosts")
    page.fill("#f-timeout", "")
    page.fill("#f-input-data", "")
    page.click("#run")
    expect(page.locator("[data-run-output]")).to_have_text("127.0.0.1 localhost inner\n")

    data = bytes(range(256)) * 40_000
    page.click("#upload")
    page.set_input_files("#f-file", {"name": "data.bin", "mimeType": "application/octet-stream", "buffer": data})
    page.fill("#f-to", "/srv/new/data.bin")
    page.check("[name=parents]")
    page.click("#confirm")
    expect(page.locator("#dialog[open]")).to_have_count(0)
    page.fill("#f-path", "/srv/new/data.bin")
    page.click("#open")
    expect(page.locator("[data-file-notes]")).to_contain_text("not shown")
    with page.expect_download() as waiting:
        page.click("[data-file-download]")
    assert waiting.value.path().read_bytes() == data

    node = appliance.node(api)
    appliance.finish(api, node.lxc(vmid).status.stop.post())
    expect(page.locator("[data-reach=stopped]")).to_be_visible()
    appliance.finish(api, node.lxc(vmid).delete())
