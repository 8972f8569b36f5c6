"""From the guest to the cable: one transmit queue served in Python (virtio 1.2 §5.1.6.2). On the loop.

A frame is copied out of guest memory at one stroke, header and all: what is checked is what is sent. Copying 64 KiB takes
no longer than lending a score of pieces to writev would. So the guest has its buffers back before their frames are sent, and all
that are there are taken together.
"""

from __future__ import annotations

from typing import Final

from appliance.vmm.netdev import header
from appliance.vmm.netdev.backend import NetBackend, NetStatistics
from appliance.vmm.netdev.header import HEADER_BYTES, MAX_FRAME, SegmentTypes
from appliance.vmm.virtio.bulk import BulkQueue
from appliance.vmm.virtio.device import BATCH, BATCH_PIECES

_LONGEST: Final = HEADER_BYTES + MAX_FRAME


class Transmitter:
    """`queue` into pair `pair` of `backend`. The device's lock is held around every call."""

    def __init__(self, queue: BulkQueue, backend: NetBackend, pair: int, statistics: NetStatistics) -> None:
        self.queue = queue
        self.types = SegmentTypes(0)
        self.link_up = True
        self._backend = backend
        self._pair = pair
        self._statistics = statistics

    def run(self) -> bool:
        """Move at most `BATCH` frames, of `BATCH_PIECES` descriptors or a few more; whether there may be others, for which
        nobody will kick. Raises `QueueBroken`."""
        queue, left, pieces = self.queue, BATCH, 0
        queue.disable_kicks()
        try:
            while left > 0 and pieces < BATCH_PIECES:
                frames = queue.gather(most=left, longest=_LONGEST)
                for frame in frames:
                    self._send(frame)
                left -= len(frames)
                if frames:
                    continue
                left -= 1
                chain = queue.pop()
                if chain is not None:
                    pieces += chain.pieces
                    self._send(chain.read(_LONGEST + 1))  # one that is longer is refused
                    queue.push(chain, 0)
                elif not queue.enable_kicks():
                    return False
            return True
        finally:
            queue.flush()

    def _send(self, data: bytes) -> None:
        """One frame, behind its header, sent, refused or dropped, and counted; never an error."""
        statistics = self._statistics
        length = len(data) - HEADER_BYTES
        given = data[:HEADER_BYTES]
        start = header.checked(given, length, self.types)
        if start is None:
            statistics.tx_refused += 1
        elif not self.link_up:
            statistics.tx_dropped += 1
        else:
            try:
                self._backend.send(self._pair, [data] if start == given else [start, data[HEADER_BYTES:]])
            except OSError:
                statistics.tx_errors += 1
            else:
                statistics.tx_packets += 1
                statistics.tx_bytes += length
