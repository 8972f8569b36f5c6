"""QEMU's firmware configuration device: named blobs for the firmware (QEMU docs/specs/fw_cfg.rst).

    0x510  selector, 16 bits, little-endian          0x514  DMA address, high half, big-endian; reads "QEMU"
    0x511  data, one byte at a time                  0x518  low half, whose write starts it;    reads " CFG"

A DMA request is { be32 control, be32 length, be64 address } in guest memory; when it is done `control` is 0, or has the
error bit. Both the request and its buffer are checked to be RAM, wholly. Past an item's end are zeros, but no more of
them than `MOST_PADDING`, so that no request keeps a vCPU busy for long. Only items made writable can be written, and only within
their size. vCPU threads enter; `on_write` runs in them, without the lock.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from appliance.errors import Conflict, Unsupported
from appliance.vmm import layout
from appliance.vmm.device import DeviceContext, State
from appliance.vmm.legacy.port_device import PortDevice
from appliance.vmm.memory import BadAddress

# Items by key
KEY_SIGNATURE, KEY_ID, KEY_UUID, KEY_RAM_SIZE, KEY_NOGRAPHIC, KEY_NB_CPUS = 0x00, 0x01, 0x02, 0x03, 0x04, 0x05
KEY_BOOT_DEVICE, KEY_NUMA, KEY_BOOT_MENU, KEY_MAX_CPUS, KEY_FILE_DIR = 0x0C, 0x0D, 0x0E, 0x0F, 0x19
KEY_KERNEL_ADDR, KEY_KERNEL_SIZE, KEY_KERNEL_CMDLINE, KEY_INITRD_ADDR, KEY_INITRD_SIZE = 0x07, 0x08, 0x09, 0x0A, 0x0B
KEY_KERNEL_ENTRY, KEY_KERNEL_DATA, KEY_INITRD_DATA, KEY_CMDLINE_ADDR, KEY_CMDLINE_SIZE = 0x10, 0x11, 0x12, 0x13, 0x14
KEY_CMDLINE_DATA, KEY_SETUP_ADDR, KEY_SETUP_SIZE, KEY_SETUP_DATA = 0x15, 0x16, 0x17, 0x18
KEY_FILE_FIRST = 0x20
KEY_IRQ0_OVERRIDE = 0x8002
KEY_WRITE_CHANNEL = 0x4000

SIGNATURE = b"QEMU"
FEATURES = 0x03  # traditional, DMA
DMA_SIGNATURE = b"QEMU CFG"
DMA_ERROR, DMA_READ, DMA_SKIP, DMA_SELECT, DMA_WRITE = 0x01, 0x02, 0x04, 0x08, 0x10

MAX_FILES = 256
MAX_NAME_BYTES = 55
MOST_PADDING = 16 * layout.MIB
CHUNK_BYTES = layout.MIB

SELECTOR, DATA, DMA_HIGH, DMA_LOW, PORTS = 0, 1, 4, 8, 12

_REQUEST = struct.Struct(">IIQ")
_ENTRY = struct.Struct(">IHH56s")


@dataclass(slots=True)
class Item:
    """A blob. `data` of a writable one is replaced as the guest writes."""

    name: str
    data: bytes
    writable: bool = False
    on_write: Callable[[bytes], None] | None = None


class FwCfgState(State):
    version: int = 1
    key: int = 0
    offset: int = 0
    dma_high: int = 0
    written: dict[str, bytes] = {}  # noqa: RUF012 - msgspec copies it; writable files by name


class FwCfg(PortDevice):
    """Filled by the builder with `add_item` and `add_file` before the guest runs."""

    def __init__(self, name: str, context: DeviceContext) -> None:
        super().__init__(name, context)
        self._items: dict[int, Item] = {}
        self._files: dict[str, int] = {}
        self._key = self._offset = self._dma_high = 0
        self.add_item(KEY_SIGNATURE, SIGNATURE)
        self.add_item(KEY_ID, FEATURES.to_bytes(4, "little"))
        self.claim(layout.PORT_FW_CFG, PORTS, self)

    # --- filling it ----------------------------------------------------------------------------------------------

    def add_item(self, key: int, data: bytes) -> None:
        """A blob without a name. Raises `Conflict` when `key` is taken."""
        with self.lock:
            if key in self._items:
                raise Conflict(f"{self.label}: item {key:#x} exists already")
            self._items[key] = Item(f"{key:#x}", data)

    def add_file(
        self, name: str, data: bytes, *, writable: bool = False, on_write: Callable[[bytes], None] | None = None
    ) -> int:
        """A blob by name ("etc/acpi/rsdp"); its key. `on_write` gets the whole of it after each write.

        The same read-only file twice is once. Raises `Conflict` for other content under a name in use, a name too long,
        or too many of them.
        """
        if not 0 < len(name.encode()) <= MAX_NAME_BYTES:
            raise Conflict(f"{self.label}: file name {name!r} has more than {MAX_NAME_BYTES} bytes")
        with self.lock:
            if name in self._files and not writable and self._items[self._files[name]] == Item(name, data):
                return self._files[name]
            if name in self._files or len(self._files) >= MAX_FILES:
                raise Conflict(f"{self.label}: file {name} exists already, or there are {MAX_FILES}")
            key = KEY_FILE_FIRST + len(self._files)
            self._files[name] = key
            self._items[key] = Item(name, data, writable, on_write)
            self._items[KEY_FILE_DIR] = Item("directory", self._directory())
            return key

    def replace_file(self, name: str, data: bytes) -> None:
        """Other content for what is there: on reset (tables change with hot-plug). `KeyError` when it is not."""
        with self.lock:
            self._items[self._files[name]].data = data
            self._items[KEY_FILE_DIR].data = self._directory()

    def file(self, name: str) -> bytes:
        """The content now. `KeyError` when there is none of that name."""
        with self.lock:
            return self._items[self._files[name]].data

    def _directory(self) -> bytes:
        entries = [
            _ENTRY.pack(len(self._items[key].data), key, 0, name.encode()) for name, key in sorted(self._files.items())
        ]
        return len(entries).to_bytes(4, "big") + b"".join(entries)

    # --- ports: vCPU threads -------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """The data register gives one byte after the other; the DMA register its signature."""
        if DATA <= offset < DMA_HIGH:
            with self.lock:
                return int.from_bytes(self._take(size), "little")
        if offset >= DMA_HIGH:
            return int.from_bytes(DMA_SIGNATURE[offset - DMA_HIGH :][:size], "little")
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        if (offset, size) == (SELECTOR, 2):
            with self.lock:
                self._select(value)
        elif size in (4, 8) and offset in (DMA_HIGH, DMA_LOW):
            self._write_dma(offset, int.from_bytes(value.to_bytes(size, "little"), "big"), size)

    def _write_dma(self, offset: int, value: int, size: int) -> None:
        with self.lock:
            if (offset, size) == (DMA_HIGH, 4):
                self._dma_high = value
                return
            address = value if size == 8 else self._dma_high << 32 | value
            self._dma_high = 0
            written = self._dma(address)
        if written is not None and written.on_write is not None:
            written.on_write(written.data)

    def _select(self, key: int) -> None:
        self._key, self._offset = key & ~KEY_WRITE_CHANNEL, 0

    def _item(self) -> Item | None:
        return self._items.get(self._key)

    def _take(self, length: int) -> bytes:
        """The next bytes; zeros past the end and where there is no item."""
        item = self._item()
        found = item.data[self._offset : self._offset + length] if item else b""
        if item:
            self._offset = min(self._offset + length, len(item.data))
        return found.ljust(length, b"\0")

    # --- DMA -----------------------------------------------------------------------------------------------------

    def _dma(self, address: int) -> Item | None:
        """Do the request at `address`; the item that was written, if one was. What is wrong sets the error bit."""
        memory = self.context.memory
        try:
            control, length, buffer = _REQUEST.unpack(memory.read(address, _REQUEST.size))
        except BadAddress:
            self.context.note(f"{self.name}: a DMA request at {address:#x}, where no RAM is")
            return None
        if control & DMA_SELECT:
            self._select(control >> 16)
        done, written = self._transfer(control, length, buffer)
        memory.write(address, (0 if done else DMA_ERROR).to_bytes(4, "big"))
        return written

    def _transfer(self, control: int, length: int, buffer: int) -> tuple[bool, Item | None]:
        """(whether it went well, the item written)."""
        item = self._item()
        left = len(item.data) - self._offset if item else 0
        if control & DMA_READ:
            return self._read_out(length, buffer, left), None
        if control & DMA_WRITE:
            return self._write_in(item, length, buffer, left)
        if control & DMA_SKIP:
            self._offset += min(length, left)
        return True, None

    def _read_out(self, length: int, buffer: int, left: int) -> bool:
        memory = self.context.memory
        if length > left + MOST_PADDING or (length and not memory.is_ram(buffer, length)):
            self.context.note(f"{self.name}: a DMA of {length} bytes to {buffer:#x} cannot be")
            return False
        for done in range(0, length, CHUNK_BYTES):
            memory.write(buffer + done, self._take(min(CHUNK_BYTES, length - done)))
        return True

    def _write_in(self, item: Item | None, length: int, buffer: int, left: int) -> tuple[bool, Item | None]:
        memory = self.context.memory
        if item is None or not item.writable or length > left or (length and not memory.is_ram(buffer, length)):
            self.context.note(f"{self.name}: item {self._key:#x} cannot take {length} bytes at {self._offset}")
            return False, None
        data = memory.read(buffer, length) if length else b""
        item.data = item.data[: self._offset] + data + item.data[self._offset + length :]
        self._offset += length
        return True, item

    # --- life ----------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Files keep what was written: the pointers in them are the firmware's to write anew."""
        with self.lock:
            self._select(0)
            self._dma_high = 0

    def save(self) -> FwCfgState:
        with self.lock:
            written = {item.name: item.data for item in self._items.values() if item.writable}
            return FwCfgState(key=self._key, offset=self._offset, dma_high=self._dma_high, written=written)

    def restore(self, state: State) -> None:
        mine = self.own_state(state, FwCfgState, version=1)
        with self.lock:
            for name, data in mine.written.items():
                item = self._items.get(self._files.get(name, -1))
                if item is None or not item.writable or len(item.data) != len(data):
                    raise Unsupported(f"{self.label}: the saved file {name} is not one of this machine's")
            for name, data in mine.written.items():
                self._items[self._files[name]].data = data
            self._key, self._dma_high = mine.key & 0xFFFF, mine.dma_high & 0xFFFF_FFFF
            item = self._item()
            self._offset = min(max(mine.offset, 0), len(item.data)) if item else 0

    @property
    def state_type(self) -> type[State]:
        return FwCfgState
