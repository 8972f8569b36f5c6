"""pvpanic: how a guest's kernel says that it has crashed (QEMU docs/specs/pvpanic.rst), ISA port 0x505.

Reading tells which events are understood. "Panicked" stops the machine as its configuration says; "crash loaded" means
that the guest handles it itself (kdump): that is recorded, and the guest goes on, as the specification wants it.
"""

from __future__ import annotations

from appliance.vmm import layout
from appliance.vmm.device import DeviceContext, MachineRequest
from appliance.vmm.legacy.port_device import PortDevice

PANICKED, CRASH_LOADED = 0x01, 0x02


class PvPanic(PortDevice):
    """Has no state. The DSDT's QEMU0001 device has to name the port."""

    def __init__(self, name: str, context: DeviceContext) -> None:
        super().__init__(name, context)
        self.claim_bytes(layout.PORT_PVPANIC, 1, self._read, self._write)

    def _read(self, _offset: int) -> int:
        return PANICKED | CRASH_LOADED

    def _write(self, _offset: int, value: int) -> None:
        if value & PANICKED:
            self.context.request(MachineRequest.PANIC, "the guest's kernel has panicked")
        elif value & CRASH_LOADED:
            self.context.note("the guest's kernel has panicked and loads its crash kernel")
