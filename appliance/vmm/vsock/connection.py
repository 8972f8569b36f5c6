"""One stream between a UNIX socket of the host and a port of the guest: its state, its buffer and its credit.

    GREETING   a client of the host has connected and shall say where to                (host began)
    REQUESTED  the guest was asked, and has not answered yet                            (host began)
    OPEN       bytes flow
    CLOSING    the host has closed both ways; the guest's RST is awaited
    DRAINING   the guest has closed both ways and knows it no more; what it sent before is still being written

Credit (virtio 1.2 §5.10.6.3). Each side says how much it buffers (`buf_alloc`) and how much it has passed on so far
(`fwd_cnt`, free-running, 32 bits); the other keeps what is under way within that. A guest that does not is cut off.
"""

from __future__ import annotations

import socket
from enum import Enum
from typing import Final

from appliance.vmm.loopbridge import Timer
from appliance.vmm.vsock.packet import (
    HOST_CID,
    MASK_32,
    SHUTDOWN_RECEIVE,
    SHUTDOWN_SEND,
    TYPE_STREAM,
    Header,
    Op,
)

BUFFER_BYTES: Final = 128 << 10
UPDATE_BYTES: Final = BUFFER_BYTES // 4  # passed on and not told: now it is told
MAX_GREETING: Final = 32  # "CONNECT 4294967295\n" is 19


class ConnectionState(Enum):
    """See above."""

    GREETING = "greeting"
    REQUESTED = "requested"
    OPEN = "open"
    CLOSING = "closing"
    DRAINING = "draining"


class Connection:
    """`port` is ours, `guest_port` the guest's. The socket does not block, and is ours to close."""

    def __init__(self, client: socket.socket, state: ConnectionState) -> None:
        self.socket = client
        self.fd = client.fileno()
        self.state = state
        self.port = self.guest_port = 0
        self.timer: Timer | None = None
        self.greeting = b""
        self.buffer = bytearray()  # from the guest, not yet written
        self.told_done = 0  # SHUTDOWN flags we have sent
        self.guest_done = 0  # and those the guest has
        self.asked_credit = False
        self.update_queued = False
        self._received = self._passed_on = self._told = 0  # bytes from the guest
        self._sent = self._guest_passed_on = self._guest_buffer = 0  # bytes to the guest

    # What the guest may send

    def learn(self, header: Header) -> None:
        """Every packet tells the guest's credit."""
        self._guest_buffer, self._guest_passed_on = header.buf_alloc, header.fwd_cnt
        if self.guest_room:
            self.asked_credit = False

    def take(self, data: bytes) -> bool:
        """Payload from the guest: written or buffered. False when it is more than the guest was allowed."""
        if len(data) > BUFFER_BYTES - (self._received - self._passed_on & MASK_32):
            return False
        self._received = self._received + len(data) & MASK_32
        self.buffer += data
        self.drain()
        return True

    def drain(self) -> None:
        """Write what is buffered. Raises `OSError` when the host's side has gone."""
        while self.buffer:
            try:
                written = self.socket.send(self.buffer)
            except BlockingIOError:
                return
            del self.buffer[:written]
            self._passed_on = self._passed_on + written & MASK_32
        if self.guest_done & SHUTDOWN_SEND and self.state == ConnectionState.OPEN:
            self.socket.shutdown(socket.SHUT_WR)

    @property
    def update_due(self) -> bool:
        """Whether the guest should hear how much has been passed on."""
        return (self._passed_on - self._told & MASK_32) >= UPDATE_BYTES

    # What the guest may be sent

    @property
    def guest_room(self) -> int:
        """How many bytes the guest will take; 0 also when it claims what cannot be."""
        under_way = self._sent - self._guest_passed_on & MASK_32
        return max(0, self._guest_buffer - under_way)

    @property
    def out_of_credit(self) -> bool:
        """It has been asked for room and has none: it will say when."""
        return self.asked_credit and not self.guest_room

    @property
    def deaf(self) -> bool:
        """Whether there is no more use in reading the socket: its end was told, or the guest will not receive."""
        return bool(self.told_done & SHUTDOWN_SEND or self.guest_done & SHUTDOWN_RECEIVE)

    def header(self, guest_cid: int, op: Op, *, flags: int = 0, length: int = 0) -> Header:
        """A packet of this connection, as it is now; its credit counts as told, and its payload as sent."""
        self._told = self._passed_on
        self._sent = self._sent + length & MASK_32
        return Header(
            HOST_CID,
            guest_cid,
            self.port,
            self.guest_port,
            length,
            TYPE_STREAM,
            op,
            flags,
            BUFFER_BYTES,
            self._passed_on,
        )

    # Host's client

    def read_greeting(self) -> int | None:
        """The port in "CONNECT port\\n" once the line is there, None before. Takes nothing beyond the line.

        Raises `ValueError` for anything else, `OSError` when the client has gone.
        """
        try:
            seen = self.socket.recv(MAX_GREETING - len(self.greeting), socket.MSG_PEEK)
        except BlockingIOError:
            return None
        if not seen:
            raise ValueError("closed before a line was sent")
        line, newline, _ = seen.partition(b"\n")
        self.greeting += self.socket.recv(len(line) + len(newline))
        if not newline:
            if len(self.greeting) >= MAX_GREETING:
                raise ValueError("no line within 32 bytes")
            return None
        word, _, number = self.greeting.strip().partition(b" ")
        if word.upper() != b"CONNECT" or not number.isdigit() or int(number) > MASK_32:
            raise ValueError("not CONNECT and a port")
        return int(number)

    def stop_timer(self) -> None:
        """Harmless when none runs."""
        timer, self.timer = self.timer, None
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Close the socket, forget the timer."""
        self.stop_timer()
        self.socket.close()
