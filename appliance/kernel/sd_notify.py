"""sd_notify(3): tell the service manager about the process's state, when there is one."""

from __future__ import annotations

import contextlib
import os
import socket


class ServiceManager:
    """The other end of $NOTIFY_SOCKET; a no-op where there is none."""

    def __init__(self, address: str, *, watchdog_s: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = watchdog_s if address else 0.0
        """How long the manager waits for WATCHDOG=1 before it ends the process; 0 when it does not watch."""

    @classmethod
    def take(cls) -> ServiceManager:
        """The manager of this process. The variables are removed, so that helpers (an OCI runtime) do not speak for us."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        watchdog, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        # sd_watchdog_enabled(3): the variable of a parent's watchdog is not ours
        ours = watchdog.isdigit() and pid in ("", str(os.getpid()))
        return cls(address, watchdog_s=int(watchdog) / 1e6 if ours else 0.0)

    @property
    def listens(self) -> bool:
        """Whether there is one."""
        return bool(self._address)

    def notify(self, message: str) -> None:
        """Send `message` ("READY=1", "STOPPING=1"); a manager that does not listen is no error."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.setblocking(False)
            with contextlib.suppress(OSError):
                manager.sendto(message.encode(), self._address)
