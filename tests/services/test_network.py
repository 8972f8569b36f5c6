"""Rules of the network service: the bridge's document, MAC addresses, what may be changed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from ipaddress import IPv4Network

import pytest

from appliance.errors import Conflict, InvalidParameter, NotFound, Unsupported
from appliance.services.network import BridgeChange, NetworkService
from appliance.state.store import Put
from appliance.tasks import TaskScope
from tests.fakes.network import FakeNetwork
from tests.fakes.store import FakeStore


@pytest.fixture
async def scope() -> AsyncIterator[TaskScope]:
    scope = TaskScope("network-service-test")
    yield scope
    await scope.close()


async def stored_bridge(store: FakeStore) -> dict[str, object] | None:
    document = await store.get("network/bridges/vmbr0")
    return None if document is None else dict(json.loads(document.value))


async def test_the_subnet_chosen_first_is_kept_for_good(scope: TaskScope) -> None:
    store = FakeStore()
    await NetworkService(FakeNetwork(), store, scope).start()
    assert (await stored_bridge(store) or {})["subnet"] == "10.64.0.0/22"
    again = FakeNetwork()
    await NetworkService(again, store, scope).start()
    assert again.applied[0].subnet == IPv4Network("10.64.0.0/22")


async def test_somebody_elses_bridge_is_used_and_nothing_is_stored(scope: TaskScope) -> None:
    store = FakeStore()
    service = NetworkService(FakeNetwork(managed=False), store, scope)
    await service.start()
    assert await stored_bridge(store) is None
    with pytest.raises(Unsupported, match="vmbr0: the appliance does not change"):
        await service.update_bridge("vmbr0", BridgeChange(mtu=1400))


async def test_a_host_that_can_have_no_bridge_does_not_stop_the_appliance(scope: TaskScope) -> None:
    service = NetworkService(FakeNetwork(broken=Unsupported("bridge vmbr0: this kernel cannot")), FakeStore(), scope)
    await service.start()
    assert "this kernel cannot" in service.problem
    with pytest.raises(Conflict, match="this kernel cannot"):
        await service.reapply()


async def test_macs_follow_the_clusters_prefix_and_meet_no_used_one(scope: TaskScope) -> None:
    store = FakeStore()
    service = NetworkService(FakeNetwork(), store, scope)
    await service.start()
    used: set[str] = set()
    for _ in range(200):
        used.add(service.new_mac(used))
    assert len(used) == 200
    assert all(mac.startswith("BC:24:11:") for mac in used)
    await asyncio.sleep(0)
    await store.txn([], [Put("cluster/options", b'{"mac_prefix": "02:aa"}')])
    async with asyncio.timeout(30):
        while not service.new_mac(()).startswith("02:AA:"):
            await asyncio.sleep(0.01)


async def test_a_change_of_the_bridge_is_applied_and_stored(scope: TaskScope) -> None:
    store, network = FakeStore(), FakeNetwork()
    service = NetworkService(network, store, scope)
    await service.start()
    await service.update_bridge("vmbr0", BridgeChange(cidr="10.9.0.1/24", mtu=1400, comment="lab"))
    assert network.applied[-1].subnet == IPv4Network("10.9.0.0/24")
    assert await stored_bridge(store) == {
        "subnet": "10.9.0.0/24", "dhcp": True, "dns": True, "mtu": 1400, "comment": "lab",
    }  # fmt: skip


async def test_changes_made_at_once_all_take_effect(scope: TaskScope) -> None:
    store = FakeStore()
    service = NetworkService(FakeNetwork(), store, scope)
    await service.start()
    await asyncio.gather(
        service.update_bridge("vmbr0", BridgeChange(cidr="10.9.0.1/24")),
        service.update_bridge("vmbr0", BridgeChange(mtu=1400)),
        service.update_bridge("vmbr0", BridgeChange(comment="lab")),
    )
    stored = await stored_bridge(store) or {}
    assert (stored["subnet"], stored["mtu"], stored["comment"]) == ("10.9.0.0/24", 1400, "lab")


async def test_of_two_who_edit_the_bridge_the_second_gets_a_conflict_and_overwrites_nothing(scope: TaskScope) -> None:
    store, network = FakeStore(), FakeNetwork()
    service = NetworkService(network, store, scope)
    await service.start()
    read = service.digest
    await service.update_bridge("vmbr0", BridgeChange(comment="of the first", digest=read))
    with pytest.raises(Conflict, match="vmbr0 has changed meanwhile"):
        await service.update_bridge("vmbr0", BridgeChange(mtu=1400, comment="of the second", digest=read))
    assert (await stored_bridge(store) or {})["comment"] == "of the first"
    await service.update_bridge("vmbr0", BridgeChange(mtu=1400, comment="of the second", digest=service.digest))
    await service.update_bridge("vmbr0", BridgeChange(mtu=1300))  # without one, whatever it is now
    assert network.applied[-1].mtu == 1300
    assert network.applied[-1].comment == "of the second"


@pytest.mark.parametrize(
    "cidr", ["10.9.0.7/24", "192.0.2.1/25", "x", "10.9.0.1/33", "10.9.0.1/31", "10.9.0.1", "::1/64"]
)
async def test_a_bad_subnet_is_refused_and_nothing_changes(scope: TaskScope, cidr: str) -> None:
    network = FakeNetwork()
    service = NetworkService(network, FakeStore(), scope)
    await service.start()
    with pytest.raises(InvalidParameter) as caught:
        await service.update_bridge("vmbr0", BridgeChange(cidr=cidr))
    assert list(caught.value.errors) == ["cidr"]
    assert len(network.applied) == 1


async def test_only_the_managed_bridge_can_be_changed(scope: TaskScope) -> None:
    service = NetworkService(FakeNetwork(), FakeStore(), scope)
    await service.start()
    with pytest.raises(Unsupported, match="eth0"):
        await service.update_bridge("eth0", BridgeChange(mtu=1400))
    with pytest.raises(NotFound, match="network interface vmbr9 does not exist"):
        await service.update_bridge("vmbr9", BridgeChange(mtu=1400))
