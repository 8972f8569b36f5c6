"""Listening for real: TLS and the UNIX socket, and PVE's own client library against both the rules and the wire."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import requests
from proxmoxer import ProxmoxAPI
from proxmoxer.core import ResourceException
from proxmoxer.tools import Tasks

from appliance.errors import Conflict, NotFound
from appliance.services.pki import ensure_server_identity
from appliance.web import server as server_module
from appliance.web.application import build_application
from appliance.web.server import SOCKET_NAME, Server
from tests.fakes.services import NODE, TOKEN, World, fake_services


@dataclass(slots=True)
class Listening:
    """A running server."""

    server: Server
    world: World
    socket_path: Path


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    directory = tmp_path_factory.mktemp("pki")
    now = datetime.datetime.now(datetime.UTC)
    return ensure_server_identity(directory, ["127.0.0.1", "localhost"], now).context()


@contextlib.asynccontextmanager
async def serving(directory: Path, tls: ssl.SSLContext | None, port: int = 0) -> AsyncIterator[Listening]:
    services, world = fake_services(directory)
    socket_path = directory / "run" / SOCKET_NAME
    server = Server(build_application(services))
    await server.start(host="127.0.0.1", port=port, tls=tls, socket_path=socket_path)
    try:
        yield Listening(server, world, socket_path)
    finally:
        await server.close()


@pytest.fixture
async def listening(tmp_path: Path, tls: ssl.SSLContext) -> AsyncIterator[Listening]:
    async with serving(tmp_path, tls) as running:
        yield running


def proxmox(port: int) -> ProxmoxAPI:
    user, _, secret = TOKEN.partition("=")
    name, _, token = user.partition("!")
    return ProxmoxAPI("127.0.0.1", port=port, user=name, token_name=token, token_value=secret, verify_ssl=False)


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
async def test_proxmoxer_reads_writes_and_waits(listening: Listening) -> None:
    world = listening.world
    world.guests.add(100)
    upid = world.tasks.begin("qmstart")
    world.tasks.logs[upid].append("starting")
    world.tasks.finish(upid)

    def use() -> None:
        api = proxmox(listening.server.port)
        with contextlib.closing(api._store["session"]):
            talk(api)

    def talk(api: ProxmoxAPI) -> None:
        assert api.version.get()["version"]
        assert [row["vmid"] for row in api.cluster.resources.get(type="vm")] == [100]
        api.cluster.options.put(keyboard="de")
        assert api.cluster.options.get()["keyboard"] == "de"
        assert Tasks.blocking_status(api, upid, timeout=30)["exitstatus"] == "OK"
        assert Tasks.decode_log(api.nodes(NODE).tasks(upid).log.get()) == "starting\nTASK OK"
        with pytest.raises(ResourceException) as caught:
            api.cluster.options.put(nonsense=1)
        assert (caught.value.status_code, list(caught.value.errors)) == (400, ["nonsense"])
        with pytest.raises(ResourceException) as caught:
            api.nodes(NODE).tasks("UPID:n:00000001:00000001:00000001:x:1:a@pve:").status.get()
        assert caught.value.status_code == 404
        assert "does not exist" in str(caught.value)

    await asyncio.to_thread(use)


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
async def test_many_headers_and_paths_of_another_client_library(listening: Listening) -> None:
    """requests speaks through http.client, which reads the status line as ISO 8859-1."""

    def use() -> tuple[int, str]:
        url = f"https://127.0.0.1:{listening.server.port}/api2/json/nodes/%C3%A9"
        with requests.get(url, headers={"Authorization": f"PVEAPIToken={TOKEN}"}, verify=False, timeout=30) as reply:
            return reply.status_code, reply.reason

    status, reason = await asyncio.to_thread(use)
    assert status == 404
    assert reason.isascii()


async def test_the_local_socket_is_its_owners_and_needs_no_login(listening: Listening) -> None:
    mode = await asyncio.to_thread(lambda: stat.S_IMODE(listening.socket_path.stat().st_mode))
    assert mode == 0o600
    connector = aiohttp.UnixConnector(str(listening.socket_path))
    async with (
        aiohttp.ClientSession("http://local", connector=connector) as session,
        session.put("/api2/json/cluster/options", data={"keyboard": "fr"}) as reply,
    ):
        assert reply.status == 200
    row = listening.world.audit.rows[-1]
    assert (row.who, row.remote) == ("root@pam", "local")


async def test_a_port_in_use_is_named(tmp_path: Path, listening: Listening) -> None:
    with pytest.raises(Conflict, match=f"port {listening.server.port} on 127.0.0.1 is in use"):
        async with serving(tmp_path / "other", None, listening.server.port):
            pass


async def test_an_address_that_is_not_ours_is_named(tmp_path: Path) -> None:
    services, _ = fake_services(tmp_path)
    server = Server(build_application(services))
    with pytest.raises(NotFound, match=r"no\.such\.host\.invalid"):
        await server.start(host="no.such.host.invalid", port=0, tls=None, socket_path=tmp_path / "api.sock")


async def test_a_living_appliances_socket_is_not_taken(tmp_path: Path) -> None:
    async with serving(tmp_path, None) as first:
        with pytest.raises(Conflict, match="another appliance is running"):
            async with serving(tmp_path, None):
                pass
        assert await asyncio.to_thread(first.socket_path.exists)


async def test_a_dead_appliances_socket_is_replaced(tmp_path: Path) -> None:
    def die() -> None:
        import socket

        (tmp_path / "run").mkdir()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / "run" / SOCKET_NAME))

    await asyncio.to_thread(die)
    async with serving(tmp_path, None) as running:
        assert running.server.port > 0
    assert not await asyncio.to_thread((tmp_path / "run" / SOCKET_NAME).exists)


async def test_closing_does_not_wait_for_a_client_that_says_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path, None) as running:
        _, writer = await asyncio.open_connection("127.0.0.1", running.server.port)
        async with asyncio.timeout(5):
            await running.server.close()
        writer.close()


async def test_a_body_cut_half_way_leaves_the_server_well(listening: Listening) -> None:
    _, writer = await asyncio.open_unix_connection(str(listening.socket_path))
    head = "PUT /api2/json/cluster/options HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nkeyboard="
    writer.write(head.encode())
    await writer.drain()
    writer.close()
    connector = aiohttp.UnixConnector(str(listening.socket_path))
    async with (
        aiohttp.ClientSession("http://local", connector=connector) as session,
        session.get("/api2/json/cluster/resources") as reply,
    ):
        assert reply.status == 200


@pytest.mark.parametrize("half", [b"", b"G", b"POST /api2/json/access/ticket HTTP/1.1\r\nHost: a\r\n"])
async def test_whoever_sends_half_a_request_is_hung_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: bytes
) -> None:
    monkeypatch.setattr(server_module, "KEEPALIVE_TIMEOUT_S", 0.2)
    async with serving(tmp_path, None) as listening:
        reader, writer = await asyncio.open_connection("127.0.0.1", listening.server.port)
        writer.write(half)
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


async def test_a_client_that_goes_on_sending_after_its_refusal_is_hung_up_on(tmp_path: Path) -> None:
    """The reply may be read for a moment; then the connection ends, whatever still comes."""
    async with serving(tmp_path, None) as listening:
        reader, writer = await asyncio.open_connection("127.0.0.1", listening.server.port)
        writer.write(b"POST /api2/json/access/ticket HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError, RuntimeError):  # uvloop's word for a transport that has been closed
            async with asyncio.timeout(server_module.LINGER_S + 10):
                while True:
                    writer.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
                    await writer.drain()
                    await asyncio.sleep(0.01)
        with contextlib.suppress(ConnectionError):
            assert (await reader.read(100)).startswith(b"HTTP/1.1 413")
        writer.close()
