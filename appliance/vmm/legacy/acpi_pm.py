"""ACPI's fixed hardware, where ICH9 has it: PM1 event and control blocks, PM timer, GPE0 block, SMI command port.

    0x600  PM1_STS  16   a one clears            0x620  GPE0_STS  64   a one clears
    0x602  PM1_EN   16                           0x628  GPE0_EN   64
    0x604  PM1_CNT  16   SLP_EN acts             0x630  SMI_EN    32   APMC_EN set, fixed: see below
    0x608  PM_TMR   32   24 bits, 3.579545 MHz   0x0b2  SMI command, 0x0b3 its status

The SCI is GSI 9, level: it is up while any enabled status bit is set (ACPI 6.4 §4.8). The machine has no system management
mode: it is in ACPI mode from the start (§4.8.2.5: SCI_EN is set, the FADT names no SMI command port). Who writes to ICH9's
SMI command port all the same gets at once what a handler would do, SCI_EN set or cleared. SMI_EN says APMC_EN, by which
SeaBIOS knows that there is no handler for it to install (src/fw/smm.c). The timer stands while the machine is paused.
Sources: ACPI 6.4 §4.8.3, §4.8.4; Intel ICH9 datasheet (316972) §13.8. vCPU threads enter through the ports; buttons and
`raise_gpe` from any thread.
"""

from __future__ import annotations

from typing import Final

from appliance.vmm import layout
from appliance.vmm.device import DeviceContext, MachineRequest, State
from appliance.vmm.legacy.port_device import PortDevice
from appliance.vmm.loopbridge import Timer

PORT_SMI_COMMAND: Final = 0xB2
ACPI_ENABLE, ACPI_DISABLE = 0x02, 0x03
S5_SLEEP_TYPE: Final = 0  # for the DSDT's _S5; SeaBIOS' APM power-off has it built in (src/apm.c)
PM_PORTS: Final = 0x40
GPE0_BYTES: Final = 16  # GPE0_BLK_LEN: 64 events
GPE_PCI_HOTPLUG, GPE_CPU_HOTPLUG, GPE_VMGENID = 1, 2, 5

PM1_STS, PM1_EN, PM1_CNT, PM_TMR = 0x00, 0x02, 0x04, 0x08
GPE0_STS, GPE0_EN, SMI_EN = 0x20, 0x28, 0x30

STS_TIMER, STS_GLOBAL, STS_POWER_BUTTON, STS_SLEEP_BUTTON, STS_RTC = 1 << 0, 1 << 5, 1 << 8, 1 << 9, 1 << 10
STS_ALL: Final = STS_TIMER | 1 << 4 | STS_GLOBAL | STS_POWER_BUTTON | STS_SLEEP_BUTTON | STS_RTC | 1 << 15
EN_ALL: Final = STS_TIMER | STS_GLOBAL | STS_POWER_BUTTON | STS_SLEEP_BUTTON | STS_RTC
CNT_SCI_EN, CNT_BM_RLD, CNT_SLP_EN = 1 << 0, 1 << 1, 1 << 13
CNT_SLP_TYP_SHIFT, CNT_SLP_TYP_MASK = 10, 0x7
CNT_KEPT: Final = CNT_SCI_EN | CNT_BM_RLD | CNT_SLP_TYP_MASK << CNT_SLP_TYP_SHIFT
SMI_APMC_EN: Final = 1 << 5

TIMER_HZ: Final = 3_579_545
TIMER_BITS: Final = 24
_OVERFLOW = 1 << TIMER_BITS - 1  # TMR_STS is set as the highest bit changes (§4.8.3.3)
_GPE_MASK = (1 << GPE0_BYTES * 4) - 1


class AcpiPmState(State):
    version: int = 1
    status: int = 0
    enable: int = 0
    control: int = 0
    gpe_status: int = 0
    gpe_enable: int = 0
    ticks: int = 0
    overflow_at: int = _OVERFLOW
    smi_command: int = 0
    smi_status: int = 0


class AcpiPm(PortDevice):
    """One for a machine."""

    def __init__(self, name: str, context: DeviceContext) -> None:
        super().__init__(name, context)
        self._sci = context.interrupts.line(layout.GSI_SCI)
        self._paused_ticks: int | None = None
        self._timer: Timer | None = None
        self._power_on()
        self.claim(layout.PORT_PM_BASE, PM_PORTS, self)
        self.claim_bytes(PORT_SMI_COMMAND, 2, self._read_smi, self._write_smi)

    def _power_on(self) -> None:
        self._status = self._enable = 0
        self._control = CNT_SCI_EN
        self._gpe_status = self._gpe_enable = 0
        self._smi = [0, 0]
        self._started_s = self.context.clock.monotonic()
        self._overflow_at = _OVERFLOW
        if self._paused_ticks is not None:
            self._paused_ticks = 0

    # --- events: any thread --------------------------------------------------------------------------------------

    def press_power_button(self) -> None:
        """An operating system in ACPI mode shuts down (§4.8.2.2.1)."""
        self._press(STS_POWER_BUTTON)

    def press_sleep_button(self) -> None:
        self._press(STS_SLEEP_BUTTON)

    def _press(self, status: int) -> None:
        with self.lock:
            self._status |= status
            self._update_sci()

    def raise_gpe(self, bit: int) -> None:
        """General-purpose event `bit` (0-63) has happened: the DSDT's _Lxx or _Exx runs, once the guest enables it."""
        if not 0 <= bit < GPE0_BYTES * 4:
            raise ValueError(f"{self.label}: there is no GPE {bit}")
        with self.lock:
            self._gpe_status |= 1 << bit
            self._update_sci()

    @property
    def hears_power_button(self) -> bool:
        """Whether the guest has enabled the power button's event: an operating system that will shut down on it."""
        return bool(self._enable & STS_POWER_BUTTON)

    # --- registers: vCPU threads ---------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        with self.lock:
            ticks = self._ticks()
            if (offset, size) == (PM_TMR, 4):  # the one that is read often
                return ticks & (1 << TIMER_BITS) - 1
            self._notice_overflow(ticks)
            registers = (
                (PM1_STS, self._status),
                (PM1_EN, self._enable),
                (PM1_CNT, self._control),
                (PM_TMR, ticks & (1 << TIMER_BITS) - 1),
                (GPE0_STS, self._gpe_status),
                (GPE0_EN, self._gpe_enable),
                (SMI_EN, SMI_APMC_EN),
            )
            block = sum(value << 8 * at for at, value in registers)
            return block >> 8 * offset & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Every register's bytes act by themselves, so any width will do."""
        powers_off = False
        with self.lock:
            self._notice_overflow(self._ticks())
            for position in range(size):
                byte = value >> 8 * position & 0xFF
                powers_off = self._write_byte(offset + position, byte) or powers_off
            self._update_sci()
        if powers_off:
            self.context.request(MachineRequest.POWER_OFF, "the guest has shut down (ACPI S5)")

    def _write_byte(self, offset: int, byte: int) -> bool:
        """Whether the guest has shut down by it."""
        match offset:
            case 0x00 | 0x01:
                cleared = byte << 8 * offset
                if self._status & cleared & STS_TIMER:
                    self._overflow_at = (self._ticks() // _OVERFLOW + 1) * _OVERFLOW
                self._status &= ~cleared
            case 0x02 | 0x03:
                self._enable = _with_byte(self._enable, offset - PM1_EN, byte) & EN_ALL
            case 0x04 | 0x05:
                self._control = _with_byte(self._control, offset - PM1_CNT, byte) & CNT_KEPT
                return offset == PM1_CNT + 1 and bool(byte << 8 & CNT_SLP_EN) and self._sleep()
            case _ if GPE0_STS <= offset < GPE0_EN:
                self._gpe_status &= ~(byte << 8 * (offset - GPE0_STS))
            case _ if GPE0_EN <= offset < SMI_EN:
                self._gpe_enable = _with_byte(self._gpe_enable, offset - GPE0_EN, byte)
        return False

    def _sleep(self) -> bool:
        """SLP_EN (§4.8.3.2.1). Only S5 is in the DSDT."""
        sleep_type = self._control >> CNT_SLP_TYP_SHIFT & CNT_SLP_TYP_MASK
        if sleep_type != S5_SLEEP_TYPE:
            self.context.note(
                f"{self.name}: the guest asks for sleep type {sleep_type}, which is none of this machine's"
            )
        return sleep_type == S5_SLEEP_TYPE

    def _read_smi(self, offset: int) -> int:
        return self._smi[offset]

    def _write_smi(self, offset: int, value: int) -> None:
        """§4.8.2.1, what firmware's SMI handler does."""
        with self.lock:
            self._smi[offset] = value
            if offset == 0 and value == ACPI_ENABLE:
                self._control |= CNT_SCI_EN
            elif offset == 0 and value == ACPI_DISABLE:
                self._control &= ~CNT_SCI_EN

    # --- timer and SCI -------------------------------------------------------------------------------------------

    def _ticks(self) -> int:
        if self._paused_ticks is not None:
            return self._paused_ticks
        return int((self.context.clock.monotonic() - self._started_s) * TIMER_HZ)

    def _notice_overflow(self, ticks: int) -> None:
        if ticks >= self._overflow_at:
            self._status |= STS_TIMER

    def _update_sci(self) -> None:
        if self._paused_ticks is not None:
            return
        raised = self._status & self._enable or self._gpe_status & self._gpe_enable
        self._sci.set(asserted=bool(raised))
        if self._enable & ~self._status & STS_TIMER and self._timer is None:
            delay_s = max(0.001, (self._overflow_at - self._ticks()) / TIMER_HZ)
            self._timer = self.context.bridge.later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        with self.lock:
            self._timer = None
            self._notice_overflow(self._ticks())
            self._update_sci()

    # --- life ----------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        with self.lock:
            self._stop_timer()
            self._power_on()
            self._sci.set(asserted=False)

    def pause(self) -> None:
        with self.lock:
            self._paused_ticks = self._ticks()
            self._stop_timer()

    def resume(self) -> None:
        with self.lock:
            if self._paused_ticks is not None:
                self._started_s = self.context.clock.monotonic() - self._paused_ticks / TIMER_HZ
                self._paused_ticks = None
            self._update_sci()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def save(self) -> AcpiPmState:
        with self.lock:
            return AcpiPmState(
                status=self._status,
                enable=self._enable,
                control=self._control,
                gpe_status=self._gpe_status,
                gpe_enable=self._gpe_enable,
                ticks=self._ticks(),
                overflow_at=self._overflow_at,
                smi_command=self._smi[0],
                smi_status=self._smi[1],
            )

    def restore(self, state: State) -> None:
        mine = self.own_state(state, AcpiPmState, version=1)
        with self.lock:
            self._status, self._enable = mine.status & STS_ALL, mine.enable & EN_ALL
            self._control = mine.control & CNT_KEPT
            self._gpe_status, self._gpe_enable = mine.gpe_status & _GPE_MASK, mine.gpe_enable & _GPE_MASK
            self._smi = [mine.smi_command & 0xFF, mine.smi_status & 0xFF]
            self._overflow_at = mine.overflow_at
            self._paused_ticks = max(0, mine.ticks)

    @property
    def state_type(self) -> type[State]:
        return AcpiPmState

    def close(self) -> None:
        super().close()
        with self.lock:
            self._paused_ticks = 0
            self._stop_timer()


def _with_byte(value: int, position: int, byte: int) -> int:
    """`value` with one of its bytes replaced."""
    return value & ~(0xFF << 8 * position) | byte << 8 * position
