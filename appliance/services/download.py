"""Fetching a file by URL: http and https only, redirects counted and judged, every wait bounded."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

import aiohttp
from yarl import URL

from appliance.errors import HostError, InvalidParameter, TimedOut, UserError

REDIRECT_LIMIT: Final = 5
CHUNK_BYTES: Final = 1 << 20
CONNECT_TIMEOUT_S: Final = 30.0
READ_TIMEOUT_S: Final = 60.0
METADATA_TIMEOUT_S: Final = 30.0
TOTAL_TIMEOUT_S: Final = 24 * 3600.0
URL_LIMIT: Final = 4096
_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlMetadata:
    """What a server says of a file before it is fetched."""

    filename: str
    mimetype: str
    size_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """An answer being read. `size_bytes` is what the server promised, None when it did not."""

    size_bytes: int | None
    chunks: AsyncIterator[bytes]


def check_url(text: str) -> URL:
    """Raises `InvalidParameter` for anything but an http or https URL with a host and without a password."""
    try:
        url = URL(text)
    except ValueError as error:
        raise InvalidParameter({"url": f"not a URL: {error}"}) from error
    if url.user is not None or url.password is not None:
        raise InvalidParameter({"url": "credentials in a URL are refused: it is written to logs"})
    if url.scheme not in ("http", "https") or not url.host or len(text) > URL_LIMIT:
        raise InvalidParameter({"url": f"'{text[:100]}' is not an http or https URL"})
    return url


@asynccontextmanager
async def open_download(url: str, *, verify_certificates: bool) -> AsyncIterator[Download]:
    """GET `url`. Raises `InvalidParameter`, `UserError` (the server's answer), `HostError` (no answer), `TimedOut`.

    A body shorter than promised raises `HostError` from `chunks`.
    """
    async with _answer("GET", url, verify_certificates=verify_certificates) as response:
        yield Download(size_bytes=response.content_length, chunks=_chunks(response))


async def query_metadata(url: str, *, verify_certificates: bool) -> UrlMetadata:
    """HEAD `url`. Raises as `open_download`."""
    try:
        async with (
            asyncio.timeout(METADATA_TIMEOUT_S),
            _answer("HEAD", url, verify_certificates=verify_certificates) as response,
        ):
            return UrlMetadata(
                filename=_file_name(response), mimetype=response.content_type, size_bytes=response.content_length
            )
    except TimeoutError as error:
        raise TimedOut(f"metadata of {url}", METADATA_TIMEOUT_S) from error


@asynccontextmanager
async def _answer(verb: str, text: str, *, verify_certificates: bool) -> AsyncIterator[aiohttp.ClientResponse]:
    url = check_url(text)
    limits = aiohttp.ClientTimeout(total=TOTAL_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S)
    # bytes are stored as they are on the server: nothing is unpacked on the way, and no checksum is of something else
    async with aiohttp.ClientSession(
        timeout=limits,
        auto_decompress=False,
        headers={"Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as session:
        for _ in range(REDIRECT_LIMIT + 1):
            try:
                response = await session.request(verb, url, allow_redirects=False, ssl=verify_certificates)
            except TimeoutError as error:
                raise TimedOut(f"connection to {url.host}", CONNECT_TIMEOUT_S) from error
            except aiohttp.ClientError as error:
                raise HostError(f"download {url}: {error}") from error
            async with response:
                if response.status not in _REDIRECTS:
                    if response.status != 200:
                        raise UserError(f"download {url}: the server answers {response.status} {response.reason}")
                    yield response
                    return
                url = check_url(str(url.join(URL(response.headers.get("Location", "")))))
    raise UserError(f"download {text}: more than {REDIRECT_LIMIT} redirects")


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.content.iter_chunked(CHUNK_BYTES):
            yield chunk
    except TimeoutError as error:
        raise TimedOut(f"download {response.url}", READ_TIMEOUT_S) from error
    except aiohttp.ClientError as error:
        raise HostError(f"download {response.url}: cut off: {error}") from error


def _file_name(response: aiohttp.ClientResponse) -> str:
    disposition = response.content_disposition
    name = disposition.filename if disposition is not None and disposition.filename else unquote(response.url.name)
    return re.sub(r"[^A-Za-z0-9_.+=@-]", "_", name.rpartition("/")[2])[-200:]
