"""The memory behind the frame buffer's BAR, and the ROM's: the host's, shown to the guest by a memory slot.

The guest draws without exits, and KVM's dirty log names the pages. Where there are no slots (tests) or the guest has put
the BAR where none can be, its accesses arrive here one by one, and are noted in the same way.

Threads: the function's lock is held in `show`, `hide` and the accesses; `take_dirty` and `rows` from one thread at a time
of the surface's.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from typing import Final

from appliance.errors import ApplianceError, HostError
from appliance.vmm.device import DeviceContext, MappedMemory
from appliance.vmm.layout import PAGE

_ZEROS: Final = bytes(PAGE)
_RUN_PAGES: Final = 64


class SlotMemory:
    """`size` bytes of the host's, whole pages. A `BusHandler` for when they are not mapped."""

    def __init__(self, label: str, context: DeviceContext, size: int, *, read_only: bool = False) -> None:
        """Raises `HostError`. `label` is what notes call it."""
        self.size, self.read_only = size, read_only
        self._label, self._context = label, context
        try:
            self._map = mmap.mmap(-1, size)
            self._map.madvise(mmap.MADV_DONTDUMP)
        except OSError as error:
            raise HostError.from_os_error(error, f"{label}: {size >> 10} KiB of memory") from error
        # SAFETY: only the number is kept. The mapping lives as long as this object, which takes its slot away first.
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._slot: MappedMemory | None = None
        self._lock = threading.Lock()
        self._dirty = 0  # under _lock: pages, as bits; not told by `take_dirty` yet
        self._used = 0  # under _lock: those that `take_dirty` has told at any time: the others are zeros

    # The guest's side

    def show(self, base: int) -> None:
        """The guest finds it at `base`. Where it cannot be mapped every access is an exit; noted."""
        self.hide()
        if self._context.slots is None:
            return
        try:
            slot = self._context.slots.map(
                base, self.size, self._address, name=self._label, read_only=self.read_only, log_dirty=not self.read_only
            )
        except ApplianceError as error:
            self._context.note(f"{self._label}: every access at {base:#x} is an exit: {error}")
            return
        with self._lock:
            self._slot = slot

    def hide(self) -> None:
        """The guest does not find it any more. What it has written is not forgotten."""
        with self._lock:
            slot, self._slot = self._slot, None
            if slot is None:
                return
            self._collect(slot)
            slot.unmap()

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self._map[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        if not self.read_only:
            self.store(offset, value.to_bytes(size, "little"))

    # Our side

    def store(self, offset: int, data: bytes) -> None:
        """Write there, within the size, and note it."""
        if not data:
            return
        self._map[offset : offset + len(data)] = data
        with self._lock:
            self._dirty |= _pages(offset // PAGE, (offset + len(data) - 1) // PAGE + 1)

    def bytes_at(self, offset: int, length: int) -> bytes:
        """A copy, as it is at this moment."""
        return self._map[offset : offset + length]

    def take_dirty(self) -> int:
        """The pages written since the last time, bit n for page n; and clear. Raises `HostError`."""
        with self._lock:
            if self._slot is not None:
                self._collect(self._slot)
            taken, self._dirty = self._dirty, 0
            self._used |= taken
        return taken

    def _collect(self, slot: MappedMemory) -> None:
        self._dirty |= int.from_bytes(slot.take_dirty(), "little") & _pages(0, self.size // PAGE)

    # Saving. What was never written is not even read: a guest without a screen would pay for it with memory

    def runs(self) -> list[tuple[int, bytes]]:
        """(page, content) of all that is not zero, in runs: what a state keeps."""
        with self._lock:
            if self._slot is not None:
                self._collect(self._slot)
            used = self._used | self._dirty
        found: list[tuple[int, bytes]] = []
        first = -1
        for page in range(used.bit_length() + 1):
            wanted = used >> page & 1 and self._map[page * PAGE : (page + 1) * PAGE] != _ZEROS
            if first >= 0 and (not wanted or page - first == _RUN_PAGES):
                found.append((first, self._map[first * PAGE : page * PAGE]))
                first = -1
            if first < 0 and wanted:
                first = page
        return found

    def fits(self, runs: list[tuple[int, bytes]]) -> bool:
        """Whether `fill` could."""
        return all(page >= 0 and page * PAGE + len(content) <= self.size for page, content in runs)

    def fill(self, runs: list[tuple[int, bytes]]) -> None:
        """What `runs` told; the rest is zeros. All of both has changed."""
        for page, content in self.runs():
            self._map[page * PAGE : page * PAGE + len(content)] = bytes(len(content))
        filled = 0
        for page, content in runs:
            self._map[page * PAGE : page * PAGE + len(content)] = content
            filled |= _pages(page, page + -(-len(content) // PAGE))
        with self._lock:
            self._dirty |= self._used | filled


def _pages(first: int, end: int) -> int:
    """These pages as bits."""
    return (1 << end) - (1 << first)
