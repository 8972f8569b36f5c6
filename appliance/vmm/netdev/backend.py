"""The cable a network device hangs on, as the device sees it; `tap` is the real one, tests have another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from appliance.kernel.tuntap import TapOffload


class NetBackend(Protocol):
    """Frames, each behind a struct virtio_net_hdr of 12 bytes. Nothing here blocks."""

    @property
    def pairs(self) -> int:
        """How many queue pairs there are; pair 0 is always in use."""

    @property
    def offloads(self) -> TapOffload:
        """What it can take and leave to us."""

    def fileno(self, pair: int) -> int:
        """Readable when a frame waits; vhost takes it."""

    def receive(self, pair: int, buffer: memoryview) -> int:
        """Read one frame into `buffer`; its length with the header, 0 when none waits. Raises `OSError` once the cable
        has gone, for good."""

    def send(self, pair: int, parts: Sequence[bytes | memoryview]) -> None:
        """Write one frame, its header first. Raises `OSError` when it was not taken."""

    def set_offload(self, offload: TapOffload) -> None:
        """What may be left to us from now on. Raises `HostError`."""

    def use_pairs(self, count: int) -> None:
        """Spread frames over the first `count` pairs. Raises `HostError`."""

    def close(self) -> None:
        """Harmless when done twice."""


@dataclass(slots=True)
class NetStatistics:
    """Frames as the guest counts them: rx is to the guest. What vhost moves is not in here."""

    rx_packets: int = 0
    rx_bytes: int = 0
    rx_filtered: int = 0  # the guest did not want them
    rx_dropped: int = 0  # too large for its buffers, or its link is down
    rx_errors: int = 0
    tx_packets: int = 0
    tx_bytes: int = 0
    tx_refused: int = 0  # the guest's header or length makes no sense
    tx_dropped: int = 0  # its link is down
    tx_errors: int = 0  # the host would not take them
