"""Behind a reverse proxy: addresses below its prefix, headers believed from it and from nobody else."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from appliance.config import check_base_path, check_proxies
from appliance.errors import InvalidParameter
from appliance.web.application import build_application
from appliance.web.static import StaticFiles
from tests.fakes.house import PASSWORD, HouseAccess, furnished, settle_in
from tests.web.conftest import Site

BEHIND = {"X-Forwarded-Prefix": "/pve/one/", "X-Forwarded-Host": "front.example:8443"}


async def site_with(tmp_path: Path, repository: Path, **changes: object) -> AsyncIterator[Site]:
    services, world = furnished(tmp_path)
    settle_in(world)
    config = dataclasses.replace(services.config, **changes)  # type: ignore[arg-type]  # fields of the test's choice
    services = dataclasses.replace(services, config=config)
    static = await asyncio.to_thread(StaticFiles.scan, repository / "static")
    async with TestClient(TestServer(build_application(services, static=static))) as client:
        yield Site(client, services, world)


@pytest.fixture
async def trusting(tmp_path: Path, repository: Path) -> AsyncIterator[Site]:
    async for site in site_with(tmp_path, repository, proxies=frozenset({"127.0.0.1"})):
        yield site


@pytest.fixture
async def alone(tmp_path: Path, repository: Path) -> AsyncIterator[Site]:
    async for site in site_with(tmp_path, repository):
        yield site


async def read(site: Site, path: str, headers: dict[str, str]) -> str:
    async with site.client.get(path, headers=site.as_user() | headers) as reply:
        assert reply.status == 200, path
        return await reply.text()


def from_root(html: str) -> list[str]:
    return re.findall(r'\s(?:href|src|action|hx-get|data-next)="(/[^"]*)"', html)


async def test_every_address_of_a_page_is_below_the_prefix_of_a_known_proxy(trusting: Site) -> None:
    for path in ("/", "/guests/100", "/storage/local", "/dialogs/create-vm"):
        addresses = from_root(await read(trusting, path, BEHIND))
        assert addresses
        assert all(address.startswith("/pve/one/") for address in addresses), path


async def test_a_stranger_cannot_move_the_pages_addresses(alone: Site) -> None:
    assert "/pve/one" not in await read(alone, "/", BEHIND)


async def test_a_senseless_prefix_is_ignored(trusting: Site) -> None:
    for prefix in ("//evil.example", '/"><script>', "/a/../b", "javascript:", "/" + "x" * 500):
        assert prefix not in await read(trusting, "/", {"X-Forwarded-Prefix": prefix})


async def test_a_base_path_holds_without_any_header(tmp_path: Path, repository: Path) -> None:
    async for site in site_with(tmp_path, repository, base_path="/here"):
        assert all(address.startswith("/here/") for address in from_root(await read(site, "/", {})))


async def test_logging_in_behind_a_proxy_sets_a_cookie_for_its_prefix_alone(trusting: Site) -> None:
    form = {"username": "admin", "realm": "pve", "password": PASSWORD, "next": "/node"}
    headers = BEHIND | {"Origin": "https://front.example:8443"}
    async with trusting.client.post("/login", data=form, headers=headers, allow_redirects=False) as reply:
        assert reply.status == 303
        assert reply.headers["Location"] == "/pve/one/node"
        assert "Path=/pve/one;" in reply.headers["Set-Cookie"] + ";"


async def test_an_origin_that_only_a_stranger_vouches_for_is_another_site(alone: Site) -> None:
    headers = BEHIND | {"Origin": "https://front.example:8443"}
    async with alone.client.post("/login", data={"username": "admin"}, headers=headers) as reply:
        assert reply.status == 403


async def test_the_audit_log_names_the_reader_and_not_the_proxy(trusting: Site) -> None:
    headers = trusting.as_user() | {"X-Forwarded-For": "203.0.113.9, 198.51.100.4, 127.0.0.1"}
    world = trusting.world
    assert isinstance(world.access, HouseAccess)
    csrf = {"csrf": world.access.csrf_token(world.access.ticket("admin@pve"))}
    async with trusting.client.post("/logout", data=csrf, headers=headers, allow_redirects=False) as reply:
        assert reply.status == 303
    assert world.audit.rows[-1].remote == "198.51.100.4"


def test_settings_are_checked() -> None:
    assert check_base_path(" /a/b/ ") == "/a/b"
    assert check_base_path("/") == ""
    assert check_proxies(["::1", "10.0.0.1"]) == {"::1", "10.0.0.1"}
    for wrong in ("a", "/a b", "//x", "/.."):
        with pytest.raises(InvalidParameter):
            check_base_path(wrong)
    with pytest.raises(InvalidParameter):
        check_proxies(["front.example"])
