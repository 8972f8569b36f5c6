"""A driver whose device is served by another process: it waits for its interrupt."""

from __future__ import annotations

import select
from collections.abc import Callable

from appliance.vmm.virtio.device import VirtioDevice
from tests.fakes.machine import FakeBridge
from tests.fakes.virtio_driver import DriverQueue, settle


class WaitingQueue(DriverQueue):
    """`kick` returns once something has come back, or the device is not live any more."""

    def kick(self) -> None:
        super().kick()
        device = self.device
        assert device is not None
        run_until(device, lambda: self.has_answers() or not device.live)

    def has_answers(self) -> bool:
        return self.used_idx != self.memory.load_u16(self.used_ring + 2)


def wait_for_answers(queue: DriverQueue) -> WaitingQueue:
    """The same queue, waiting."""
    queue.__class__ = WaitingQueue
    assert isinstance(queue, WaitingQueue)
    return queue


def run_until(device: VirtioDevice, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Let the fake loop run as descriptors become ready."""
    bridge = device.context.bridge
    assert isinstance(bridge, FakeBridge)
    for _ in range(int(timeout_s / 0.02)):
        if condition():
            return
        poll = select.poll()
        for fd in bridge.watched:
            poll.register(fd, select.POLLIN)
        poll.poll(20)
        settle(bridge)
    raise AssertionError("it never came to that")
