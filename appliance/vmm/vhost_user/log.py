"""What a back end writes to guest RAM: a log it shares with us, joined with `GuestMemory`'s.

The back end sets bits of guest-physical pages while we read, and Python cannot exchange a word atomically; so a log is
taken by giving the back end an empty one. Its answer says that it does not use the old one any more.
"""

from __future__ import annotations

import os
import threading
from typing import Final, Protocol

from appliance.errors import HostError
from appliance.vmm import layout
from appliance.vmm.layout import PAGE
from appliance.vmm.memory import GuestMemory, union_of

_PAGES_IN_BYTE: Final = 8


class Logging(Protocol):
    """A back end that can log. Both raise `OSError`."""

    def log_to(self, fd: int, size: int) -> None:
        """From the return on, into this log only."""

    def log_nothing(self) -> None:
        """No log any more."""


class UserLog:
    """The log of one device; a `memory.DirtySource`. Blocking, any thread. What has been logged outlives the back end."""

    def __init__(self, memory: GuestMemory, label: str, *, can_log: bool) -> None:
        self._memory = memory
        self._label = label
        self._can_log = can_log
        self._lock = threading.Lock()
        self._backend: Logging | None = None
        self._wanted = False
        self._fd = -1
        self._kept = b""
        low, high = layout.split_ram(memory.size)
        end = layout.HIGH_RAM + high if high else low
        self._low = -(-low // PAGE // _PAGES_IN_BYTE)
        self._high = layout.HIGH_RAM // PAGE // _PAGES_IN_BYTE
        self._size = -(-end // PAGE // _PAGES_IN_BYTE // PAGE) * PAGE

    def attach(self, backend: Logging) -> None:
        """It is about to write. Raises `OSError`."""
        with self._lock:
            self._backend = backend
            if self._wanted:
                self._renew()

    def detach(self) -> None:
        """It writes no more. Harmless when done twice."""
        with self._lock:
            self._backend = None
            self._keep()

    # memory.DirtySource

    def start_dirty_log(self) -> None:
        if not self._can_log:
            raise HostError(f"{self._label}: its back end cannot tell what it writes")
        with self._lock:
            self._wanted = True
            try:
                self._renew()
            except OSError as error:
                self._wanted = False
                raise HostError.from_os_error(error, f"{self._label}: dirty log") from error

    def take_dirty(self) -> bytes:
        with self._lock:
            if not self._wanted:
                return b""
            try:
                self._renew()
            except OSError:  # it has gone: its log is complete
                self._backend = None
                self._keep()
            taken, self._kept = self._kept, b""
        return taken

    def stop_dirty_log(self) -> None:
        with self._lock:
            self._wanted = False
            if self._backend is not None:
                try:
                    self._backend.log_nothing()
                except OSError:
                    self._backend = None
            self._keep()
            self._kept = b""

    def close(self) -> None:
        """Harmless when done twice."""
        self.detach()

    def _renew(self) -> None:
        """Into an empty log from now on; the old one is kept until it is taken."""
        if self._backend is None:
            return
        fd = os.memfd_create(f"{self._label} log", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, self._size)
            self._backend.log_to(fd, self._size)
        except OSError:
            os.close(fd)
            raise
        self._keep()
        self._fd = fd

    def _keep(self) -> None:
        if self._fd < 0:
            return
        low = os.pread(self._fd, self._low, 0)
        high = os.pread(self._fd, self._size - self._high, self._high) if self._size > self._high else b""
        os.close(self._fd)
        self._fd = -1
        pages = low + high
        self._kept = union_of(pages, self._kept.ljust(len(pages), b"\0"))
