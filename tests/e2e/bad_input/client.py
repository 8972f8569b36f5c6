"""A client of the API that sends what it is told to, well formed or not."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from typing import Any

import requests

from tests.harness import Appliance

TIMEOUT_S = 60
ANSWER_S = 5.0
"""Within which something is heard of whatever is answered at all."""


@dataclass(frozen=True)
class Reply:
    """What came back; `body` is the decoded JSON or {}."""

    status: int
    reason: str
    body: dict[str, Any]

    @property
    def errors(self) -> dict[str, str]:
        """What is wrong, by parameter."""
        return dict(self.body.get("errors") or {})

    @property
    def text(self) -> str:
        return f"{self.reason} {self.body.get('message', '')} {self.errors}"


class Client:
    """Logged in as the administrator, over verified TLS."""

    def __init__(self, appliance: Appliance) -> None:
        self.port = appliance.port
        self.base = f"https://127.0.0.1:{appliance.port}/api2/json"
        self.ca = str(appliance.data_dir / "pki" / "ca.pem")
        self.headers: dict[str, str] = {}
        form = {"username": "admin@pve", "password": appliance.password}
        login = self.call("POST", "/access/ticket", data=form).body["data"]
        self.ticket, self.csrf = login["ticket"], login["CSRFPreventionToken"]
        self.headers = {"Cookie": f"PVEAuthCookie={self.ticket}", "CSRFPreventionToken": self.csrf}
        self.node = self.call("GET", "/nodes").body["data"][0]["node"]

    def call(self, verb: str, path: str, **more: Any) -> Reply:
        """A request by `requests`, whose keyword arguments are `more` (params, data, json, files, headers)."""
        headers = {**self.headers, **more.pop("headers", {})}
        url = self.base + path.replace("{node}", getattr(self, "node", ""))
        with requests.Session() as session:
            session.trust_env = False  # REQUESTS_CA_BUNDLE would win over `verify`
            answer = session.request(verb, url, headers=headers, timeout=TIMEOUT_S, verify=self.ca, **more)
        try:
            body = answer.json()
        except ValueError:
            body = {}
        return Reply(answer.status_code, answer.reason, body if isinstance(body, dict) else {})

    def connect(self) -> ssl.SSLSocket:
        """A TLS connection for bytes of one's own."""
        context = ssl.create_default_context(cafile=self.ca)
        return context.wrap_socket(
            socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_S), server_hostname="127.0.0.1"
        )

    def head(self, verb: str, path: str, *lines: str) -> bytes:
        """A request's head with our credentials, for `connect`."""
        fields = [f"Host: 127.0.0.1:{self.port}", *(f"{name}: {value}" for name, value in self.headers.items()), *lines]
        url = "/api2/json" + path.replace("{node}", self.node)
        return ("\r\n".join([f"{verb} {url} HTTP/1.1", *fields]) + "\r\n\r\n").encode()

    def raw(self, data: bytes) -> bytes:
        """Send `data`, and return everything that comes until the appliance closes or says nothing more."""
        received = b""
        with self.connect() as connection:
            connection.sendall(data)
            connection.settimeout(ANSWER_S)
            try:
                while chunk := connection.recv(65536):
                    received += chunk
                    connection.settimeout(1.0)
            except (TimeoutError, ConnectionResetError, ssl.SSLError):
                pass
        return received
