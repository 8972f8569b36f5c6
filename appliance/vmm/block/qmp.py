"""QMP (QEMU docs/interop/qmp-spec.rst) as far as the storage daemon needs it: a question, its answer. Blocking.

The peer reads hostile images and may itself have been taken over: what it sends is bounded and checked.
"""

from __future__ import annotations

import json
import socket
import threading
from typing import Any, Final

from appliance.errors import HostError

TIMEOUT_S: Final = 30.0
MAX_BYTES: Final = 1 << 20
MAX_EVENTS: Final = 10_000  # between a question and its answer


class QmpClient:
    """`connection` is ours from now on; `name` is in every error. Any thread, one question at a time."""

    def __init__(self, connection: socket.socket, *, name: str) -> None:
        self.name = name
        self._socket = connection
        self._socket.settimeout(TIMEOUT_S)
        self._lock = threading.Lock()
        self._buffer = b""
        self._greeted = False

    def ask(self, command: str, **arguments: object) -> Any:
        """The `return` of a command. Raises `HostError` with the daemon's own words, or when it says nothing."""
        with self._lock:
            try:
                if not self._greeted:
                    self._line()
                    self._execute("qmp_capabilities", {})
                    self._greeted = True
                return self._execute(command, arguments)
            except (OSError, ValueError) as error:
                raise HostError(f"{self.name}: {command}: {error}") from error

    def close(self) -> None:
        """Harmless when done twice."""
        self._socket.close()

    def _execute(self, command: str, arguments: dict[str, object]) -> Any:
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        for _ in range(MAX_EVENTS):
            answer = self._line()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise ValueError(str(answer["error"].get("desc", answer["error"]))[:500])
        raise ValueError("nothing but events")

    def _line(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            if len(self._buffer) > MAX_BYTES:
                raise ValueError("an answer without an end")
            part = self._socket.recv(65536)
            if not part:
                raise ValueError("the connection was closed")
            self._buffer += part
        line, self._buffer = self._buffer.split(b"\n", 1)
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise ValueError("no object")
        return answer
