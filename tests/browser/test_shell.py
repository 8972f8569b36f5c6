"""The frame of every page in real Chromium: resource tree, palette, bell, drawer, list of guests, many guests at once."""

from __future__ import annotations

import asyncio

import pytest
from playwright.async_api import expect

from appliance.model.guest import GuestKind, GuestState
from appliance.web import keys
from tests.browser.fake_site import FakeSite
from tests.fakes.house import HOSTILE

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

HOSTILE_NAMES = [HOSTILE, "\u202eevil\u202c", "tab\there\x07", "<img src=x onerror=alert(1)>"]


@pytest.mark.parametrize(("size", "scheme"), [("wide", "light"), ("phone", "dark")])
async def test_the_frame_and_what_it_opens_are_accessible(site: FakeSite, size: str, scheme: str) -> None:
    async with site.page(size, "dark" if scheme == "dark" else "light") as page:
        for name, path in {"guests": "/", "overview": "/overview"}.items():
            await site.visit(page, path)
            await expect(page.locator("#tree")).to_have_attribute("aria-busy", "false")
            await site.look(page, f"shell-{name}-{size}")
        if size == "phone":
            await page.click("#tree-toggle")
        await expect(page.locator(".tree-item")).not_to_have_count(0)
        await site.look(page, f"shell-tree-{size}")
        await page.keyboard.press("Escape")
        await page.keyboard.press("Control+k")
        await page.keyboard.type("sho")
        await expect(page.locator("#palette-list [role=option]").first).to_contain_text("shop")
        await site.look(page, f"shell-palette-{size}")
        await page.keyboard.press("Escape")
        await page.click("#bell summary")
        await expect(page.locator("#notices")).to_contain_text("veth103i0 is gone")
        await site.look(page, f"shell-bell-{size}")
        await page.click("#drawer-bar")
        await site.look(page, f"shell-drawer-{size}")


async def test_the_tree_is_walked_by_keys_grouped_four_ways_and_follows_what_happens(site: FakeSite) -> None:
    site.world.guests.views[101].pool = "office"  # type: ignore[misc]  # the fake's views are plain
    site.world.access.pool_names.append("office")
    async with site.page() as page:
        await site.visit(page, "/overview")
        tree = page.locator("#tree")
        await page.focus("#tree")
        for key in ("ArrowDown", "ArrowDown", "ArrowDown"):
            await page.keyboard.press(key)
        await expect(page.locator(".tree-item.active")).to_contain_text("dns")
        await page.keyboard.press("ArrowLeft")
        await page.keyboard.press("ArrowLeft")
        await expect(page.locator(".tree-item[data-level='3']")).to_have_count(0)
        await page.keyboard.press("ArrowRight")
        await page.keyboard.type("sh")
        await page.keyboard.press("Enter")
        await page.wait_for_url("**/guests/100")
        await expect(page.locator(".tree-item[aria-selected=true]")).to_contain_text("shop")
        await page.go_back()
        await page.wait_for_url("**/overview")
        for view, words in {"folder": "Templates", "tag": "production", "pool": "office"}.items():
            await page.select_option("#tree-view", view)
            await expect(tree).to_contain_text(words)
        await page.select_option("#tree-view", "server")
        site.world.guests.set_state(103, GuestState.RUNNING)
        await expect(page.locator("[data-state=running] + .tree-name", has_text="staging")).to_have_count(1)
        site.world.guests.add(150, name="brand-new")
        await expect(tree).to_contain_text("brand-new")
        await page.fill("#tree-filter", "brand")
        await expect(tree).not_to_contain_text("shop")


async def test_the_palette_finds_guests_tags_pages_and_runs_actions(site: FakeSite) -> None:
    async with site.page() as page:
        await site.visit(page, "/")
        await expect(page.locator("#tree")).to_have_attribute("aria-busy", "false")
        for typed, found in {
            "100": "shop",
            "produc": "production",
            "overv": "Overview",
            "create con": "Create a container",
        }.items():
            await page.keyboard.press("Control+k")
            await page.fill("#palette-input", typed)
            await expect(page.locator("#palette-list [aria-selected=true]")).to_contain_text(found)
            await page.keyboard.press("Escape")
        await page.keyboard.press("Control+k")
        await page.keyboard.type("start staging")
        await page.keyboard.press("Enter")
        await expect(page.locator("#guest-row-103")).to_have_attribute("data-state", "running")
        await page.keyboard.press("Control+k")
        await page.keyboard.type("stop staging")
        await page.keyboard.press("Enter")
        await expect(page.locator("#dialog #dialog-title")).to_contain_text("Stop staging")


async def test_many_guests_are_started_at_once_with_a_result_for_each(site: FakeSite) -> None:
    site.world.guests.add(110, GuestKind.LXC, name="one")
    site.world.guests.add(111, GuestKind.LXC, name="two")
    del site.world.guests.views[104]  # the template is no longer there
    async with site.page(quiet=True) as page:
        await site.visit(page, "/?q=ct")
        await page.check("#select-all")
        site.world.guests.views.pop(111)  # one goes before it can be started
        await page.click("[data-bulk=start]")
        await page.click("#bulk-go")
        await expect(page.locator("#bulk-110")).to_have_attribute("data-outcome", "ok")
        await expect(page.locator("#bulk-111")).to_have_attribute("data-outcome", "bad")
        await expect(page.locator("#bulk-111")).to_contain_text("111")
        await expect(page.locator("#bulk-101")).to_have_attribute("data-outcome", "skipped")
        await site.look(page, "shell-bulk-wide")


async def test_many_guests_are_suspended_and_resumed_and_those_to_whom_it_does_not_apply_are_left(
    site: FakeSite,
) -> None:
    async with site.page() as page:
        await site.visit(page, "/")
        for verb, state in (("suspend", "paused"), ("resume", "running")):
            await page.check("#select-all")
            await page.click(f"[data-bulk={verb}]")
            await expect(page.locator("#bulk-103")).to_have_attribute("data-outcome", "skipped")  # it is stopped
            await page.click("#bulk-go")
            for guest_id in (100, 101):
                await expect(page.locator(f"#bulk-{guest_id}")).to_have_attribute("data-outcome", "ok")
                await expect(page.locator(f"#guest-row-{guest_id}")).to_have_attribute("data-state", state)
            await page.keyboard.press("Escape")


async def test_what_is_below_the_screen_comes_after_what_is_on_it_and_neither_change_nor_choice_is_lost(
    site: FakeSite,
) -> None:
    for number in range(200, 240):
        site.world.guests.add(number, GuestKind.LXC, name=f"many-{number}")
    async with site.page() as page:
        await site.visit(page, "/")
        await page.check("[data-select='239']")
        seen = await page.evaluate(
            """() => new Promise((done) => {
              const seen = [];
              scrollTo(0, 0); // the box was below the screen
              document.addEventListener("live:change", function note() {
                const rows = [...document.querySelectorAll("#guest-rows > tr")];
                if (!rows.every((row) => row.textContent.includes("many"))) return;
                seen.push(rows.length);
                if (rows.length === 40) done(seen);
              });
              const input = document.getElementById("find");
              input.focus({ preventScroll: true });
              input.value = "many";
              input.dispatchEvent(new Event("input", { bubbles: true }));
            })"""
        )
        assert 1 <= seen[0] < seen[-1] == 40
        await expect(page.locator("#bulk-count")).to_have_text("1 selected")
        await expect(page.locator("[data-select='239']")).to_be_checked()
        # a row that waits for those on the screen is pushed: it is put in, then changed
        state = await page.evaluate(
            """async () => {
              const { place } = await import(document.querySelector("link[href$='js/live.js']").href);
              const body = document.getElementById("guest-rows").cloneNode(true);
              const changed = body.lastElementChild.cloneNode(true);
              body.dataset.replace = "";
              changed.dataset.state = "paused";
              place(body);
              place(changed);
              const rows = document.querySelectorAll("#guest-rows > tr");
              return [document.getElementById("guest-row-239").dataset.state, rows.length];
            }"""
        )
        assert state == ["paused", 40]
        await page.evaluate(
            "new Promise((done) => requestAnimationFrame(() => setTimeout(done)))"
        )  # when they would come
        await expect(page.locator("#guest-rows > tr")).to_have_count(40)


async def test_the_list_is_found_sorted_and_cut_by_the_server_and_its_address_says_how(site: FakeSite) -> None:
    for number in range(200, 340):
        site.world.guests.add(number, name=f"many-{number}")
    async with site.page() as page:
        await site.visit(page, "/")
        await expect(page.locator("#guest-rows > tr")).to_have_count(50)
        await page.click("[data-more]")
        await expect(page.locator("#guest-rows > tr")).to_have_count(145)
        await page.fill("#find", "many-33")
        await expect(page.locator("#guest-rows > tr")).to_have_count(10)
        await page.click("[data-sort=name]")
        await page.click("[data-sort=name]")
        await expect(page.locator("#guest-rows > tr").first).to_contain_text("many-339")
        assert "q=many-33" in page.url
        assert "sort=-name" in page.url
        await page.reload()
        await expect(page.locator("#guest-rows > tr").first).to_contain_text("many-339")
        await page.click("#guest-rows a.name >> nth=0")
        await page.wait_for_url("**/guests/339")
        await page.go_back()
        await expect(page.locator("#find")).to_have_value("many-33")


async def test_names_with_markup_control_and_bidirectional_characters_are_shown_as_text(site: FakeSite) -> None:
    for number, name in enumerate(HOSTILE_NAMES):
        site.world.guests.add(300 + number, name=name, tags=(name,), pool=name)
        site.world.tasks.finish(site.world.tasks.begin("qmstart", object_id=str(300 + number)), name)
    async with site.page() as page:
        await site.visit(page, "/")
        for number, name in enumerate(HOSTILE_NAMES):
            assert await page.locator(f"#guest-row-{300 + number} a.name").text_content() == name
        await page.select_option("#tree-view", "tag")
        await expect(page.locator("#tree")).to_contain_text("<img src=x")
        await page.keyboard.press("Control+k")
        await page.keyboard.type("<script>")
        await expect(page.locator("#palette-list")).to_contain_text("<script>alert(1)</script>")
        assert await page.locator("img[src=x]").count() == 0


async def test_a_lost_connection_is_shown_and_found_again(site: FakeSite) -> None:
    async with site.page(quiet=True) as page:
        await site.visit(page, "/")
        await page.context.set_offline(True)
        await asyncio.gather(*(socket.close() for socket in list(site.application[keys.SOCKETS].open_now)))
        await expect(page.locator("#offline")).to_be_visible(timeout=45_000)
        await expect(page.locator("#offline")).to_contain_text("Trying again")
        site.world.guests.set_state(103, GuestState.RUNNING)
        await page.context.set_offline(False)
        await expect(page.locator("#offline")).to_be_hidden(timeout=30_000)
        await expect(page.locator("#guest-row-103")).to_have_attribute("data-state", "running")
