"""Users, groups, roles, permissions, pools and one's own account in real Chromium."""

from __future__ import annotations

import re

import pyotp
import pytest
from playwright.async_api import expect

from tests.browser.fake_site import FakeSite
from tests.fakes.access import ADMIN, ADMIN_PASSWORD
from tests.fakes.house import HOSTILE
from tests.fakes.office import Office

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]

Place = tuple[FakeSite, Office]
PAGES = {
    "users": "/access/users", "groups": "/access/groups", "roles": "/access/roles", "permissions": "/access/permissions",
    "pools": "/access/pools", "effective": "/access/effective", "account": "/account",
    "effective-path": "/access/effective?user=bob@pve&path=/vms/100",
}  # fmt: skip
DIALOGS = {
    "new-user": "/dialogs/access/user", "user": "/dialogs/access/user?user=eve%40pve", "group": "/dialogs/access/group",
    "password": "/dialogs/access/password?user=eve%40pve", "role": "/dialogs/access/role?name=Night",
    "grant": "/dialogs/access/grant?path=/vms/100", "pool": "/dialogs/access/pool?name=office",
    "new-pool": "/dialogs/access/pool", "token": "/dialogs/access/token", "tokens": "/dialogs/access/tokens?user=admin%40pve",
    "edit-token": "/dialogs/access/token?user=admin%40pve&name=terraform",
    "secret": "/dialogs/access/secret?user=admin%40pve&name=terraform",
    "totp": "/dialogs/access/totp", "recovery": "/dialogs/access/recovery",
    "delete": "/dialogs/access/delete/user?name=bob%40pve",
}  # fmt: skip


@pytest.mark.parametrize(("size", "scheme"), [("wide", "light"), ("phone", "dark")])
async def test_every_page_and_dialog_of_access_fits_and_is_accessible(place: Place, size: str, scheme: str) -> None:
    site, _ = place
    async with site.page(size, "dark" if scheme == "dark" else "light") as page:
        for name, path in PAGES.items():
            await site.visit(page, path)
            await site.look(page, f"access-{name}-{size}")
        for name, path in DIALOGS.items():
            await page.evaluate("(path) => htmx.ajax('GET', path, { target: '#dialog' })", path)
            await page.wait_for_selector("#dialog[open] #dialog-title")
            await site.look(page, f"access-dialog-{name}-{size}")
            await page.keyboard.press("Escape")
            await page.wait_for_selector("#dialog[open]", state="detached")


async def test_a_user_is_made_granted_a_role_and_shown_what_they_may(place: Place) -> None:
    site, office = place
    async with site.page() as page:
        await site.visit(page, "/access/users")
        await expect(page.locator('[data-user="eve@pve"]')).to_contain_text(HOSTILE)
        await page.click("#add-user")
        await page.fill("#f-userid", "ann")
        await page.fill("#f-password", "long enough for ann")
        await page.check("input[name=groups]")
        await page.click("#confirm")
        await expect(page.locator('[data-user="ann@pve"]')).to_contain_text("operators")  # pushed
        await page.goto("/access/permissions")
        await page.click("#add-grant")
        await page.fill("#f-path", "/pool/office")
        await page.select_option("#f-subject", "users:ann@pve")
        await page.select_option("#f-roles", "PVEPoolAdmin")
        await page.click("#dialog summary")
        await expect(page.locator("[data-equivalent=cli]")).to_have_text(
            "appliance set /access/acl --path /pool/office --roles PVEPoolAdmin --propagate 1 --users ann@pve"
        )
        await page.click("#confirm")
        await expect(page.locator('[data-path="/pool/office"]')).to_contain_text("ann@pve")
        await page.goto("/access/effective?user=ann@pve&path=/pool/office")
        await expect(page.locator(".privileges")).to_contain_text("Pool.Allocate")
        await expect(page.locator("table")).to_contain_text("PVEPoolAdmin")
    assert office.access.users.get(ADMIN, "ann@pve")["groups"] == ["operators"]


async def test_a_pool_takes_a_guest_and_lets_it_go(place: Place) -> None:
    site, office = place
    async with site.page() as page:
        await site.visit(page, "/access/pools")
        for expected in ((101,), ()):
            await page.click('[data-pool="office"] [aria-label="Edit office"]')
            await page.click('[data-member="vms"][value="101"]')
            await page.click("#confirm")
            await expect(page.locator("#dialog[open]")).to_have_count(0)
            assert office.access.pools.get(ADMIN, "office").guests == expected


async def test_two_factor_login_is_set_up_with_the_codes_of_the_picture(place: Place) -> None:
    site, office = place
    async with site.page() as page:
        await site.visit(page, "/account")
        await page.click("#add-totp")
        uri = await page.get_attribute("[name=totp]", "value")
        assert uri
        secret = re.search(r"secret=([A-Z2-7]+)", uri)
        assert secret
        await expect(page.locator(".qr svg")).to_be_visible()
        await page.fill("#f-value", pyotp.TOTP(secret[1]).now())
        await page.fill("#f-password", ADMIN_PASSWORD)
        await page.click("#confirm")
        await expect(page.locator("#access-account")).to_contain_text("Authenticator app,")
        assert (await office.access.login("admin@pve", ADMIN_PASSWORD, remote="192.0.2.2")).need_tfa
        await page.click("[aria-label='Edit Authenticator app']")
        await site.look(page, "access-dialog-factor-wide")
        await page.fill("#f-description", "The old phone")
        await page.uncheck("[name=enable]")
        await page.fill("#f-password", ADMIN_PASSWORD)
        await page.click("#confirm")
        await expect(page.locator("#access-account")).to_contain_text("The old phone Disabled")
    assert not (await office.access.login("admin@pve", ADMIN_PASSWORD, remote="192.0.2.2")).need_tfa


async def test_a_token_is_changed_and_its_new_secret_is_told_once(place: Place) -> None:
    site, office = place
    was = await office.access.tokens.create(
        ADMIN, "admin@pve", "deploy", privsep=True, expire=1_900_000_000, comment="old"
    )
    async with site.page() as page:
        await site.visit(page, "/account")
        await page.click("[aria-label='Edit deploy']")
        await expect(page.locator("#f-expire-date")).to_have_value(re.compile(r"^2030-03-1\d$"))
        await page.fill("#f-comment", "of the pipeline")
        await page.uncheck("[name=privsep]")
        await page.click("#confirm")
        await expect(page.locator("#access-account")).to_contain_text("of the pipeline")
        now = office.access.tokens.get(ADMIN, "admin@pve", "deploy")
        assert (now["expire"], now["comment"], bool(now["privsep"])) == (1_900_000_000, "of the pipeline", False)
        await page.click("[aria-label='Edit deploy']")
        await page.fill("#f-expire-date", "")
        await page.fill("#f-comment", "")
        await page.click("#confirm")
        await expect(page.locator("#access-account")).not_to_contain_text("of the pipeline")
        assert not office.access.tokens.get(ADMIN, "admin@pve", "deploy").get("expire")
        await page.click("[aria-label='New secret for deploy']")
        await page.click("#confirm")
        await expect(page.locator("#once")).to_contain_text(re.compile(r"^admin@pve!deploy=[0-9a-f-]{36}$"))
        assert str(was["value"]) not in await page.inner_text("#once")


async def test_the_day_until_which_a_user_may_log_in_stays_when_something_else_is_changed(place: Place) -> None:
    site, office = place
    async with site.page() as page:
        await site.visit(page, "/access/users")
        for date, name in (("2031-05-06", "Evelyn"), (None, "Eve")):
            await page.click('[data-user="eve@pve"] summary')
            await page.click('[data-user="eve@pve"] >> text=Edit')
            if date:
                await page.fill("#f-expire-date", date)
            await expect(page.locator("#f-expire-date")).to_have_value("2031-05-06")
            await page.fill("#f-firstname", name)
            await page.click("#confirm")
            await expect(page.locator('[data-user="eve@pve"]')).to_contain_text(f"{name} Adams")
    assert int(str(office.access.users.get(ADMIN, "eve@pve")["expire"])) > 1_900_000_000


async def test_a_name_that_is_not_given_yet_is_not_asked_about(place: Place) -> None:
    site, _ = place
    asked: list[str] = []
    async with site.page() as page:
        page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/forms/check") else None)
        await site.visit(page, "/account")
        await page.click("#add-token")
        async with page.expect_response("**/forms/check") as answer:
            await page.fill("#f-tokenid", "backup")
        assert (await answer.value).ok
        await page.fill("#f-tokenid", "")
        await page.wait_for_timeout(700)  # twice as long as it waits for the next key
        assert len(asked) == 1


async def test_a_token_is_told_once(place: Place) -> None:
    site, _ = place
    async with site.page() as page:
        await site.visit(page, "/account")
        await page.click("#add-token")
        await page.fill("#f-tokenid", "backup")
        await page.click("#confirm")
        await expect(page.locator("#once")).to_contain_text(re.compile(r"^admin@pve!backup=[0-9a-f-]{36}$"))
        await page.keyboard.press("Escape")
        await expect(page.locator("#access-account")).to_contain_text("admin@pve!backup")
