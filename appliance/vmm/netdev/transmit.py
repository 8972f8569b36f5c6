"""From the guest to the cable: one transmit queue served in Python (virtio 1.2 §5.1.6.2). On the loop.

The header is copied, checked and rebuilt; the frame goes from guest memory to the kernel without a copy of ours. What a
guest changes meanwhile changes its own frame only: the kernel copies before it looks.
"""

from __future__ import annotations

from appliance.vmm.netdev import header
from appliance.vmm.netdev.backend import NetBackend, NetStatistics
from appliance.vmm.netdev.header import HEADER_BYTES, SegmentTypes
from appliance.vmm.virtio.queue import Chain, VirtQueue, cut

MAX_PARTS = 1000  # writev takes IOV_MAX (1024)


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
        length = chain.readable_bytes - HEADER_BYTES
        start = header.checked(chain.read(HEADER_BYTES), length, self.types)
        if start is None:
            statistics.tx_refused += 1
        elif not self.link_up:
            statistics.tx_dropped += 1
        else:
            try:
                self._write(start, chain)
            except OSError:
                statistics.tx_errors += 1
            else:
                statistics.tx_packets += 1
                statistics.tx_bytes += length
        return 0

    def _write(self, start: bytes, chain: Chain) -> None:
        memory = self.queue.memory
        segments = cut(chain.readable, HEADER_BYTES, chain.readable_bytes)
        if len(segments) > MAX_PARTS:
            self._backend.send(self._pair, [start, chain.read(chain.readable_bytes, HEADER_BYTES)])
            return
        views: list[memoryview] = []
        try:
            for address, length in segments:
                views.append(memory.view(address, length))
            self._backend.send(self._pair, [start, *views])
        finally:
            for view in views:
                view.release()
