"""Consoles over websockets, judged by an independent client (`websockets`): both protocols, tickets, pressure, hostility."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from urllib.parse import urlencode

import pytest
import websockets
from websockets.asyncio.client import ClientConnection

from appliance.events import AccessChanged
from appliance.model.guest import GuestKind
from appliance.web.ws.console import LAGGED, NOT_AUTHENTICATED
from tests.fakes.services import NODE
from tests.fakes.viewer import FakeViewer
from tests.web.conftest import Site

VM, CT = "qemu/100", "lxc/101"
PORTS = {VM: 5901, CT: 5910}
TIMEOUT_S = 30


@pytest.fixture
def consoles(site: Site) -> dict[str, FakeViewer]:
    site.world.guests.add(100)
    site.world.guests.add(101, GuestKind.LXC)
    found = {VM: FakeViewer(echo=True), CT: FakeViewer(limit=4)}
    site.world.guests.consoles = {(100, "serial0"): found[VM], (101, "console"): found[CT]}
    return found


async def ticket_for(site: Site, guest: str, proxy: str = "termproxy", user: str = "admin@pve") -> dict[str, str]:
    path = f"/api2/json/nodes/{NODE}/{guest}/{proxy}"
    async with site.client.post(path, headers=site.as_user(user)) as reply:
        assert reply.status == 200, reply.reason
        return dict((await reply.json())["data"])


@contextlib.asynccontextmanager
async def opened(
    site: Site, guest: str, ticket: str, user: str = "admin@pve", port: int = 0
) -> AsyncIterator[ClientConnection]:
    query = urlencode({"port": port or PORTS[guest], "vncticket": ticket})
    url = f"ws://{site.client.host}:{site.client.port}/api2/json/nodes/{NODE}/{guest}{'/' if guest else ''}vncwebsocket?{query}"
    headers = {"Cookie": f"PVEAuthCookie={site.world.access.ticket(user)}"}
    async with websockets.connect(
        url, additional_headers=headers, origin=websockets.Origin(site.origin),
        subprotocols=[websockets.Subprotocol("binary")], max_size=None,
    ) as socket:  # fmt: skip
        yield socket


@contextlib.asynccontextmanager
async def terminal(site: Site, guest: str) -> AsyncIterator[ClientConnection]:
    answer = await ticket_for(site, guest)
    async with opened(site, guest, answer["ticket"]) as socket:
        await socket.send(f"{answer['user']}:{answer['ticket']}\n")
        assert await socket.recv() == b"OK"
        yield socket


async def test_a_terminal_echoes_what_is_typed(site: Site, consoles: dict[str, FakeViewer]) -> None:
    async with terminal(site, VM) as socket, asyncio.timeout(TIMEOUT_S):
        assert socket.subprotocol == "binary"
        await socket.send("0:5:hello")
        assert await socket.recv() == b"hello"
        await socket.send(b"1:100:30:")
        await socket.send("0:2:é")
        await consoles[VM].changed.wait()
        assert await socket.recv() == "é".encode()
    await asyncio.wait_for(consoles[VM].closed.wait(), TIMEOUT_S)
    assert consoles[VM].sizes == [(100, 30)]


async def test_the_tickets_reply_has_what_clients_read(site: Site, consoles: dict[str, FakeViewer]) -> None:
    answer = await ticket_for(site, CT)
    assert set(answer) == {"user", "ticket", "port", "upid"}
    assert answer["upid"].startswith(f"UPID:{NODE}:")
    assert answer["user"] == "admin@pve"


async def test_the_end_of_the_console_closes_the_socket(site: Site, consoles: dict[str, FakeViewer]) -> None:
    async with terminal(site, CT) as socket, asyncio.timeout(TIMEOUT_S):
        await consoles[CT].say(b"bye\r\n")
        await consoles[CT].end()
        assert await socket.recv() == b"bye\r\n"
        with pytest.raises(websockets.ConnectionClosedOK):
            await socket.recv()


async def test_a_viewer_that_fell_behind_is_told_to_attach_again(site: Site, consoles: dict[str, FakeViewer]) -> None:
    async with terminal(site, CT) as socket, asyncio.timeout(TIMEOUT_S):
        await consoles[CT].lag()
        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()
        assert socket.close_code == LAGGED


@pytest.mark.parametrize("packet", ["0:99999999:", "9", b"\xff\xfe", "0:1x:a"])
async def test_hostile_packets_end_only_this_viewer(
    site: Site, consoles: dict[str, FakeViewer], packet: str | bytes
) -> None:
    async with terminal(site, CT) as socket, asyncio.timeout(TIMEOUT_S):
        await socket.send(packet)
        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1002
    await asyncio.wait_for(consoles[CT].closed.wait(), TIMEOUT_S)


async def test_a_message_over_the_limit_ends_only_this_viewer(site: Site, consoles: dict[str, FakeViewer]) -> None:
    async with terminal(site, CT) as socket, asyncio.timeout(TIMEOUT_S):
        await socket.send(b"0" * (1 << 20))
        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1009


@pytest.mark.parametrize("greeting", ["", "admin@pve:nonsense\n", "root@pam:{ticket}\n", b"\xff", "x" * 10_000])
async def test_a_wrong_greeting_gets_nothing(
    site: Site, consoles: dict[str, FakeViewer], greeting: str | bytes
) -> None:
    ticket = (await ticket_for(site, CT))["ticket"]
    async with opened(site, CT, ticket) as socket, asyncio.timeout(TIMEOUT_S):
        await socket.send(greeting.replace("{ticket}", ticket) if isinstance(greeting, str) else greeting)
        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()
        assert socket.close_code == NOT_AUTHENTICATED


async def refused(site: Site, guest: str, ticket: str, user: str = "admin@pve") -> int:
    with pytest.raises(websockets.InvalidStatus) as caught:
        async with opened(site, guest, ticket, user):
            pass
    return caught.value.response.status_code


async def test_a_ticket_opens_one_guest_for_one_user(site: Site, consoles: dict[str, FakeViewer]) -> None:
    ticket = (await ticket_for(site, VM))["ticket"]
    site.world.access.grant("eve@pve", "/vms/100", "VM.Console")
    assert await refused(site, CT, ticket) == 401
    assert await refused(site, VM, ticket, "eve@pve") == 401
    assert await refused(site, VM, ticket, "mallory@pve") == 403
    assert await refused(site, VM, "PVEVNC:forged") == 401


async def test_a_console_ends_with_the_right_to_it(site: Site, consoles: dict[str, FakeViewer]) -> None:
    site.world.access.grant("eve@pve", "/vms/100", "VM.Console")
    answer = await ticket_for(site, VM, user="eve@pve")
    async with opened(site, VM, answer["ticket"], "eve@pve") as socket, asyncio.timeout(TIMEOUT_S):
        await socket.send(f"{answer['user']}:{answer['ticket']}\n")
        assert await socket.recv() == b"OK"
        site.world.events.publish(AccessChanged())
        await socket.send(b"0:5:hello")
        assert await socket.recv() == b"hello"
        site.world.access.grant("eve@pve", "/vms/100", "VM.Audit")
        site.world.events.publish(AccessChanged())
        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()
        assert socket.close_code == NOT_AUTHENTICATED


async def test_a_port_that_is_no_console_is_refused(site: Site, consoles: dict[str, FakeViewer]) -> None:
    ticket = (await ticket_for(site, CT))["ticket"]
    for port in (5900, 5901, 5999):
        with pytest.raises(websockets.InvalidStatus) as caught:
            async with opened(site, CT, ticket, port=port):
                pass
        assert caught.value.response.status_code == 400


async def test_a_console_that_cannot_be_opened_is_an_http_error(site: Site, consoles: dict[str, FakeViewer]) -> None:
    ticket = (await ticket_for(site, VM))["ticket"]
    site.world.guests.consoles.clear()
    assert await refused(site, VM, ticket) == 409


async def test_another_sites_page_cannot_open_a_console(site: Site, consoles: dict[str, FakeViewer]) -> None:
    ticket = (await ticket_for(site, VM))["ticket"]
    url = f"/api2/json/nodes/{NODE}/{VM}/vncwebsocket?{urlencode({'port': 5901, 'vncticket': ticket})}"
    headers = site.as_user() | {"Connection": "upgrade", "Upgrade": "websocket", "Origin": "https://evil.example"}
    async with site.client.get(url, headers=headers) as reply:
        assert reply.status == 403


async def test_a_plain_request_is_told_to_upgrade(site: Site, consoles: dict[str, FakeViewer]) -> None:
    ticket = (await ticket_for(site, VM))["ticket"]
    url = f"/api2/json/nodes/{NODE}/{VM}/vncwebsocket?{urlencode({'port': 5901, 'vncticket': ticket})}"
    async with site.client.get(url, headers=site.as_user() | {"Origin": site.origin}) as reply:
        assert (reply.status, list((await reply.json())["errors"])) == (400, ["upgrade"])


async def test_a_display_is_relayed_byte_for_byte(site: Site, consoles: dict[str, FakeViewer]) -> None:
    heard = bytearray()
    said = os.urandom(3 << 20)

    async def vnc_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"RFB 003.008\n")
        heard.extend(await reader.readexactly(12))
        writer.write(said)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(vnc_server, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    site.world.guests.displays[100] = lambda: asyncio.open_connection(host, port)
    ticket = (await ticket_for(site, VM, "vncproxy"))["ticket"]
    async with server, opened(site, VM, ticket, port=5900) as socket, asyncio.timeout(TIMEOUT_S):
        assert await socket.recv() == b"RFB 003.008\n"
        await socket.send(b"RFB 003.008\n")
        got = bytearray()
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                got += bytes(await socket.recv(decode=False))
    assert (bytes(heard), bytes(got)) == (b"RFB 003.008\n", said)


async def test_containers_have_no_display(site: Site, consoles: dict[str, FakeViewer]) -> None:
    async with site.client.post(f"/api2/json/nodes/{NODE}/{CT}/vncproxy", headers=site.as_user()) as reply:
        assert reply.status == 501


async def test_the_hosts_prompt_asks_for_a_name(site: Site) -> None:
    """Marked by nothing: login(1) is on every Debian; nobody logs in."""
    async with site.client.post(f"/api2/json/nodes/{NODE}/termproxy", headers=site.as_user("eve@pve")) as reply:
        assert reply.status == 403
    async with site.client.post(f"/api2/json/nodes/{NODE}/termproxy", headers=site.as_user()) as reply:
        answer = (await reply.json())["data"]
    async with opened(site, "", answer["ticket"], port=answer["port"]) as socket, asyncio.timeout(TIMEOUT_S):
        await socket.send(f"{answer['user']}:{answer['ticket']}\n")
        assert await socket.recv() == b"OK"
        await socket.send("1:100:30:")
        seen = b""
        while b"login: " not in seen:
            seen += bytes(await socket.recv(decode=False))
        await socket.send("0:7:nobody\n")
        while b"assword: " not in seen:
            seen += bytes(await socket.recv(decode=False))


async def test_much_output_arrives_byte_for_byte_and_waits_for_the_reader(
    site: Site, consoles: dict[str, FakeViewer]
) -> None:
    chunks = [os.urandom(64 << 10)] * 160
    async with terminal(site, CT) as socket, asyncio.timeout(TIMEOUT_S):
        console = consoles[CT]
        writing = asyncio.create_task(_say_all(console, chunks))
        got = bytearray()
        while len(got) < 160 * (64 << 10):
            got += bytes(await socket.recv(decode=False))
        await writing
    assert bytes(got) == b"".join(chunks)


async def _say_all(console: FakeViewer, chunks: list[bytes]) -> None:
    for chunk in chunks:
        await console.say(chunk)


async def test_closing_the_application_says_goodbye(site: Site, consoles: dict[str, FakeViewer]) -> None:
    async with terminal(site, CT) as socket, asyncio.timeout(TIMEOUT_S):
        await site.client.server.close()
        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1001
