"""One registry (OCI distribution-spec 1.1): manifests, blobs, tags, pushes. On the loop.

The registry is hostile: bodies, redirects, headers and waits are bounded, and nothing it sends is believed before its
digest has been computed (by `blobs.py`, for blobs). Credentials go to the registry's own host and to the realm it names
for tokens, over https alone unless the registry is reached otherwise, and never along with a redirect to another host.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Self

import aiohttp
import msgspec
from yarl import URL

from appliance.errors import HostError, NotFound, PermissionDenied, TimedOut, TooManyRequests, UserError
from appliance.storage.oci import challenge
from appliance.storage.oci.credentials import RegistryAccess, Transport
from appliance.storage.oci.manifest import ACCEPTED, MANIFEST_LIMIT_BYTES
from appliance.storage.oci.reference import Digest, Reference

_REDIRECTS: Final = (301, 302, 303, 307, 308)
_ERROR_LIMIT_BYTES: Final = 16 << 10
_TOKEN_LIMIT_BYTES: Final = 64 << 10
_TAGS_LIMIT_BYTES: Final = 8 << 20
_TAGS_LIMIT: Final = 100_000
_READ_BUFFER_BYTES: Final = 4 << 20
CONNECTIONS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long and how far a registry may lead us. A body must bring `slowest_bytes_s` over each `window_s`."""

    connect_s: float = 30.0
    read_s: float = 60.0
    answer_s: float = 120.0
    """For a whole small answer: a manifest, a token, a page of tags."""
    window_s: float = 60.0
    slowest_bytes_s: int = 1024
    redirects: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """A blob being read. `start` is the offset of its first byte: 0 where the registry does not resume."""

    start: int
    chunks: AsyncIterator[bytes]


class RegistryClient:
    """Use as an asynchronous context manager. Raises `UserError` (the registry's answer), `HostError`, `TimedOut`."""

    def __init__(self, access: RegistryAccess, api_host: str, *, limits: Limits | None = None) -> None:
        self._access = access
        self._limits = limits or Limits()
        scheme = "http" if access.transport is Transport.PLAIN else "https"
        self._root = URL(f"{scheme}://{api_host}/v2/")
        self._tokens: dict[str, str] = {}
        self._logging_in = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        ssl_context = await asyncio.to_thread(_ssl_context, self._access)
        limits = self._limits
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS, ssl=ssl_context),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=limits.connect_s, sock_read=limits.read_s),
            auto_decompress=False,
            headers={"Accept-Encoding": "identity", "User-Agent": "appliance"},
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=_READ_BUFFER_BYTES,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    # --- reading ------------------------------------------------------------------------------------------------------

    async def manifest(self, reference: Reference) -> tuple[bytes, Digest]:
        """The manifest or index `reference` names, and its digest, computed here and compared with what was asked for."""
        accept = {"Accept": ", ".join(ACCEPTED)}
        path = f"{reference.repository}/manifests/{reference.version}"
        async with self._small(f"manifest of {reference}"), self._get(path, reference, headers=accept) as response:
            data = await self._read(response, MANIFEST_LIMIT_BYTES, f"manifest of {reference}")
        return data, _check_digest(data, reference)

    @asynccontextmanager
    async def blob(self, reference: Reference, digest: Digest, *, start: int, about: str) -> AsyncIterator[Body]:
        """A blob from the byte `start` on, or from its beginning where the registry knows no ranges."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        path = f"{reference.repository}/blobs/{digest}"
        async with self._get(path, reference, headers=headers, accepted=(200, 206)) as response:
            begins = start if response.status == 206 and _range_begins(response) == start else 0
            if response.status == 206 and not begins and start:
                raise HostError(f"{about}: the registry answers with another part than was asked for")
            yield Body(start=begins, chunks=self._chunks(response, about))

    async def tags(self, reference: Reference) -> list[str]:
        """Every tag of the repository, over all pages."""
        found: list[str] = []
        url: URL | None = self._url(f"{reference.repository}/tags/list")
        about = f"tags of {reference.registry}/{reference.repository}"
        async with self._small(about):
            while url is not None and len(found) < _TAGS_LIMIT:
                async with self._get(url, reference) as response:
                    page = _decode(await self._read(response, _TAGS_LIMIT_BYTES, about), about).get("tags") or []
                    if not isinstance(page, list):
                        raise UserError(f"{about}: the registry's answer is not a list")
                    found += [str(tag)[:128] for tag in page]
                    url = _next_page(response, url)
        return found

    # --- writing ------------------------------------------------------------------------------------------------------

    async def has_blob(self, reference: Reference, digest: Digest) -> bool:
        """Whether the repository has it already."""
        async with self._small(f"blob {digest}"):
            try:
                url = self._url(f"{reference.repository}/blobs/{digest}")
                async with self._request("HEAD", url, _scope(reference, push=True)):
                    return True
            except NotFound:
                return False

    async def upload_blob(
        self, reference: Reference, digest: Digest, size_bytes: int, chunks: AsyncIterator[bytes]
    ) -> None:
        """POST, then one PUT with the whole body (distribution-spec "Pushing a blob monolithically")."""
        scope = _scope(reference, push=True)
        url = self._url(f"{reference.repository}/blobs/uploads/")
        async with self._small(f"upload of {digest}"), self._request("POST", url, scope, accepted=(202,)) as response:
            location = URL(response.headers.get("Location", ""))
            target = url.join(location).update_query({"digest": str(digest)})
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size_bytes)}
        async with self._request("PUT", target, scope, headers=headers, data=chunks, accepted=(201, 204)):
            return

    async def put_manifest(self, reference: Reference, data: bytes, media_type: str) -> None:
        """Name `data` by the reference's tag, or by its own digest."""
        url = self._url(f"{reference.repository}/manifests/{reference.tag or Digest.of(data)}")
        headers = {"Content-Type": media_type}
        scope = _scope(reference, push=True)
        async with (
            self._small(f"manifest of {reference}"),
            self._request("PUT", url, scope, headers=headers, data=data, accepted=(201, 202, 204)),
        ):
            return

    # --- requests -----------------------------------------------------------------------------------------------------

    def _url(self, path: str) -> URL:
        return self._root.join(URL(path))

    @asynccontextmanager
    async def _small(self, about: str) -> AsyncIterator[None]:
        """What is small must be over soon, however slowly it drips."""
        try:
            async with asyncio.timeout(self._limits.answer_s):
                yield
        except TimeoutError as error:
            raise TimedOut(f"registry {self._access.registry}: {about}", self._limits.answer_s) from error

    @asynccontextmanager
    async def _get(
        self,
        where: str | URL,
        reference: Reference,
        *,
        headers: Mapping[str, str] | None = None,
        accepted: Iterable[int] = (200,),
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        url = self._url(where) if isinstance(where, str) else where
        async with self._request("GET", url, _scope(reference), headers=headers, accepted=accepted) as response:
            yield response

    @asynccontextmanager
    async def _request(
        self,
        verb: str,
        url: URL,
        scope: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: bytes | AsyncIterator[bytes] | None = None,
        accepted: Iterable[int] = (200,),
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request, logged in where asked for, redirects followed."""
        replayable = not isinstance(data, AsyncIterator)
        for attempt in range(2):
            response = await self._follow(verb, url, self._authorization(scope) | dict(headers or {}), data)
            async with response:
                if response.status == 401 and attempt == 0 and replayable:
                    await self._log_in(response, scope)
                    continue
                if response.status not in accepted:
                    raise await self._refusal(verb, response)
                yield response
                return

    async def _follow(
        self, verb: str, url: URL, headers: dict[str, str], data: bytes | AsyncIterator[bytes] | None
    ) -> aiohttp.ClientResponse:
        assert self._session is not None
        self._check_url(url)
        for _ in range(self._limits.redirects + 1):
            try:
                response = await self._session.request(verb, url, headers=headers, data=data, allow_redirects=False)
            except TimeoutError as error:
                raise TimedOut(f"registry {self._access.registry}: an answer", self._limits.read_s) from error
            except (aiohttp.ClientError, ValueError, OSError) as error:
                raise HostError(f"registry {self._access.registry}: {error or type(error).__name__}") from error
            if response.status not in _REDIRECTS or verb not in ("GET", "HEAD"):
                return response
            response.release()
            before, url = url, url.join(_location(response))
            self._check_url(url)
            if url.origin() != before.origin():
                headers = {name: value for name, value in headers.items() if name != "Authorization"}
        raise UserError(f"registry {self._access.registry}: more than {self._limits.redirects} redirects")

    def _check_url(self, url: URL) -> None:
        allowed = ("https",) if self._access.transport is Transport.VERIFIED else ("https", "http")
        if url.scheme not in allowed or not url.host or url.user is not None or url.password is not None:
            raise UserError(f"registry {self._access.registry}: refused to go to {str(url)[:200]}")

    # --- logging in ---------------------------------------------------------------------------------------------------

    def _authorization(self, scope: str) -> dict[str, str]:
        token = self._tokens.get(scope) or self._tokens.get("basic")
        return {"Authorization": token} if token else {}

    async def _log_in(self, response: aiohttp.ClientResponse, scope: str) -> None:
        """Answer a challenge; the next request carries the result. Raises `PermissionDenied`."""
        sent = response.request_info.headers.get("Authorization", "")
        asked = challenge.choose(challenge.parse(response.headers.getall("WWW-Authenticate", [])))
        async with self._logging_in:
            if self._authorization(scope).get("Authorization", "") != sent:
                return  # another request has logged in meanwhile
            if asked is None:
                raise PermissionDenied(f"registry {self._access.registry}: refuses, and names no way to log in")
            if asked.scheme == "basic":
                if not self._access.username:
                    raise PermissionDenied(f"registry {self._access.registry}: wants a user name and a password")
                self._tokens["basic"] = self._basic()
            else:
                self._tokens[scope] = await self._fetch_token(asked.parameters, scope)

    async def _fetch_token(self, parameters: Mapping[str, str], scope: str) -> str:
        about = f"registry {self._access.registry}: token"
        query = {"scope": scope, **({"service": parameters["service"]} if "service" in parameters else {})}
        try:
            url = URL(parameters["realm"]).update_query(query)
        except ValueError as error:
            raise UserError(f"{about}: the realm is not a URL") from error
        headers = {"Authorization": self._basic()} if self._access.username else {}
        async with self._small("token"), await self._follow("GET", url, headers, None) as response:
            if response.status != 200:
                raise await self._refusal("GET", response)
            answer = _decode(await self._read(response, _TOKEN_LIMIT_BYTES, about), about)
        token = answer.get("token") or answer.get("access_token")
        if not isinstance(token, str) or not token or not token.isprintable():
            raise UserError(f"{about}: the answer holds none")
        return f"Bearer {token}"

    def _basic(self) -> str:
        pair = f"{self._access.username}:{self._access.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"

    # --- answers ------------------------------------------------------------------------------------------------------

    async def _chunks(self, response: aiohttp.ClientResponse, about: str) -> AsyncIterator[bytes]:
        """The body as it comes, refused when it drips."""
        loop, limits = asyncio.get_running_loop(), self._limits
        began, received = loop.time(), 0
        try:
            while chunk := await response.content.readany():
                received += len(chunk)
                yield chunk
                if (past := loop.time() - began) > limits.window_s:
                    if received < limits.slowest_bytes_s * past:
                        raise TimedOut(f"{about}: slower than {limits.slowest_bytes_s} bytes a second", past)
                    began, received = loop.time(), 0
        except TimeoutError as error:
            raise TimedOut(f"{about}: the next bytes", limits.read_s) from error
        except (aiohttp.ClientError, OSError) as error:
            raise HostError(f"{about}: cut off: {error or type(error).__name__}") from error

    async def _read(self, response: aiohttp.ClientResponse, limit_bytes: int, about: str) -> bytes:
        """A whole small body."""
        data = bytearray()
        async for chunk in self._chunks(response, about):
            data += chunk
            if len(data) > limit_bytes:
                raise UserError(f"{about}: larger than the limit of {limit_bytes} bytes")
        return bytes(data)

    async def _refusal(self, verb: str, response: aiohttp.ClientResponse) -> UserError:
        said = b""
        if verb != "HEAD":
            try:
                async with asyncio.timeout(self._limits.read_s):
                    said = await response.content.read(_ERROR_LIMIT_BYTES)
            except (aiohttp.ClientError, TimeoutError, OSError):
                said = b""
        place = response.url.with_query(None)
        text = f"registry {self._access.registry}: {place.path} answers {response.status}{_registry_error(said)}"
        match response.status:
            case 404:
                return NotFound(f"registry {self._access.registry}: {place.path.removeprefix('/v2/')}")
            case 401 | 403:
                return PermissionDenied(text)
            case 429:
                return TooManyRequests(text, retry_after_s=_retry_after(response))
            case _:
                return UserError(text)


def _ssl_context(access: RegistryAccess) -> ssl.SSLContext:
    if access.transport is Transport.VERIFIED:
        return ssl.create_default_context(cadata=access.ca or None)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _scope(reference: Reference, *, push: bool = False) -> str:
    return f"repository:{reference.repository}:pull{',push' if push else ''}"


def _check_digest(data: bytes, reference: Reference) -> Digest:
    if reference.digest is None:
        return Digest.of(data)
    found = hashlib.new(reference.digest.algorithm, data).hexdigest()
    if found != reference.digest.hex:
        raise UserError(f"manifest of {reference}: its digest is {reference.digest.algorithm}:{found}")
    return reference.digest


def _location(response: aiohttp.ClientResponse) -> URL:
    try:
        return URL(response.headers.get("Location", ""))
    except ValueError as error:
        raise UserError(f"{response.url.host}: redirects to what is not a URL") from error


def _range_begins(response: aiohttp.ClientResponse) -> int:
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    first = rest.partition("-")[0]
    return int(first) if unit == "bytes" and first.isdecimal() and len(first) < 20 else -1


def _next_page(response: aiohttp.ClientResponse, url: URL) -> URL | None:
    link = response.links.get("next")
    following = link.get("url") if link is not None else None
    if not isinstance(following, URL) or following.origin() != url.origin():
        return None
    return following


def _retry_after(response: aiohttp.ClientResponse) -> float:
    text = response.headers.get("Retry-After", "")
    return float(min(int(text), 3600)) if text.isdecimal() and len(text) < 9 else 1.0


def _decode(data: bytes, about: str) -> dict[str, object]:
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UserError(f"{about}: the registry's answer is not JSON") from error
    if not isinstance(value, dict):
        raise UserError(f"{about}: the registry's answer is not an object")
    return value


def _registry_error(said: bytes) -> str:
    """The first error of a registry's answer (distribution-spec "Error Codes"), on one line."""
    try:
        first = msgspec.json.decode(said)["errors"][0]
        text = f"{first.get('code', '')}: {first.get('message', '')}"
    except (msgspec.DecodeError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
        return ""
    return f" ({' '.join(text.split())[:200]})" if text.strip(": ") else ""
