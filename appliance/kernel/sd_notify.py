"""sd_notify(3): tell the service manager about the process's state, when there is one."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(message: str) -> bool:
    """Send `message` ("READY=1", "STOPPING=1") to $NOTIFY_SOCKET; False, and no error, when there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        manager.setblocking(False)
        with contextlib.suppress(OSError):
            manager.sendto(message.encode(), address)
            return True
    return False
