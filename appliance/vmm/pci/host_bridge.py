"""The chipset as PCI functions: the host bridge (Q35's MCH, 00:00.0) and the LPC bridge (ICH9's, 00:1f.0).

Registers that SeaBIOS (fw/pciinit.c, fw/shadow.c, fw/smm.c) and Linux (lpc_ich, pci/quirks.c) touch, and no others:

    MCH   0x60 PCIEXBAR  where ECAM is: enable, length, address          Intel Q35 (316966) §5.1.16
          0x90 PAM0-6    shadow RAM: kept, without effect, 0xc0000-0xfffff is always RAM     §5.1.21
          0x9d SMRAM, 0x9e ESMRAMC  kept, without effect: there is no SMM                    §5.1.28
    LPC   0x40 PMBASE, 0x44 ACPI_CNTL  the PM ports do not move from layout.PORT_PM_BASE     ICH9 (316972) §13.1
          0x60, 0x68 PIRQ routing      to which ISA line a pin leads, for guests that use the PIC
          0xa0 GEN_PMCON_1, 0xf0 RCBA  the root complex registers do not move from RCBA_BASE

ECAM is decoded from power-on at `layout.ECAM`, enabled, where SeaBIOS puts it and the MCFG table says it is: a kernel
that is booted directly has nobody to enable it.
"""

from __future__ import annotations

from typing import Final

from appliance.errors import Conflict
from appliance.vmm import layout
from appliance.vmm.bus import BusHandler, BusRange
from appliance.vmm.device import DeviceContext
from appliance.vmm.pci.bar import refusal
from appliance.vmm.pci.function import PciFunction

INTEL: Final = 0x8086
Q35_MCH, ICH9_LPC = 0x29C0, 0x2918
SUBSYSTEM: Final = (0x1AF4, 0x1100)  # QEMU's, by which Linux knows a virtual chipset

PCIEXBAR, PAM0, PAMS, SMRAM, ESMRAMC = 0x60, 0x90, 7, 0x9D, 0x9E
PCIEXBAR_ENABLE: Final = 1
PCIEXBAR_WRITABLE: Final = 0xF_FC00_0007  # address 35:26, length 2:1, enable
PCIEXBAR_LENGTHS: Final = {0: 256 * layout.MIB, 1: 128 * layout.MIB, 2: 64 * layout.MIB}

PMBASE, ACPI_CNTL, PIRQ_A, PIRQ_E, GEN_PMCON_1, RCBA = 0x40, 0x44, 0x60, 0x68, 0xA0, 0xF0
PIRQ_DISABLED: Final = 0x80
PIRQ_WRITABLE: Final = 0x8F
ISA_LINES_OF_PCI: Final = frozenset({3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15})  # ICH9 §13.1.14: the others are reserved
RCBA_BASE, RCBA_BYTES = 0xFED1_C000, 16 * layout.KIB
GCS: Final = 0x3410
GCS_NO_REBOOT: Final = 1 << 5


class HostBridge(PciFunction):
    """The MCH. `ecam` is what answers in the ECAM window."""

    def __init__(self, context: DeviceContext, ecam: BusHandler) -> None:
        super().__init__(
            "pci-host", context, vendor=INTEL, device=Q35_MCH, class_code=0x060000, revision=2, subsystem=SUBSYSTEM
        )
        self._ecam = ecam
        self._window: BusRange | None = None
        self._refused = False
        define = self.config.define
        define(PCIEXBAR, 8, layout.ECAM | PCIEXBAR_ENABLE, writable=PCIEXBAR_WRITABLE)
        define(PAM0, 1, 0, writable=0x30)
        for number in range(1, PAMS):
            define(PAM0 + number, 1, 0, writable=0x33)
        define(SMRAM, 1, 0x02, writable=0x78)
        define(ESMRAMC, 1, 0x38, writable=0x87)

    @property
    def ecam_base(self) -> int | None:
        """Where ECAM is decoded; None while it is not."""
        return None if self._window is None else self._window.base

    def config_written(self, offset: int, size: int) -> None:
        if offset < PCIEXBAR + 8 and offset + size > PCIEXBAR:
            self.map_bars()

    def map_bars(self) -> None:
        """ECAM is the one window of this function; the enable bits of the command register do not concern it."""
        with self.lock:
            wanted = None if self._closed else self._wanted_window()
            window = self._window
            if window is not None and (window.base, window.length) != wanted:
                self._window = None
                self.context.mmio.remove(window)
                self.released += 1
            if wanted is None:
                self._refused = False
            elif self._window is None:
                self._map_window(*wanted)

    def _wanted_window(self) -> tuple[int, int] | None:
        register = self.config.get(PCIEXBAR, 8)
        length = PCIEXBAR_LENGTHS.get(register >> 1 & 3)
        if not register & PCIEXBAR_ENABLE or length is None:
            return None
        return register & PCIEXBAR_WRITABLE & ~(length - 1), length

    def _map_window(self, base: int, length: int) -> None:
        problem = refusal(self.context.memory, base, length, io=False)
        if problem is None:
            try:
                self._window = self.context.mmio.add(base, length, self._ecam, name="pci ECAM")
            except Conflict:
                problem = "is taken"
        if problem is not None and not self._refused:
            self.context.note(f"{self.label}: ECAM cannot be at {base:#x}: it {problem}")
        self._refused = problem is not None


class LpcBridge(PciFunction):
    """The ICH9's ISA bridge: what leads to the ISA lines."""

    def __init__(self, context: DeviceContext) -> None:
        super().__init__(
            "pci-lpc", context, vendor=INTEL, device=ICH9_LPC, class_code=0x060100, revision=2, subsystem=SUBSYSTEM
        )
        define = self.config.define
        define(PMBASE, 4, layout.PORT_PM_BASE | 1)
        define(ACPI_CNTL, 1, 0, writable=0x80)
        for register in (PIRQ_A, PIRQ_E):
            for number in range(4):
                define(register + number, 1, PIRQ_DISABLED, writable=PIRQ_WRITABLE)
        define(GEN_PMCON_1, 2, 0, writable=1 << 4)
        define(RCBA, 4, RCBA_BASE, writable=1)
        self._window: BusRange | None = None

    def isa_irq(self, slot: int) -> int | None:
        """The ISA line that INTA# of `slot` leads to as well as to its IOAPIC pin; None when the guest wants none.

        The wiring is what SeaBIOS assumes of a Q35 (mch_pci_slot_get_irq): devices up to 24 rotate over PIRQ A-D, those
        above use A."""
        routing = self.config.get(PIRQ_A + (slot % 4 if slot <= 24 else 0), 1)
        irq = routing & 0xF
        return None if routing & PIRQ_DISABLED or irq not in ISA_LINES_OF_PCI else irq

    def config_written(self, offset: int, size: int) -> None:
        if offset < RCBA + 4 and offset + size > RCBA:
            self.map_bars()

    def map_bars(self) -> None:
        """RCBA is the one window of this function. Nothing else can be at its address, so it always finds room."""
        with self.lock:
            wanted = bool(self.config.get(RCBA, 4) & 1) and not self._closed
            if wanted and self._window is None:
                self._window = self.context.mmio.add(RCBA_BASE, RCBA_BYTES, RootComplex(), name="pci RCBA")
            elif not wanted and self._window is not None:
                self.context.mmio.remove(self._window)
                self._window = None


class RootComplex:
    """The root complex registers. Only GCS has a content: NO_REBOOT is strapped, so that Linux's iTCO_wdt knows that there
    is no such watchdog (ICH9 §10.1.75)."""

    def read(self, offset: int, size: int) -> int:
        return (GCS_NO_REBOOT << 8 * GCS >> 8 * offset) & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:
        pass
