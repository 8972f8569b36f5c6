"""A PCI function, the base of every PCI device: its configuration space, BARs, MSI-X and INTx.

A device derives from `PciFunction`, describes itself in its constructor (`add_bar`, `add_rom`, `add_capability`,
`add_msix`), and is put on a bus by `bus.PciBus.plug`. Everything a guest writes to `config` has its effect before the
write returns: BARs appear on, move on, and leave the machine's buses; interrupts are masked and unmasked. Subclasses hear
of it through `bar_moved`, `config_reading` and `config_written`.

Threads: vCPUs through the buses, the owner's threads through `set_intx` and `msix.signal`. `lock` is held in every hook.
Specification: PCI Local Bus 3.0, chapter 6.
"""

from __future__ import annotations

from typing import Final

from appliance.errors import Conflict, Unsupported
from appliance.vmm import layout
from appliance.vmm.bus import BusHandler
from appliance.vmm.device import Device, DeviceContext, State
from appliance.vmm.irq import IrqLine
from appliance.vmm.pci import config_space as cs
from appliance.vmm.pci import msix as mx
from appliance.vmm.pci.bar import ROM, Bar, BarKind, refusal
from appliance.vmm.pci.bar_areas import BarAreas, Pending, Table, Unused
from appliance.vmm.pci.config_space import ConfigSpace

__all__ = ["BarKind", "PciConfig", "PciFunction", "PciFunctionState"]

STATE_VERSION: Final = 1
_BASES: Final = ((cs.BAR0, 4 * cs.BARS), (cs.ROM_BAR, 4))  # the registers of BARs and ROM: offset and length


class PciFunctionState(State):
    """What every function saves; a subclass has it as a field of its own state, or uses it as it is."""

    version: int = STATE_VERSION
    config: bytes = b""
    intx: bool = False
    msix: mx.MsixState | None = None


class PciConfig(ConfigSpace):
    """A function's configuration space: the guest's reads and writes go through the function."""

    def __init__(self, function: PciFunction) -> None:
        super().__init__()
        self._function = function

    def read(self, offset: int, size: int) -> int:
        function = self._function
        with function.lock:
            function.config_reading(offset, size)
            return super().read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        function = self._function
        with function.lock:
            super().write(offset, size, value)
            function.apply_config(offset, size)
            function.config_written(offset, size)


class PciFunction(Device):
    """Function 0 of a slot. `config` is its configuration space, `slot` its device number while it is plugged."""

    def __init__(
        self,
        name: str,
        context: DeviceContext,
        *,
        vendor: int,
        device: int,
        class_code: int,
        revision: int = 0,
        subsystem: tuple[int, int] = (0, 0),
        interrupt_pin: bool = False,
    ) -> None:
        """`class_code` has 24 bits: class, subclass, interface. `subsystem` is (vendor, id). `interrupt_pin`: it has
        INTA#."""
        super().__init__(name, context)
        self.slot: int | None = None
        self.intx: IrqLine | None = None
        self.msix: mx.MsixTable | None = None
        self.bars: dict[int, Bar] = {}
        self.released = 0  # counts ranges given back, so that the bus knows when others may find room
        self._has_pin = interrupt_pin
        self._intx_level = False
        self._isa_line: IrqLine | None = None
        self._msix_control = 0
        self._last_capability = 0
        self._free_capability = cs.HEADER_END
        self._closed = False
        self.config = PciConfig(self)
        define = self.config.define
        define(cs.VENDOR_ID, 2, vendor)
        define(cs.DEVICE_ID, 2, device)
        define(cs.COMMAND, 2, 0, writable=cs.COMMAND_WRITABLE)
        define(cs.STATUS, 2, 0, clearable=cs.STATUS_CLEARED_BY_ONES)
        define(cs.REVISION, 1, revision)
        define(cs.CLASS_CODE, 3, class_code)
        define(cs.CACHE_LINE, 1, 0, writable=0xFF)
        define(cs.SUBSYSTEM_VENDOR, 2, subsystem[0])
        define(cs.SUBSYSTEM, 2, subsystem[1])
        define(cs.INTERRUPT_LINE, 1, 0, writable=0xFF)
        define(cs.INTERRUPT_PIN, 1, int(interrupt_pin))

    # --- the device describes itself ------------------------------------------------------------------------------

    def add_bar(self, index: int, size: int, kind: BarKind, handler: BusHandler, *, prefetchable: bool = False) -> None:
        """BAR `index` (0-5; a MEM64 also takes the next), `size` bytes, a power of two. `handler` sees offsets in it."""
        if not 0 <= index < cs.BARS:
            raise ValueError(f"{self.label}: no room for BAR {index}")
        bar = Bar(index, size, kind, handler, prefetchable)
        taken = {other.index + part for other in self.bars.values() for part in range(other.register_bytes // 4)}
        wanted = {index + part for part in range(bar.register_bytes // 4)}
        if taken & wanted or not wanted <= set(range(cs.BARS)):
            raise ValueError(f"{self.label}: no room for BAR {index}")
        self._add_bar(bar)

    def add_rom(self, size: int, handler: BusHandler) -> None:
        """The expansion ROM (PCI 3.0 §6.2.5.2): `size` bytes, a power of two. Among the BARs it is number `bar.ROM`."""
        self._add_bar(Bar(ROM, size, BarKind.MEM32, handler))

    def _add_bar(self, bar: Bar) -> None:
        self.bars[bar.index] = bar
        self.config.define(bar.register, bar.register_bytes, bar.fixed_bits, writable=bar.writable_bits)

    def add_capability(self, cap_id: int, body: bytes, writable_mask: bytes = b"") -> int:
        """A capability (PCI 3.0 §6.7): `body` is what follows its id and next pointer, `writable_mask` lies over `body`.
        Returns its offset in configuration space."""
        offset, whole = self._free_capability, bytes((cap_id, 0)) + body
        if offset + len(whole) > 256:
            raise ValueError(f"{self.label}: no room for capability {cap_id:#x}")
        self.config.define_bytes(offset, whole, writable=b"\0\0" + writable_mask)
        if self._last_capability:
            self.config.define(self._last_capability + 1, 1, offset)
        else:
            self.config.define(cs.CAPABILITIES, 1, offset)
            self.config.define(cs.STATUS, 2, cs.STATUS_CAPABILITIES, clearable=cs.STATUS_CLEARED_BY_ONES)
        self._last_capability = offset
        self._free_capability = offset + (len(whole) + 3 & ~3)
        return offset

    def add_msix(self, vectors: int, *, bar: int, table_offset: int, pba_offset: int) -> None:
        """MSI-X with its areas in BAR `bar` at these offsets (multiples of 8), where they hide the BAR's own handler. A
        BAR that is not there yet is made, 32-bit memory just large enough. Raises `HostError` for too many vectors."""
        table_end, pba_end = table_offset + vectors * mx.ENTRY_BYTES, pba_offset + mx.pba_bytes(vectors)
        if (table_offset | pba_offset) & 7 or (table_offset < pba_end and pba_offset < table_end):
            raise ValueError(f"{self.label}: MSI-X areas at {table_offset:#x} and {pba_offset:#x}")
        if bar not in self.bars:
            needed = max(table_end, pba_end, layout.PAGE)
            self.add_bar(bar, 1 << (needed - 1).bit_length(), BarKind.MEM32, Unused())
        found = self.bars[bar]
        if max(table_end, pba_end) > found.size or found.kind is BarKind.IO:
            raise ValueError(f"{self.label}: MSI-X areas do not fit in BAR {bar}")
        body = (vectors - 1).to_bytes(2, "little")
        body += (table_offset | bar).to_bytes(4, "little") + (pba_offset | bar).to_bytes(4, "little")
        writable = (mx.CONTROL_ENABLE | mx.CONTROL_MASK_ALL).to_bytes(2, "little")
        self._msix_control = self.add_capability(mx.CAP_ID, body, writable) + 2
        self.msix = mx.MsixTable(
            vectors,
            self.context.interrupts,
            lock=self.lock,
            control=lambda: self.config.get(self._msix_control, 2),
        )
        table = (table_offset, table_end, Table(self.msix))
        found.handler = BarAreas([table, (pba_offset, pba_end, Pending(self.msix))], found.handler)

    # --- hooks for subclasses; `lock` is held ---------------------------------------------------------------------

    def bar_moved(self, index: int, base: int | None) -> None:
        """BAR `index` is decoded at `base` from now on; None: nowhere. For ioeventfds. Between two places comes None."""

    def config_reading(self, offset: int, size: int) -> None:
        """A guest is about to read there: `config.poke` what must be fresh."""

    def config_written(self, offset: int, size: int) -> None:
        """A guest has written there, and what this class does about it is done."""

    # --- interrupts -----------------------------------------------------------------------------------------------

    def set_intx(self, asserted: bool) -> None:
        """Assert or withdraw INTA#. Status bit 3 shows it; the pin follows unless the command register's bit 10 forbids
        it or MSI-X is enabled (PCI 3.0 §6.2.2, §6.2.3, §6.8.2.3)."""
        with self.lock:
            self._intx_level = asserted and self._has_pin
            self._drive_intx()

    def route_isa(self, irq: int | None) -> None:
        """For the bus: which ISA line the chipset's PIRQ routing leads the pin to as well, for the PIC."""
        with self.lock:
            if self._isa_line is not None:
                if self._isa_line.gsi == irq:
                    return
                self._isa_line.set(asserted=False)
            has_line = irq is not None and self._has_pin
            self._isa_line = self.context.interrupts.line(irq) if has_line and irq is not None else None
            self._drive_intx()

    def _drive_intx(self) -> None:
        status = self.config.get(cs.STATUS, 2) & ~cs.STATUS_INTX
        self.config.poke(cs.STATUS, 2, status | (cs.STATUS_INTX if self._intx_level else 0))
        disabled = self.config.get(cs.COMMAND, 2) & cs.COMMAND_INTX_DISABLE
        driven = self._intx_level and not disabled and not (self.msix is not None and self.msix.enabled)
        for line in (self.intx, self._isa_line):
            if line is not None:
                line.set(asserted=driven)

    # --- the bus --------------------------------------------------------------------------------------------------

    def plugged(self, slot: int) -> None:
        """For the bus: the function is in `slot` now and answers from there."""
        with self.lock:
            self.slot = slot
            if self._has_pin:
                self.intx = self.context.interrupts.line(layout.GSI_PCI_PINS[slot % 4])
            self.map_bars()
            self._drive_intx()

    def unplugged(self) -> None:
        """For the bus: it is in no slot any more, decodes nothing and asserts nothing. `plugged` may follow."""
        with self.lock:
            self.slot = None
            self._intx_level = False
            self._drive_intx()
            self.intx = self._isa_line = None
            self.config.reset()
            self.map_bars()
            if self.msix is not None:
                self.msix.reset()

    def apply_config(self, offset: int, size: int) -> None:
        """What a write to these registers entails."""
        end = offset + size
        if self.msix is not None and offset < self._msix_control + 2 and end > self._msix_control:
            self.msix.control_changed()
            self._drive_intx()
        if offset < cs.STATUS and end > cs.COMMAND:
            self._drive_intx()
            self.map_bars()
        elif any(offset < start + length and end > start for start, length in _BASES):
            self.map_bars()

    # --- BARs -----------------------------------------------------------------------------------------------------

    def map_bars(self) -> None:
        """Bring the buses in line with the registers: first what leaves, so that two may change places."""
        with self.lock:
            wanted = {index: self._wanted_base(bar) for index, bar in self.bars.items()}
            for index, bar in self.bars.items():
                if bar.mapped is not None and bar.mapped.base != wanted[index]:
                    self._unmap(bar)
            for index, bar in self.bars.items():
                base = wanted[index]
                if base is None:
                    bar.refused = False
                elif bar.mapped is None:
                    self._map(bar, base)

    def _wanted_base(self, bar: Bar) -> int | None:
        enable = cs.COMMAND_IO if bar.kind is BarKind.IO else cs.COMMAND_MEMORY
        if not self.config.get(cs.COMMAND, 2) & enable or self._closed:
            return None
        return bar.address(self.config.get(bar.register, bar.register_bytes))

    def _map(self, bar: Bar, base: int) -> None:
        io = bar.kind is BarKind.IO
        problem = refusal(self.context.memory, base, bar.size, io=io)
        if problem is None:
            try:
                bus = self.context.ports if io else self.context.mmio
                bar.mapped = bus.add(base, bar.size, bar.handler, name=f"{self.name} BAR {bar.index}")
            except Conflict:
                problem = "is taken"
        if problem is None:
            bar.refused = False
            self.bar_moved(bar.index, base)
        elif not bar.refused:
            bar.refused = True
            self.context.note(f"{self.label}: BAR {bar.index} cannot be at {base:#x}: it {problem}")

    def _unmap(self, bar: Bar) -> None:
        mapped, bar.mapped = bar.mapped, None
        if mapped is not None:
            self.bar_moved(bar.index, None)
            (self.context.ports if bar.kind is BarKind.IO else self.context.mmio).remove(mapped)
            self.released += 1

    # --- life -----------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Power-on state: BARs at no address and not decoded, interrupts off, nothing pending. The slot stays."""
        with self.lock:
            self.config.reset()
            self.map_bars()
            if self.msix is not None:
                self.msix.reset()
            self._intx_level = False
            self._drive_intx()

    @property
    def state_type(self) -> type[State] | None:
        return PciFunctionState

    def save(self) -> State | None:
        return self.save_function()

    def restore(self, state: State) -> None:
        assert isinstance(state, PciFunctionState)
        self.restore_function(state)

    def save_function(self) -> PciFunctionState:
        """The part of a function's state that is here."""
        with self.lock:
            msix = self.msix.save() if self.msix is not None else None
            return PciFunctionState(config=self.config.save(), intx=self._intx_level, msix=msix)

    def restore_function(self, state: PciFunctionState) -> None:
        """Into a function of the same shape. BARs are decoded again and pending vectors delivered as soon as unmasked.
        Raises `Unsupported` for another version or another shape, having changed nothing."""
        if state.version > STATE_VERSION:
            raise Unsupported(f"{self.label}: state version {state.version}; this appliance knows {STATE_VERSION}")
        identity = self.config.save()[:4]
        if state.config[:4] != identity or (state.msix is None) != (self.msix is None):
            raise Unsupported(f"{self.label}: the saved state is of another device")
        with self.lock:
            if self.msix is not None and state.msix is not None:
                self.msix.check(state.msix, label=self.label)
            try:
                self.config.restore(state.config)
            except ValueError as error:
                raise Unsupported(f"{self.label}: {error}") from error
            if self.msix is not None and state.msix is not None:
                self.msix.restore(state.msix)
            self._intx_level = state.intx and self._has_pin
            self.map_bars()
            self._drive_intx()

    def close(self) -> None:
        with self.lock:
            self._closed = True
            self.map_bars()
            self._intx_level = False
            self._drive_intx()
            if self.msix is not None:
                self.msix.close()
