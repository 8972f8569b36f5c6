"""sd_notify(3): tell the service manager about the process's state, when there is one."""

from __future__ import annotations

import contextlib
import os
import socket


class ServiceManager:
    """The other end of $NOTIFY_SOCKET; a no-op where there is none."""

    def __init__(self, address: str) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address

    @classmethod
    def take(cls) -> ServiceManager:
        """The manager of this process. The variable is removed, so that helpers (an OCI runtime) do not speak for us."""
        return cls(os.environ.pop("NOTIFY_SOCKET", ""))

    def notify(self, message: str) -> None:
        """Send `message` ("READY=1", "STOPPING=1"); a manager that does not listen is no error."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.setblocking(False)
            with contextlib.suppress(OSError):
                manager.sendto(message.encode(), self._address)
