"""The API as the command line speaks it: blocking HTTP over the local UNIX socket, or TLS with a pinned certificate."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import socket
import ssl
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from appliance.cli.errors import STATUS_OF_HTTP, CliError, Exit
from appliance.config import DEFAULT_DATA_DIR, default_run_dir

CONNECT_TIMEOUT_S = 10.0
REPLY_TIMEOUT_S = 120.0
PIECE_BYTES = 256 << 10
DEFAULT_PORT = 8006
SOCKET_NAME = "api.sock"
VERBS = {"get": "GET", "create": "POST", "set": "PUT", "delete": "DELETE"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Which appliance is spoken to, and as whom. Without `url` the local one, as root."""

    url: str = ""
    token: str = ""
    fingerprint: str = ""
    """SHA-256 of the appliance's CA or server certificate, hexadecimal; without it the system's CAs must know it."""
    socket_path: Path = default_run_dir(DEFAULT_DATA_DIR) / SOCKET_NAME

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or DEFAULT_PORT

    def headers(self) -> dict[str, str]:
        """What authenticates a request."""
        return {"Authorization": f"PVEAPIToken={self.token.removeprefix('PVEAPIToken=')}"} if self.token else {}

    def tls(self) -> ssl.SSLContext:
        """A context that trusts the pinned certificate and nothing else, or the system's CAs."""
        if not self.fingerprint:
            return ssl.create_default_context()
        context = ssl.create_default_context(cadata=self._pinned_certificate())
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.check_hostname = False  # the pinned certificate is the identity, whatever name it was reached by
        return context

    def _pinned_certificate(self) -> bytes:
        """The certificate of the server's chain that has the fingerprint. Nothing is sent on this connection."""
        wanted = self.fingerprint.replace(":", "").lower()
        unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        unverified.check_hostname = False
        unverified.verify_mode = ssl.CERT_NONE
        try:
            with (
                socket.create_connection((self.host, self.port), timeout=CONNECT_TIMEOUT_S) as plain,
                unverified.wrap_socket(plain, server_hostname=self.host) as tls,
            ):
                chain = list(_chain(tls))
        except OSError as error:
            raise CliError(f"{self.url}: {error}", Exit.UNREACHABLE) from error
        for certificate in chain:
            if hashlib.sha256(certificate).hexdigest() == wanted:
                return certificate
        seen = ", ".join(hashlib.sha256(certificate).hexdigest() for certificate in chain)
        raise CliError(f"{self.url}: its certificates are {seen}, not the one expected", Exit.UNREACHABLE)


def _chain(tls: ssl.SSLSocket) -> list[bytes]:
    """The certificates the server sent, in DER; public in Python 3.13, reachable before."""
    if hasattr(tls, "get_unverified_chain"):
        return [bytes(certificate) for certificate in tls.get_unverified_chain()]
    inner: Any = tls._sslobj  # type: ignore[attr-defined]  # Python 3.11 has the method on the inner object only
    der = 2  # _ssl.ENCODING_DER
    return [bytes(certificate.public_bytes(der)) for certificate in inner.get_unverified_chain()]


@dataclass(frozen=True, slots=True)
class Body:
    """What a request carries: `size` bytes in all."""

    parts: Iterable[bytes]
    size: int
    content_type: str


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=REPLY_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(REPLY_TIMEOUT_S)
        self.sock.connect(str(self._path))


class Api:
    """One connection, kept open over calls. Use as a context manager."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._connection: http.client.HTTPConnection | None = None

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()

    def get(self, path: str, **params: object) -> Any:
        """What is under "data"."""
        return self.call("GET", path, params)

    def call(self, verb: str, path: str, params: Mapping[str, object] | None = None) -> Any:
        """Call a method; returns what is under "data". Raises `CliError`."""
        return self.request(verb, "/api2/json" + quote(path, safe="/:"), params).get("data")

    def document(self) -> dict[str, Any]:
        """The appliance's OpenAPI document. Raises `CliError`."""
        return self.request("GET", "/api2/openapi.json")

    def request(self, verb: str, path: str, params: Mapping[str, object] | None = None) -> dict[str, Any]:
        """The whole JSON reply of any path of the server. Raises `CliError`."""
        form = urlencode({name: value for name, value in (params or {}).items() if value is not None})
        if verb in ("GET", "DELETE"):
            return self.send(verb, f"{path}?{form}" if form else path, None)
        body = Body((form.encode(),), len(form), "application/x-www-form-urlencoded")
        return self.send(verb, path, body)

    def send(self, verb: str, path: str, body: Body | None) -> dict[str, Any]:
        """One request with any body; the whole JSON reply. Raises `CliError`."""
        reply = self._open(verb, path, body)
        try:
            content = reply.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(error) from error
        return _understood(reply.status, reply.reason, content)

    def stream(self, verb: str, path: str, form: str = "", *, lines: bool = True) -> Iterator[bytes]:
        """The body of a long reply as it comes, by lines or pieces. Raises `CliError`, also half-way."""
        body = Body((form.encode(),), len(form.encode()), "application/x-www-form-urlencoded") if form else None
        reply = self._open(verb, path, body)
        try:
            if reply.status >= 400:
                _understood(reply.status, reply.reason, reply.read())
            if self._connection is not None and self._connection.sock is not None:
                self._connection.sock.settimeout(None)  # a program may say nothing for hours
            while data := reply.readline() if lines else reply.read1(PIECE_BYTES):
                yield data
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(error) from error
        finally:
            if not reply.closed:
                self._connection = None  # what was not read is not the next reply

    def _open(self, verb: str, path: str, body: Body | None) -> http.client.HTTPResponse:
        headers = {"Accept": "application/json", **self.target.headers()}
        if body is not None:
            headers |= {"Content-Type": body.content_type, "Content-Length": str(body.size)}
        try:
            connection = self._connect()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused half-way: the reply says why
                connection.request(verb, path, body=body.parts if body else None, headers=headers)
            return connection.getresponse()
        except FileNotFoundError as error:
            raise CliError(
                f"no appliance is running here: {self.target.socket_path} does not exist", Exit.UNREACHABLE
            ) from error
        except ssl.SSLCertVerificationError as error:
            self._connection = None
            hint = "to trust it, give the fingerprint that `appliance get /nodes` shows there as --ca-fingerprint"
            raise CliError(f"{self.target.url}: {error.verify_message}; {hint}", Exit.UNREACHABLE) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> CliError:
        self._connection = None
        where = self.target.url or self.target.socket_path
        return CliError(f"{where}: {error or type(error).__name__}", Exit.UNREACHABLE)

    def _connect(self) -> http.client.HTTPConnection:
        if self._connection is None:
            if not self.target.url:
                self._connection = _UnixConnection(self.target.socket_path)
            else:
                self._connection = http.client.HTTPSConnection(
                    self.target.host, self.target.port, timeout=REPLY_TIMEOUT_S, context=self.target.tls()
                )
        return self._connection


def _understood(status: int, reason: str, content: bytes) -> dict[str, Any]:
    try:
        decoded: object = json.loads(content) if content else {}
    except ValueError:
        decoded = {}
    reply = decoded if isinstance(decoded, dict) else {}
    if status < 400:
        return reply
    lines = [str(reply.get("message") or reason)]
    lines += [f"  {name}: {text}" for name, text in (reply.get("errors") or {}).items()]
    raise CliError("\n".join(lines), STATUS_OF_HTTP.get(status, Exit.FAILED))


def target_from_environment() -> Target:
    """APPLIANCE_URL, APPLIANCE_TOKEN, APPLIANCE_CA_FINGERPRINT and APPLIANCE_SOCKET, where set."""
    path = os.environ.get("APPLIANCE_SOCKET")
    return Target(
        url=os.environ.get("APPLIANCE_URL", ""),
        token=os.environ.get("APPLIANCE_TOKEN", ""),
        fingerprint=os.environ.get("APPLIANCE_CA_FINGERPRINT", ""),
        socket_path=Path(path) if path else Target().socket_path,
    )
