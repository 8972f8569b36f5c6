"""OCI images in real Chromium: the list, pulling with tags and credentials, pushing, building, cleaning up."""

from __future__ import annotations

import asyncio
import io
import tarfile

import pytest
from playwright.async_api import Page, expect

from appliance.model.guest import GuestKind, GuestState
from appliance.services.applications import Probe
from tests.browser.fake_site import FakeSite
from tests.fakes.guests import Said
from tests.fakes.house import HOSTILE
from tests.fakes.images import FakeImages, describe, web_server
from tests.fakes.office import Office

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

Place = tuple[FakeSite, Office]
IMAGE = "local:vztmpl/nginx_1.27.tar"
DIALOGS = {
    "pull": "/dialogs/oci/pull", "push": f"/dialogs/oci/push?volume={IMAGE}", "details": f"/dialogs/oci/details?volume={IMAGE}",
    "delete": f"/dialogs/oci/delete?volume={IMAGE}", "collect": "/dialogs/oci/collect", "build": "/dialogs/oci/build",
    "create-image": "/dialogs/create-app", "create": f"/dialogs/create-app?image={IMAGE}",
    "create-hostile": "/dialogs/create-app?image=local:vztmpl/evil.tar", "registry": "/dialogs/oci/registry",
    "hostile": "/dialogs/oci/details?volume=local:vztmpl/evil.tar",
}  # fmt: skip


def images_of(office: Office) -> FakeImages:
    found = office.world.extras.images
    assert isinstance(found, FakeImages)
    return found


async def dialog(page: Page, path: str) -> None:
    await page.evaluate("(path) => htmx.ajax('GET', path, { target: '#dialog' })", path)
    await page.wait_for_selector("#dialog[open] #dialog-title")


async def close(page: Page) -> None:
    await page.keyboard.press("Escape")
    await page.wait_for_selector("#dialog[open]", state="detached")


@pytest.mark.parametrize(("size", "scheme"), [("wide", "light"), ("phone", "dark")])
async def test_the_page_and_its_dialogs_fit_and_are_accessible(place: Place, size: str, scheme: str) -> None:
    site, office = place
    images_of(office).add("evil.tar", describe(HOSTILE, ["base"], web_server(HOSTILE)))
    async with site.page(size, "dark" if scheme == "dark" else "light") as page:
        await site.visit(page, "/oci")
        await site.look(page, f"oci-{size}")
        assert await page.locator("script:not([src])").count() == await page.locator("#words").count()
        for name, path in DIALOGS.items():
            await dialog(page, path)
            for folded in await page.locator("#dialog summary").all():
                await folded.click()
            await site.look(page, f"oci-{name}-{size}")
            await close(page)


async def test_an_image_is_pulled_with_credentials_and_appears_by_push(place: Place) -> None:
    site, office = place
    async with site.page() as page, site.page() as other:
        await site.visit(page, "/oci")
        await site.visit(other, "/oci")
        await page.click("#oci-pull")
        await page.fill("#f-reference", "registry.lan:5000/team/app")
        await page.click("[data-oci-tags]")
        await expect(page.locator("#oci-tags option")).to_have_count(3)
        await page.fill("#f-reference", "registry.lan:5000/team/app:2")
        await page.click("text=User name and connection")
        await page.fill("#f-username", "me")
        await page.fill("#f-password", "word")
        await page.select_option("#f-transport", "unverified")
        await page.click("#dialog .equivalent summary")
        said = page.locator("[data-equivalent=cli]")
        await expect(said).to_contain_text("appliance create /appliance/oci/registries --registry registry.lan:5000")
        await expect(said).to_contain_text("--password '********'")
        await expect(said).to_contain_text("oci-registry-pull --reference registry.lan:5000/team/app:2")
        await page.click("#confirm")
        await expect(page.locator("#dialog[open]")).to_have_count(0)
        await expect(page.locator("#drawer")).to_have_attribute("data-open", "true")
        await expect(other.locator('[data-image="local:vztmpl/app_2.tar"]')).to_be_visible()
    assert images_of(office).calls == [("pull", "local", "registry.lan:5000/team/app:2")]
    (access,) = await asyncio.to_thread(images_of(office).registries.all)
    assert (access.registry, access.username, access.password) == ("registry.lan:5000", "me", "word")


async def test_a_bad_name_is_told_at_its_field_and_nothing_is_pulled(place: Place) -> None:
    site, office = place
    async with site.page(quiet=True) as page:
        await site.visit(page, "/oci")
        await page.click("#oci-pull")
        await page.fill("#f-reference", "Not An Image")
        await page.click("#confirm")
        await expect(page.locator("#e-reference")).to_contain_text("does not name an image")
    assert images_of(office).calls == []


async def test_an_image_is_pushed_deleted_and_what_is_left_cleaned_up(place: Place) -> None:
    site, office = place
    async with site.page() as page:
        await site.visit(page, "/oci")
        row = page.locator(f'[data-image="{IMAGE}"]')
        await row.locator("[title=Push]").click()
        await expect(page.locator("#f-reference")).to_have_value("docker.io/library/nginx:1.27")
        await page.fill("#f-reference", "registry.lan/copy:1")
        await page.click("#confirm")
        await expect(page.locator("#dialog[open]")).to_have_count(0)
        await row.locator("[title=Delete]").click()
        await page.click("#confirm")
        await expect(row).to_have_count(0)
        await page.click("#oci-menu summary")
        await page.click("#oci-collect")
        await page.click("#confirm")
        await expect(page.locator("#dialog[open]")).to_have_count(0)
    assert images_of(office).calls == [("push", IMAGE, "registry.lan/copy:1"), ("remove", IMAGE), ("collect", "local")]


async def test_a_typed_dockerfile_is_built_as_an_archive_of_it(place: Place) -> None:
    site, office = place
    async with site.page() as page:
        await site.visit(page, "/oci")
        await page.click("#oci-menu summary")
        await page.click("#oci-build")
        await page.fill("#f-tag", "team/app:1")
        await page.fill("#f-text", "FROM debian:12\nRUN echo grün")
        await page.click("#confirm")
        await expect(page.locator("#dialog[open]")).to_have_count(0)
    ((tag, dockerfile, data),) = office.world.extras.builder.built
    assert (tag, dockerfile) == ("team/app:1", "Dockerfile")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        (member,) = tar.getmembers()
        file = tar.extractfile(member)
        assert (member.name, file and file.read().decode()) == ("Dockerfile", "FROM debian:12\nRUN echo grün\n")


async def test_a_registry_is_set_edited_and_forgotten(place: Place) -> None:
    site, office = place
    async with site.page() as page:
        await site.visit(page, "/oci")
        await page.click("#add-registry")
        await page.fill("#f-registry", "registry.lan:5000")
        await page.select_option("#f-transport", "plain")
        await page.click("#confirm")
        row = page.locator('[data-registry="registry.lan:5000"]')
        await expect(row).to_contain_text("Not encrypted")
        await expect(page.locator("body")).to_have_attribute("data-live", "connected")
        await row.locator("[title=Forget]").click()
        await page.click("#confirm")
        await expect(row).to_have_count(0)
    assert await asyncio.to_thread(images_of(office).registries.all) == []


async def test_a_container_is_made_of_an_image_with_what_was_changed_and_nothing_else(place: Place) -> None:
    site, office = place
    async with site.page() as page:
        await site.visit(page, "/oci")
        await page.click(f'[data-image="{IMAGE}"] [title="Create container"]')
        await expect(page.locator("#f-hostname")).to_have_value("nginx")
        await page.fill("#f-vmid", "200")
        await page.locator("[data-port=host]").first.fill("8080")
        await page.click("text=Program")
        await expect(page.locator("#f-entrypoint")).to_have_value("/docker-entrypoint.sh nginx -g 'daemon off;'")
        await expect(page.locator("#f-env")).to_have_value("NGINX_VERSION=1.27.0\nSAID=fine")
        await page.fill("#f-env", "NGINX_VERSION=1.27.0\nSAID=grün\nMORE=a\\\nb")
        await page.click("#dialog summary:has-text('Health')")
        await page.fill("#f-app-health-interval", "5")
        await page.select_option("#f-restart-when", "unless-stopped")
        await expect(page.locator("[data-mount=path]").first).to_have_value("/data")
        await page.locator("[data-mount=where]").first.select_option("host")
        await page.locator("[data-mount=amount]").first.fill("/srv/data")
        await page.click("text=Add a volume")
        await page.locator("[data-mount=path]").nth(1).fill("/cache")
        await page.locator("[data-mount=amount]").nth(1).fill("2")
        await page.click(".equivalent summary")
        await expect(page.locator("[data-equivalent=cli]")).to_contain_text("--app-publish 8080:80/tcp")
        await page.click("#create")
        await page.wait_for_url("**/guests/200")
    config = office.guests.guests[200].config
    assert config["app-publish"] == "8080:80/tcp"
    assert config["env"].split("\0") == ["NGINX_VERSION=1.27.0", "SAID=grün", "MORE=a\nb"]
    assert '"interval": 5.0' in config["app-health"]
    assert "unless-stopped" in config["restart"]
    assert config["mp0"].startswith("/srv/data,mp=/data") or config["mp0"] == "volume=/srv/data,mp=/data"
    assert "local:2" in config["mp1"]
    assert "rootfs" in config
    assert not {"entrypoint", "app-user", "app-workdir", "app-stopsignal", "app-labels"} & config.keys()


async def test_an_image_is_pulled_on_the_way_to_a_container(place: Place) -> None:
    site, office = place
    async with site.page() as page:
        await site.visit(page, "/")
        await page.click("#create-ct")
        await page.check("[name=_source][value=oci]", force=True)
        await expect(page.locator("#create")).to_be_hidden()
        await page.click("#to-app")
        await page.fill("#f-reference", "registry.lan/team/app:2")
        await page.click("#confirm")
        await expect(page.locator("#create-app-form")).to_be_visible()
        await expect(page.locator("#f-hostname")).to_have_value("app")
        await page.click("#dialog summary:has-text('Health')")
        await page.uncheck("[name=_health]")
        await page.click("#create")
        await page.wait_for_url("**/guests/102")
    assert images_of(office).calls == [("pull", "local", "registry.lan/team/app:2")]
    assert office.guests.guests[102].config["app-health"] == "none"


async def test_the_keys_of_an_application_are_edited_in_parts(place: Place) -> None:
    site, office = place
    health = '{"command": ["/bin/true"], "interval": 10, "timeout": 5, "retries": 3}'
    office.guests.add(
        210, GuestKind.LXC, hostname="app", rootfs="local:210/x.raw,size=4G", env="A=1\0B=two\nlines",
        **{"app-image": "nginx:1@sha256:1", "app-publish": "8080:80/tcp", "app-health": health, "app-labels": '{"a": "b"}'},
    )  # fmt: skip
    async with site.page() as page:
        await site.visit(page, "/guests/210/options")
        await expect(page.locator("#config-env")).to_contain_text("A=1 · B=two lines")
        await page.click("#config-env [title=Edit]")
        await page.fill("#f-env", "A=2\nB=two\\\nlines")
        await page.click("#confirm")
        await expect(page.locator("#config-env")).to_contain_text("A=2")
        await page.click("#config-app-publish [title=Edit]")
        await page.click("[data-add-row]")
        await page.locator("[data-port=host]").nth(1).fill("5353")
        await page.locator("[data-port=inside]").nth(1).fill("53")
        await page.locator("[data-port=protocol]").nth(1).select_option("udp")
        await page.click("#confirm")
        await expect(page.locator("#config-app-publish")).to_contain_text("8080:80/tcp,5353:53/udp")
        await page.click("#config-app-publish [title=Edit]")
        await page.locator("[data-remove-row]").first.click()
        await page.locator("[data-remove-row]").first.click()
        await page.click("#confirm")
        await expect(page.locator("#config-app-publish")).not_to_contain_text("5353")
        await page.click("#config-app-health [title=Edit]")
        await expect(page.locator("#f-app-health-command")).to_have_value('["/bin/true"]')
        await page.fill("#f-app-health-retries", "9")
        await page.click("#confirm")
        await expect(page.locator("#dialog[open]")).to_have_count(0)
        await page.click("#config-app-labels [title=Edit]")
        await page.fill("#f-app-labels", "a=b\nc=d=e")
        await page.click("#confirm")
        await expect(page.locator("#config-app-labels")).to_contain_text("c=d=e")
    config = office.guests.guests[210].config
    assert config["env"] == "A=2\0B=two\nlines"
    assert "app-publish" not in config
    assert '"retries": 9' in config["app-health"]
    assert '"command": ["/bin/true"]' in config["app-health"]
    assert config["app-labels"] == '{"a": "b", "c": "d=e"}'


@pytest.mark.parametrize(("size", "scheme"), [("wide", "light"), ("phone", "dark")])
async def test_an_applications_summary_and_logs_fit_and_what_it_says_stays_text(
    place: Place, size: str, scheme: str
) -> None:
    site, office = place
    application = office.guests.add(
        211, GuestKind.LXC, hostname="app", rootfs="local:211/x.raw,size=4G",
        **{"app-image": "nginx:1@sha256:1", "app-publish": "8080:80/tcp", "restart": "on-failure"},
    )  # fmt: skip
    application.state = GuestState.RUNNING
    status = {
        "health": "unhealthy",
        "exit-code": 137,
        "exit-detail": HOSTILE,
        "finished-at": 1_700_000_000,
        "restarts": 2,
    }
    probes = (Probe(started_at=1.7e9, exit_code=1, output=HOSTILE), Probe(started_at=1.7e9, exit_code=None, output=""))
    office.guests.said[211] = [
        Said(b"first"), Said(b"\x1b[31mred\x1b[0m and", whole=False), Said(b" on"), Said(HOSTILE.encode(), "stderr"),
    ]  # fmt: skip
    vars(office.guests.applications).update(status=lambda guest_id: status, probes=lambda guest_id: probes)
    async with site.page(size, "dark" if scheme == "dark" else "light") as page:
        await site.visit(page, "/guests/211")
        await expect(page.locator("#application [data-health]")).to_have_text("unhealthy")
        await expect(page.locator("#application [data-exit]")).to_have_text("137")
        await expect(page.locator("#application [data-restarts]")).to_have_text("2")
        await expect(page.locator("#application")).to_contain_text(HOSTILE)
        await site.look(page, f"app-summary-{size}")
        await page.click(".tabs >> text=Logs")
        log = page.locator("[data-log]")
        await expect(log.locator("div")).to_have_text(["first", "red and on", HOSTILE])
        await expect(page.locator("[data-log-state]")).to_have_text("The container has ended")
        await site.look(page, f"app-logs-{size}")
    async with site.page() as page:  # a system container has no such tab
        await site.visit(page, "/guests/101")
        await expect(page.locator(".tabs >> text=Logs")).to_have_count(0)
        await expect(page.locator("#application")).to_have_count(0)
