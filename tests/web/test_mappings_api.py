"""/cluster/mapping/dir over HTTP: who may see and change mappings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from appliance.web.api import mappings
from appliance.web.application import build_application
from tests.fakes.services import NODE, fake_services
from tests.web.conftest import Site

BASE = "/api2/json/cluster/mapping/dir"


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    services, world = fake_services(tmp_path)
    async with TestClient(TestServer(build_application(services, resources=[mappings.api]))) as client:
        yield Site(client, services, world)


async def call(site: Site, verb: str, path: str = "", *, user: str = "admin@pve", **data: object) -> tuple[int, Any]:
    arguments: dict[str, Any] = {"params" if verb in ("GET", "DELETE") else "data": data}
    async with site.client.request(verb, BASE + path, headers=site.as_user(user), **arguments) as reply:
        return reply.status, (await reply.json())["data"]


async def test_a_mapping_is_made_seen_checked_changed_and_forgotten(site: Site, tmp_path: Path) -> None:
    shared = tmp_path / "home"
    shared.mkdir()
    row = f"node={NODE},path={shared}"
    assert (await call(site, "POST", id="home", map=row, description="x"))[0] == 200
    assert (await call(site, "POST", id="gone", map=["node=b,path=/srv/b", f"node={NODE},path=/nowhere/x"]))[0] == 200
    _, rows = await call(site, "GET", **{"check-node": NODE})
    assert [(each["id"], each["map"], len(each["checks"])) for each in rows] == [
        ("gone", ["node=b,path=/srv/b", f"node={NODE},path=/nowhere/x"], 1),
        ("home", [row], 0),
    ]
    _, one = await call(site, "GET", "/home")
    assert (await call(site, "PUT", "/home", description="y", digest=one["digest"]))[0] == 200
    assert (await call(site, "PUT", "/home", description="z", digest=one["digest"]))[0] == 409
    assert (await call(site, "DELETE", "/home"))[0] == 200
    assert (await call(site, "GET", "/home"))[0] == 404


async def test_seeing_and_changing_need_privileges_on_the_mapping(site: Site) -> None:
    await call(site, "POST", id="home", map=f"node={NODE},path=/srv/home")
    user = "joe@pve"
    assert await call(site, "GET", user=user) == (200, [])
    assert (await call(site, "GET", "/home", user=user))[0] == 403
    assert (await call(site, "POST", user=user, id="mine", map=f"node={NODE},path=/srv/x"))[0] == 403
    site.world.access.grant(user, "/mapping/dir/home", "Mapping.Use")
    assert [each["id"] for each in (await call(site, "GET", user=user))[1]] == ["home"]
    assert (await call(site, "PUT", "/home", user=user, description="y"))[0] == 403
    assert (await call(site, "DELETE", "/home", user=user))[0] == 403
