"""Figures through the API: PVE's rrddata for nodes, guests and storages; /metrics for Prometheus."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from appliance.model.metrics import Point, in_order
from appliance.web.application import build_application
from tests.fakes.house import HOSTILE, furnished, settle_in
from tests.fakes.services import NODE, TOKEN, FakeMetrics
from tests.web.conftest import Site

BASE = f"/api2/json/nodes/{NODE}"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Site]:
    services, world = furnished(tmp_path)
    settle_in(world)
    async with TestClient(TestServer(build_application(services))) as client:
        yield Site(client, services, world)


async def data(house: Site, path: str, *, user: str = "admin@pve", status: int = 200) -> object:
    async with house.client.get(path, headers=house.as_user(user)) as reply:
        assert reply.status == status, await reply.text()
        return (await reply.json())["data"]


async def test_rrddata_is_an_object_a_step_with_what_is_known(house: Site) -> None:
    metrics = house.services.metrics
    assert isinstance(metrics, FakeMetrics)
    metrics.points["qemu/100"] = [Point(60, in_order("qemu/100", {"cpu": 0.25, "mem": 10.0}))]
    metrics.points["storage/local"] = [Point(60, (100.0, 40.0))]
    assert await data(house, f"{BASE}/qemu/100/rrddata?timeframe=day&cf=MAX") == [
        {"time": 60, "cpu": 0.25, "mem": 10.0}
    ]
    assert metrics.asked[-1] == ("qemu/100", "day", "MAX")
    assert await data(house, f"{BASE}/storage/local/rrddata?timeframe=year") == [
        {"time": 60, "total": 100.0, "used": 40.0}
    ]
    assert await data(house, f"{BASE}/lxc/101/rrddata?timeframe=hour") == []
    del metrics.points[f"node/{NODE}"]
    assert await data(house, f"{BASE}/rrddata?timeframe=decade") == []


async def test_rrddata_is_for_whom_may_see_the_object(house: Site) -> None:
    house.world.access.grant("bob@pve", "/vms/101", "VM.Audit")
    await data(house, f"{BASE}/lxc/101/rrddata?timeframe=hour", user="bob@pve")
    await data(house, f"{BASE}/qemu/100/rrddata?timeframe=hour", user="bob@pve", status=403)
    await data(house, f"{BASE}/rrddata?timeframe=hour", user="bob@pve", status=403)
    await data(house, f"{BASE}/storage/local/rrddata?timeframe=hour", user="bob@pve", status=403)
    await data(house, f"{BASE}/qemu/101/rrddata?timeframe=hour", status=404)
    await data(house, f"{BASE}/qemu/100/rrddata?timeframe=fortnight", status=400)


async def scrape(house: Site, headers: dict[str, str]) -> tuple[int, str]:
    async with house.client.get("/metrics", headers=headers) as reply:
        return reply.status, await reply.text()


async def test_prometheus_scrapes_with_a_token_and_nobody_without(house: Site) -> None:
    assert (await scrape(house, {}))[0] == 401
    assert (await scrape(house, {"Authorization": "Bearer admin@pve!ci=wrong"}))[0] == 401
    status, text = await scrape(house, {"Authorization": f"Bearer {TOKEN}"})
    assert status == 200
    assert (await scrape(house, {"Authorization": f"PVEAPIToken={TOKEN}"}))[1] == text
    assert 'appliance_node_cpu_ratio{node="testnode"} 0.23' in text
    assert 'appliance_guest_up{id="100",type="qemu"} 1.0' in text
    assert 'appliance_guest_memory_used_bytes{id="101",type="lxc"} 63963136.0' in text
    assert 'appliance_storage_used_bytes{storage="local"}' in text


async def test_every_line_is_of_the_text_format_whatever_guests_are_called(house: Site) -> None:
    house.world.guests.add(300, name=HOSTILE + '\n\\"\r\x07', tags=("a\nb",))
    _, text = await scrape(house, house.as_user())
    value = r'"(?:[^"\\\n]|\\[\\"n])*"'
    line = re.compile(
        rf"[a-z0-9_]+(?:\{{[a-z]+={value}(?:,[a-z]+={value})*\}})? -?[0-9.e+-]+|# (?:HELP|TYPE) [a-z0-9_]+ .+"
    )
    assert text.endswith("\n")
    assert not [each for each in text.splitlines() if not line.fullmatch(each)]


async def test_a_scrape_shows_what_its_token_may_see(house: Site) -> None:
    house.world.access.grant("bob@pve", "/vms/101", "VM.Audit")
    _, text = await scrape(house, house.as_user("bob@pve"))
    assert 'id="101"' in text
    assert 'id="100"' not in text
    assert "appliance_node_" not in text
