"""The VM generation identifier: a GUID in guest memory that changes whenever the guest may have been copied or set back.

Linux reseeds its random numbers by it, Windows' domain controllers roll back safely. Microsoft, "Virtual Machine
Generation ID"; QEMU docs/specs/vmgenid.rst. The page lies in guest memory: firmware allocates it from `etc/vmgenid_guid`
and writes the GUID's address into `etc/vmgenid_addr` (the table loader's write_pointer, as QEMU's), or whoever boots a
kernel without firmware calls `place`. GPE 5 tells the guest (\\_GPE._E05 notifies VGEN).

The identifier is the builder's: give the same after a migration or a pause on disk, another after a clone, or a snapshot
that was gone back to. A restored device whose saved identifier is another one writes its own and tells, as it resumes.
"""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from appliance.errors import Unsupported
from appliance.vmm.device import Device, DeviceContext, State
from appliance.vmm.layout import PAGE
from appliance.vmm.legacy.acpi_pm import GPE_VMGENID
from appliance.vmm.legacy.fw_cfg import FwCfg
from appliance.vmm.legacy.port_device import own_state
from appliance.vmm.memory import BadAddress

FILE_GUID, FILE_ADDRESS = "etc/vmgenid_guid", "etc/vmgenid_addr"
GUID_OFFSET = 40  # in the page; what is before keeps OVMF from taking it for an ACPI table
ADDRESS_BYTES = 8


class VmGenIdState(State):
    version: int = 1
    guid: bytes = bytes(16)
    guid_at: int = 0
    placed: bool = False


class VmGenId(Device):
    """`gpe` raises a general-purpose event (`AcpiPm.raise_gpe`). Without `fw_cfg` somebody has to `place` it."""

    def __init__(
        self, name: str, context: DeviceContext, *, guid: UUID, gpe: Callable[[int], None], fw_cfg: FwCfg | None = None
    ) -> None:
        super().__init__(name, context)
        self.guid = guid
        self._gpe = gpe
        self._fw_cfg = fw_cfg
        self._guid_at = 0  # 0: nowhere yet
        self._placed = False
        self._paused = False
        self._changed = False
        if fw_cfg is not None:
            fw_cfg.add_file(FILE_GUID, self.page())
            fw_cfg.add_file(FILE_ADDRESS, bytes(ADDRESS_BYTES), writable=True, on_write=self._address_written)

    def page(self) -> bytes:
        """The page as firmware or `place`'s caller puts it into memory."""
        return (bytes(GUID_OFFSET) + self.guid.bytes_le).ljust(PAGE, b"\0")

    def place(self, page_address: int) -> None:
        """Without firmware: the page is there. Writes it; raises `BadAddress` where no RAM is. Kept over resets."""
        with self.lock:
            self.context.memory.write(page_address, self.page())
            self._guid_at, self._placed = page_address + GUID_OFFSET, True

    def renew(self, guid: UUID) -> None:
        """Another identifier, for a guest that runs or will resume."""
        with self.lock:
            self._changed = self._changed or guid != self.guid
            self.guid = guid
            if self._fw_cfg is not None:
                self._fw_cfg.replace_file(FILE_GUID, self.page())
            self._tell()

    def _address_written(self, content: bytes) -> None:
        """The firmware's pointer. It is used only where it is RAM."""
        with self.lock:
            self._guid_at = int.from_bytes(content, "little")

    def _tell(self) -> None:
        if not self._changed or self._paused:
            return
        self._changed = False
        if not self._guid_at:
            return  # firmware has not come so far: it will find the new one
        try:
            self.context.memory.write(self._guid_at, self.guid.bytes_le)
        except BadAddress:
            self.context.note(f"{self.name}: the guest wants the identifier at {self._guid_at:#x}, where no RAM is")
            return
        self._gpe(GPE_VMGENID)

    # --- life ----------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Firmware allocates the page anew."""
        with self.lock:
            if self._fw_cfg is not None and not self._placed:
                self._guid_at = 0
                self._fw_cfg.replace_file(FILE_ADDRESS, bytes(ADDRESS_BYTES))

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        with self.lock:
            self._paused = False
            self._tell()

    def save(self) -> VmGenIdState:
        with self.lock:
            return VmGenIdState(guid=self.guid.bytes_le, guid_at=self._guid_at, placed=self._placed)

    def restore(self, state: State) -> None:
        mine = own_state(self, state, VmGenIdState, version=1)
        if len(mine.guid) != 16:
            raise Unsupported(f"{self.label}: a saved identifier of {len(mine.guid)} bytes")
        with self.lock:
            self._guid_at, self._placed = mine.guid_at, mine.placed
            self._changed = mine.guid != self.guid.bytes_le

    @property
    def state_type(self) -> type[State]:
        return VmGenIdState
