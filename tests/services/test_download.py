"""Fetching by URL from a server that does its worst."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from appliance.errors import ApplianceError, InvalidParameter, UserError
from appliance.services.download import check_url, open_download, query_metadata


async def file(request: web.Request) -> web.Response:
    return web.Response(body=b"content", headers={"Content-Disposition": 'attachment; filename="../../x y.iso"'})


async def cut(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b"half")
    assert request.transport is not None
    request.transport.close()
    return response


async def redirect(request: web.Request) -> web.Response:
    return web.Response(status=302, headers={"Location": request.query["to"]})


@pytest.fixture
async def server() -> AsyncIterator[TestServer]:
    app = web.Application()
    app.add_routes([web.get("/x.iso", file), web.get("/cut", cut), web.get("/redirect", redirect)])
    server = TestServer(app)
    async with server:
        yield server


async def fetch(url: str) -> bytes:
    async with open_download(url, verify_certificates=True) as download:
        return b"".join([chunk async for chunk in download.chunks])


async def test_a_file_is_fetched_directly_and_through_a_redirect(server: TestServer) -> None:
    assert await fetch(str(server.make_url("/x.iso"))) == b"content"
    assert await fetch(str(server.make_url("/redirect?to=/x.iso"))) == b"content"


async def test_a_redirect_to_itself_ends(server: TestServer) -> None:
    url = server.make_url("/redirect").with_query({"to": ""})
    loop = url.with_query({"to": str(server.make_url("/redirect?to=/redirect"))})
    with pytest.raises(UserError):
        await asyncio.wait_for(fetch(str(loop)), 10)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://x/y", "gopher://x", "javascript:1"])
async def test_a_redirect_to_another_scheme_is_refused(server: TestServer, target: str) -> None:
    with pytest.raises(InvalidParameter, match="not an http"):
        await fetch(str(server.make_url("/redirect").with_query({"to": target})))


async def test_a_body_cut_short_is_an_error(server: TestServer) -> None:
    with pytest.raises(ApplianceError, match="cut off"):
        await fetch(str(server.make_url("/cut")))


async def test_what_is_not_there_is_told_with_the_servers_status(server: TestServer) -> None:
    with pytest.raises(UserError, match="404"):
        await fetch(str(server.make_url("/none")))


async def test_metadata_never_leads_out_of_a_directory(server: TestServer) -> None:
    found = await query_metadata(str(server.make_url("/x.iso")), verify_certificates=True)
    assert (found.filename, found.size_bytes) == ("x_y.iso", 7)


@pytest.mark.parametrize("text", ["http://user:secret@host/x.iso", "https://user@host/x.iso", "ftp://u:secret@host/"])
def test_credentials_in_a_url_are_refused_and_not_repeated(text: str) -> None:
    """The address is written to task logs and the audit log."""
    with pytest.raises(InvalidParameter) as caught:
        check_url(text)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["file:///etc/passwd", "http://", "x", "", "http:///x", "https://" + "a" * 5000])
def test_only_http_urls_with_a_host_are_urls(text: str) -> None:
    with pytest.raises(InvalidParameter):
        check_url(text)
