"""The tabs and dialogs of a guest's page in real Chromium: looked at in two widths, and used."""

from __future__ import annotations

import pytest
from playwright.async_api import Route, expect

from appliance.model.guest import GuestState
from appliance.services.storage_config import StorageDocument
from tests.browser.fake_site import FakeSite
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
    "tags": "/dialogs/guest/100/edit/tags", "password": "/dialogs/guest/100/password",
    "notes": "/dialogs/guest/100/notes", "snapshot": "/dialogs/guest/100/snapshot",
    "rollback": "/dialogs/guest/100/snapshot/clean/rollback", "clone": "/dialogs/guest/104/clone",
    "move-disk": "/dialogs/guest/100/move/scsi0", "move-volume": "/dialogs/guest/101/move/mp0",
    "template": "/dialogs/guest/103/template", "sshkeys": "/dialogs/guest/100/edit/sshkeys",
    "boot": "/dialogs/guest/100/edit/boot", "cloudinit-preview": "/dialogs/guest/100/cloudinit",
}  # fmt: skip


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


async def test_a_setting_is_judged_while_it_is_typed_saved_pushed_and_taken_back(place: Place) -> None:
    site, office = place
    async with site.page() as page, site.page() as other:
        await site.visit(page, "/guests/100/hardware")
        await site.visit(other, "/guests/100/hardware")
        await page.click("#config-net0 [aria-label^=Edit]")
        await page.fill("#f-net0-tag", "5000")
        await expect(page.locator("#e-f-net0-tag")).to_contain_text("maximum value of 4094")  # nothing was sent yet
        await page.fill("#f-net0-tag", "7")
        await expect(page.locator("#e-f-net0-tag")).to_be_hidden()
        await page.click("#dialog .equivalent summary")
        await expect(page.locator("[data-equivalent=cli]")).to_contain_text(
            "appliance set /nodes/testnode/qemu/100/config --net0 model=virtio"
        )
        await page.click("#confirm")
        await expect(other.locator("#config-net0")).to_contain_text("VLAN 7")
        await expect(other.locator("#config-net0 .runs")).to_contain_text("VLAN 5")
        assert "virtio=BC:24:11:00:00:01" in office.guests.calls[-1][2]["put"]["net0"]  # type: ignore[index]
        await other.click("#config-net0 >> text=Take back")
        await expect(page.locator("#config-net0 .runs")).to_have_count(0)
        await expect(page.locator("#config-net0")).to_contain_text("VLAN 5")
        await page.click("#revert-all")
        await expect(page.locator("[data-waiting]")).to_have_count(0)


async def test_tags_are_edited_in_the_guests_menu_and_pushed_to_every_page(place: Place) -> None:
    site, _ = place
    async with site.page("phone") as page, site.page() as other:
        await site.visit(page, "/guests/101")
        await site.visit(other, "/guests/101")
        await page.click("#guest-menu summary")
        await page.click("[data-action=tags]")
        await page.fill("#f-tags", "edge;resolver")
        await page.click("#confirm")
        for each in (page, other):
            await expect(each.locator("#guest-head .tag")).to_have_text(["edge", "resolver"])


async def test_a_password_inside_a_vm_is_set_by_its_agent(place: Place) -> None:
    site, _ = place
    asked: list[str] = []

    async def answer(route: Route) -> None:
        asked.append(f"{route.request.method} {route.request.post_data}")
        await route.fulfill(json={"data": {"result": {}}})

    async with site.page() as page:
        await page.route("**/agent/set-user-password", answer)
        await site.visit(page, "/guests/100")
        await page.evaluate("htmx.ajax('GET', '/dialogs/guest/100/password', { target: '#dialog' })")
        await page.fill("#f-username", "ada")
        await page.fill("#f-password", "long enough & more")
        await page.click("#dialog .equivalent summary")
        await expect(page.locator("[data-equivalent=cli]")).not_to_contain_text("long enough")
        await page.click("#confirm")
        await expect(page.locator(".toast")).to_contain_text("The password is set.")
    assert len(asked) == 1
    assert asked[0].startswith("POST ")
    assert "username=ada" in asked[0]


async def test_devices_come_and_go_and_only_a_destroyed_disk_asks_for_the_name(place: Place) -> None:
    site, office = place
    async with site.page() as page:
        await site.visit(page, "/guests/100/hardware")
        await page.click("#add-menu summary")
        await page.click("[data-add=disk]")
        await page.select_option("#f-slot", "virtio0")
        await expect(page.locator("#f-slot-ssd")).to_be_hidden()  # VirtIO disks have no such option
        await page.fill("#f-size", "3")
        await page.click("#confirm")
        await expect(page.locator("#config-virtio0")).to_be_visible()
        assert office.guests.calls[-1][2]["put"] == {"virtio0": "local:3"}
        await page.click("#config-rng0 [aria-label^=Remove]")
        await page.click("#confirm")
        await expect(page.locator("#config-rng0")).to_contain_text("removed")  # the guest runs with it still
        office.guests.guests[100].state = GuestState.STOPPED  # volumes of a running guest are refused
        await page.click("#config-unused0 [aria-label^=Remove]")
        await expect(page.locator("#confirm")).to_be_disabled()
        await page.fill("#confirm-name", "shop")
        await page.click("#confirm")
        await expect(page.locator("#config-unused0")).to_have_count(0)


async def test_what_a_new_device_is_filled_in_with_is_what_it_gets(place: Place) -> None:
    site, office = place
    await site.world.extras.mappings.create("media", description="", paths={"testnode": "/srv/media"})
    async with site.page() as page:
        await site.visit(page, "/guests/100/hardware")
        for device, key, text in (("net", "net1", "bridge=vmbr0"), ("virtiofs", "virtiofs0", "media")):
            await page.click("#add-menu summary")
            await page.click(f"[data-add={device}]")
            await page.click("#confirm")
            await expect(page.locator(f"#config-{key}")).to_contain_text(text.removeprefix("bridge="))
            assert text in office.guests.guests[100].config[key]


async def test_a_disk_moves_to_another_storage_and_its_source_goes_only_when_asked(place: Place) -> None:
    site, office = place
    site.world.extras.storage.documents["vault"] = StorageDocument(path="/srv/vault")
    async with site.page(quiet=True) as page, site.page() as other:
        await site.visit(other, "/guests/101/hardware")
        await site.visit(page, "/guests/101/hardware")
        await page.click("#move-mp0")
        await expect(page.locator("#f-storage option")).to_have_text(["vault (63 GiB free)"])  # and not where it is
        await page.click("#dialog .equivalent summary")
        await expect(page.locator("[data-equivalent=cli]")).to_have_text(
            "appliance create /nodes/testnode/lxc/101/move_volume --volume mp0 --storage vault"
        )
        await page.click("#confirm")
        await expect(other.locator("#config-mp0")).to_contain_text("vault:101/vm-101-disk-1.raw")
        await expect(other.locator("#config-unused0")).to_contain_text("local:101/vm-101-disk-1.raw")
        await other.click("#move-rootfs")
        await other.check("[name=delete]")
        await other.click("#confirm")
        await expect(page.locator("#config-rootfs")).to_contain_text("vault:101/vm-101-disk-0.raw")
        await expect(page.locator("#config-unused1")).to_have_count(0)
        assert office.guests.calls[-1] == ("move", 101, {"slot": "rootfs", "delete": True})

        await site.visit(page, "/guests/100/hardware")
        await expect(page.locator("#move-unused0")).to_have_count(0)  # what is not attached is attached first
        await expect(page.locator("#move-ide2")).to_have_count(0)
        await page.click("#move-scsi0")
        await page.select_option("#f-storage", "local")
        await page.click("#confirm")
        await expect(page.locator("#e-storage")).to_have_text("local:100/vm-100-disk-0.qcow2 is there already")
        office.guests.guests[100].config["memory"] = "4096"  # somebody else has saved meanwhile
        await page.select_option("#f-storage", "vault")
        await page.click("#confirm")
        await expect(page.locator("[data-form-error]")).to_contain_text("Somebody else has changed this meanwhile")


async def test_two_people_editing_one_setting_get_a_conflict_and_not_a_lost_update(place: Place) -> None:
    site, office = place
    async with site.page(quiet=True) as page, site.page() as other:
        for each in (page, other):
            await site.visit(each, "/guests/100")
            await each.click("#guest-summary >> text=Edit")
        await other.fill("#f-description", "Theirs")
        await other.click("#confirm")
        await expect(page.locator(".prose")).to_contain_text("Theirs")
        await page.fill("#f-description", "Mine")
        await page.click("#confirm")
        await expect(page.locator("[data-form-error]")).to_contain_text("Somebody else has changed this meanwhile")
        assert await page.input_value("#f-description") == "Mine"
        assert office.guests.guests[100].config["description"] == "Theirs"
        await page.click("text=Save mine over it")
        await expect(other.locator(".prose")).to_contain_text("Mine")


async def test_what_was_typed_survives_a_lost_session(place: Place) -> None:
    site, office = place
    async with site.page(quiet=True) as page:
        await site.visit(page, "/guests/100")
        await page.click("#guest-summary >> text=Edit")
        await page.fill("#f-description", "Typed for an hour")
        await office.access.logout(office.tickets["admin@pve"])
        await page.wait_for_url("**/login?next=**")
        ticket = await office.log_in("admin@pve", "correct horse battery")
        encoded = ticket.replace(":", "%3A").replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
        await page.context.add_cookies([{"name": "PVEAuthCookie", "value": encoded, "url": site.url}])
        await page.goto("/guests/100/summary")
        await page.goto("/guests/100")
        await expect(page.locator("#f-description")).to_have_value("Typed for an hour")


async def test_hostile_notes_and_names_stay_text_and_load_nothing_foreign(place: Place) -> None:
    site, office = place
    office.guests.guests[101].config["description"] = (
        "\u202eevil <img src=x onerror=alert(1)> ![x](https://foreign.example/x.png)"
    )
    foreign: list[str] = []
    async with site.page() as page:
        page.on(
            "request", lambda request: foreign.append(request.url) if not request.url.startswith(site.url) else None
        )
        for path in ("/guests/100", "/guests/101", "/guests/100/snapshots"):
            await site.visit(page, path)
        await page.wait_for_load_state("networkidle")
    assert not [url for url in foreign if not url.startswith(("data:", "blob:", site.url.replace("http", "ws")))]


@pytest.mark.parametrize(("size", "scheme"), [("tablet", "dark"), ("large", "light")])
async def test_tabs_fit_widths_between_and_beyond(place: Place, size: str, scheme: str) -> None:
    site, _ = place
    pages = {**TABS, "users": "/access", "account": "/account", "effective": "/access/effective?path=/vms/100"}
    async with site.page(size, "dark" if scheme == "dark" else "light") as page:
        for name, path in pages.items():
            await site.visit(page, path)
            await site.look(page, f"guest-{name}-{size}")


async def test_a_boot_order_is_dragged_moved_by_keys_and_saved(place: Place) -> None:
    site, office = place
    async with site.page() as page:
        await site.visit(page, "/guests/100/options")
        await page.click("#config-boot [aria-label^=Edit]")
        slots = page.locator(".boot-row strong")
        await expect(slots).to_have_text(["scsi0", "ide0", "net0"])
        await expect(page.locator("[data-boot]:checked")).to_have_count(1)
        await page.locator("[data-boot][value=net0]").check()
        await page.focus("[data-boot][value=net0]")
        await page.keyboard.press("ArrowUp")
        await page.keyboard.press("ArrowUp")
        await expect(slots).to_have_text(["net0", "scsi0", "ide0"])
        await expect(page.locator("[data-boot][value=net0]")).to_be_focused()
        await (
            page.locator(".boot-row").nth(2).drag_to(page.locator(".boot-row").first, target_position={"x": 20, "y": 2})
        )
        await expect(slots).to_have_text(["ide0", "net0", "scsi0"])
        await page.click("[aria-label='Move ide0 down']")
        await expect(slots).to_have_text(["net0", "ide0", "scsi0"])
        await page.click("#dialog .equivalent summary")
        await expect(page.locator("[data-equivalent=cli]")).to_contain_text("order=net0;scsi0")
        await page.click("#confirm")
        await expect(page.locator("#config-boot")).to_contain_text("net0;scsi0")
    assert office.guests.guests[100].config["boot"] == "order=net0;scsi0"


async def test_what_cloud_init_is_told_is_shown_before_it_is_written(place: Place) -> None:
    site, office = place
    office.guests.guests[100].config["cipassword"] = "$5$salt$hash-of-it"
    async with site.page() as page:
        await site.visit(page, "/guests/100/cloudinit")
        await page.click("#preview")
        await expect(page.locator("[data-file=user]")).to_contain_text('"hostname": "shop"')
        await expect(page.locator("[data-file=network]")).to_contain_text("dhcp")
        await expect(page.locator("#dialog")).not_to_contain_text("hash-of-it")


async def test_tasks_are_filtered_by_kind_and_stay_so_when_more_happens(place: Place) -> None:
    site, office = place
    tasks = office.world.tasks
    for kind in ("qmstart", "qmstop", "qmsnapshot"):
        tasks.finish(tasks.begin(kind, object_id="100"))
    async with site.page() as page:
        await site.visit(page, "/guests/100/tasks")
        await page.select_option("#task-kind", "Stop")
        await page.click("#guest-tasks form button")
        await expect(page.locator("#guest-tasks tbody tr")).to_have_count(1)
        await expect(page.locator("body")).to_have_attribute("data-live", "connected")
        tasks.finish(tasks.begin("qmstart", object_id="100"))
        tasks.finish(tasks.begin("qmstop", object_id="100"))
        await expect(page.locator("#guest-tasks tbody tr")).to_have_count(2)
        await expect(page.locator("#task-kind")).to_have_value("Stop")
        await site.visit(page, "/node/tasks?state=failed")
        await page.select_option("#task-kind", "Start")
        await page.click("main .filter-bar button")
        await expect(page.locator("main tbody")).to_contain_text("veth103i0")
        assert "kind=Start" in page.url
        assert "state=failed" in page.url
