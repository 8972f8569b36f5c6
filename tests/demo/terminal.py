"""A guest's console over the websocket, as PVE's xterm clients speak it, through the independent `websockets` client."""

from __future__ import annotations

import re
import ssl
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Any
from urllib.parse import quote

from websockets.sync.client import ClientConnection, connect

from tests.secure_socket import secured

OPEN_TIMEOUT_S = 60.0
"""A machine that is busy with other guests' disks may take its time."""
_ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]|\x1b\][^\x07]*\x07|\x1b[()][A-Z0-9]|[\x00\x0e\x0f]")


class Terminal:
    """One console session: wait for words, type. Everything seen is kept in `seen` (escape sequences removed)."""

    def __init__(self, guest: Any, *, node: str, path: str, port: int, auth: dict[str, str]) -> None:
        """`guest` is proxmoxer's resource of the guest, `path` "qemu/100"; `auth` the HTTP headers of the login."""
        proxy = guest.termproxy.post()
        url = (
            f"ws://127.0.0.1:{port}/api2/json/nodes/{node}/{path}/vncwebsocket"
            f"?port={proxy['port']}&vncticket={quote(proxy['ticket'], safe='')}"
        )
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self.seen = b""
        self._taken = 0
        self._greeting = f"{proxy['user']}:{proxy['ticket']}\n"
        self._stack = ExitStack()
        self._socket: ClientConnection
        try:
            wire = self._stack.enter_context(secured(port, context))
            self._connecting = connect(
                url, sock=wire, additional_headers=auth, max_size=None, compression=None, open_timeout=OPEN_TIMEOUT_S
            )
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Terminal:
        self._socket = self._stack.enter_context(self._connecting)
        self._socket.send(self._greeting)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def type(self, text: str) -> None:
        """Send keys."""
        data = text.encode()
        self._socket.send(b"0:%d:%s" % (len(data), data))

    def wait_for(self, pattern: str, *, timeout_s: float) -> bytes:
        """Return once `pattern` appears in what has not been waited for yet; raises `TimeoutError` with the tail."""
        deadline = time.monotonic() + timeout_s
        expression = re.compile(pattern.encode())
        while True:
            match = expression.search(self.seen, self._taken)
            if match:
                self._taken = match.end()
                return match[0]
            left = deadline - time.monotonic()
            if left <= 0:
                tail = self.seen[-600:].decode(errors="replace")
                raise TimeoutError(f"{pattern!r} not seen on the console within {timeout_s:g} s; it ends with:\n{tail}")
            try:
                message = self._socket.recv(timeout=left)
            except TimeoutError:
                continue
            data = message.encode() if isinstance(message, str) else message
            self.seen = _ESCAPES.sub(b"", self.seen + data)
