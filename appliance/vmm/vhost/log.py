"""What vhost writes to guest RAM: its own dirty log, joined with that of `GuestMemory`.

vhost sets one bit for each page of guest-physical addresses. It does so while we read, and we cannot exchange a word
atomically; so a log is taken by giving the kernel an empty one: VHOST_SET_LOG_BASE returns when no ring uses the old one
any more (drivers/vhost/vhost.c takes each ring's mutex), and then nobody writes to it.

    log by guest-physical page          log by page of the memfd
    | low RAM | hole ... 4 GiB | high |  →  | low RAM | high |
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from typing import Protocol

from appliance.errors import HostError
from appliance.kernel.vhost_abi import VHOST_PAGE_SIZE
from appliance.vmm import layout
from appliance.vmm.memory import GuestMemory

_PAGES_IN_BYTE = 8


class Logged(Protocol):
    """Rings that can log. Both raise `OSError`."""

    def log_to(self, host_address: int) -> None:
        """From the return on, into this log only."""

    def log_nothing(self) -> None:
        """No log any more."""


class VhostLog:
    """The log of one device's rings, however many descriptors serve them. Any thread; a `memory.DirtySource`."""

    def __init__(self, memory: GuestMemory, label: str) -> None:
        self._memory = memory
        self._label = label
        self._lock = threading.Lock()
        self._rings: list[Logged] = []
        self._log: mmap.mmap | None = None
        low, high = layout.split_ram(memory.size)
        end = layout.HIGH_RAM + high if high else low
        self._low = -(-low // VHOST_PAGE_SIZE // _PAGES_IN_BYTE)
        self._high = layout.HIGH_RAM // VHOST_PAGE_SIZE // _PAGES_IN_BYTE
        words = -(-end // VHOST_PAGE_SIZE // 64)
        self._size = max(8 * words, mmap.PAGESIZE)

    def add(self, rings: Logged) -> None:
        """Rings that are about to start. Raises `HostError`."""
        with self._lock:
            if self._log is not None:
                self._tell(rings, self._log)
            self._rings.append(rings)
            first = len(self._rings) == 1
        if first:
            self._memory.add_dirty_source(self)

    def remove(self, rings: Logged) -> None:
        """Rings that have stopped; what they logged last is kept. Harmless when done twice. Before their descriptor is
        closed."""
        with self._lock:
            last = self._rings == [rings]
            if not last and rings in self._rings:
                self._rings.remove(rings)
        if last:
            self._memory.remove_dirty_source(self)
            with self._lock:
                self._rings.clear()

    # memory.DirtySource

    def start_dirty_log(self) -> None:
        with self._lock:
            self._renew()

    def take_dirty(self) -> bytes:
        with self._lock:
            old = self._log
            if old is None:
                return b""
            self._renew()
            low = old[: self._low]
            high = old[self._high :] if self._size > self._high else b""
            old.close()
        return low + high

    def stop_dirty_log(self) -> None:
        with self._lock:
            log, self._log = self._log, None
            try:
                for rings in self._rings:
                    rings.log_nothing()
            except OSError as error:
                raise HostError.from_os_error(error, f"{self._label}: vhost's log") from error
            if log is not None:
                log.close()

    def _renew(self) -> None:
        log = mmap.mmap(-1, self._size)
        for rings in self._rings:
            self._tell(rings, log)
        self._log = log

    def _tell(self, rings: Logged, log: mmap.mmap) -> None:
        # SAFETY: only the address is kept, by the kernel, which writes there until it is told another one or its
        # descriptor is closed; `_log` keeps the mapping at least that long.
        address = ctypes.addressof(ctypes.c_char.from_buffer(log))
        try:
            rings.log_to(address)
        except OSError as error:
            raise HostError.from_os_error(error, f"{self._label}: vhost's log") from error
