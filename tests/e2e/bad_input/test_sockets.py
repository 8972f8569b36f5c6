"""Websockets as an enemy opens them: no ticket, no console; broken frames end that connection and nothing else."""

from __future__ import annotations

import contextlib
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from tests.e2e.bad_input.client import Client
from tests.e2e.bad_input.conftest import proxmoxer_of
from tests.harness import Appliance
from tests.secure_socket import secured

pytestmark = [pytest.mark.host, pytest.mark.timeout(180)]

CT, VM = 100, 101
PASSWORD = "correct horse battery"


@pytest.fixture(scope="module", autouse=True)
def guests(appliance: Appliance, busybox_template: Path) -> Iterator[None]:
    """A container and a VM that run."""
    api = proxmoxer_of(appliance)
    node = appliance.node(api)
    cache = appliance.data_dir / "storage/local/template/cache"
    (cache / "b.tar.gz").write_bytes(busybox_template.read_bytes())
    upid = node.lxc.post(vmid=CT, ostemplate="local:vztmpl/b.tar.gz", rootfs="local:0.1", memory=64, start=1)
    appliance.finish(api, upid)
    appliance.finish(api, node.qemu.post(vmid=VM, memory=32, serial0="socket", start=1))
    api.access.users.post(userid="other@pve", password=PASSWORD)
    api.access.acl.put(path=f"/vms/{CT}", users="other@pve", roles="PVEVMUser")
    api._store["session"].close()
    yield
    for guest in (node.lxc(CT), node.qemu(VM)):
        appliance.finish(api, guest.status.stop.post())
        appliance.finish(api, guest.delete())
    api._store["session"].close()


def proxy(client: Client, path: str = f"lxc/{CT}", kind: str = "termproxy", **headers: str) -> dict[str, Any]:
    reply = client.call("POST", f"/nodes/{{node}}/{path}/{kind}", headers=headers)
    assert reply.status == 200, reply.text
    return dict(reply.body["data"])


@contextmanager
def opened(
    client: Client, given: dict[str, Any], path: str = f"lxc/{CT}", *, cookie: str | None = None, origin: str = ""
) -> Iterator[ClientConnection]:
    """The websocket of a ticket that `proxy` gave."""
    url = f"ws://127.0.0.1:{client.port}/api2/json/nodes/{client.node}/{path}/vncwebsocket"
    context = ssl.create_default_context(cafile=client.ca)
    with (
        secured(client.port, context) as wire,
        connect(
            f"{url}?port={given['port']}&vncticket={quote(given['ticket'], safe='')}",
            sock=wire,
            additional_headers={"Cookie": f"PVEAuthCookie={client.ticket if cookie is None else cookie}"},
            origin=Origin(origin or f"https://127.0.0.1:{client.port}"),
            compression=None,
            open_timeout=10,
            close_timeout=2,
        ) as socket,
    ):
        yield socket


def status_of(client: Client, given: dict[str, Any], path: str = f"lxc/{CT}", **more: str) -> int:
    """The HTTP status of the attempt; 101 would be a console."""
    try:
        with opened(client, given, path, **more):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


@contextmanager
def console(client: Client) -> Iterator[ClientConnection]:
    """Logged in, at the container's prompt."""
    given = proxy(client)
    with opened(client, given) as socket:
        socket.send(f"{given['user']}:{given['ticket']}\n")
        assert socket.recv(timeout=10) in ("OK", b"OK")
        yield socket


def ended(socket: ClientConnection) -> int:
    """The code the appliance closes with, within a few seconds."""
    with pytest.raises(ConnectionClosed) as caught:  # noqa: PT012  read until it fails
        while True:
            socket.recv(timeout=15)
    return caught.value.rcvd.code if caught.value.rcvd else 1006


def echoes(client: Client) -> None:
    """The container's console still works for those who speak properly."""
    with console(client) as socket:
        keys = b"echo ok-$((41+1))\n"
        socket.send(b"0:%d:%s" % (len(keys), keys))
        seen = b""
        while b"ok-42" not in seen:
            data = socket.recv(timeout=10)
            seen += data if isinstance(data, bytes) else data.encode()


def test_without_a_good_ticket_there_is_no_console(client: Client) -> None:
    given = proxy(client)
    good = given["ticket"]
    for ticket in ("", "x", good[:-5] + "AAAA=", good.replace(str(CT), str(VM)), "\0", "PVEVNC:00000000::x", good * 20):
        if ticket != good:
            assert status_of(client, {**given, "ticket": ticket}) in (400, 401), ticket
    for port in ("0", "99999", "x", ""):
        assert status_of(client, {**given, "port": port}) == 400
    other = proxy(client, f"qemu/{VM}")
    assert status_of(client, {**other, "ticket": good}, f"qemu/{VM}") == 401, "a ticket is for one guest"
    assert status_of(client, given, cookie="x") == 401
    assert status_of(client, given, origin="https://evil.example") == 403
    echoes(client)


def test_a_ticket_of_another_user_opens_nothing(client: Client) -> None:
    form = {"username": "other@pve", "password": PASSWORD}
    login = client.call("POST", "/access/ticket", data=form).body["data"]
    own = {"Cookie": f"PVEAuthCookie={login['ticket']}", "CSRFPreventionToken": login["CSRFPreventionToken"]}
    theirs, ours = proxy(client, **own), proxy(client)
    for cookie, given in ((client.ticket, theirs), (login["ticket"], ours)):
        assert status_of(client, given, cookie=cookie) in (401, 403)
    reply = client.call("POST", f"/nodes/{{node}}/qemu/{VM}/termproxy", headers=own)
    assert reply.status == 403, reply.text


@pytest.mark.parametrize(
    "greeting", ["", "\n", "admin@pve:wrong\n", "x" * 100_000, b"\xff\xfe:x\n", "root@pam:TICKET\n", "admin@pve\n"]
)
def test_a_wrong_greeting_ends_the_connection(client: Client, greeting: str | bytes) -> None:
    given = proxy(client)
    with opened(client, given) as socket:
        socket.send(greeting.replace("TICKET", given["ticket"]) if isinstance(greeting, str) else greeting)
        assert ended(socket) in (4001, 1008, 1009)
    echoes(client)


@pytest.mark.parametrize(
    "frame",
    [
        b"9:1:x", b"0:-1:x", b"0:99999999999999999999:x", b"0:5000000:" + b"x" * 100, b"1:0:0:", b"1:99999:99999:",
        b"1:a:b:", b"\0\0\0", b"0:" + b"1" * 100, b"x" * 200_000, "0:٣:abc", b"1:80:24", b"0:x",
    ],
    ids=range(13),
)  # fmt: skip
def test_broken_packets_end_the_connection_or_wait_for_their_rest(client: Client, frame: bytes | str) -> None:
    with console(client) as socket:
        socket.send(frame)
        if frame not in (b"1:80:24", b"1:0:0:"):  # half a packet; a window that is hidden just now
            assert ended(socket) in (1002, 1008, 1009)


def test_a_message_over_the_limit_ends_the_connection(client: Client) -> None:
    with console(client) as socket:
        with contextlib.suppress(ConnectionClosed):
            socket.send(b"0:60000:" + b"#" * (4 << 20))
        assert ended(socket) in (1006, 1009)
    echoes(client)


def test_frames_that_are_no_websocket_end_the_connection(client: Client) -> None:
    """Unmasked, reserved bits, an endless control frame, a length of 2^63."""
    for frame in (
        b"\x82\x05hello",
        b"\xf2\x85\0\0\0\0hello",
        b"\x89\xfe\xff\xff\0\0\0\0" + b"x" * 65535,
        b"\x82\xff" + struct.pack(">Q", 1 << 63) + b"\0\0\0\0",
        b"\x83\x80\0\0\0\0",
    ):
        given = proxy(client)
        path = f"/nodes/{{node}}/lxc/{CT}/vncwebsocket?port={given['port']}&vncticket={quote(given['ticket'], safe='')}"
        head = client.head(
            "GET", path, "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", f"Origin: https://127.0.0.1:{client.port}",
        )  # fmt: skip
        with client.connect() as connection:
            connection.sendall(head)
            assert b" 101 " in connection.recv(4096)
            connection.sendall(frame)
            connection.settimeout(15)
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                while connection.recv(65536):
                    pass
    echoes(client)


def test_a_display_without_its_handshake_harms_nobody(client: Client) -> None:
    given = proxy(client, f"qemu/{VM}", "vncproxy")
    with opened(client, given, f"qemu/{VM}") as socket:
        assert socket.recv(timeout=10)[:3] == b"RFB"
        socket.send(b"garbage that is no RFB version\n" * 100)
        ended(socket)
    reply = client.call("GET", f"/nodes/{{node}}/qemu/{VM}/status/current")
    assert reply.body["data"]["status"] == "running"
    assert reply.body["data"]["qmpstatus"] == "running"
