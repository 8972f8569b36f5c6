"""A cable whose other end the test holds: frames, each behind its virtio header, as a tap has them."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from appliance.kernel.tuntap import TapOffload
from appliance.vmm.netdev.header import HEADER_BYTES

ALL = (
    TapOffload.CSUM
    | TapOffload.TSO4
    | TapOffload.TSO6
    | TapOffload.TSO_ECN
    | TapOffload.UFO
    | TapOffload.USO4
    | TapOffload.USO6
)
PLAIN = bytes(HEADER_BYTES)


class FakeCable:
    """`arrive` puts a frame where the device reads; `sent` is what it has written."""

    def __init__(self, *, pairs: int = 1, offloads: TapOffload = ALL) -> None:
        self.offloads = offloads
        self.offload: TapOffload | None = None
        self.used_pairs = 0
        self.sent: list[tuple[int, bytes]] = []
        self.failure: OSError | None = None
        self.closed = False
        self._ends = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(pairs)]
        for ours, theirs in self._ends:
            ours.setblocking(False)
            theirs.setblocking(False)

    @property
    def pairs(self) -> int:
        return len(self._ends)

    def arrive(self, frame: bytes, *, pair: int = 0, header: bytes = PLAIN) -> None:
        """A frame comes for the guest."""
        self._ends[pair][1].send(header + frame)

    def waiting(self, pair: int = 0) -> bool:
        """Whether a frame has not been read yet."""
        try:
            return bool(self._ends[pair][0].recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False

    def fileno(self, pair: int) -> int:
        return self._ends[pair][0].fileno()

    def receive(self, pair: int, buffer: memoryview) -> int:
        if self.failure is not None:
            raise self.failure
        try:
            return os.readv(self.fileno(pair), [buffer])
        except BlockingIOError:
            return 0

    def send(self, pair: int, parts: Sequence[bytes | memoryview]) -> None:
        if self.failure is not None:
            raise self.failure
        self.sent.append((pair, b"".join(parts)))

    def set_offload(self, offload: TapOffload) -> None:
        self.offload = offload

    def use_pairs(self, count: int) -> None:
        self.used_pairs = count

    def close(self) -> None:
        self.closed = True
        for end in self._ends:
            for each in end:
                each.close()
