"""What the service manager hears from the loop: the start goes on, it serves, the loop still turns. sd_notify(3).

    start      EXTEND_TIMEOUT_USEC every few seconds: native machines are taken up at the speed of the disk, and a start
               that systemd interrupts would cost them their memory. Bounded: a start that hangs does end.
    serving    READY=1, then WATCHDOG=1 three times in each of the unit's WatchdogSec
    end        STOPPING=1; the manager does not watch any more (systemd.service(5), WatchdogSec=)

It runs on the loop and does nothing else there: it stops exactly when the loop does.
"""

from __future__ import annotations

from appliance.clock import Clock
from appliance.kernel.sd_notify import ServiceManager

START_INTERVAL_S = 10.0
START_EXTENSION_S = 60.0
START_LIMIT_S = 1800.0
BEATS_PER_WATCHDOG = 3


class Heartbeat:
    """For one process. `run` is a task for as long as the process lives."""

    def __init__(self, manager: ServiceManager, clock: Clock) -> None:
        self._manager, self._clock = manager, clock
        self._serves = False

    async def run(self) -> None:
        """Returns when there is nothing to tell: no manager, or one that does not watch."""
        began, beat_s = self._clock.monotonic(), self._manager.watchdog_s / BEATS_PER_WATCHDOG
        while self._manager.listens and not self._serves and self._clock.monotonic() - began < START_LIMIT_S:
            self._manager.notify(f"EXTEND_TIMEOUT_USEC={START_EXTENSION_S * 1e6:.0f}")
            await self._clock.sleep(min(START_INTERVAL_S, beat_s or START_INTERVAL_S))
        while beat_s:
            if self._serves:
                self._manager.notify("WATCHDOG=1")
            await self._clock.sleep(beat_s)

    def serving(self, where: str) -> None:
        """The start is over; `where` is for `systemctl status`."""
        self._serves = True
        self._manager.notify(f"READY=1\nSTATUS=Serving {where}")

    def stopping(self) -> None:
        """The end has begun."""
        self._serves = False
        self._manager.notify("STOPPING=1\nSTATUS=Ending")
