"""MSI-X: a table of messages and an array of pending bits, both in a BAR of the function (PCI 3.0 §6.8.2).

    entry   +0 address low  +4 address high  +8 data  +12 vector control (bit 0: masked)
    control register of the capability: bits 10:0 size - 1, bit 14 function mask, bit 15 enable

A vector's interrupt goes through its `irq.MessageVector`: taken from KVM while masked, so that what is raised meanwhile
stays pending, also when vhost raises it. It is programmed only when it becomes unmasked or its message changes while it
is: an idle table costs the machine nothing, however a guest writes to it.

Locks: the function's, taken at each door; `signal` takes one of its own, against `close` on another thread.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from threading import Lock, RLock
from typing import Final

from appliance.errors import Unsupported
from appliance.vmm.device import State
from appliance.vmm.irq import Interrupts, MessageVector

CAP_ID: Final = 0x11
ENTRY_BYTES: Final = 16
MAX_VECTORS: Final = 2048
CONTROL_ENABLE: Final = 1 << 15
CONTROL_MASK_ALL: Final = 1 << 14

_ENTRY = struct.Struct("<IIII")
_POWER_ON_ENTRY = _ENTRY.pack(0, 0, 0, 1)  # masked: §6.8.2.9
_WRITABLE_ENTRY = _ENTRY.pack(0xFFFF_FFFC, 0xFFFF_FFFF, 0xFFFF_FFFF, 1)


class MsixState(State):
    """`table` as the guest sees it; `pending` by vector."""

    version: int = 1
    table: bytes = b""
    pending: tuple[int, ...] = ()


def pba_bytes(vectors: int) -> int:
    """The pending array's size: quadwords (§6.8.2)."""
    return -(-vectors // 64) * 8


class MsixTable:
    """The table and what it does. `control` tells the control register's value: the configuration space has it."""

    def __init__(self, vectors: int, interrupts: Interrupts, *, lock: RLock, control: Callable[[], int]) -> None:
        """Raises `HostError` when the machine has too many vectors."""
        if not 1 <= vectors <= MAX_VECTORS:
            raise ValueError(f"MSI-X with {vectors} vectors")
        self.size = vectors
        self._lock = lock
        self._control = control
        self._table = bytearray(_POWER_ON_ENTRY * vectors)
        self._enabled = False
        self._open_lock = Lock()
        self._vectors: list[MessageVector] = []
        try:
            for _ in range(vectors):
                self._vectors.append(interrupts.message())
        except BaseException:
            self.close()
            raise

    # For the device

    @property
    def enabled(self) -> bool:
        """Whether the driver has switched MSI-X on: INTx is not used then (§6.8.2.3)."""
        return self._enabled

    def vector(self, number: int) -> MessageVector | None:
        """Of this table entry; None where there is none (a driver names vectors as it likes)."""
        return self._vectors[number] if 0 <= number < len(self._vectors) else None

    def signal(self, number: int) -> None:
        """Raise vector `number`: at once, pending while masked, not at all while MSI-X is off or there is no such."""
        with self._open_lock:
            vector = self.vector(number)
            if vector is not None and self._enabled:
                vector.signal()

    # The guest's doors: the two areas in the BAR

    def read_table(self, offset: int, size: int) -> int:
        with self._lock:
            return int.from_bytes(self._table[offset : offset + size], "little")

    def write_table(self, offset: int, size: int, value: int) -> None:
        with self._lock:
            for position in range(offset, min(offset + size, len(self._table))):
                byte = value >> 8 * (position - offset) & 0xFF
                mask = _WRITABLE_ENTRY[position % ENTRY_BYTES]
                self._table[position] = byte & mask
            for number in {offset // ENTRY_BYTES, (offset + size - 1) // ENTRY_BYTES}:
                self._program(number)

    def read_pending(self, offset: int, size: int) -> int:
        """The pending array; writes to it are ignored."""
        with self._lock:
            first = offset * 8
            numbers = range(first, min(first + size * 8, len(self._vectors)))
            return sum(1 << (number - first) for number in numbers if self._vectors[number].pending)

    def control_changed(self) -> None:
        """The control register was written, or restored."""
        with self._lock:
            self._enabled = bool(self._control() & CONTROL_ENABLE)
            for number in range(self.size):
                self._program(number)

    def masked(self, number: int) -> bool:
        """Whether the guest does not want this vector now."""
        control = self._control()
        if not control & CONTROL_ENABLE or control & CONTROL_MASK_ALL:
            return True
        return bool(self._table[number * ENTRY_BYTES + 12] & 1)

    def _program(self, number: int) -> None:
        vector = self.vector(number)
        if vector is None:
            return
        low, high, data, _ = _ENTRY.unpack_from(self._table, number * ENTRY_BYTES)
        if self.masked(number) or not reaches_a_local_apic(low, high):
            vector.set(address=vector.address, data=vector.data, masked=True)
        else:
            vector.set(address=high << 32 | low, data=data, masked=False)

    # Life

    def reset(self) -> None:
        """After the configuration space's reset: all masked, nothing pending, nothing enabled."""
        with self._lock:
            self._table[:] = _POWER_ON_ENTRY * self.size
            self.control_changed()
            for vector in self._vectors:
                vector.clear()

    def save(self) -> MsixState:
        pending = tuple(number for number, vector in enumerate(self._vectors) if vector.pending)
        return MsixState(table=bytes(self._table), pending=pending)

    def check(self, state: MsixState, *, label: str) -> None:
        """Raises `Unsupported` for a newer version and for a table of another size."""
        if state.version > MsixState().version or len(state.table) != len(self._table):
            raise Unsupported(f"{label}: MSI-X state of version {state.version}, {len(state.table)} bytes")

    def restore(self, state: MsixState) -> None:
        """What `check` has found good, after the configuration space's."""
        with self._lock:
            self._table[:] = bytes(a & b for a, b in zip(state.table, _WRITABLE_ENTRY * self.size, strict=True))
            for number in state.pending:
                if (vector := self.vector(number)) is not None:
                    vector.signal()
            self.control_changed()

    def close(self) -> None:
        """Give the vectors back; harmless when done twice."""
        with self._open_lock:
            vectors, self._vectors = self._vectors, []
        for vector in vectors:
            vector.close()


def reaches_a_local_apic(low: int, high: int) -> bool:
    """Whether a message to this address is an interrupt (SDM vol.3 §10.11.1) that KVM takes: with extended destinations
    it refuses one with bits 39:32 set (api.rst KVM_CAP_X2APIC_API), and one refused would spoil the whole table."""
    return low >> 20 == 0xFEE and not high & 0xFF
