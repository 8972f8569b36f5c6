"""The watchdog of Intel's 6300ESB as a PCI function: two stages of a timer that the guest must keep reloading.

    BAR 0  +0x0  preload of stage 1, 20 bits        configuration  0x60  bit 5 no reboot, bit 2 fast, 0-1 interrupt
           +0x4  preload of stage 2, 20 bits                       0x68  bit 2 free-running, bit 1 enable, bit 0 lock
           +0x8  interrupt status, a one clears
           +0xc  bit 8 reload; bit 9 it has expired before

A register of the BAR takes one write after 0x80, then 0x86, were written to +0xc. Stage 1 ends with a status bit only: its
interrupt goes to the 6300ESB's second IOAPIC, which this machine has not, and Linux' driver disables it. When stage 2 ends
the guest has hung: `action` is asked of the machine. The count stands while the machine is paused.

Source: Intel 6300ESB datasheet (300641-004) §17; Linux drivers/watchdog/i6300esb.c.
"""

from __future__ import annotations

from typing import Final

from appliance.vmm.device import DeviceContext, MachineRequest, State
from appliance.vmm.legacy.port_device import own_state
from appliance.vmm.loopbridge import Timer
from appliance.vmm.pci.function import BarKind, PciFunction, PciFunctionState

VENDOR, DEVICE, CLASS_SYSTEM_OTHER = 0x8086, 0x25AB, 0x088000
CONFIG, LOCK = 0x60, 0x68
CONFIG_NO_REBOOT, CONFIG_FAST, CONFIG_WRITABLE = 1 << 5, 1 << 2, 0x27
LOCK_FREE_RUNNING, LOCK_ENABLE, LOCK_LOCK, LOCK_WRITABLE = 1 << 2, 1 << 1, 1 << 0, 0x07
PRELOAD_1, PRELOAD_2, STATUS, RELOAD, BAR_BYTES = 0x0, 0x4, 0x8, 0xC, 0x10
RELOAD_NOW, RELOAD_EXPIRED, RELOAD_EXPIRED_LINUX = 1 << 8, 1 << 9, 1 << 12  # old Linux looks for bit 9 at 12
UNLOCK = (0x80, 0x86)
PRELOAD_MAX: Final = 0xFFFFF
PCI_HZ: Final = 33_000_000
SHORTEST_S: Final = 0.01  # a guest cannot make the loop run more often than that for it


class WatchdogState(State):
    version: int = 1
    function: PciFunctionState | None = None
    preloads: tuple[int, int] = (PRELOAD_MAX, PRELOAD_MAX)
    stage: int = 0
    left_s: float = 0.0
    unlocked: int = 0
    status: int = 0
    expired: bool = False


class Watchdog(PciFunction):
    """`action`: what is asked of the machine; WATCHDOG leaves it to the machine's configuration, None only notes it."""

    def __init__(
        self, name: str, context: DeviceContext, *, action: MachineRequest | None = MachineRequest.WATCHDOG
    ) -> None:
        super().__init__(name, context, vendor=VENDOR, device=DEVICE, class_code=CLASS_SYSTEM_OTHER)
        self.action = action
        self._expired = False  # before the last reset
        self._timer: Timer | None = None
        self._paused = False
        self._power_on()
        self.config.define(CONFIG, 2, 0, writable=CONFIG_WRITABLE)
        self.config.define(LOCK, 1, 0, writable=LOCK_WRITABLE)
        self.add_bar(0, BAR_BYTES, BarKind.MEM32, self)

    def _power_on(self) -> None:
        self._preloads = [PRELOAD_MAX, PRELOAD_MAX]
        self._stage = 0  # 0: not running
        self._due_s = 0.0
        self._unlocked = 0
        self._status = 0
        self._lock_bits = 0

    # --- registers: vCPU threads ---------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        with self.lock:
            expired = RELOAD_EXPIRED | RELOAD_EXPIRED_LINUX if self._expired else 0
            registers = (self._preloads[0], self._preloads[1], self._status, expired)
            block = sum(value << 32 * number for number, value in enumerate(registers))
            return block >> 8 * offset & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        with self.lock:
            if offset == STATUS:
                self._status &= ~value
            elif offset == RELOAD and value in UNLOCK:
                self._unlocked = 1 if value == UNLOCK[0] else 2 * (self._unlocked == 1)
            elif self._unlocked == len(UNLOCK):
                self._unlocked = 0
                self._write_unlocked(offset, value)

    def _write_unlocked(self, offset: int, value: int) -> None:
        match offset:
            case 0x0 | 0x4:
                self._preloads[offset // 4] = value & PRELOAD_MAX
            case 0xC:
                if value & (RELOAD_EXPIRED | RELOAD_EXPIRED_LINUX):
                    self._expired = False
                if value & RELOAD_NOW and self._stage:
                    self._start(1)

    def config_written(self, offset: int, size: int) -> None:
        """Enabling, and the lock that keeps the rest of it as it is until the next reset."""
        if not offset <= LOCK < offset + size:
            return
        if self._lock_bits & LOCK_LOCK:
            self.config.poke(LOCK, 1, self._lock_bits)
            return
        before, self._lock_bits = self._lock_bits, self.config.get(LOCK, 1)
        if not self._lock_bits & LOCK_ENABLE:
            self._stop()
        elif not before & LOCK_ENABLE:
            self._start(1)

    # --- the timer -----------------------------------------------------------------------------------------------

    def _start(self, stage: int) -> None:
        """Count the stage's preload down, in PCI clocks over 2^15 (about 1 kHz) or 2^5 (about 1 MHz)."""
        self._stage = stage
        shift = 5 if self.config.get(CONFIG, 2) & CONFIG_FAST else 15
        self._arm(max(SHORTEST_S, (self._preloads[stage - 1] << shift) / PCI_HZ))

    def _arm(self, delay_s: float) -> None:
        self._disarm()
        self._due_s = self.context.clock.monotonic() + delay_s
        if not self._paused:
            self._timer = self.context.bridge.later(delay_s, self._on_timer)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop(self) -> None:
        self._disarm()
        self._stage = 0

    def _on_timer(self) -> None:
        with self.lock:
            self._timer = None
            left_s = self._due_s - self.context.clock.monotonic()
            if not self._stage or self._paused:
                return
            if left_s > 0.001:  # reloaded as this one was about to run
                self._arm(left_s)
                return
            if self._stage == 1:
                self._status |= 1
                self._start(2)
                return
            hung = not self.config.get(CONFIG, 2) & CONFIG_NO_REBOOT
            self._expired = self._expired or hung
            if self._lock_bits & LOCK_FREE_RUNNING and not hung:
                self._start(1)
            else:
                self._stop()
        if hung:
            self._act()

    def _act(self) -> None:
        if self.action is None:
            self.context.note(f"{self.name}: expired: the guest has hung")
        else:
            self.context.request(self.action, "the guest has hung: its watchdog expired")

    # --- life ----------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """All but that it has expired."""
        with self.lock:
            self._disarm()
            self._power_on()
            super().reset()

    def pause(self) -> None:
        with self.lock:
            self._paused = True
            self._due_s -= self.context.clock.monotonic()  # what is left, until `resume`
            self._disarm()

    def resume(self) -> None:
        with self.lock:
            self._paused = False
            if self._stage:
                self._arm(max(SHORTEST_S, self._due_s))

    @property
    def state_type(self) -> type[State]:
        return WatchdogState

    def save(self) -> WatchdogState:
        with self.lock:
            return WatchdogState(
                function=self.save_function(),
                preloads=(self._preloads[0], self._preloads[1]),
                stage=self._stage,
                left_s=self._due_s,
                unlocked=self._unlocked,
                status=self._status,
                expired=self._expired,
            )

    def restore(self, state: State) -> None:
        mine = own_state(self, state, WatchdogState, version=1)
        with self.lock:
            if mine.function is not None:
                self.restore_function(mine.function)
            self._lock_bits = self.config.get(LOCK, 1)
            self._preloads = [each & PRELOAD_MAX for each in mine.preloads]
            self._stage = mine.stage if mine.stage in (1, 2) and self._lock_bits & LOCK_ENABLE else 0
            self._due_s, self._unlocked, self._status, self._expired = (
                mine.left_s,
                mine.unlocked,
                mine.status & 1,
                mine.expired,
            )

    def close(self) -> None:
        with self.lock:
            self._paused = True
            self._stop()
        super().close()
