"""/nodes and /nodes/{node}/network as clients see them."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from appliance.events import EventBus
from appliance.services import pki
from appliance.services.network import NetworkService
from appliance.services.node import NodeService
from appliance.tasks import TaskScope
from appliance.web.api import network, nodes
from appliance.web.application import build_application
from tests.fakes.clock import FakeClock
from tests.fakes.network import FakeNetwork
from tests.fakes.services import NODE, fake_services
from tests.web.conftest import Site

BASE = f"/api2/json/nodes/{NODE}"


@pytest.fixture
async def node_site(tmp_path: Path) -> AsyncIterator[Site]:
    """The two resources over the real node and network services on a fake host."""
    services, world = fake_services(tmp_path)
    scope = TaskScope("nodes-test")
    node = NodeService(EventBus(), FakeClock(), scope)
    networks = NetworkService(FakeNetwork(), world.store, scope)
    await node.start()
    await networks.start()
    services = dataclasses.replace(services, node=node, network=networks)
    application = build_application(services, resources=(nodes.api, network.api))
    async with TestClient(TestServer(application)) as client:
        yield Site(client, services, world)
    await scope.close()


def rows(data: object) -> list[dict[str, Any]]:
    assert isinstance(data, list)
    return data


def fields(data: object) -> dict[str, Any]:
    assert isinstance(data, dict)
    return data


async def get(site: Site, path: str, *, user: str = "admin@pve", status: int = 200) -> object:
    async with site.client.get(path, headers=site.as_user(user)) as reply:
        assert reply.status == status, await reply.text()
        return (await reply.json())["data"]


async def test_the_node_list_has_figures_only_for_auditors(node_site: Site) -> None:
    (row,) = rows(await get(node_site, "/api2/json/nodes"))
    assert row["node"] == NODE
    assert row["status"] == "online"
    assert 0 <= row["cpu"] <= 1
    assert row["mem"] < row["maxmem"]
    (blind,) = rows(await get(node_site, "/api2/json/nodes", user="guest@pve"))
    assert "cpu" not in blind


async def test_the_status_has_the_fields_clients_read(node_site: Site) -> None:
    status = fields(await get(node_site, f"{BASE}/status"))
    assert {"cpu", "loadavg", "uptime", "memory", "rootfs", "swap", "cpuinfo", "current-kernel", "boot-info",
            "pveversion", "kversion"} <= status.keys()  # fmt: skip
    assert all(isinstance(value, str) for value in rows(status["loadavg"]))
    assert {"cpus", "cores", "sockets", "model"} <= fields(status["cpuinfo"]).keys()
    await get(node_site, f"{BASE}/status", user="guest@pve", status=403)


async def test_the_host_is_not_rebooted_through_the_api(node_site: Site) -> None:
    async with node_site.client.post(
        f"{BASE}/status", data={"command": "reboot"}, headers=node_site.as_user()
    ) as reply:
        assert reply.status == 501
        assert "not offered" in (reply.reason or "")
    async with node_site.client.post(
        f"{BASE}/status", data={"command": "explode"}, headers=node_site.as_user()
    ) as reply:
        assert reply.status == 400
        assert "command" in (await reply.json())["errors"]


async def test_small_facts_of_the_node(node_site: Site) -> None:
    time = fields(await get(node_site, f"{BASE}/time"))
    assert time.keys() == {"time", "localtime", "timezone"}
    fields(await get(node_site, f"{BASE}/dns"))
    assert fields(await get(node_site, f"{BASE}/subscription"))["status"] == "notfound"
    assert fields(await get(node_site, f"{BASE}/version"))["release"] == "9.1"
    assert "status" in str(await get(node_site, BASE))


async def test_certificates_are_described_and_their_fingerprint_is_the_nodes(node_site: Site) -> None:
    assert await get(node_site, f"{BASE}/certificates/info") == []
    directory = node_site.services.config.data_dir / "pki"
    directory.parent.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)
    identity = await asyncio.to_thread(pki.ensure_server_identity, directory, ["host.example"], now)
    certificates = {row["filename"]: row for row in rows(await get(node_site, f"{BASE}/certificates/info"))}
    server = certificates["pve-ssl.pem"]
    assert server["fingerprint"] == identity.fingerprint
    assert "host.example" in server["san"]
    assert str(server["pem"]).startswith("-----BEGIN CERTIFICATE-----")
    assert "PRIVATE" not in str(certificates)
    (row,) = rows(await get(node_site, "/api2/json/nodes"))
    assert row["ssl_fingerprint"] == identity.fingerprint


async def test_interfaces_have_proxmox_ves_shape_and_leave_out_guests_ports(node_site: Site) -> None:
    found = {str(row["iface"]): row for row in rows(await get(node_site, f"{BASE}/network"))}
    assert found.keys() == {"eth0", "vmbr0"}
    assert found["eth0"]["type"] == "eth"
    assert found["eth0"]["gateway"] == "192.0.2.1"
    assert found["eth0"]["cidr6"] == "2001:db8::2/64"
    bridge = found["vmbr0"]
    assert (bridge["type"], bridge["cidr"], bridge["bridge_ports"]) == ("bridge", "10.64.0.1/22", "eth1")
    assert fields(await get(node_site, f"{BASE}/network/vmbr0"))["address"] == "10.64.0.1"
    await get(node_site, f"{BASE}/network/nope0", status=404)
    only = rows(await get(node_site, f"{BASE}/network?type=any_bridge"))
    assert [row["iface"] for row in only] == ["vmbr0"]


async def test_a_user_sees_only_the_bridges_they_may_use(node_site: Site) -> None:
    assert await get(node_site, f"{BASE}/network", user="guest@pve") == []
    node_site.world.access.grant("guest@pve", "/sdn/zones/localnetwork/vmbr0", "SDN.Use")
    found = rows(await get(node_site, f"{BASE}/network", user="guest@pve"))
    assert [row["iface"] for row in found] == ["vmbr0"]


@pytest.mark.parametrize(
    ("form", "status", "said"),
    [
        ({"type": "bridge", "cidr": "10.9.0.1/24", "comments": "lab"}, 200, ""),
        ({"type": "bridge", "address": "10.9.0.1", "netmask": "255.255.255.0"}, 200, ""),
        ({"type": "bridge", "address": "10.9.0.1"}, 400, "netmask"),
        ({"type": "bridge", "address": "10.9.0.1", "netmask": "255.0.255.0"}, 400, "netmask"),
        ({"type": "bridge", "cidr": "10.9.0.2/24"}, 400, "first address"),
        ({"type": "bridge", "mtu": "9"}, 400, "mtu"),
        ({"type": "bridge", "autostart": "0"}, 501, "always starts"),
        ({"type": "bridge", "bridge_ports": "eth0"}, 400, "bridge_ports"),
        ({}, 400, "type"),
    ],
)
async def test_changes_of_the_managed_bridge(node_site: Site, form: dict[str, str], status: int, said: str) -> None:
    async with node_site.client.put(f"{BASE}/network/vmbr0", data=form, headers=node_site.as_user()) as reply:
        text = f"{reply.reason} {await reply.text()}"
        assert reply.status == status, text
        assert said in text
    row = fields(await get(node_site, f"{BASE}/network/vmbr0"))
    assert row["cidr"] == ("10.9.0.1/24" if status == 200 else "10.64.0.1/22")


async def test_a_change_of_a_bridge_that_is_another_by_now_is_a_conflict(node_site: Site) -> None:
    found = {str(row["iface"]): row for row in rows(await get(node_site, f"{BASE}/network"))}
    assert found["eth0"].get("digest") is None
    form = {"type": "bridge", "digest": str(found["vmbr0"]["digest"])}
    for comment, status in (("of the first", 200), ("of the second", 409)):
        change = node_site.client.put(
            f"{BASE}/network/vmbr0", data=form | {"comments": comment}, headers=node_site.as_user()
        )
        async with change as reply:
            assert reply.status == status
    row = fields(await get(node_site, f"{BASE}/network/vmbr0"))
    assert row["comments"] == "of the first\n"
    assert row["digest"] != form["digest"]


async def test_interfaces_of_the_host_are_never_changed(node_site: Site) -> None:
    for verb, path, form in (
        ("PUT", "/network/eth0", {"type": "eth", "mtu": "1400"}),
        ("POST", "/network", {"iface": "vmbr5", "type": "bridge"}),
        ("DELETE", "/network/eth0", {}),
    ):
        async with node_site.client.request(verb, BASE + path, data=form, headers=node_site.as_user()) as reply:
            assert reply.status == 501, verb
            assert "does not change" in str(reply.reason) or "appliance" in str(reply.reason)


async def test_applying_the_network_is_a_task(node_site: Site) -> None:
    async with node_site.client.put(f"{BASE}/network", headers=node_site.as_user()) as reply:
        assert reply.status == 200
        assert str((await reply.json())["data"]).startswith("UPID:")
