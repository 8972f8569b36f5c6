"""The socket that the host's clients connect to. The device's lock is held around every call."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from appliance.vmm.loopbridge import Bridge
from appliance.vmm.vsock.poller import READ, Poller

logger = logging.getLogger(__name__)

SOCKET: Final = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
BACKLOG: Final = 64
PAUSE_S: Final = 1.0
_SCARCE: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


class Listener:
    """Listens on `path`, whatever was there before; the file is its owner's only. `taken` gets each client."""

    def __init__(
        self,
        path: Path,
        poller: Poller,
        bridge: Bridge,
        *,
        lock: threading.RLock,
        label: str,
        taken: Callable[[socket.socket], None],
    ) -> None:
        """Works on the file system: not on the loop. Raises `OSError`."""
        self._path = path
        self._poller = poller
        self._bridge = bridge
        self._lock = lock
        self._label = label
        self._taken = taken
        self._socket = socket.socket(socket.AF_UNIX, SOCKET)
        try:
            path.unlink(missing_ok=True)
            self._socket.bind(os.fspath(path))
            path.chmod(0o600)  # nobody can connect before it listens
            self._socket.listen(BACKLOG)
        except OSError:
            self._socket.close()
            raise
        poller.add(self._socket.fileno(), READ, self._accept)

    def _accept(self, _: int) -> None:
        try:
            client = self._socket.accept()[0]
        except OSError as error:
            if error.errno in _SCARCE:  # the client waits, and we would be told of it again at once
                logger.warning("%s: %s: no client is let in for a while: %s", self._label, self._path, error)
                self._poller.change(self._socket.fileno(), 0)
                self._bridge.later(PAUSE_S, self._accept_again)
            return
        client.setblocking(False)
        self._taken(client)

    def _accept_again(self) -> None:
        with self._lock:
            if self._socket.fileno() >= 0:
                self._poller.change(self._socket.fileno(), READ)

    def close(self) -> None:
        """The file stays, and refuses, until its directory goes or somebody listens there anew: removing it is no work
        for the loop. Harmless when done twice."""
        if self._socket.fileno() >= 0:
            self._poller.remove(self._socket.fileno())
            self._socket.close()
