"""From the cable to the guest: one receive queue served in Python (virtio 1.2 §5.1.6.3, §5.1.6.4). On the loop.

    cable ──readable──> scratch ──filter──> one or (merged) more buffers of the guest ──> used, together

A frame that finds too few buffers is held, one at most; the cable is then left alone until the driver kicks: frames wait
in the kernel's queue, which drops them when it is full, as a network does. A frame for which a guest has crumbs only is
dropped: walking their descriptors would keep the loop from everybody else.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from appliance.vmm.netdev.backend import NetBackend, NetStatistics
from appliance.vmm.netdev.filter import ReceiveFilter
from appliance.vmm.netdev.header import ETHERNET_BYTES, HEADER_BYTES, MAX_FRAME, VLAN_BYTES, segmented
from appliance.vmm.virtio.bulk import BulkQueue
from appliance.vmm.virtio.device import BATCH, BATCH_PIECES
from appliance.vmm.virtio.queue import Chain, QueueBroken

MOST_PIECES: Final = 4 * BATCH_PIECES  # descriptors walked in one run; no driver needs a hundred for a frame
COUNT_AT: Final = 10
"""Where in the header num_buffers is (§5.1.6)."""
_SCRATCH: Final = HEADER_BYTES + MAX_FRAME + 1  # one more: a frame that fills it was cut


class Fed(Enum):
    """Why a receiver has stopped."""

    ENOUGH = "no frame waits, or the batch is over"
    STARVED = "the guest has too few buffers: call again after its kick"
    GONE = "the cable cannot be read any more"


class Receiver:
    """Pair `pair` of `backend` into `queue`. The device's lock is held around every call."""

    def __init__(self, queue: BulkQueue, backend: NetBackend, pair: int, statistics: NetStatistics) -> None:
        self.queue = queue
        self.filter: ReceiveFilter | None = None  # None: every frame is dropped (link down)
        self.mergeable = True
        self.checksums = True  # the driver takes frames with flags (VIRTIO_NET_F_GUEST_CSUM)
        self.mtu: int | None = None
        self._backend = backend
        self._pair = pair
        self._statistics = statistics
        self._scratch = memoryview(bytearray(_SCRATCH))
        self._held = 0  # length of the frame in `_scratch` that is still to be delivered
        self._found = 0  # buffers there were when they were too few
        self._pieces = 0  # descriptors walked in this run

    def reset(self) -> None:
        """Forget the frame that is held."""
        self._held = 0

    def run(self) -> Fed:
        """Move at most `BATCH` frames, into `BATCH_PIECES` pieces or a few more. Raises `QueueBroken`."""
        queue = self.queue
        queue.disable_kicks()
        self._pieces = 0
        try:
            for _ in range(BATCH):
                if self._pieces >= BATCH_PIECES:
                    return Fed.ENOUGH
                if not self._held and not self._fetch():
                    return Fed.ENOUGH
                if self._held and not self._place() and not self._place_at_last():
                    return Fed.STARVED
            return Fed.ENOUGH
        except OSError:
            self._statistics.rx_errors += 1
            return Fed.GONE
        finally:
            queue.flush()

    def _fetch(self) -> bool:
        """Read a frame; False when none waits. One that is not wanted is dropped, with nothing held."""
        statistics = self._statistics
        length = self._backend.receive(self._pair, self._scratch)
        if not length:
            return False
        if not HEADER_BYTES + ETHERNET_BYTES <= length < _SCRATCH:
            statistics.rx_errors += 1
        elif self.filter is None or self._too_large(length):
            statistics.rx_dropped += 1
        elif not self.filter.accepts(self._scratch[HEADER_BYTES:length]):
            statistics.rx_filtered += 1
        else:
            if not self.checksums:
                self._scratch[0] = 0
            self._held = length
        return True

    def _too_large(self, length: int) -> bool:
        """§5.1.4.1: a frame that is not to be cut up must not be larger than the MTU."""
        if self.mtu is None or length <= HEADER_BYTES + ETHERNET_BYTES + self.mtu or segmented(self._scratch):
            return False
        tagged = self._scratch[HEADER_BYTES + 12] == 0x81 and self._scratch[HEADER_BYTES + 13] == 0
        return not tagged or length > HEADER_BYTES + ETHERNET_BYTES + VLAN_BYTES + self.mtu

    def _place_at_last(self) -> bool:
        """There were too few buffers. Ask for a kick, and look again, for they may have come meanwhile."""
        found = -1
        while found != self._found:
            found = self._found
            self.queue.enable_kicks()
            if self._place():
                self.queue.disable_kicks()
                return True
        return False

    def _place(self) -> bool:
        """Copy the held frame into buffers and give them back; False, with all as it was, when there are too few."""
        length, queue = self._held, self.queue
        most = min(queue.size, MOST_PIECES - self._pieces) if self.mergeable else 1
        if count := queue.scatter(self._scratch[:length], most=most, count_at=COUNT_AT):
            self._pieces += count
            self._delivered()
            return True
        chains: list[Chain] = []
        room = 0
        while room < length:
            chain = queue.pop()
            if chain is None:
                return self._put_back(chains)
            chains.append(chain)
            room += chain.writable_bytes
            self._pieces += chain.pieces
            if chain.readable or chain.writable_bytes < (HEADER_BYTES if len(chains) == 1 else 1):
                sizes = f"{chain.writable_bytes} writable bytes, {chain.readable_bytes} readable"
                raise QueueBroken(f"{queue.label}: a receive buffer of {sizes}")
            many = len(chains) >= queue.size or self._pieces >= MOST_PIECES
            if room < length and (many or not self.mergeable):
                self._statistics.rx_dropped += 1  # it will never fit
                self._held = 0
                self._put_back(chains)
                return True
        self._fill(chains)
        self._delivered()
        return True

    def _delivered(self) -> None:
        self._statistics.rx_packets += 1
        self._statistics.rx_bytes += self._held - HEADER_BYTES
        self._held = 0

    def _fill(self, chains: list[Chain]) -> None:
        self._scratch[COUNT_AT : COUNT_AT + 2] = len(chains).to_bytes(2, "little")
        position, end = 0, self._held
        used = []
        for chain in chains:
            written = chain.write(self._scratch[position : min(end, position + chain.writable_bytes)])
            used.append((chain, written))
            position += written
        self.queue.push_all(used)

    def _put_back(self, chains: list[Chain]) -> bool:
        self._found = len(chains)
        for chain in reversed(chains):
            self.queue.unpop(chain)
        return False
