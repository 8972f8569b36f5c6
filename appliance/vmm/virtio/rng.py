"""The entropy device (virtio 1.2 §5.4): each writable buffer is filled with random bytes. The device to read first.

A device is: its constants, its configuration (this one has none), then its class: the features it offers, what happens
when the driver is there (`activate`), kicks (`on_kick`) and goes (`deactivate`), and what is saved. Random bytes are the
host's getrandom(2), which never blocks once the host has booted. A guest that wants more than its limit allows waits:
its buffers stay in the ring until the period is over.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from appliance.errors import HostError
from appliance.vmm.device import DeviceContext
from appliance.vmm.loopbridge import Timer
from appliance.vmm.virtio.consts import DeviceId
from appliance.vmm.virtio.device import VirtioDevice
from appliance.vmm.virtio.queue import Chain

REQUESTS: Final = 0  # the only queue
QUEUE_SIZE: Final = 64
MAX_AT_ONCE: Final = 4096  # bytes for one buffer; fewer than there is room for are right (§5.4.6.2)


@dataclass(frozen=True, slots=True)
class RngLimit:
    """At most `max_bytes` in each period of `period_s`."""

    max_bytes: int = 1 << 20
    period_s: float = 1.0


class VirtioRng(VirtioDevice):
    """`limit` None is no limit. What is spent stays spent over a reset, which a guest can do as often as it likes."""

    device_id = DeviceId.ENTROPY

    def __init__(self, name: str, context: DeviceContext, *, limit: RngLimit | None = None) -> None:
        super().__init__(name, context, queue_sizes=[QUEUE_SIZE])
        self._limit = limit
        self._spent_bytes = 0
        self._period: Timer | None = None

    def on_kick(self, index: int) -> None:
        self.serve(REQUESTS, self._fill, ready=self._may_spend)

    def close(self) -> None:
        if self._period is not None:
            self._period.cancel()
        super().close()

    def _fill(self, chain: Chain) -> int:
        wanted = min(chain.writable_bytes, MAX_AT_ONCE)
        if self._limit is not None:
            wanted = min(wanted, self._limit.max_bytes - self._spent_bytes)
            self._spend(wanted, self._limit)
        try:
            return chain.write(os.getrandom(wanted, os.GRND_NONBLOCK))
        except OSError as error:
            raise HostError.from_os_error(error, f"{self.label}: getrandom") from error

    def _may_spend(self) -> bool:
        return self._limit is None or self._spent_bytes < self._limit.max_bytes

    def _spend(self, count: int, limit: RngLimit) -> None:
        self._spent_bytes += count
        if self._period is None:
            self._period = self.context.bridge.later(limit.period_s, self._period_over)

    def _period_over(self) -> None:
        self._spent_bytes, self._period = 0, None
        self.kick(REQUESTS)
