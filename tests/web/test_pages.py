"""Pages: who sees what, that nothing of a guest becomes markup, and how one logs in and out."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

import pytest

from appliance.model.guest import GuestKind, GuestState
from appliance.model.volume import ContentType
from appliance.web.pages.creation import CREATED_WITH
from appliance.web.pages.value_words import value_word
from tests.fakes.house import CODE, HOSTILE, PASSWORD, WITH_SECOND_FACTOR, HouseAccess
from tests.web.conftest import Site

PAGES = [
    "/", "/guests/100", "/guests/100/summary", "/guests/100/console", "/guests/100/display", "/guests/100/hardware",
    "/guests/100/tasks", "/guests/101", "/guests/101/console", "/guests/101/backups",
    "/guests/100/backups", "/guests/104", "/node", "/storage", "/storage/local",
    "/storage/local?content=iso", "/storage/local?content=backup", "/overview", "/audit", "/audit?q=admin", "/settings",
    "/api-explorer", "/node/hardware", "/node/disks", "/node/network", "/node/services", "/node/system", "/mappings",
    "/node/tasks",    "/node/tasks?state=failed&page=2", "/node/shell", "/setup/password", "/setup/storage", "/setup/network",
    "/setup/template", "/setup/done", "/?q=shop&sort=-cpu&state=running", "/parts/audit-chain",
]  # fmt: skip
DIALOGS = [
    "/dialogs/settings/tag-style", "/dialogs/settings/description", "/dialogs/settings/console", "/dialogs/add-storage",
    "/dialogs/guest/100/move/scsi0", "/dialogs/node/all/start", "/dialogs/node/all/stop", "/dialogs/node/bridge",
    "/dialogs/storage/local/edit", "/dialogs/storage/local/remove",
    "/dialogs/create-vm", "/dialogs/create-ct", "/dialogs/guest/103/delete", "/dialogs/guest/100/confirm/stop",
    "/dialogs/guest/100/confirm/reset", "/dialogs/guest/100/edit/memory", "/dialogs/guest/100/notes",
    "/dialogs/guest/100/edit/onboot", "/dialogs/guest/100/resize/scsi0", "/dialogs/storage/local/upload",
    "/dialogs/storage/local/download", "/dialogs/storage/local/build",
    "/dialogs/backup", "/dialogs/backup?vmid=101", "/dialogs/backup/prune?storage=local",
    "/dialogs/storage/local/delete?volume=local:iso/debian-12.7.0-amd64-netinst.iso",
]  # fmt: skip


async def read(house: Site, path: str, *, user: str = "admin@pve", status: int = 200) -> str:
    async with house.client.get(path, headers=house.as_user(user), allow_redirects=False) as reply:
        assert reply.status == status, (path, reply.status)
        return await reply.text()


async def test_a_password_inside_a_guest_is_offered_for_a_vm_and_to_whom_the_api_lets_set_it(house: Site) -> None:
    html = await read(house, "/dialogs/guest/100/password")
    assert 'data-api="POST /nodes/testnode/qemu/100/agent/set-user-password"' in html
    await read(house, "/dialogs/guest/101/password", status=404)  # a container has no agent
    house.world.access.grant("bob@pve", "/vms/100", "VM.Audit", "VM.GuestAgent.Audit")
    await read(house, "/dialogs/guest/100/password", user="bob@pve", status=403)
    house.world.access.grant("bob@pve", "/vms/100", "VM.Audit", "VM.GuestAgent.Unrestricted")
    await read(house, "/dialogs/guest/100/password", user="bob@pve")


async def test_every_page_and_dialog_renders_without_inline_script_or_style(house: Site) -> None:
    for path in [*PAGES, *DIALOGS]:
        html = await read(house, path)
        assert not re.search(r"<script(?![^>]*\ssrc=)", html), path
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", html), path


async def test_every_file_a_page_names_exists(house: Site) -> None:
    for path in PAGES:
        for name in re.findall(r'(?:src|href)="(/static/[^"#]+)', await read(house, path)):
            async with house.client.get(name) as reply:
                assert reply.status == 200, name


async def test_pages_carry_a_content_security_policy_without_foreign_or_inline_scripts(house: Site) -> None:
    async with house.client.get("/", headers=house.as_user()) as reply:
        policy = reply.headers["Content-Security-Policy"]
    assert "script-src 'self';" in policy
    assert "default-src 'self'" in policy


async def test_nothing_a_guest_or_a_task_says_becomes_markup(house: Site) -> None:
    world = house.world
    world.guests.add(
        200, GuestKind.LXC, name=HOSTILE, description=HOSTILE, tags=(HOSTILE,), state=GuestState.RUNNING,
        addresses=(HOSTILE,), lock=HOSTILE, problem=HOSTILE, pool=HOSTILE,
    )  # fmt: skip
    world.extras.configs[200] = {"hostname": HOSTILE, "description": HOSTILE}
    world.extras.storage.add("iso/x.iso", ContentType.ISO, 1)
    world.tasks.finish(world.tasks.begin("vzstart", object_id="200"), HOSTILE)
    for path in ["/", "/guests/200", "/guests/200/console", "/guests/200/hardware", "/guests/200/tasks",
                 "/dialogs/guest/200/delete", "/dialogs/guest/200/notes"]:  # fmt: skip
        html = await read(house, path)
        assert "<script>alert" not in html, path
        assert "&lt;script&gt;alert(1)" in html, path
        assert "&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;" in html, path


async def test_a_stranger_is_led_to_the_login_page_and_back(house: Site) -> None:
    async with house.client.get("/guests/100/console", allow_redirects=False) as reply:
        assert reply.status == 303
        assert reply.headers["Location"] == "/login?next=" + quote("/guests/100/console", safe="")
    async with house.client.get("/dialogs/create-vm", headers={"HX-Request": "true"}) as reply:
        assert (reply.status, reply.headers["HX-Redirect"]) == (200, "/login")


async def test_a_viewer_sees_only_the_guests_and_storages_they_may(house: Site) -> None:
    house.world.access.grant("bob@pve", "/vms/101", "VM.Audit")
    html = await read(house, "/", user="bob@pve")
    assert "guest-row-101" in html
    assert "guest-row-100" not in html
    assert "shop" not in html
    assert 'id="create-vm"' not in html
    assert "data-api" not in html
    assert "Host CPU" not in html
    await read(house, "/guests/100", user="bob@pve", status=403)
    await read(house, "/node", user="bob@pve", status=403)
    for dialog in ("settings/description", "node/all/start", "node/bridge"):
        await read(house, f"/dialogs/{dialog}", user="bob@pve", status=403)
    await read(house, "/dialogs/node/all/destroy", status=404)
    await read(house, "/guests/101/console", user="bob@pve", status=404)
    await read(house, "/storage/local", user="bob@pve", status=403)


async def test_what_does_not_exist_is_a_page_that_says_so(house: Site) -> None:
    html = await read(house, "/guests/999", status=404)
    assert '<p dir="auto">Guest 999 does not exist.</p>' in html
    assert "data-palette" in html[html.index("Not found") :]
    assert 'href="/overview"' in html[html.index("Not found") :]
    await read(house, "/guests/abc", status=404)
    await read(house, "/guests/100/nonsense", status=404)
    await read(house, "/storage/other", status=404)
    await read(house, "/dialogs/guest/100/edit/..%2f..", status=404)


async def test_the_dialog_for_a_vm_says_what_it_sends_where_nothing_is_chosen(house: Site, repository: Path) -> None:
    page = await read(house, "/dialogs/create-vm")
    script = (repository / "static" / "js" / "compose.js").read_text()
    for name, value in CREATED_WITH.items():
        assert f'params.{name.partition(".")[0]} ??= "{value}"' in script
        word = value_word(name, value)
        assert re.search(rf'name="_{re.escape(name)}".*?<option value="" selected>Default \({re.escape(word)}\)<', page)


async def test_an_address_without_a_page_is_an_error_to_programs_and_a_page_to_browsers(house: Site) -> None:
    async with house.client.get("/nowhere") as reply:
        assert (reply.status, reply.content_type) == (404, "application/json")
    headers = house.as_user() | {"Accept": "text/html"}
    async with house.client.get("/<b>nowhere", headers=headers) as reply:
        assert reply.status == 404
        assert "Page &#39;/&lt;b&gt;nowhere&#39; does not exist." in await reply.text()
    async with house.client.get("/nowhere", headers={"Accept": "text/html"}, allow_redirects=False) as reply:
        assert (reply.status, reply.headers["Location"]) == (303, "/login?next=%2Fnowhere")


async def log_in(house: Site, **fields: str) -> tuple[int, str, str]:
    """Status, where to, and the page's text."""
    async with house.client.post("/login", data=fields, allow_redirects=False) as reply:
        return reply.status, reply.headers.get("Location", ""), await reply.text()


async def test_logging_in_sets_a_cookie_that_scripts_and_other_sites_cannot_use(house: Site) -> None:
    form = {"username": "admin", "realm": "pve", "password": PASSWORD, "next": "/node"}
    async with house.client.post("/login", data=form, allow_redirects=False) as reply:
        assert (reply.status, reply.headers["Location"]) == (303, "/node")
        cookie = reply.headers["Set-Cookie"]
    assert cookie.startswith("PVEAuthCookie=PVE%3Aadmin%40pve%3A")
    assert {"HttpOnly", "Secure", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    async with house.client.get("/", headers={"Cookie": cookie.split(";")[0]}) as reply:
        assert "csrf-of-PVE:admin@pve" in (await reply.text()).replace("&#43;", "+")


async def test_a_wrong_password_is_told_without_detail_and_keeps_the_name(house: Site) -> None:
    status, _, html = await log_in(house, username="admin@pve", password="wrong")
    assert status == 401
    assert "User name or password is wrong." in html
    assert 'value="admin@pve"' in html
    assert "wrong&" not in html


async def test_a_second_factor_is_asked_for_and_needed(house: Site) -> None:
    status, _, html = await log_in(house, username=WITH_SECOND_FACTOR, password=PASSWORD)
    challenge = f"challenge-of-{WITH_SECOND_FACTOR}"
    assert status == 200
    assert f'name="challenge" value="{challenge}"' in html
    status, _, html = await log_in(house, username=WITH_SECOND_FACTOR, challenge=challenge, otp="000000")
    assert (status, "not accepted" in html) == (401, True)
    status, to, _ = await log_in(house, username=WITH_SECOND_FACTOR, challenge=challenge, otp=f"{CODE[:3]} {CODE[3:]}")
    assert (status, to) == (303, "/")


@pytest.mark.parametrize("target", ["//evil.example", "/\\evil.example", "https://evil.example", "x", "/a\r\nb"])
async def test_login_never_leads_to_another_site(house: Site, target: str) -> None:
    assert (await log_in(house, username="admin", password=PASSWORD, next=target))[1] == "/"


async def test_another_site_cannot_log_a_browser_in(house: Site) -> None:
    headers = {"Origin": "https://evil.example"}
    form = {"username": "admin", "password": PASSWORD}
    async with house.client.post("/login", data=form, headers=headers) as reply:
        assert reply.status == 403
        assert "Set-Cookie" not in reply.headers


async def test_logging_out_needs_the_csrf_token_and_ends_the_ticket(house: Site) -> None:
    access = house.world.access
    assert isinstance(access, HouseAccess)
    headers = {"Cookie": house.as_user()["Cookie"]}
    async with house.client.post("/logout", data={"csrf": "x"}, headers=headers, allow_redirects=False) as reply:
        assert reply.status == 401
    assert not access.ended
    form = {"csrf": access.csrf("admin@pve")}
    async with house.client.post("/logout", data=form, headers=headers, allow_redirects=False) as reply:
        assert (reply.status, reply.headers["Location"]) == (303, "/login")
    assert access.ended == {access.ticket("admin@pve")}
    assert [(row.who, row.action, row.outcome) for row in house.world.audit.rows] == [("admin@pve", "logout", "ok")]


async def test_an_open_page_can_renew_its_session(house: Site) -> None:
    async with house.client.post("/session/renew", headers=house.as_user()) as reply:
        assert (await reply.json())["csrf"] == house.world.access.csrf("admin@pve")
        assert "PVEAuthCookie" in reply.headers["Set-Cookie"]
    async with house.client.post("/session/renew", headers={"Cookie": house.as_user()["Cookie"]}) as reply:
        assert reply.status == 401
