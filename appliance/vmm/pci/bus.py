"""PCI bus 0: which function is in which slot, and the two ways to configuration space.

    0xcf8  CONFIG_ADDRESS  doublewords only: bit 31 enable, 23:16 bus, 15:11 device, 10:8 function, 7:2 register
    0xcf9  reset control   bytes only (ICH9 §13.7.5): bit 2 rising resets; so it lies in the middle of CONFIG_ADDRESS
    0xcfc  CONFIG_DATA     bytes, words and doublewords of the register addressed            PCI 3.0 §3.2.2.3.2
    ECAM                   address 27:20 bus, 19:15 device, 14:12 function, 11:0 register      PCIe 5.0 §7.2.2

Only function 0 of a slot exists, and no other bus. What does not exist reads as ones and ignores writes.

Threads: vCPUs, through the buses; `plug` and `unplug` from anywhere. The bus's lock is held over an access to
configuration space, so BARs move one at a time: what one function gives up, another that wanted it gets at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from appliance.errors import Conflict, NotFound, Unsupported
from appliance.vmm import layout
from appliance.vmm.bus import BusRange
from appliance.vmm.device import Device, DeviceContext, MachineRequest, State
from appliance.vmm.pci.function import PciFunction, PciFunctionState
from appliance.vmm.pci.host_bridge import HostBridge, LpcBridge

SLOTS: Final = 32
CHIPSET_SLOTS: Final = frozenset({layout.SLOT_HOST_BRIDGE, layout.SLOT_LPC})

_ADDRESS, _RESET_CONTROL, _DATA = 0, 1, 4  # offsets in the eight ports
_ADDRESS_WRITABLE: Final = 0x80FF_FFFC
_ADDRESS_ENABLE: Final = 1 << 31
_RESET_SYSTEM, _RESET_NOW, _RESET_FULL = 1 << 1, 1 << 2, 1 << 3
STATE_VERSION: Final = 1


class PciBusState(State):
    """The ports, and the chipset's functions; the other functions save themselves."""

    version: int = STATE_VERSION
    address: int = 0
    reset_control: int = 0
    host_bridge: PciFunctionState = msgspec.field(default_factory=PciFunctionState)
    lpc: PciFunctionState = msgspec.field(default_factory=PciFunctionState)


class PciBus(Device):
    """The bus, with the chipset's two functions in it. Claims its ports and ECAM as it is made: raises `Conflict` where
    they are taken."""

    def __init__(self, name: str, context: DeviceContext) -> None:
        super().__init__(name, context)
        self._functions: dict[int, PciFunction] = {}
        self._address = self._reset_control = 0
        self.host_bridge = HostBridge(context, Ecam(self))
        self.lpc = LpcBridge(context)
        self._ports: BusRange | None = context.ports.add(layout.PORT_PCI_CONFIG, 8, self, name="pci configuration")
        self.plug(self.host_bridge, layout.SLOT_HOST_BRIDGE)
        self.plug(self.lpc, layout.SLOT_LPC)

    # --- slots ----------------------------------------------------------------------------------------------------

    @property
    def functions(self) -> Mapping[int, PciFunction]:
        """By slot, as it is now."""
        with self.lock:
            return MappingProxyType(dict(self._functions))

    def plug(self, function: PciFunction, slot: int | None = None) -> int:
        """Put `function` into `slot`, or into the lowest that is free; returns which. Raises `Conflict` when it is
        taken, none is free, or the function is in a slot already; `ValueError` for a slot that cannot be."""
        with self.lock:
            if function.slot is not None:
                raise Conflict(f"{function.label}: it is in slot {function.slot}")
            if slot is None:
                slot = next((each for each in range(SLOTS) if each not in self._functions), None)
                if slot is None:
                    raise Conflict(f"{self.label}: no free slot for {function.name}")
            if not 0 <= slot < SLOTS:
                raise ValueError(f"{self.label}: slot {slot}")
            if slot in self._functions:
                raise Conflict(f"{self.label}: slot {slot} has {self._functions[slot].name}")
            self._functions[slot] = function
            function.plugged(slot)
            function.route_isa(self.lpc.isa_irq(slot))
            return slot

    def unplug(self, slot: int) -> PciFunction:
        """Take out what is in `slot`: it answers no more anywhere, but is not closed. A vCPU that is in one of its
        handlers finishes there. Raises `NotFound`, and `Conflict` for the chipset."""
        with self.lock:
            if slot in CHIPSET_SLOTS:
                raise Conflict(f"{self.label}: slot {slot} is the chipset's")
            function = self._functions.pop(slot, None)
            if function is None:
                raise NotFound(f"{self.label}: slot {slot}")
            function.unplugged()
            self._use_free_room()
            return function

    # --- configuration space --------------------------------------------------------------------------------------

    def config_read(self, bus: int, devfn: int, offset: int, size: int) -> int:
        """As a guest does it; `devfn` is device << 3 | function."""
        with self.lock:
            function = self._find(bus, devfn)
            return (1 << 8 * size) - 1 if function is None else function.config.read(offset, size)

    def config_write(self, bus: int, devfn: int, offset: int, size: int, value: int) -> None:
        """As a guest does it."""
        with self.lock:
            function = self._find(bus, devfn)
            if function is None:
                return
            before = function.released
            function.config.write(offset, size, value)
            if function.released != before:
                self._use_free_room()
            if function is self.lpc:
                self._route_isa()

    def _find(self, bus: int, devfn: int) -> PciFunction | None:
        return None if bus or devfn & 7 else self._functions.get(devfn >> 3)

    def _use_free_room(self) -> None:
        """A BAR that was refused may have room now."""
        for function in self._functions.values():
            function.map_bars()

    def _route_isa(self) -> None:
        for slot, function in self._functions.items():
            function.route_isa(self.lpc.isa_irq(slot))

    # --- the eight ports ------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        with self.lock:
            if offset == _ADDRESS and size == 4:
                return self._address
            if offset == _RESET_CONTROL and size == 1:
                return self._reset_control
            if offset < _DATA or not self._address & _ADDRESS_ENABLE:
                return (1 << 8 * size) - 1
            return self.config_read(*self._addressed(offset), size)

    def write(self, offset: int, size: int, value: int) -> None:
        with self.lock:
            if offset == _ADDRESS and size == 4:
                self._address = value & _ADDRESS_WRITABLE
            elif offset == _RESET_CONTROL and size == 1:
                self._write_reset_control(value)
            elif offset >= _DATA and self._address & _ADDRESS_ENABLE:
                self.config_write(*self._addressed(offset), size, value)

    def _addressed(self, offset: int) -> tuple[int, int, int]:
        return self._address >> 16 & 0xFF, self._address >> 8 & 0xFF, self._address & 0xFC | offset - _DATA

    def _write_reset_control(self, value: int) -> None:
        if value & _RESET_NOW and not self._reset_control & _RESET_NOW:
            self.context.request(MachineRequest.RESET, "the guest asked for it at port 0xcf9")
        self._reset_control = value & (_RESET_SYSTEM | _RESET_NOW | _RESET_FULL)

    # --- life -----------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """The ports and the chipset; the other functions are devices of the machine, which resets them."""
        with self.lock:
            self._address = self._reset_control = 0
            self.host_bridge.reset()
            self.lpc.reset()
            self._route_isa()

    def resume(self) -> None:
        """Functions restored one after another may have been in each other's way."""
        with self.lock:
            self._use_free_room()

    @property
    def state_type(self) -> type[State] | None:
        return PciBusState

    def save(self) -> State | None:
        with self.lock:
            return PciBusState(
                address=self._address,
                reset_control=self._reset_control,
                host_bridge=self.host_bridge.save_function(),
                lpc=self.lpc.save_function(),
            )

    def restore(self, state: State) -> None:
        assert isinstance(state, PciBusState)
        if state.version > STATE_VERSION:
            raise Unsupported(f"{self.label}: state version {state.version}; this appliance knows {STATE_VERSION}")
        with self.lock:
            self.host_bridge.restore_function(state.host_bridge)
            self.lpc.restore_function(state.lpc)
            self._address = state.address & _ADDRESS_WRITABLE
            self._reset_control = state.reset_control & (_RESET_SYSTEM | _RESET_NOW | _RESET_FULL)
            self._route_isa()

    def close(self) -> None:
        """The ports and the chipset; the other functions are closed by the machine."""
        with self.lock:
            if self._ports is not None:
                self.context.ports.remove(self._ports)
                self._ports = None
            self.host_bridge.close()
            self.lpc.close()


class Ecam:
    """The ECAM window on the bus."""

    def __init__(self, bus: PciBus) -> None:
        self._bus = bus

    def read(self, offset: int, size: int) -> int:
        return self._bus.config_read(offset >> 20, offset >> 12 & 0xFF, offset & 0xFFF, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self._bus.config_write(offset >> 20, offset >> 12 & 0xFF, offset & 0xFFF, size, value)
