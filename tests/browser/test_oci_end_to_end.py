"""A person in a browser and an image in a registry: pulled, made a container, its logs watched, its health seen, ended, gone."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.test_end_to_end import TASK_LIMIT_MS, log_in
from tests.browser.test_journey import delete, go, open_tab, state_is
from tests.e2e.test_containers import appliance_ct
from tests.harness import Appliance
from tests.oci import registries
from tests.oci.test_application import busybox_image, run

pytestmark = [pytest.mark.browser, pytest.mark.host, pytest.mark.timeout(240)]

PROGRAM = (
    "/bin/sh -c 'echo first; echo wrong >&2; while [ ! -e /tmp/end ]; do echo \"<b>$WORD</b>\"; sleep 1; done; exit 3'"
)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """Debian's registry with an image of busybox; its host and port."""
    if not registries.installed() or shutil.which("umoci") is None or shutil.which("skopeo") is None:
        pytest.skip("docker-registry, umoci or skopeo is not installed")
    (tmp_path / "image").mkdir()
    (tmp_path / "registry").mkdir()
    source = busybox_image(tmp_path / "image")
    with registries.docker_registry(tmp_path / "registry") as host:
        run("skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false", source, f"docker://{host}/busybox:app")
        yield host


def test_an_image_becomes_a_container_whose_logs_health_and_end_are_seen_in_the_browser(
    browser: Browser, registry: str, screenshots: Path
) -> None:
    guest_id = random.randint(20_000, 90_000)
    with Appliance() as appliance:
        page = log_in(browser, appliance)
        go(page, "/oci")
        page.click("#create-app")
        page.fill("#f-reference", f"{registry}/busybox:app")
        page.click("text=User name and connection")
        page.select_option("#f-transport", "plain")
        page.click("#confirm")
        expect(page.locator("#create-app-form")).to_be_visible(timeout=TASK_LIMIT_MS)
        expect(page.locator("#f-hostname")).to_have_value("busybox")
        expect(page.locator("[data-mount=path]").first).to_have_value("/www")
        page.fill("#f-vmid", str(guest_id))
        page.fill("#f-memory", "64")
        page.click("#dialog summary:has-text('Program')")
        page.fill("#f-entrypoint", PROGRAM)
        page.fill("#f-env", "FROM_IMAGE=yes\nWORD=spoken")
        page.click("#dialog summary:has-text('Health')")
        page.check("[name=_health]")
        page.fill("#f-app-health-command", "test ! -e /tmp/ill")
        page.fill("#f-app-health-interval", "0.5")
        page.fill("#f-app-health-retries", "2")
        page.select_option("#f-restart-when", "on-failure")
        page.fill("#f-restart-max", "1")
        page.click("#create")
        page.wait_for_url(f"**/guests/{guest_id}", timeout=TASK_LIMIT_MS)
        state_is(page, "running")
        expect(page.locator("#application [data-health]")).to_have_text("healthy")

        open_tab(page, "Logs", "[data-log] div")
        log = page.locator("[data-log]")
        expect(log).to_contain_text("first")
        expect(log).to_contain_text("wrong")
        expect(log.locator("div", has_text="<b>spoken</b>").nth(3)).to_be_attached()  # it goes on
        assert log.locator("b").count() == 0
        page.fill("[name=find]", "wrong")
        expect(log.locator("div:visible")).to_have_count(1)
        page.screenshot(path=screenshots / "real-oci-logs.png")
        page.fill("[name=find]", "")
        page.uncheck("[name=stderr]")
        expect(log).to_contain_text("first")
        expect(log).not_to_contain_text("wrong")

        open_tab(page, "Summary", "#application")
        appliance_ct(appliance, "exec", guest_id, "--", "touch", "/tmp/ill")
        expect(page.locator("#application [data-health]")).to_have_text("unhealthy")
        expect(page.locator("#application .probes .bad").first).to_be_visible()
        appliance_ct(appliance, "exec", guest_id, "--", "touch", "/tmp/end")
        expect(page.locator("#application [data-restarts='1']")).to_be_visible(timeout=TASK_LIMIT_MS)
        state_is(page, "stopped")  # what ended it is still there
        expect(page.locator("#application [data-exit='3']")).to_be_visible()
        page.screenshot(path=screenshots / "real-oci-summary.png", full_page=True)
        delete(page, guest_id, "busybox")
        go(page, "/oci")
        page.click('[data-image="local:vztmpl/busybox_app.tar"] [title=Delete]')
        page.click("#confirm")
        expect(page.locator("[data-image]")).to_have_count(0, timeout=TASK_LIMIT_MS)
