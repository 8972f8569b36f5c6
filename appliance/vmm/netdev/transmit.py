"""From the guest to the cable: one transmit queue served in Python (virtio 1.2 §5.1.6.2). On the loop.

A frame is copied out of guest memory at one stroke, header and all: what is checked is what is sent. Copying 64 KiB takes
no longer than lending a score of pieces to writev would.
"""

from __future__ import annotations

from appliance.vmm.netdev import header
from appliance.vmm.netdev.backend import NetBackend, NetStatistics
from appliance.vmm.netdev.header import HEADER_BYTES, MAX_FRAME, SegmentTypes
from appliance.vmm.virtio.queue import Chain, VirtQueue


class Transmitter:
    """`queue` into pair `pair` of `backend`. The device's lock is held around every call."""

    def __init__(self, queue: VirtQueue, backend: NetBackend, pair: int, statistics: NetStatistics) -> None:
        self.queue = queue
        self.types = SegmentTypes(0)
        self.link_up = True
        self._backend = backend
        self._pair = pair
        self._statistics = statistics

    def send(self, chain: Chain) -> int:
        """For `VirtioDevice.serve`: one frame sent, refused or dropped, and counted; never an error. Nothing is written
        into the chain."""
        statistics = self._statistics
        data = chain.read(HEADER_BYTES + MAX_FRAME + 1)  # one that is longer is refused
        length = len(data) - HEADER_BYTES
        start = header.checked(data[:HEADER_BYTES], length, self.types)
        if start is None:
            statistics.tx_refused += 1
        elif not self.link_up:
            statistics.tx_dropped += 1
        else:
            try:
                self._backend.send(self._pair, [start, memoryview(data)[HEADER_BYTES:]])
            except OSError:
                statistics.tx_errors += 1
            else:
                statistics.tx_packets += 1
                statistics.tx_bytes += length
        return 0
