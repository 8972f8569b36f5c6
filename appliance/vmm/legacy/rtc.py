"""The real-time clock and CMOS memory of a PC: Motorola MC146818A at ports 0x70 and 0x71, interrupt 8.

The calendar is the host's wall clock plus an offset, so it keeps the guest's own setting and goes on while the guest is
paused or saved. It stands while the guest sets it (register B, SET) or holds the divider in reset (register A, DV = 11x);
half a second after the divider is released the first update happens (datasheet, "Divider Stages").

"Update in progress" is shown for the last 244 µs of each second, and by time alone: it always ends, which a driver waits
for. Nothing ticks while nobody wants interrupts: flags are worked out when they are looked at, and there is one timer,
only while an interrupt is enabled and none is pending. A driver that does not read register C therefore costs nothing.

vCPU threads enter through the ports, the loop through the timer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from appliance.errors import Unsupported
from appliance.vmm import layout
from appliance.vmm.device import DeviceContext, State
from appliance.vmm.legacy import rtc_time
from appliance.vmm.legacy.port_device import PortDevice
from appliance.vmm.loopbridge import Timer

REG_A, REG_B, REG_C, REG_D = 0x0A, 0x0B, 0x0C, 0x0D
NVRAM_FIRST, CMOS_BYTES = 0x0E, 128

A_UIP, A_DIVIDER, A_DIVIDER_RESET, A_RATE = 0x80, 0x70, 0x60, 0x0F
B_SET, B_PIE, B_AIE, B_UIE, B_SQWE = 0x80, 0x40, 0x20, 0x10, 0x08
C_IRQF, C_PF, C_AF, C_UF = 0x80, 0x40, 0x20, 0x10
D_VALID = 0x80

UIP_S = 244e-6  # tBUC: UIP is up this long before the update
SHORTEST_TIMER_S = 0.001  # a guest cannot make the loop run more often than that for it
LONGEST_TIMER_S = 60.0  # the wall clock may be set meanwhile
_HOLD_HALF = 0.5


class RtcState(State):
    version: int = 1
    index: int = 0
    cmos: bytes = bytes(CMOS_BYTES)
    offset_s: float = 0.0
    flags: int = 0
    phase_s: float = 0.0
    seen_s: int = 0


class Rtc(PortDevice):
    """`nvram` gives bytes from 0x0e on (`rtc_nvram.pc_nvram`). `local_time`: the calendar begins in the host's zone."""

    def __init__(
        self,
        name: str,
        context: DeviceContext,
        *,
        nvram: Mapping[int, int] | None = None,
        local_time: bool = False,
        offset_s: float = 0.0,
    ) -> None:
        """`offset_s` is added to the time the calendar begins with."""
        super().__init__(name, context)
        self._line = context.interrupts.line(layout.GSI_RTC)
        self._index = 0
        self._cmos = bytearray(CMOS_BYTES)
        self._cmos[REG_A], self._cmos[REG_B] = 0x26, rtc_time.B_24_HOURS  # 32768 Hz, 1024 Hz, BCD
        for offset, value in (nvram or {}).items():
            self.set_nvram(offset, value)
        zone_s = time.localtime(context.clock.now()).tm_gmtoff if local_time else 0
        self._offset_s = offset_s + zone_s
        self._phase_s = 0.0  # of the second, while the calendar stands
        self._flags = 0
        self._seen_s = math.floor(self._now())
        self._periods_from = context.clock.monotonic()
        self._timer: Timer | None = None
        self._timer_due = math.inf
        self._paused = False
        self.claim_bytes(layout.PORT_CMOS, 2, self.read_port, self.write_port)

    # --- host side -----------------------------------------------------------------------------------------------

    def set_nvram(self, offset: int, value: int) -> None:
        """One byte of the battery-backed memory. `ValueError` when it is a register of the clock."""
        if not NVRAM_FIRST <= offset < CMOS_BYTES or offset == rtc_time.CENTURY:
            raise ValueError(f"{self.label}: CMOS byte {offset:#x} is not memory")
        with self.lock:
            self._cmos[offset] = value & 0xFF

    def nvram_byte(self, offset: int) -> int:
        with self.lock:
            return self._cmos[offset]

    # --- ports: vCPU threads -------------------------------------------------------------------------------------

    def read_port(self, offset: int) -> int:
        """0x70 is write-only."""
        if offset == 0:
            return 0xFF
        with self.lock:
            match self._index:
                case 0x0A:
                    return self._cmos[REG_A] | (A_UIP if self._updating() else 0)
                case 0x0C:
                    return self._acknowledge()
                case 0x0D:
                    return D_VALID
                case index if index in rtc_time.TIME_REGISTERS and self._running():
                    return rtc_time.registers_at(math.floor(self._now()), self._cmos[REG_B])[index]
                case index:
                    return self._cmos[index]

    def write_port(self, offset: int, value: int) -> None:
        """Bit 7 of the index masks NMIs, of which there are none."""
        with self.lock:
            if offset == 0:
                self._index = value & 0x7F
                return
            self._catch_up()
            match self._index:
                case 0x0A:
                    self._set_control(a=value & ~A_UIP, b=self._cmos[REG_B])
                case 0x0B:
                    # setting ends the update interrupt (datasheet, "SET")
                    self._set_control(a=self._cmos[REG_A], b=value & ~B_UIE if value & B_SET else value)
                case 0x0C | 0x0D:
                    return
                case index if index in rtc_time.TIME_REGISTERS:
                    self._set_time(index, value)
                case index:
                    self._cmos[index] = value
            self._update_interrupt()

    def _set_time(self, register: int, value: int) -> None:
        """A running calendar takes one register at once, as the real one does."""
        phase = self._now() % 1
        running = self._running()
        if running:
            self._show_time()
        self._cmos[register] = value
        if running:
            self._take_time(phase)

    def _set_control(self, *, a: int, b: int) -> None:
        was_running, was_reset = self._running(), self._divider_reset()
        if (a ^ self._cmos[REG_A]) & A_RATE:
            self._periods_from = self.context.clock.monotonic()
        if was_running:
            self._show_time()
            self._phase_s = self._now() % 1
        time_s = rtc_time.seconds_of(self._cmos, self._cmos[REG_B])
        self._cmos[REG_A], self._cmos[REG_B] = a, b
        if was_running and not self._running():
            return
        if self._running() and not was_running:
            self._take_time(_HOLD_HALF if was_reset else self._phase_s)
        elif was_running:  # the format may have changed; the time has not
            for register, raw in rtc_time.registers_at(time_s, b).items():
                self._cmos[register] = raw

    # --- time ----------------------------------------------------------------------------------------------------

    def _now(self) -> float:
        return self.context.clock.now() + self._offset_s

    def _divider_reset(self) -> bool:
        return self._cmos[REG_A] & A_DIVIDER_RESET == A_DIVIDER_RESET

    def _running(self) -> bool:
        return not self._cmos[REG_B] & B_SET and not self._divider_reset()

    def _updating(self) -> bool:
        return self._running() and self._now() % 1 >= 1 - UIP_S

    def _show_time(self) -> None:
        for register, raw in rtc_time.registers_at(math.floor(self._now()), self._cmos[REG_B]).items():
            self._cmos[register] = raw

    def _take_time(self, phase_s: float) -> None:
        """The calendar runs from what its registers say, `phase_s` into that second."""
        self._seen_s = rtc_time.seconds_of(self._cmos, self._cmos[REG_B])
        self._offset_s = self._seen_s + phase_s - self.context.clock.now()

    # --- interrupts ----------------------------------------------------------------------------------------------

    def _period_s(self) -> float:
        """The periodic rate (datasheet, table 5), 0 for none: 1 and 2 are 256 and 128 Hz, others 2^15 >> (n - 1)."""
        rate = self._cmos[REG_A] & A_RATE
        if rate == 0 or self._divider_reset():
            return 0.0
        return float(2 ** ((rate + 7 if rate <= 2 else rate) - 1)) / 32768

    def _catch_up(self) -> None:
        """Set the flags of everything that has happened since they were looked at last."""
        if self._running():
            now_s = math.floor(self._now())
            if now_s > self._seen_s:
                self._flags |= C_UF
                alarm = rtc_time.next_alarm(self._seen_s, self._cmos, self._cmos[REG_B])
                if alarm is not None and alarm <= now_s:
                    self._flags |= C_AF
            self._seen_s = now_s
        period = self._period_s()
        if period:
            periods = math.floor((self.context.clock.monotonic() - self._periods_from) / period)
            if periods > 0:
                self._flags |= C_PF
                self._periods_from += periods * period

    def _acknowledge(self) -> int:
        """Reading C tells the flags and clears them."""
        self._catch_up()
        flags, self._flags = self._flags, 0
        raised = C_IRQF if flags & self._cmos[REG_B] else 0
        self._update_interrupt()
        return flags | raised

    def _update_interrupt(self) -> None:
        """The line is IRQF; while it is down, be there when the next enabled event happens."""
        if self._paused:
            return
        raised = bool(self._flags & self._cmos[REG_B] & (B_PIE | B_AIE | B_UIE))
        self._line.set(asserted=raised)
        delay_s = math.inf if raised else self._next_event_s()
        if delay_s == math.inf:
            return
        delay_s = min(max(delay_s, SHORTEST_TIMER_S), LONGEST_TIMER_S)
        due = self.context.clock.monotonic() + delay_s
        if self._timer is None or due < self._timer_due - SHORTEST_TIMER_S / 2:
            self._cancel_timer()
            self._timer_due = due
            self._timer = self.context.bridge.later(delay_s, self._on_timer)

    def _next_event_s(self) -> float:
        """Seconds until something enabled happens."""
        enabled, delay_s = self._cmos[REG_B], math.inf
        if enabled & B_PIE and (period := self._period_s()):
            delay_s = self._periods_from + period - self.context.clock.monotonic()
        if self._running():
            now = self._now()
            if enabled & B_UIE:
                delay_s = min(delay_s, math.floor(now) + 1 - now)
            if enabled & B_AIE:
                alarm = rtc_time.next_alarm(self._seen_s, self._cmos, enabled)
                delay_s = min(delay_s, math.inf if alarm is None else alarm - now)
        return delay_s

    def _on_timer(self) -> None:
        with self.lock:
            self._timer = None
            if not self._paused:
                self._catch_up()
                self._update_interrupt()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- life ----------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """The battery keeps calendar and memory; RESET# ends the interrupts (datasheet, "RESET")."""
        with self.lock:
            self._cmos[REG_B] &= ~(B_PIE | B_AIE | B_UIE | B_SQWE) & 0xFF
            self._flags = self._index = 0
            self._cancel_timer()
            self._line.set(asserted=False)

    def pause(self) -> None:
        with self.lock:
            self._paused = True
            self._cancel_timer()

    def resume(self) -> None:
        with self.lock:
            self._paused = False
            self._catch_up()
            self._update_interrupt()

    def save(self) -> RtcState:
        with self.lock:
            return RtcState(
                index=self._index,
                cmos=bytes(self._cmos),
                offset_s=self._offset_s,
                flags=self._flags,
                phase_s=self._phase_s,
                seen_s=self._seen_s,
            )

    def restore(self, state: State) -> None:
        mine = self.own_state(state, RtcState, version=1)
        if len(mine.cmos) != CMOS_BYTES or not math.isfinite(mine.offset_s):
            raise Unsupported(f"{self.label}: saved state is not {CMOS_BYTES} bytes of CMOS and a time")
        with self.lock:
            self._index, self._flags = mine.index & 0x7F, mine.flags & (C_PF | C_AF | C_UF)
            self._cmos[:] = mine.cmos
            self._offset_s, self._phase_s, self._seen_s = mine.offset_s, mine.phase_s, mine.seen_s
            self._periods_from = self.context.clock.monotonic()

    @property
    def state_type(self) -> type[State]:
        return RtcState

    def close(self) -> None:
        super().close()
        with self.lock:
            self._paused = True
            self._cancel_timer()
