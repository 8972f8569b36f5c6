"""ACPI PCI hot-plug: the registers by which the DSDT's GPE.1 handler and `_EJ0` learn and do.

    port +0   up       read: slots with a new function, and forget them
         +4   down     read: slots whose function the host wants back
         +8   eject    write: a bit for each slot to take out; read: features, none
         +12  removable  read: slots that may be ejected
         +16  bus      which bus the others speak of: 0, the only one                QEMU docs/specs/acpi_pci_hotplug

Doublewords only. Plugging: the function is on the bus, its bit in `up` is set, GPE 1 is raised, the guest scans the slot.
Unplugging: the bit in `down` is set, GPE 1 is raised, the guest lets go of the device and ejects it: only then does it
leave the bus. A guest may also eject what nobody asked for; that is its right, and `ejected` tells who must know.

Threads: vCPUs through the ports; `plug` and `request_unplug` from anywhere. The lock is never held over a call to the bus
or to `gpe`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from appliance.errors import Conflict, NotFound, Unsupported
from appliance.vmm import layout
from appliance.vmm.bus import BusRange
from appliance.vmm.device import Device, DeviceContext, State
from appliance.vmm.pci.bus import CHIPSET_SLOTS, SLOTS, PciBus
from appliance.vmm.pci.function import PciFunction

PORTS: Final = 20
GPE_HOTPLUG: Final = 1
UP, DOWN, EJECT, REMOVABLE, BUS = 0, 4, 8, 12, 16
_ALL_REMOVABLE: Final = sum(1 << slot for slot in range(SLOTS) if slot not in CHIPSET_SLOTS)
STATE_VERSION: Final = 1


class PciHotplugState(State):
    version: int = STATE_VERSION
    up: int = 0
    down: int = 0
    bus: int = 0


class PciHotplug(Device):
    """The registers at `layout.PORT_ACPI_PCI_HOTPLUG`."""

    def __init__(
        self,
        name: str,
        context: DeviceContext,
        bus: PciBus,
        *,
        gpe: Callable[[int], None],
        ejected: Callable[[PciFunction], None],
    ) -> None:
        """`gpe` raises a general-purpose event, on any thread. `ejected` is called on the loop with a function that has
        left the bus because the guest ejected it: close it there."""
        super().__init__(name, context)
        self._bus = bus
        self._gpe = gpe
        self._ejected = ejected
        self._up = self._down = self._selected = 0
        self._ports: BusRange | None = context.ports.add(layout.PORT_ACPI_PCI_HOTPLUG, PORTS, self, name="pci hot-plug")

    # --- the host's side ------------------------------------------------------------------------------------------

    def plug(self, function: PciFunction, slot: int | None = None) -> int:
        """Into a running machine; as `PciBus.plug`, and the guest is told."""
        taken = self._bus.plug(function, slot)
        with self.lock:
            self._up |= 1 << taken
            self._down &= ~(1 << taken)
        self._gpe(GPE_HOTPLUG)
        return taken

    def request_unplug(self, slot: int) -> None:
        """Ask the guest to let go of what is in `slot`; `ejected` tells that it has. Asking again reminds it. Raises
        `NotFound` for an empty slot, `Conflict` for the chipset's."""
        if slot in CHIPSET_SLOTS:
            raise Conflict(f"{self.label}: slot {slot} is the chipset's")
        if slot not in self._bus.functions:
            raise NotFound(f"{self.label}: slot {slot}")
        with self.lock:
            self._down |= 1 << slot
        self._gpe(GPE_HOTPLUG)

    @property
    def unplugging(self) -> frozenset[int]:
        """Slots the guest has been asked for and has not ejected."""
        with self.lock:
            return frozenset(slot for slot in range(SLOTS) if self._down >> slot & 1)

    # --- the guest's side -----------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        with self.lock:
            if size != 4 or offset == BUS:
                return self._selected if size == 4 else 0
            if self._selected:
                return 0
            match offset:
                case 0:
                    up, self._up = self._up, 0
                    return up
                case 4:
                    return self._down
                case 12:
                    return _ALL_REMOVABLE
                case _:
                    return 0

    def write(self, offset: int, size: int, value: int) -> None:
        if size != 4:
            return
        if offset == BUS:
            with self.lock:
                self._selected = value
        elif offset == EJECT and not self._selected:
            for slot in range(SLOTS):
                if value & _ALL_REMOVABLE & 1 << slot:
                    self._eject(slot)

    def _eject(self, slot: int) -> None:
        with self.lock:
            self._up &= ~(1 << slot)
            self._down &= ~(1 << slot)
        try:
            function = self._bus.unplug(slot)
        except NotFound:
            return
        self.context.bridge.post(partial(self._ejected, function))

    # --- life -----------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """The firmware finds what is plugged by itself; what was being unplugged is gone, as on QEMU: no driver has
        it."""
        for slot in self.unplugging:
            self._eject(slot)
        with self.lock:
            self._up = self._down = self._selected = 0

    @property
    def state_type(self) -> type[State] | None:
        return PciHotplugState

    def save(self) -> State | None:
        with self.lock:
            return PciHotplugState(up=self._up, down=self._down, bus=self._selected)

    def restore(self, state: State) -> None:
        assert isinstance(state, PciHotplugState)
        if state.version > STATE_VERSION:
            raise Unsupported(f"{self.label}: state version {state.version}; this appliance knows {STATE_VERSION}")
        with self.lock:
            self._up, self._down = state.up & _ALL_REMOVABLE, state.down & _ALL_REMOVABLE
            self._selected = state.bus & 0xFFFF_FFFF

    def close(self) -> None:
        if self._ports is not None:
            self.context.ports.remove(self._ports)
            self._ports = None
