"""The dialogs that make guests, in real Chromium: quick and full, judged as one types, several at once, from a template."""

from __future__ import annotations

import pytest
from playwright.async_api import Page, expect

from tests.browser.fake_site import FakeSite
from tests.fakes.office import Office

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

Place = tuple[FakeSite, Office]


async def dialog(page: Page, path: str) -> None:
    await page.evaluate("(path) => htmx.ajax('GET', path, { target: '#dialog' })", path)
    await page.wait_for_selector("#dialog[open] #dialog-title")


@pytest.mark.parametrize(("size", "scheme"), [("wide", "light"), ("phone", "dark")])
async def test_quick_and_full_forms_fit_and_are_accessible(place: Place, size: str, scheme: str) -> None:
    site, _ = place
    async with site.page(size, "dark" if scheme == "dark" else "light") as page:
        await site.visit(page, "/overview")
        for kind in ("vm", "ct"):
            await dialog(page, f"/dialogs/create-{kind}")
            await site.look(page, f"create-{kind}-{size}")
            await page.click(".all-settings > summary")
            await page.click(".equivalent summary")
            await site.look(page, f"create-{kind}-full-{size}")
            await page.keyboard.press("Escape")
            await page.wait_for_selector("#dialog[open]", state="detached")


async def test_a_vm_is_judged_as_it_is_typed_and_made_with_what_was_set(place: Place) -> None:
    site, office = place
    async with site.page() as page:
        await site.visit(page, "/overview")
        await dialog(page, "/dialogs/create-vm")
        await page.check("[name=_source][value=empty]", force=True)
        await page.fill("#f-name", "under_score")
        await expect(page.locator("#e-name")).to_contain_text("DNS name")
        await page.fill("#f-name", "web-1")
        await page.fill("#f-vmid", "100")
        await expect(page.locator("#e-vmid")).to_contain_text("taken")
        await page.fill("#f-vmid", "200")
        await page.click(".all-settings > summary")
        await page.select_option("#f-bus", "virtio0")
        await page.fill("[id='f-net0.tag']", "7")
        await page.select_option("#f-cpu-cputype", "host")
        await page.fill("#f-tags", "web")
        await page.click(".equivalent summary")
        command = page.locator("[data-equivalent=cli]")
        await expect(command).to_contain_text("appliance create /nodes/testnode/qemu")
        await expect(command).to_contain_text("--cpu cputype=host")
        await page.click("#create")
        await page.wait_for_url("**/guests/200")
    config = office.guests.guests[200].config
    assert config["virtio0"] == "local:10"
    assert config["net0"].endswith("bridge=vmbr0,tag=7")
    assert (config["tags"], config["boot"]) == ("web", "order=virtio0")


async def test_a_new_vm_boots_in_the_order_that_was_chosen_from_what_it_will_have(place: Place) -> None:
    site, office = place
    async with site.page("phone") as page:
        await site.visit(page, "/overview")
        await dialog(page, "/dialogs/create-vm")
        await page.check("[name=_source][value=iso]", force=True)
        await page.fill("#f-name", "ordered")
        await page.fill("#f-vmid", "210")
        await page.click(".all-settings > summary")
        shown = page.locator(".boot-row:visible strong")
        await expect(shown).to_have_text(["Disk", "ISO image", "Network"])
        await page.select_option("#f-bus", "virtio0")
        await page.click("[aria-label='Move ISO image up']")
        await page.locator("[data-boot][value=net0]").check()
        await page.focus("[data-boot][value=net0]")
        await page.keyboard.press("ArrowUp")
        await expect(shown).to_have_text(["ISO image", "Network", "Disk"])
        command = page.locator("[data-equivalent=cli]")
        await page.click(".equivalent summary")
        await expect(command).to_contain_text("order=ide2;net0;virtio0")
        await page.locator(".boot-order").scroll_into_view_if_needed()
        await site.look(page, "create-vm-boot-phone")
        await page.check("[name=_source][value=empty]", force=True)
        await expect(shown).to_have_text(["Network", "Disk"])
        await expect(command).to_contain_text("order=net0;virtio0")
        await page.click("[aria-label='Move Disk up']")  # past what is not there now
        await page.select_option("#f-net0", "")
        await expect(shown).to_have_text(["Disk"])
        await page.select_option("#f-net0", "vmbr0")
        await page.click("#create")
        await page.wait_for_url("**/guests/210")
    assert office.guests.guests[210].config["boot"] == "order=virtio0;net0"


async def test_five_containers_like_one_get_names_and_free_ids(place: Place) -> None:
    site, office = place
    async with site.page(quiet=True) as page:
        await site.visit(page, "/overview")
        await dialog(page, "/dialogs/create-ct")
        await page.fill("#f-hostname", "web08")
        await page.fill("#f-vmid", "102")
        await page.click(".all-settings > summary")
        await page.fill("#f-_count", "5")
        await page.fill("[id='f-net0.ip']", "192.0.2.7/24")
        await page.click("#create")
        await expect(page.locator("#dialog[open]")).to_have_count(0)
    made = {
        number: guest.config["hostname"]
        for number, guest in office.guests.guests.items()
        if number not in (100, 101, 103, 104)
    }
    assert made == {102: "web08", 105: "web09", 106: "web10", 107: "web11", 108: "web12"}
    assert "ip=192.0.2.7/24" in office.guests.guests[105].config["net0"]


async def test_a_template_is_cloned_from_the_same_dialog(place: Place) -> None:
    site, office = place
    async with site.page(quiet=True) as page:
        await site.visit(page, "/overview")
        await dialog(page, "/dialogs/create-vm")
        await page.check("[name=_source][value=template]", force=True)
        await expect(page.locator("#create")).to_be_hidden()
        await page.click("[aria-label='Clone debian-12-base']")
        await page.fill("#f-name", "copy")
        await page.click("#confirm")
        await expect(page.locator("#dialog[open]")).to_have_count(0)
    assert office.guests.calls[-1][:2] == ("clone", 104)
