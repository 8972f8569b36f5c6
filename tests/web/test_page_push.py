"""The page's websocket: what changes is pushed, to whom may see it, once, and as text."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from appliance import events as bus
from appliance.model.guest import GuestId, GuestKind, GuestState
from appliance.web.application import build_application
from appliance.web.static import StaticFiles
from tests.fakes.house import HOSTILE, HouseAccess, furnished, settle_in
from tests.web.conftest import Site

LIMIT_S = 30.0
QUIET_S = 0.25


class Page:
    """A browser's end of the websocket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def follow(self, *topics: str) -> None:
        await self._socket.send_json({"topics": list(topics)})

    async def next(self) -> str:
        async with asyncio.timeout(LIMIT_S):
            return "\n".join(await self._socket.receive_json())

    async def next_with(self, words: str) -> str:
        while words not in (text := await self.next()):
            pass
        return text

    async def is_quiet(self) -> bool:
        try:
            async with asyncio.timeout(QUIET_S):
                await self._socket.receive()
        except TimeoutError:
            return True
        return False

    async def close_code(self) -> int | None:
        async with asyncio.timeout(LIMIT_S):
            async for _ in self._socket:
                pass
        return self._socket.close_code


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Site]:
    services, world = furnished(tmp_path)
    settle_in(world)
    # fragments name no file but the icons'
    static = StaticFiles(services.config.static_dir, {"icons.svg": "0"})
    application = build_application(services, static=static)
    async with TestClient(TestServer(application)) as client:
        yield Site(client, services, world)


async def opened(house: Site, user: str = "admin@pve") -> Page:
    headers = {**house.as_user(user), "Origin": house.origin}
    return Page(await house.client.ws_connect("/ws/page", headers=headers))


def ids(html: str) -> set[str]:
    return set(re.findall(r'\sid="([^"]+)"', html))


async def test_a_new_topic_is_sent_whole_so_that_nothing_is_missed_after_a_lost_connection(house: Site) -> None:
    page = await opened(house)
    await page.follow("tasks", "guests", "host")
    html = await page.next()
    assert {"drawer-bar", "guest-rows", "guest-row-100", "guest-counts", "host-cpu"} <= ids(html)
    await page.follow("tasks", "guests", "host", "node")
    assert "node-figures" in ids(await page.next())


async def test_a_state_change_sends_the_changed_row_only(house: Site) -> None:
    page = await opened(house)
    await page.follow("guests")
    await page.next()
    house.world.guests.set_state(103, GuestState.RUNNING)
    html = await page.next()
    assert ids(html) & {"guest-row-100", "guest-row-101", "guest-row-103"} == {"guest-row-103"}
    assert 'data-state="running"' in html


async def test_what_has_not_changed_is_not_sent(house: Site) -> None:
    page = await opened(house)
    await page.follow("guests", "host")
    await page.next()
    house.world.events.publish(bus.GuestStatsSampled())
    await page.next()  # the running guests' rows, each for the first time by itself
    house.world.events.publish(bus.GuestStatsSampled())
    house.world.events.publish(bus.NodeStatsSampled())
    assert await page.is_quiet()


async def test_a_new_and_a_deleted_guest_change_the_list_and_a_deleted_guests_page_says_so(house: Site) -> None:
    page = await opened(house)
    await page.follow("guests", "guest:103:summary")
    await page.next()
    house.world.guests.add(150, name="brand-new")
    assert "guest-row-150" in ids(await page.next())
    del house.world.guests.views[103]
    house.world.events.publish(bus.GuestListChanged(guest_id=GuestId(103), kind=GuestKind.LXC, exists=False))
    html = await page.next()
    assert "guest-row-103" not in ids(html)
    assert 'data-gone="/"' in html


async def test_a_viewer_is_pushed_only_what_they_may_see_also_after_permissions_change(house: Site) -> None:
    house.world.access.grant("bob@pve", "/vms/101", "VM.Audit")
    page = await opened(house, "bob@pve")
    await page.follow("guests", "guest:100:summary", "node", "storage:local:", "log:UPID:x")
    html = await page.next()
    assert "guest-row-101" in ids(html)
    assert not ids(html) & {"guest-row-100", "guest-head", "node-figures", "storage-content", "task-log"}
    house.world.access.grant("bob@pve", "/vms/100", "VM.Audit")
    house.world.events.publish(bus.AccessChanged())
    assert {"guest-row-100", "guest-head"} <= ids(await page.next())


async def test_a_tasks_log_is_pushed_line_by_line_and_as_text(house: Site) -> None:
    tasks = house.world.tasks
    upid = tasks.begin("download", object_id="x")
    tasks.logs[upid] += ["first"]
    page = await opened(house)
    await page.follow(f"log:{upid}")
    html = await page.next()
    assert "<div>first</div>" in html
    assert 'data-push="fresh"' in html
    tasks.logs[upid] += [HOSTILE]
    house.world.events.publish(bus.TaskProgressed(upid=upid))
    html = await page.next()
    assert "first" not in html
    assert "<script>" not in html
    assert 'data-push="append"' in html
    tasks.finish(upid)
    assert "TASK OK" in await page.next_with("TASK")


async def test_a_burst_of_changes_becomes_one_message(house: Site) -> None:
    page = await opened(house)
    await page.follow("guests")
    await page.next()
    for _ in range(20):
        house.world.guests.set_state(103, GuestState.STARTING)
        house.world.guests.set_state(103, GuestState.RUNNING)
    assert 'data-state="running"' in await page.next()
    assert await page.is_quiet()


async def test_a_page_that_missed_events_is_sent_everything_again(house: Site) -> None:
    page = await opened(house)
    await page.follow("guests", "tasks")
    await page.next()
    house.world.events.publish(bus.Lagged())
    assert {"guest-rows", "drawer-bar"} <= ids(await page.next())


async def test_logging_out_ends_the_pages_of_that_session(house: Site) -> None:
    access = house.world.access
    assert isinstance(access, HouseAccess)
    page = await opened(house)
    await page.follow("guests")
    await page.next()
    await access.logout(access.ticket("admin@pve"))
    house.world.events.publish(bus.AccessChanged())
    assert await page.close_code() == 4001


@pytest.mark.parametrize("message", ["", "{", '{"topics": 3}', '{"topics": [null]}', "[]"])
async def test_a_message_that_is_not_understood_ends_the_connection(house: Site, message: str) -> None:
    headers = {**house.as_user(), "Origin": house.origin}
    socket = await house.client.ws_connect("/ws/page", headers=headers)
    await socket.send_str(message)
    assert await Page(socket).close_code() == 1008


async def test_nonsense_topics_are_ignored(house: Site) -> None:
    page = await opened(house)
    await page.follow("guest:", "guest:abc:summary", "guest:99999999999999:x", "storage:", "log:", "", "x:y", "host")
    assert ids(await page.next()) == {"host-cpu", "host-memory", "host-disk"}


async def test_another_site_cannot_open_the_websocket(house: Site) -> None:
    headers = {**house.as_user(), "Origin": "https://evil.example"}
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await house.client.ws_connect("/ws/page", headers=headers)
    assert refused.value.status == 403
