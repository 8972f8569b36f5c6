"""HTTP as an enemy speaks it: refused or bounded, and the next request is answered as ever."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.web import server
from tests.e2e.bad_input.client import Client
from tests.harness import Appliance

pytestmark = [pytest.mark.host, pytest.mark.timeout(180)]

VM = "/nodes/{node}/qemu"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(autouse=True)
def still_well(appliance: Appliance, client: Client) -> Iterator[None]:
    """After each test the appliance answers, has made no guest, and has not grown."""
    before = rss_mib(appliance)
    yield
    assert client.call("GET", "/version").status == 200
    assert client.call("GET", "/cluster/resources", params={"type": "vm"}).body["data"] == []
    assert rss_mib(appliance) < before + 60


def rss_mib(appliance: Appliance) -> int:
    assert appliance.process is not None
    status = Path(f"/proc/{appliance.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) // 1024


def status_of(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1."), answer[:200]
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"[]", b"null", b'"x"', b"[1,2", b'{"vmid":}', b'{"vmid":100,}', b"{'vmid':100}", b'{"vmid":1e999}',
        b'{"vmid":NaN}', b'{"a":"\xff"}', b'{"a":"\\ud800"}', b"[" * 100_000, b'{"a":' * 100_000, b"\xef\xbb\xbf{}",
        b'{"vmid":' + b"9" * 100_000 + b"}",
    ],
    ids=range(16),
)  # fmt: skip
def test_json_that_is_none_or_no_object_is_refused(client: Client, body: bytes) -> None:
    reply = client.call("POST", VM, data=body, headers=JSON)
    assert reply.status == 400, reply.text
    assert len(reply.text) < 2000


@pytest.mark.parametrize(
    "body",
    [b"vmid=100&name=%ff%fe", b"vmid=100&name=a%00b", b"vmid=\xff", b"\0\0\0", b"vmid=100&name=%", b"&&&===&&&",
     b"vmid=100&vmid=101", b"vmid[]=100", b"vmid=" + b"1" * 500_000],
    ids=range(9),
)  # fmt: skip
def test_forms_that_are_not_text_or_not_clear_are_refused(client: Client, body: bytes) -> None:
    reply = client.call("POST", VM, data=body, headers=FORM)
    assert reply.status == 400, reply.text
    assert len(reply.text) < 2000


@pytest.mark.parametrize("verb", ["GET", "POST"])
def test_ten_thousand_parameters_are_too_many(client: Client, verb: str) -> None:
    many = "&".join(f"p{number}=1" for number in range(10_000))
    if verb == "POST":
        reply = client.call("POST", VM, data=many, headers=FORM)
        assert reply.status in (400, 413), reply.text
        reply = client.call("POST", VM, data=json.dumps({f"p{n}": n for n in range(10_000)}), headers=JSON)
    else:
        reply = client.call("GET", "/version?" + many)
    assert reply.status in (400, 413, 414), reply.text
    assert len(reply.text) < 5000, "the answer is not as long as the question"


def test_a_body_over_the_limit_is_refused_before_it_is_read(client: Client) -> None:
    head = client.head("POST", VM, "Content-Type: application/json", f"Content-Length: {1 << 40}")
    assert status_of(client.raw(head + b"x" * 1000)) == 413
    reply = client.call("POST", VM, data={"vmid": "100", "description": "x" * (2 << 20)})
    assert reply.status == 413, reply.text
    chunked = client.head("POST", VM, "Content-Type: application/json", "Transfer-Encoding: chunked")
    with client.connect() as connection:
        connection.sendall(chunked)
        with contextlib.suppress(OSError):
            for _ in range(64):  # that an endless body is not read for ever proves tests/web
                connection.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        assert status_of(connection.recv(1000)) == 413


def test_headers_over_the_limit_are_refused(client: Client) -> None:
    for lines in (
        ["X-Big: " + "a" * 100_000],
        [f"X-{number}: {'a' * 100}" for number in range(20_000)],
        ["Cookie: PVEAuthCookie=" + "a" * 60_000],
        ["Authorization: PVEAPIToken=" + "a" * 7000],
    ):
        try:
            answer = client.raw(client.head("GET", "/version", *lines, "Connection: close"))
        except (ConnectionError, ssl.SSLError):
            continue  # refused while it was sent
        assert not answer or status_of(answer) in (200, 400, 401, 431), answer[:200]
    assert status_of(client.raw(client.head("GET", "/version?" + "a" * 100_000, "Connection: close"))) in (400, 414)


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 4096,
        b"\x16\x03\x01" * 1000,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /api2/json/version HTTP/1.1\r\nHost: a\r\nHost: b\r\nBad Header: x\r\n\r\n",
        b"GET /api2/json/version HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /api2/json/access/ticket HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /api2/json/access/ticket HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
        b"POST /api2/json/access/ticket HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nx",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
        b"G\0T / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"TRACE /api2/json/version HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://169.254.169.254/ HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    ids=range(14),
)
def test_bytes_that_are_no_request_get_a_refusal_and_no_more(client: Client, data: bytes) -> None:
    answer = client.raw(data)
    if answer:
        assert status_of(answer) in (303, 400, 403, 404, 405, 501), answer[:300]
    assert b"<script" not in answer


def test_plain_http_on_the_tls_port_does_no_harm(appliance: Appliance) -> None:
    with socket.create_connection(("127.0.0.1", appliance.port), timeout=5) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        plain.settimeout(5)
        with contextlib.suppress(OSError):
            assert not plain.recv(1000).startswith(b"HTTP/1.1 200")


def test_half_requests_keep_nobody_waiting(client: Client, appliance: Appliance) -> None:
    """Others are served while many such connections hang. That each is closed after a while proves tests/web."""
    assert 1 <= server.KEEPALIVE_TIMEOUT_S <= 120
    hanging = []
    try:
        for number in range(100):
            connection = client.connect()
            hanging.append(connection)
            connection.sendall(b"POST /api2/json/access/ticket HTTP/1.1\r\nHost: a\r\n" if number % 2 else b"G")
        begun = time.monotonic()
        assert client.call("GET", "/version").status == 200
        assert time.monotonic() - begun < server.KEEPALIVE_TIMEOUT_S / 2, "nobody waited for them to end"
    finally:
        for connection in hanging:
            connection.close()


def test_cookies_tickets_and_tokens_that_are_garbage_are_401(client: Client, appliance: Appliance) -> None:
    good = client.ticket
    for headers in (
        {"Cookie": "PVEAuthCookie=" + good[:-4] + "AAAA"},
        {"Cookie": "PVEAuthCookie=" + good.replace("admin", "root")},
        {"Cookie": "PVEAuthCookie=%00%ff%fe"},
        {"Cookie": "PVEAuthCookie=PVE:admin@pve:00000000::"},
        {"Cookie": "PVEAuthCookie"},
        {"Cookie": "", "Authorization": "PVEAPIToken=admin@pve!x=00000000-0000-0000-0000-000000000000"},
        {"Cookie": "", "Authorization": "PVEAPIToken="},
        {"Cookie": "", "Authorization": "PVEAPIToken=\xff!=:"},
        {"Cookie": "", "Authorization": "PVEAPIToken=" + "a!" * 3000},
    ):
        reply = client.call("GET", "/nodes", headers={k: v.encode("latin-1") for k, v in headers.items()})
        assert reply.status in (400, 401), (headers, reply.text)
    reply = client.call("POST", VM, data={"vmid": "100"}, headers={"CSRFPreventionToken": "x"})
    assert reply.status in (401, 403), reply.text
