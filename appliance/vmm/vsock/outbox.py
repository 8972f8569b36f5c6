"""What goes to the guest: replies that wait for its receive buffers, and the buffers. The device's lock is held.

Replies come before data, in their order. Those of a connection are packed when they are sent, with its credit of then;
those of a connection that has ended meanwhile are void.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from appliance.vmm.virtio.queue import Chain, QueueBroken, VirtQueue
from appliance.vmm.vsock.connection import Connection
from appliance.vmm.vsock.packet import HEADER_BYTES, Header, Op

MAX_REPLIES: Final = 256
MAX_PIECES: Final = 32  # of one receive buffer: hundreds are filled at one go, and walking a descriptor takes a while


class _Reply(NamedTuple):
    connection: Connection
    op: Op
    flags: int


class Outbox:
    """`known` says whether the guest may still hear of a connection."""

    def __init__(self, rx: VirtQueue, *, guest_cid: int, known: Callable[[Connection], bool]) -> None:
        self.rx = rx
        self._guest_cid = guest_cid
        self._known = known
        self._replies: deque[_Reply | Header] = deque()

    @property
    def full(self) -> bool:
        """Whether nothing should be begun that would be answered. What is under way still is: a few for each connection."""
        return len(self._replies) >= MAX_REPLIES

    def reply(self, connection: Connection, op: Op, flags: int = 0) -> None:
        """A packet without payload."""
        self._replies.append(_Reply(connection, op, flags))

    def raw(self, header: Header) -> None:
        """One that stands for itself."""
        self._replies.append(header)

    def clear(self) -> None:
        """Nobody is there to read them."""
        self._replies.clear()

    def send(self) -> bool:
        """As many as there are buffers for; whether none is left. Raises `QueueBroken`."""
        while self._replies:
            reply = self._replies[0]
            if isinstance(reply, _Reply) and not self._known(reply.connection):
                self._replies.popleft()
                continue
            chain = self.buffer()
            if chain is None:
                return False
            self._replies.popleft()
            header = reply if isinstance(reply, Header) else self._header(reply)
            self.rx.push(chain, chain.write(header.pack()))
        return True

    def _header(self, reply: _Reply) -> Header:
        if reply.op == Op.CREDIT_UPDATE:
            reply.connection.update_queued = False
        return reply.connection.header(self._guest_cid, reply.op, flags=reply.flags)

    def data(self, connection: Connection, chain: Chain, data: bytes) -> None:
        """Payload, into a `buffer` that has room for it."""
        header = connection.header(self._guest_cid, Op.RW, length=len(data))
        self.rx.push(chain, chain.write(header.pack() + data))

    def buffer(self) -> Chain | None:
        """A receive buffer; None when there is none, and the driver will kick for the next. Raises `QueueBroken`."""
        chain = self.rx.pop()
        while chain is None and self.rx.enable_kicks():
            chain = self.rx.pop()
        if chain is not None and (chain.writable_bytes <= HEADER_BYTES or chain.pieces > MAX_PIECES):
            raise QueueBroken(
                f"{self.rx.label}: a receive buffer of {chain.writable_bytes} bytes in {chain.pieces} pieces"
            )
        return chain
