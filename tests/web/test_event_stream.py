"""Push: who sees which event, what is folded together, and what a viewer learns that fell behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest
import websockets
from websockets.asyncio.client import ClientConnection

from appliance.events import (
    AccessChanged,
    Event,
    GuestConfigChanged,
    GuestStateChanged,
    GuestStatsSampled,
    Lagged,
    StorageContentChanged,
    TaskProgressed,
)
from appliance.model.guest import GuestId, GuestKind, GuestState
from appliance.web.ws import events
from tests.web.conftest import Site

TIMEOUT_S = 30


def state_changed(guest_id: int, old: GuestState, new: GuestState) -> GuestStateChanged:
    return GuestStateChanged(guest_id=GuestId(guest_id), kind=GuestKind.QEMU, old=old, new=new)


@contextlib.asynccontextmanager
async def listening(site: Site, user: str = "admin@pve") -> AsyncIterator[ClientConnection]:
    url = f"ws://{site.client.host}:{site.client.port}/ws/events"
    headers = {"Cookie": f"PVEAuthCookie={site.world.access.ticket(user)}"}
    async with websockets.connect(url, additional_headers=headers, origin=websockets.Origin(site.origin)) as socket:
        async with asyncio.timeout(TIMEOUT_S):
            yield socket


async def message(socket: ClientConnection) -> dict[str, object]:
    return dict(json.loads(await socket.recv()))


async def test_a_state_change_reaches_every_page(site: Site) -> None:
    site.world.guests.add(100)
    async with listening(site) as first, listening(site) as second:
        site.world.guests.set_state(100, GuestState.RUNNING)
        for socket in (first, second):
            assert await message(socket) == {
                "type": "guest-state", "vmid": 100, "kind": "qemu", "state": "running", "old": "stopped", "reason": "",
            }  # fmt: skip


async def test_a_page_sees_only_what_its_user_may(site: Site) -> None:
    site.world.access.grant("eve@pve", "/vms/101", "VM.Audit")
    for guest_id in (100, 101):
        site.world.guests.add(guest_id)
    async with listening(site, "eve@pve") as socket:
        site.world.tasks.begin("qmstart", user="admin@pve")
        site.world.events.publish(StorageContentChanged(storage="local"))
        own = site.world.tasks.begin("qmstart", user="eve@pve!ci")
        site.world.guests.set_state(100, GuestState.RUNNING)
        site.world.guests.set_state(101, GuestState.RUNNING)
        assert await message(socket) == {"type": "task-started", "upid": own}
        assert (await message(socket))["vmid"] == 101


async def test_one_who_is_not_logged_in_gets_nothing(site: Site) -> None:
    with pytest.raises(websockets.InvalidStatus) as caught:
        async with websockets.connect(f"ws://{site.client.host}:{site.client.port}/ws/events"):
            pass
    assert caught.value.response.status_code == 401


async def test_another_sites_page_cannot_listen(site: Site) -> None:
    headers = site.as_user() | {"Connection": "upgrade", "Upgrade": "websocket", "Origin": "https://evil.example"}
    async with site.client.get("/ws/events", headers=headers) as reply:
        assert reply.status == 403


async def test_the_stream_ends_with_the_session(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(site) as socket:
        site.world.events.publish(AccessChanged())
        assert await message(socket) == {"type": "access"}
        monkeypatch.setattr(site.world.access, "still_holds", lambda identity, ticket: False)
        site.world.events.publish(AccessChanged())
        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()
        assert socket.close_code == events.SESSION_ENDED


async def test_changed_options_are_told(site: Site) -> None:
    async with listening(site) as socket:
        options = {"description": "new"}
        async with site.client.put("/api2/json/cluster/options", headers=site.as_user(), data=options) as reply:
            assert reply.status == 200
        assert await message(socket) == {"type": "options"}


async def test_a_page_that_fell_behind_is_told_to_read_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "QUEUE_LIMIT", 8)
    async with listening(site) as socket:
        for upid in range(20):
            site.world.events.publish(TaskProgressed(upid=str(upid)))
        assert await message(socket) == {"type": "resync"}


async def test_a_flood_is_folded_into_its_last_word(site: Site) -> None:
    async with listening(site) as socket:
        for _ in range(500):
            site.world.events.publish(GuestStatsSampled())
        site.world.events.publish(StorageContentChanged(storage="local"))
        assert [await message(socket), await message(socket)] == [
            {"type": "guest-stats"},
            {"type": "storage-content", "storage": "local"},
        ]


def test_coalescing_keeps_the_first_old_and_the_last_new() -> None:
    config = GuestConfigChanged(guest_id=GuestId(100), kind=GuestKind.QEMU)
    batch: list[Event] = [
        state_changed(100, GuestState.STOPPED, GuestState.STARTING),
        config,
        state_changed(101, GuestState.RUNNING, GuestState.STOPPING),
        state_changed(100, GuestState.STARTING, GuestState.RUNNING),
    ]
    assert events.coalesce(batch) == [config, batch[2], state_changed(100, GuestState.STOPPED, GuestState.RUNNING)]
    assert events.coalesce([*batch, Lagged()]) == [Lagged()]


async def test_leaving_ends_the_subscription(site: Site) -> None:
    async with listening(site):
        assert len(site.world.events._subscriptions) == 1
    for _ in range(3000):
        if not site.world.events._subscriptions:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the subscription outlived its page")
