"""The pages of the whole and of the node in real Chromium: graphs, API explorer, audit, settings, guided set-up."""

from __future__ import annotations

import time

import pytest
from playwright.async_api import Page, expect

from appliance import events as bus
from appliance.web import keys
from tests.browser.fake_site import FakeSite
from tests.fakes.house import HouseNetwork
from tests.fakes.services import NODE

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

PAGES = {
    "overview": "/overview", "node": "/node", "node-hardware": "/node/hardware", "node-disks": "/node/disks",
    "node-network": "/node/network", "node-services": "/node/services", "node-tasks": "/node/tasks", "audit": "/audit",
    "settings": "/settings", "api-explorer": "/api-explorer", "guest-graphs": "/guests/100", "storage": "/storage/local",
    "setup-password": "/setup/password", "setup-storage": "/setup/storage", "setup-network": "/setup/network",
    "setup-template": "/setup/template", "setup-done": "/setup/done",
}  # fmt: skip


@pytest.mark.parametrize("size", ["wide", "phone"])
async def test_every_page_is_accessible_and_fits(site: FakeSite, size: str) -> None:
    audit = site.world.audit
    for target in ("/access/users", "/nodes/testnode/qemu/100/status/start"):
        await audit.record(who="admin@pve", remote="192.0.2.9", action="POST", target=target, outcome="ok")
    async with site.page(size, "light" if size == "wide" else "dark") as page:
        for name, path in PAGES.items():
            await site.visit(page, path)
            await site.look(page, f"{name}-{size}")


async def drawn(page: Page) -> list[float]:
    """The times a page's first graph covers."""
    await expect(page.locator(".graphs")).to_have_attribute("aria-busy", "false")
    scale: list[float] = await page.evaluate("[document.querySelector('.u-over').clientWidth]")
    return scale


async def test_graphs_zoom_change_their_period_and_follow_what_is_pushed(site: FakeSite) -> None:
    metrics = site.world.extras.metrics
    async with site.page() as page:
        await site.visit(page, "/node")
        assert (await drawn(page))[0] > 100
        first = page.locator('[data-graph="cpu"]')
        await expect(first.locator("[data-value]").first).not_to_have_text("–")
        await page.click("label:has([name=timeframe][value=year])")
        await expect(page.locator(".graphs")).to_have_attribute("aria-busy", "false")
        assert metrics.asked[-1] == (f"node/{NODE}", "year", "AVERAGE")
        await page.check("[name=cf]")
        await expect(page.locator(".graphs")).to_have_attribute("aria-busy", "false")
        assert metrics.asked[-1] == (f"node/{NODE}", "year", "MAX")
        await page.click("label:has([name=timeframe][value=hour])")
        await expect(page.locator(".graphs")).to_have_attribute("aria-busy", "false")
        box = await first.locator(".u-over").bounding_box()
        assert box is not None
        await page.mouse.move(box["x"] + 60, box["y"] + 40)
        await page.mouse.down()
        await page.mouse.move(box["x"] + 200, box["y"] + 40, steps=4)
        await page.mouse.up()
        await expect(page.locator("#graph-reset")).to_be_visible()
        await page.click("#graph-reset")
        await expect(page.locator("#graph-reset")).to_be_hidden()
        await first.focus()
        await page.keyboard.press("+")
        await expect(page.locator("#graph-reset")).to_be_visible()
        await page.keyboard.press("0")
        await page.mouse.move(5, 5)
        metrics.latest_values[f"node/{NODE}"] = {"cpu": 0.987, "iowait": 0.5}
        metrics.now = int(time.time())
        site.world.events.publish(bus.MetricsSampled())
        await expect(first.locator("[data-value]").first).to_have_text("99 %")


async def test_a_method_is_called_from_the_explorer_and_its_reply_stays_text(site: FakeSite) -> None:
    site.world.guests.add(300, name="<img src=x onerror=alert(1)>")
    async with site.page(quiet=True) as page:
        await site.visit(page, "/api-explorer")
        await page.fill("#api-find", "/nodes/{node}/qemu list")
        await page.fill("#api-find", "cluster/resources")
        await page.click("#get_cluster_resources summary")
        await page.select_option("#get_cluster_resources select[name=type]", "vm")
        await page.click("#get_cluster_resources .try button")
        await expect(page.locator("#get_cluster_resources .try-status")).to_contain_text("200 OK")
        await expect(page.locator("#get_cluster_resources .try-reply")).to_contain_text("<img src=x onerror")
        await expect(page.locator("#get_cluster_resources .try-output")).to_contain_text(
            "appliance get /cluster/resources --type vm"
        )
        assert await page.locator("img[src=x]").count() == 0
        await page.fill("#api-find", "status/start")
        operation = page.locator('.api-operation[data-path="/nodes/{node}/lxc/{vmid}/status/start"]')
        await operation.locator("summary").click()
        await operation.locator("input[name=vmid]").fill("999")
        await operation.locator(".try button").click()
        await expect(operation.locator(".try-status")).to_contain_text("404")
        await site.look(page, "api-explorer-called")


async def test_a_setting_is_changed_and_colours_tags(site: FakeSite) -> None:
    async with site.page() as page:
        await site.visit(page, "/settings")
        await page.click("#setting-tag-style button")
        await page.fill("#f-tag-style", "color-map=web:123456:ffffff")
        await site.look(page, "settings-edit")
        await page.click("#dialog .primary")
        await expect(page.locator("#setting-tag-style")).to_contain_text("web:123456")
        await site.visit(page, "/")
        await expect(page.locator('#guest-row-100 [data-tag="web"]')).to_have_css("background-color", "rgb(18, 52, 86)")


async def test_two_people_editing_the_notes_get_a_conflict_and_not_a_lost_update(site: FakeSite) -> None:
    async with site.page("phone", quiet=True) as page, site.page() as other:
        for each in (page, other):
            await site.visit(each, "/overview")
            await each.click("[aria-label='Edit the notes']")
        await other.fill("#f-description", "theirs")
        await other.click("#dialog .primary")
        for each in (page, other):
            await expect(each.locator("#notes")).to_contain_text("theirs")
        await page.fill("#f-description", "mine")
        await page.click("#dialog .primary")
        await expect(page.locator("[data-form-error]")).to_contain_text("Somebody else has changed this meanwhile")
        await site.look(page, "notes-conflict-phone")
        await site.visit(other, "/overview")
        await expect(other.locator("#notes")).to_contain_text("theirs")
        await page.click("text=Save mine over it")
        for each in (page, other):
            await expect(each.locator("#notes")).to_contain_text("mine")


@pytest.mark.parametrize("size", ["wide", "phone"])
async def test_all_guests_of_the_node_are_started_and_shut_down_as_one_task(site: FakeSite, size: str) -> None:
    asked = site.world.guests.asked_of_all
    async with site.page(size) as page:
        await site.visit(page, "/node")
        await page.click("#start-all")
        await site.look(page, f"node-start-all-{size}")
        await page.check("[name=force]")
        await page.click("#confirm")
        await expect(page.locator("#task-head")).to_contain_text("Start all guests")
        await expect(page.locator("#dialog[open]")).to_have_count(0)
        await page.click("#drawer-bar")
        await page.click("#stop-all")
        await expect(page.locator("#dialog .notice.warn")).to_contain_text("3 guests run now")
        await site.look(page, f"node-stop-all-{size}")
        await page.uncheck("[name=force-stop]")
        await page.click("#confirm")
        await expect(page.locator("#task-head")).to_contain_text("Stop all guests")
    assert asked[-2:] == [
        ("startall", {"guest_ids": None, "force": True}), ("stopall", {"guest_ids": None, "force_stop": False}),
    ]  # fmt: skip


@pytest.mark.parametrize("size", ["wide", "phone"])
async def test_the_bridge_that_the_appliance_made_is_changed_on_the_networks_page(site: FakeSite, size: str) -> None:
    async with site.page(size) as page:
        await site.visit(page, "/node/network")
        await page.click("#edit-bridge")
        await site.look(page, f"node-bridge-{size}")
        await page.fill("#f-cidr", "10.99.0.1/24")
        await page.fill("#f-mtu", "1400")
        await page.fill("#f-comments", "of the guests")
        await page.click("#confirm")
        await expect(page.locator("tr", has_text="vmbr0")).to_contain_text("10.99.0.1/24")
        await page.click("#edit-bridge")
        await expect(page.locator("#f-comments")).to_have_value("of the guests")
        await page.fill("#f-comments", "")
        await page.fill("#f-cidr", "10.64.0.1/22")
        await page.click("#confirm")
        await expect(page.locator("tr", has_text="vmbr0")).to_contain_text("10.64.0.1/22")
        await page.click("#edit-bridge")
        await expect(page.locator("#f-comments")).to_have_value("")


async def test_the_bridge_is_brought_back_to_its_settings_by_a_task(site: FakeSite) -> None:
    async with site.page() as page:
        await site.visit(page, "/node/network")
        await page.click("#apply-network")
        await expect(page.locator("#drawer-bar .latest")).to_contain_text("Apply settings: networking")
    network = site.application[keys.SERVICES].network
    assert isinstance(network, HouseNetwork)
    assert network.reapplied == 1


async def test_two_who_edit_the_bridge_get_a_conflict_and_lose_nothing(site: FakeSite) -> None:
    async with site.page() as first, site.page(quiet=True) as second:
        for page in (first, second):
            await site.visit(page, "/node/network")
            await page.click("#edit-bridge")
            await page.wait_for_selector("#dialog[open] #dialog-title")
        await first.fill("#f-comments", "of the first")
        await first.click("#confirm")
        await expect(first.locator("#dialog[open]")).to_have_count(0)
        await second.fill("#f-comments", "of the second")
        await second.click("#confirm")
        await expect(second.locator("[data-form-error]")).to_contain_text("Somebody else has changed this meanwhile")
        await expect(second.locator("#f-comments")).to_have_value("of the second")
        await second.click("[data-form-error] button")
        await expect(second.locator("#dialog[open]")).to_have_count(0)


async def test_the_chain_of_the_audit_log_is_checked_on_demand(site: FakeSite) -> None:
    await site.world.audit.record(
        who="bob@pve", remote="x", action="PUT", target="/y", outcome="<b>403</b>", detail="no"
    )
    async with site.page() as page:
        await site.visit(page, "/audit?q=bob")
        await expect(page.locator("tbody tr")).to_have_count(1)
        await expect(page.locator("tbody")).to_contain_text("<b>403</b>")
        await page.click("#verify")
        await expect(page.locator("#audit-chain")).to_contain_text("The chain of 1 rows is whole")


async def test_the_set_up_is_walked_skipped_and_taken_up_again(site: FakeSite) -> None:
    async with site.page() as page:
        await site.visit(page, "/")
        await page.click("#setup-offer >> text=Go on")
        await page.wait_for_url("**/setup/storage")
        await page.click("#go-on")
        await page.wait_for_url("**/setup/network")
        await page.click("text=Skip the set-up")
        await page.wait_for_url(lambda url: url.endswith("/"))
        await expect(page.locator("#setup-offer")).to_have_count(0)
        await site.visit(page, "/setup")
        await page.wait_for_url("**/setup/network")
        await expect(page.locator("[data-done=true]")).to_have_count(3)
        await page.click("#go-on")
        await page.wait_for_url("**/setup/template")
        await page.click("#go-on")
        await page.wait_for_url("**/setup/done")
        await site.visit(page, "/setup")
        await page.wait_for_url("**/setup/done")
