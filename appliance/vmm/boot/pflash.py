"""A parallel flash chip, as OVMF keeps its variables in: CFI command set 01 (Intel), byte-wide. Experimental.

    from array mode   0x10, 0x40  program: the next write is the datum       0x20, 0xd0  erase a block
                      0xe8, n, data…, 0xd0  program n + 1 bytes at once      0x60, …     lock: accepted, without effect
                      0x70  read status   0x90  read identity   0x98  query  0x50        clear the status
    back to it        0xff, and all that is no command
Programming can only clear bits; erasing sets a block to ones. In array mode the guest shall read without exits: `on_array`
tells when to map and unmap the content (read-only, `DeviceContext.slots`). A chip that is not writable answers each
attempt with the lock bit of its status. Each change is told to `on_change` once the lock is free: (offset, length).

Sources: Intel 28F128J3 datasheet (commands and status), JEDEC JESD68.01 and JEP137 (query), as QEMU's and EDK2's drivers
use it (OvmfPkg/QemuFlashFvbServicesRuntimeDxe).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Final

from appliance.errors import Unsupported
from appliance.vmm.bus import BusRange
from appliance.vmm.device import Device, DeviceContext, State

BLOCK_BYTES: Final = 4096  # what OVMF assumes
BUFFER_BYTES: Final = 256  # 2**8, as the query says

READ_ARRAY, READ_STATUS, CLEAR_STATUS, READ_IDENTITY, QUERY = 0xFF, 0x70, 0x50, 0x90, 0x98
PROGRAM, PROGRAM_ALSO, ERASE, PROGRAM_BUFFER, LOCK, CONFIRM = 0x10, 0x40, 0x20, 0xE8, 0x60, 0xD0
STATUS_READY, STATUS_ERASE_ERROR, STATUS_PROGRAM_ERROR, STATUS_LOCKED = 0x80, 0x20, 0x10, 0x02
MANUFACTURER, DEVICE = 0x89, 0x18


class Mode(IntEnum):
    """What a read answers, or what the next write is. Saved by number."""

    ARRAY = 1
    STATUS = 2
    IDENTITY = 3
    QUERY = 4
    PROGRAM = 5  # the next write is the datum
    ERASE = 6  # the next write confirms
    LOCK = 7  # the next write says what
    BUFFER_COUNT = 8  # the next write is the number of bytes less one
    BUFFER_DATA = 9
    BUFFER_CONFIRM = 10


_COMMANDS: Final = {
    PROGRAM: Mode.PROGRAM,
    PROGRAM_ALSO: Mode.PROGRAM,
    ERASE: Mode.ERASE,
    LOCK: Mode.LOCK,
    PROGRAM_BUFFER: Mode.BUFFER_COUNT,
    READ_STATUS: Mode.STATUS,
    READ_IDENTITY: Mode.IDENTITY,
    QUERY: Mode.QUERY,
}


class PflashState(State):
    version: int = 1
    mode: int = int(Mode.ARRAY)
    status: int = STATUS_READY
    wanted: int = 0
    buffer: dict[int, int] = {}  # noqa: RUF012 - msgspec copies it; offset: byte
    content: bytes = b""


class Pflash(Device):
    """One chip at `base`; claims its addresses. `content` is a whole number of blocks."""

    def __init__(
        self,
        name: str,
        context: DeviceContext,
        base: int,
        content: bytes,
        *,
        writable: bool,
        on_change: Callable[[int, int], None] | None = None,
        on_array: Callable[[bool], None] | None = None,
    ) -> None:
        super().__init__(name, context)
        if not content or len(content) % BLOCK_BYTES:
            raise ValueError(f"{self.label}: {len(content)} bytes are not whole blocks")
        self.content = bytearray(content)
        self._writable = writable
        self._on_change = on_change
        self._on_array = on_array
        self._changed: tuple[int, int] | None = None
        self._power_on()
        self._claimed: BusRange | None = context.mmio.add(base, len(content), self, name=name)

    def _power_on(self) -> None:
        self._mode, self._status, self._wanted = Mode.ARRAY, STATUS_READY, 0
        self._buffer: dict[int, int] = {}

    # --- vCPU threads --------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Array mode as memory; otherwise each byte answers for itself."""
        with self.lock:
            if self._mode is Mode.ARRAY:
                return int.from_bytes(self.content[offset : offset + size], "little")
            answers = bytes(self._answer(offset + position) for position in range(size))
        return int.from_bytes(answers, "little")

    def _answer(self, offset: int) -> int:
        match self._mode:
            case Mode.IDENTITY:
                return {0: MANUFACTURER, 1: DEVICE}.get(offset & 0xFF, 0)
            case Mode.QUERY:
                return query_table(len(self.content)).get(offset & 0xFF, 0)
            case _:
                return self._status

    def write(self, offset: int, size: int, value: int) -> None:
        """A command by its lowest byte, or data of any width."""
        with self.lock:
            was_array = self._mode is Mode.ARRAY
            self._act(offset, size, value)
            is_array = self._mode is Mode.ARRAY
            changed, self._changed = self._changed, None
        if changed is not None and self._on_change is not None:
            self._on_change(*changed)
        if is_array is not was_array and self._on_array is not None:
            self._on_array(is_array)

    def _act(self, offset: int, size: int, value: int) -> None:
        match self._mode:
            case Mode.PROGRAM:
                self._program({offset + n: value >> 8 * n & 0xFF for n in range(size)})
            case Mode.ERASE:
                self._erase(offset, confirmed=value & 0xFF == CONFIRM)
            case Mode.LOCK:
                self._mode = Mode.STATUS  # no block is ever locked by command, so that each is answered with success
            case Mode.BUFFER_COUNT:
                self._begin_buffer(value)
            case Mode.BUFFER_DATA:
                self._fill_buffer({offset + n: value >> 8 * n & 0xFF for n in range(size)})
            case Mode.BUFFER_CONFIRM:
                self._end_buffer(confirmed=value & 0xFF == CONFIRM)
            case _:
                self._command(value & 0xFF)

    def _command(self, command: int) -> None:
        if command == CLEAR_STATUS:
            self._status = 0  # the ready bit as well: by a status of 0 OVMF knows a flash chip
        self._mode = _COMMANDS.get(command, Mode.ARRAY)

    # --- changing the content ------------------------------------------------------------------------------------

    def _refused(self, error: int) -> bool:
        if not self._writable:
            self._status |= error | STATUS_LOCKED
        return not self._writable

    def _program(self, data: dict[int, int]) -> None:
        self._mode = Mode.STATUS
        self._status |= STATUS_READY
        if self._refused(STATUS_PROGRAM_ERROR):
            return
        for offset, byte in data.items():
            self.content[offset] &= byte
        self._changed = (min(data), max(data) - min(data) + 1)

    def _erase(self, offset: int, *, confirmed: bool) -> None:
        self._mode = Mode.STATUS
        self._status |= STATUS_READY
        if not confirmed:
            self._status |= STATUS_ERASE_ERROR | STATUS_PROGRAM_ERROR  # an improper sequence
        elif not self._refused(STATUS_ERASE_ERROR):
            start = offset // BLOCK_BYTES * BLOCK_BYTES
            self.content[start : start + BLOCK_BYTES] = b"\xff" * BLOCK_BYTES
            self._changed = (start, BLOCK_BYTES)

    def _begin_buffer(self, value: int) -> None:
        if value + 1 > BUFFER_BYTES:
            self._mode = Mode.STATUS
            self._status |= STATUS_ERASE_ERROR | STATUS_PROGRAM_ERROR
        else:
            self._mode, self._wanted, self._buffer = Mode.BUFFER_DATA, value + 1, {}

    def _fill_buffer(self, data: dict[int, int]) -> None:
        """`_wanted` bytes in all, wherever in the chip's one buffer's reach; what goes beyond it is improper."""
        self._buffer |= data
        self._wanted -= len(data)
        low, high = min(self._buffer), max(self._buffer)
        if self._wanted < 0 or high - low >= BUFFER_BYTES:
            self._mode = Mode.STATUS
            self._status |= STATUS_ERASE_ERROR | STATUS_PROGRAM_ERROR
        elif self._wanted == 0:
            self._mode = Mode.BUFFER_CONFIRM

    def _end_buffer(self, *, confirmed: bool) -> None:
        if confirmed:
            self._program(self._buffer)
        else:
            self._mode = Mode.STATUS
            self._status |= STATUS_ERASE_ERROR | STATUS_PROGRAM_ERROR
        self._buffer = {}

    # --- life ----------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Array mode; the content stays."""
        with self.lock:
            was_array = self._mode is Mode.ARRAY
            self._power_on()
        if not was_array and self._on_array is not None:
            self._on_array(True)

    def save(self) -> State:
        with self.lock:
            return PflashState(
                mode=int(self._mode),
                status=self._status,
                wanted=self._wanted,
                buffer=dict(self._buffer),
                content=bytes(self.content),
            )

    def restore(self, state: State) -> None:
        if not isinstance(state, PflashState) or state.version != 1:
            raise Unsupported(f"{self.label}: its saved state is not known here")
        if len(state.content) != len(self.content) or state.mode not in set(Mode):
            raise Unsupported(f"{self.label}: it was saved as a chip of {len(state.content)} bytes")
        if any(not 0 <= at < len(self.content) or not 0 <= byte <= 0xFF for at, byte in state.buffer.items()):
            raise Unsupported(f"{self.label}: its saved buffer is outside of the chip")
        with self.lock:
            was_array = self._mode is Mode.ARRAY
            self._mode, self._status, self._wanted = Mode(state.mode), state.status & 0xFF, state.wanted
            self._buffer = dict(state.buffer)
            self.content[:] = state.content
            is_array = self._mode is Mode.ARRAY
        if self._on_change is not None:
            self._on_change(0, len(self.content))
        if is_array is not was_array and self._on_array is not None:
            self._on_array(is_array)

    @property
    def state_type(self) -> type[State]:
        return PflashState

    def close(self) -> None:
        if self._claimed is not None:
            self.context.mmio.remove(self._claimed)
            self._claimed = None


def query_table(size_bytes: int) -> dict[int, int]:
    """The CFI query by offset (JESD68.01): Intel's command set, one erase region."""
    blocks = size_bytes // BLOCK_BYTES
    table = {0x10: b"QRY", 0x13: b"\x01\x00", 0x15: b"\x31\x00"}
    table[0x1B] = bytes([0x45, 0x55, 0, 0])  # supply and programming voltages
    table[0x1F] = bytes([7, 7, 10, 0, 4, 4, 4, 0])  # times, as powers of two
    table[0x27] = bytes([(size_bytes - 1).bit_length(), 2, 0, (BUFFER_BYTES - 1).bit_length(), 0, 1])
    table[0x2D] = (blocks - 1).to_bytes(2, "little") + (BLOCK_BYTES >> 8).to_bytes(2, "little")
    table[0x31] = b"PRI10"
    return {start + n: byte for start, text in table.items() for n, byte in enumerate(text)}
