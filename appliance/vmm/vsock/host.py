"""All of a guest's streams, and the socket the host's clients connect to. The device's lock is held around every call.

Everything is bounded: connections, each one's buffer, and the replies that wait for the guest's receive buffers. While too
many of those wait no packet is taken from the guest (§5.10.6.1): it has to take its answers first.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from appliance.errors import HostError
from appliance.vmm.loopbridge import Bridge
from appliance.vmm.virtio.queue import Chain, VirtQueue
from appliance.vmm.vsock.connection import Connection, ConnectionState
from appliance.vmm.vsock.listener import SOCKET, Listener
from appliance.vmm.vsock.outbox import Outbox
from appliance.vmm.vsock.packet import (
    HEADER_BYTES,
    HOST_CID,
    SHUTDOWN_BOTH,
    SHUTDOWN_SEND,
    TYPE_STREAM,
    Header,
    Op,
)
from appliance.vmm.vsock.poller import HANGUP, PEER_DONE, READ, WRITE, Poller

logger = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 256  # of 128 KiB each
MAX_PAYLOAD: Final = 64 << 10
ROUNDS: Final = 16  # buffers filled from one socket before others get their turn
GREETING_TIMEOUT_S: Final = 5.0
REQUEST_TIMEOUT_S: Final = 2.0
CLOSE_TIMEOUT_S: Final = 8.0  # as Linux waits (net/vmw_vsock/virtio_transport_common.c)
DRAIN_TIMEOUT_S: Final = 60.0
FIRST_PORT, LAST_PORT = 1 << 30, (1 << 31) - 1  # ours, for clients of the host


class VsockHost:
    """`ready` shall call `poller.dispatch`, and `run` what it is given, both with `lock` held and the rings guarded."""

    def __init__(
        self,
        path: Path,
        *,
        guest_cid: int,
        rx: VirtQueue,
        bridge: Bridge,
        lock: threading.RLock,
        label: str,
        ready: Callable[[], None],
        run: Callable[[Callable[[], None]], None],
    ) -> None:
        """Listen on `path`, whatever was there before; not on the loop. Raises `HostError`."""
        self.guest_takes_streams = True
        self._path = path
        self._guest_cid = guest_cid
        self._bridge = bridge
        self._lock = lock
        self._label = label
        self._run = run
        self._outbox = Outbox(rx, guest_cid=guest_cid, known=self._known)
        self._all: set[Connection] = set()
        self._streams: dict[tuple[int, int], Connection] = {}  # by (our port, guest's port): those the guest knows
        self._starved: set[Connection] = set()  # have data for a guest without receive buffers
        self._next_port = FIRST_PORT
        self._open_for_clients = False
        self.poller = Poller(bridge, ready)
        try:
            self._listener = Listener(path, self.poller, bridge, lock=lock, label=label, taken=self._client)
        except OSError as error:
            self.poller.close()
            raise HostError.from_os_error(error, f"{label}: {path}") from error

    # For the device

    def open(self) -> None:
        """The guest's driver is there: clients are let in."""
        self._open_for_clients = True

    def drop_all(self) -> None:
        """The driver has gone, and with it every stream. Clients are turned away; what a guest has sent and closed is
        still written."""
        self._open_for_clients = False
        for connection in list(self._all):
            if connection.state != ConnectionState.DRAINING:
                self._forget(connection)
        self._outbox.clear()

    def close(self) -> None:
        """Also the listening socket; harmless when done twice."""
        self.drop_all()
        for connection in list(self._all):
            self._forget(connection)
        self._listener.close()
        self.poller.close()

    @property
    def count(self) -> int:
        """Connections, those in the making and those being drained included."""
        return len(self._all)

    @property
    def full(self) -> bool:
        """Whether no packet may be taken from the guest before it has taken some."""
        return self._outbox.full

    def pump(self) -> None:
        """The guest may have receive buffers: replies, then data that waits for room. Raises `QueueBroken`."""
        if self._outbox.send() and self._outbox.rx.has_available():
            starved, self._starved = self._starved, set()
            for connection in starved:
                self._want(connection)

    def packet(self, chain: Chain) -> None:
        """A packet from the guest: at most one reply is queued for it. One shorter than a header cannot be answered."""
        data = chain.read(HEADER_BYTES)
        if len(data) < HEADER_BYTES:
            return
        header = Header.unpack(data)
        connection = self._streams.get((header.dst_port, header.src_port))
        addressed = header.src_cid == self._guest_cid and header.dst_cid == HOST_CID
        if not addressed or header.type != TYPE_STREAM or not self.guest_takes_streams:
            self._refuse(header, None)
        elif header.len > min(chain.readable_bytes - HEADER_BYTES, MAX_PAYLOAD):
            self._refuse(header, connection)
        elif connection is None:
            if header.op == Op.REQUEST:
                self._connect(header)
            else:
                self._refuse(header, None)
        else:
            connection.learn(header)
            try:
                self._packet_of(connection, header, chain)
                self._want(connection)
            except OSError:  # the host's side has gone
                self._refuse(header, connection)

    # Packets of the guest

    def _packet_of(self, connection: Connection, header: Header, chain: Chain) -> None:
        state = connection.state
        if state == ConnectionState.REQUESTED and header.op not in (Op.RESPONSE, Op.RST):
            self._refuse(header, connection)
            return
        match header.op:
            case Op.RST:
                self._forget(connection)
            case Op.RESPONSE if state == ConnectionState.REQUESTED:
                self._answered(connection)
            case Op.RW if state == ConnectionState.CLOSING:
                return  # sent before the guest knew
            case Op.RW if not connection.guest_done & SHUTDOWN_SEND:
                if connection.take(chain.read(header.len, HEADER_BYTES)):
                    self._tell_credit(connection)
                else:
                    self._refuse(header, connection)
            case Op.CREDIT_UPDATE:
                return  # learnt already
            case Op.CREDIT_REQUEST:
                self._outbox.reply(connection, Op.CREDIT_UPDATE)
            case Op.SHUTDOWN:
                self._guest_done(connection, header.flags & SHUTDOWN_BOTH)
            case _:
                self._refuse(header, connection)

    def _connect(self, header: Header) -> None:
        """The guest connects: to whoever listens on PATH_port."""
        if self.count >= MAX_CONNECTIONS:
            self._refuse(header, None)
            return
        server = self._server(header.dst_port)
        if server is None:
            self._refuse(header, None)
            return
        connection = Connection(server, ConnectionState.OPEN)
        connection.port, connection.guest_port = header.dst_port, header.src_port
        connection.learn(header)
        if self._add(connection, READ | PEER_DONE):
            self._streams[connection.port, connection.guest_port] = connection
            self._outbox.reply(connection, Op.RESPONSE)
        else:
            self._refuse(header, None)

    def _server(self, port: int) -> socket.socket | None:
        """None when nobody listens, his queue is full, or the host has no descriptors left."""
        try:
            server = socket.socket(socket.AF_UNIX, SOCKET)
        except OSError as error:
            logger.debug("%s: port %d: %s", self._label, port, error)
            return None
        try:
            server.connect(f"{self._path}_{port}")
        except OSError:
            server.close()
            return None
        return server

    def _answered(self, connection: Connection) -> None:
        """RESPONSE: the client hears that it may begin. The first bytes into an empty socket: they fit."""
        connection.stop_timer()
        connection.state = ConnectionState.OPEN
        connection.socket.send(b"OK %d\n" % connection.port)

    def _guest_done(self, connection: Connection, flags: int) -> None:
        """The guest closes one way or both. When both, it is told at once that this is over; the host gets the rest."""
        connection.guest_done |= flags
        if connection.guest_done != SHUTDOWN_BOTH:
            connection.drain()
            return
        closing = connection.state == ConnectionState.CLOSING
        self._outbox.raw(connection.header(self._guest_cid, Op.RST))
        del self._streams[connection.port, connection.guest_port]
        connection.state = ConnectionState.DRAINING
        if not closing:
            connection.drain()
        if closing or not connection.buffer:
            self._forget(connection)
        else:
            self._time_out(connection, DRAIN_TIMEOUT_S)

    def _refuse(self, header: Header, connection: Connection | None) -> None:
        """RST to whatever this was, but for an RST; the connection, if any, is over."""
        if connection is not None:
            self._forget(connection)
        if header.op != Op.RST:
            self._outbox.raw(header.refusal())

    # Sockets of the host

    def _client(self, client: socket.socket) -> None:
        if not self._open_for_clients or self.count >= MAX_CONNECTIONS or self.full:
            client.close()
            return
        connection = Connection(client, ConnectionState.GREETING)
        if self._add(connection, READ):
            self._time_out(connection, GREETING_TIMEOUT_S)

    def _news(self, connection: Connection, events: int) -> None:
        """Something can be done with a socket, or it has hung up. Raises `QueueBroken`."""
        try:
            if connection.state == ConnectionState.GREETING:
                self._greeted(connection)
                return
            if events & WRITE:
                connection.drain()
                self._tell_credit(connection)
            if connection.state == ConnectionState.DRAINING:
                if not connection.buffer or events & ~WRITE:
                    self._forget(connection)
            elif connection.state == ConnectionState.OPEN and events & ~WRITE:
                self._feed(connection, hung_up=bool(events & HANGUP))
            self._want(connection)
        except (OSError, ValueError) as error:
            logger.debug("%s: port %d: %s", self._label, connection.port, error)
            self._reset(connection)

    def _greeted(self, connection: Connection) -> None:
        port = connection.read_greeting()
        if port is None:
            return
        connection.port, connection.guest_port = self._free_port(port), port
        connection.state = ConnectionState.REQUESTED
        self._streams[connection.port, port] = connection
        self._time_out(connection, REQUEST_TIMEOUT_S)
        self._want(connection)
        self._outbox.reply(connection, Op.REQUEST)

    def _feed(self, connection: Connection, *, hung_up: bool) -> None:
        """Bytes of the host into the guest's receive buffers, as far as credit and buffers go. Raises `OSError`."""
        if connection.deaf:
            if hung_up:
                self._host_done(connection)
            return
        for _ in range(ROUNDS):
            chain = self._outbox.buffer() if self._outbox.send() else None  # a RESPONSE goes before its data
            if chain is None:
                self._starved.add(connection)
                return
            room = min(connection.guest_room, chain.writable_bytes - HEADER_BYTES, MAX_PAYLOAD)
            try:
                data = connection.socket.recv(room) if room > 0 else None
            except OSError as error:
                self._outbox.rx.unpop(chain)
                if isinstance(error, BlockingIOError):
                    return
                raise
            if data:
                self._outbox.data(connection, chain, data)
                continue
            self._outbox.rx.unpop(chain)
            if data is None:
                connection.asked_credit = True
                self._outbox.reply(connection, Op.CREDIT_REQUEST)
            else:
                self._host_done(connection)
            return

    def _host_done(self, connection: Connection) -> None:
        """The host's side sends no more. Once its socket is closed altogether the guest need not send either: writing
        nothing at all fails then (unix(7): EPIPE), and not when only the other direction was shut down."""
        try:
            connection.socket.send(b"")
            flags = SHUTDOWN_SEND
        except OSError:
            flags = SHUTDOWN_BOTH
        connection.told_done |= flags
        self._outbox.reply(connection, Op.SHUTDOWN, flags)
        if flags == SHUTDOWN_BOTH:
            connection.state = ConnectionState.CLOSING
            connection.buffer.clear()
            self._time_out(connection, CLOSE_TIMEOUT_S)

    def _want(self, connection: Connection) -> None:
        """Listen to the socket for what can be done with it now. Hang-ups are heard only where they can be acted on:
        they do not cease."""
        if connection not in self._all:
            return
        events = WRITE if connection.buffer else 0
        if connection.state == ConnectionState.GREETING:
            events = READ
        elif connection.state == ConnectionState.OPEN:
            if connection.deaf:
                events |= HANGUP
            elif connection not in self._starved and not connection.out_of_credit:
                events |= READ | PEER_DONE
        self.poller.change(connection.fd, events)

    # Beginnings and ends

    def _known(self, connection: Connection) -> bool:
        return self._streams.get((connection.port, connection.guest_port)) is connection

    def _add(self, connection: Connection, events: int) -> bool:
        """False, with its socket closed, when the kernel will not watch one more (epoll(7): max_user_watches)."""
        try:
            self.poller.add(connection.fd, events, partial(self._news, connection))
        except OSError as error:
            logger.debug("%s: port %d: %s", self._label, connection.port, error)
            connection.close()
            return False
        self._all.add(connection)
        return True

    def _reset(self, connection: Connection) -> None:
        """Cut it off, and tell the guest if it knows of it."""
        if self._known(connection):
            self._outbox.raw(connection.header(self._guest_cid, Op.RST))
        self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        """Close the socket; replies that still wait for it are void. Harmless when done twice."""
        if connection not in self._all:
            return
        self._all.discard(connection)
        self._starved.discard(connection)
        if self._known(connection):
            del self._streams[connection.port, connection.guest_port]
        self.poller.remove(connection.fd)
        connection.close()

    def _time_out(self, connection: Connection, after_s: float) -> None:
        connection.stop_timer()
        connection.timer = self._bridge.later(after_s, partial(self._late, connection))

    def _late(self, connection: Connection) -> None:
        with self._lock:
            if connection.timer is None:
                return
            self._reset(connection)
        self._run(self.pump)

    def _tell_credit(self, connection: Connection) -> None:
        if connection.update_due and not connection.update_queued and self._known(connection):
            connection.update_queued = True
            self._outbox.reply(connection, Op.CREDIT_UPDATE)

    def _free_port(self, guest_port: int) -> int:
        """One of ours that is not in use towards this port of the guest: there are more than connections."""
        while True:
            port = self._next_port
            self._next_port = FIRST_PORT if port == LAST_PORT else port + 1
            if (port, guest_port) not in self._streams:
                return port
