"""Our end of a vhost-user conversation: one method a message, each waiting for its answer. Blocking; any thread.

Once an exchange has failed the connection says nothing more: what the other end has done is not known, so it is shut
down, and every later call fails with EPIPE. A new connection begins from nothing.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import threading
from collections.abc import Sequence
from typing import Final

from appliance.vmm.vhost_user import messages as m
from appliance.vmm.vhost_user.messages import Inflight, Malformed, ProtocolFeature, Region, Request, RingPlace

ANSWER_TIMEOUT_S: Final = 10.0
_WANTED = sum(1 << each for each in ProtocolFeature)
_ONE_DESCRIPTOR = array.array("i").itemsize


class VhostUserClient:
    """`connection` is ours from now on; `name` is in every error. All methods raise `OSError`.

    `ended_fd` is a descriptor of the other process's that is readable once it has ended: a connection that waits to be
    accepted does not tell."""

    def __init__(
        self, connection: socket.socket, *, name: str, ended_fd: int = -1, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> None:
        self.name = name
        self._ended_fd = ended_fd
        self._timeout_s = timeout_s
        self._socket = connection
        self._socket.settimeout(timeout_s)
        self._lock = threading.Lock()
        self._protocol = 0
        self.features = 0

    def negotiate(self) -> None:
        """The beginning of a conversation: what the back end can do, and that it is ours."""
        self.features = self._ask_u64(Request.GET_FEATURES)
        if self.features >> m.F_PROTOCOL_FEATURES & 1:
            protocol = self._ask_u64(Request.GET_PROTOCOL_FEATURES) & _WANTED
            self._tell(Request.SET_PROTOCOL_FEATURES, m.u64(protocol))
            self._protocol = protocol
        self._tell(Request.SET_OWNER)

    def can(self, feature: ProtocolFeature) -> bool:
        """Whether both ends have it."""
        return bool(self._protocol >> feature & 1)

    @property
    def closed_by_peer(self) -> bool:
        """Whether the other end has gone; never waits. For when the descriptor is readable. (`recv` would wait for the
        socket's time-out, MSG_DONTWAIT or not.)"""
        fd = self._socket.fileno()
        if fd < 0:
            return False
        poll = select.poll()
        poll.register(fd, select.POLLRDHUP)
        return bool(poll.poll(0))

    def fileno(self) -> int:
        """Readable when an answer comes or the other end has gone; -1 once closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Harmless when done twice. Whoever waits for an answer is told EPIPE first."""
        self.shut()
        with self._lock:
            self._socket.close()

    # The device

    def queue_count(self) -> int:
        """How many queues it has at most; 1 when it does not say."""
        return self._ask_u64(Request.GET_QUEUE_NUM) if self.can(ProtocolFeature.MQ) else 1

    def set_features(self, features: int) -> None:
        """Those agreed upon with the driver, and vhost's own."""
        self._tell(Request.SET_FEATURES, m.u64(features | self.features & 1 << m.F_PROTOCOL_FEATURES))

    def set_memory(self, regions: Sequence[Region], fd: int) -> None:
        """Guest memory, all of it in one descriptor."""
        self._tell(Request.SET_MEM_TABLE, m.memory_table(regions), [fd] * len(regions))

    def get_config(self, length: int) -> bytes:
        return m.parse_config(self._answer(Request.GET_CONFIG, m.config(0, bytes(length))), length)

    def set_config(self, offset: int, data: bytes) -> None:
        self._tell(Request.SET_CONFIG, m.config(offset, data))

    def set_log(self, fd: int, size: int) -> None:
        """One bit for each page of guest-physical addresses. When it has returned the log before is not used any more."""
        self._answer(Request.SET_LOG_BASE, m.log_base(size), [fd])

    def new_inflight(self, queues: int, queue_size: int) -> tuple[Inflight, int]:
        """Memory for what is not answered; the descriptor is the caller's."""
        with self._lock:
            payload, descriptors = self._exchange(
                Request.GET_INFLIGHT_FD, m.inflight(Inflight(0, 0, queues, queue_size))
            )
        if len(descriptors) != 1:
            _close_all(descriptors)
            raise self._failure(Request.GET_INFLIGHT_FD, f"{len(descriptors)} descriptors")
        return m.parse_inflight(payload)._replace(queues=queues, queue_size=queue_size), descriptors[0]

    def set_inflight(self, area: Inflight, fd: int) -> None:
        """What is in there is done (again) when the rings start."""
        self._tell(Request.SET_INFLIGHT_FD, m.inflight(area), [fd])

    # Rings

    def set_ring(self, index: int, *, size: int, base: int, place: RingPlace, log: bool) -> None:
        self._tell(Request.SET_VRING_NUM, m.ring_state(index, size))
        self._tell(Request.SET_VRING_BASE, m.ring_state(index, base))
        self.set_ring_place(index, place, log=log)

    def set_ring_place(self, index: int, place: RingPlace, *, log: bool) -> None:
        self._tell(Request.SET_VRING_ADDR, m.ring_addresses(index, place, log=log))

    def set_call(self, index: int, fd: int) -> None:
        """What it signals when buffers are used."""
        self._tell(Request.SET_VRING_CALL, m.ring_descriptor(index, given=True), [fd])

    def set_err(self, index: int, fd: int) -> None:
        """What it signals when the ring makes no sense."""
        self._tell(Request.SET_VRING_ERR, m.ring_descriptor(index, given=True), [fd])

    def start_ring(self, index: int, kick_fd: int) -> None:
        """From the first kick on the ring is served."""
        self._tell(Request.SET_VRING_KICK, m.ring_descriptor(index, given=True), [kick_fd])
        if self.features >> m.F_PROTOCOL_FEATURES & 1:
            self._tell(Request.SET_VRING_ENABLE, m.ring_state(index, 1))

    def stop_ring(self, index: int) -> int:
        """Nothing more is taken from it; returns the next available index."""
        return m.parse_ring_state(self._answer(Request.GET_VRING_BASE, m.ring_state(index, 0)), index) & 0xFFFF

    # --- inside

    def _tell(self, request: Request, payload: bytes = b"", descriptors: Sequence[int] = ()) -> None:
        """What has no answer of its own; with REPLY_ACK we learn whether it was done."""
        if not self.can(ProtocolFeature.REPLY_ACK):
            with self._lock:
                self._send(request, m.message(request, payload), descriptors)
            return
        if m.parse_u64(self._answer(request, payload, descriptors, need_reply=True)):
            raise self._failure(request, "refused")

    def _ask_u64(self, request: Request) -> int:
        return m.parse_u64(self._answer(request))

    def _answer(
        self, request: Request, payload: bytes = b"", descriptors: Sequence[int] = (), *, need_reply: bool = False
    ) -> bytes:
        with self._lock:
            answer, received = self._exchange(request, payload, descriptors, need_reply=need_reply)
        _close_all(received)
        return answer

    def _exchange(
        self, request: Request, payload: bytes = b"", descriptors: Sequence[int] = (), *, need_reply: bool = False
    ) -> tuple[bytes, list[int]]:
        self._send(request, m.message(request, payload, need_reply=need_reply), descriptors)
        received: list[int] = []
        try:
            header = m.parse_header(self._receive(m.HEADER_BYTES, received), request)
            return self._receive(header.size, received), received
        except (OSError, Malformed) as error:
            _close_all(received)
            raise self._failure(request, error) from error

    def _send(self, request: Request, data: bytes, descriptors: Sequence[int]) -> None:
        try:
            sent = socket.send_fds(self._socket, [data], list(descriptors))
            self._socket.sendall(data[sent:])
        except OSError as error:
            raise self._failure(request, error) from error

    def _receive(self, length: int, descriptors: list[int]) -> bytes:
        data = b""
        while len(data) < length:
            self._wait()
            part, ancillary, _, _ = self._socket.recvmsg(
                length - len(data), socket.CMSG_SPACE(_ONE_DESCRIPTOR), socket.MSG_CMSG_CLOEXEC
            )
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    found = array.array("i")
                    found.frombytes(content[: len(content) - len(content) % _ONE_DESCRIPTOR])
                    descriptors += found
            if not part:
                raise ConnectionResetError(errno.EPIPE, "the connection was closed")
            data += part
        return data

    def _wait(self) -> None:
        """Until there is something to receive, or nobody will send it."""
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        if self._ended_fd >= 0:
            poll.register(self._ended_fd, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(self._timeout_s * 1000)]
        if not ready:
            raise TimeoutError(errno.ETIMEDOUT, f"no answer within {self._timeout_s:g} s")
        if ready == [self._ended_fd]:
            raise ConnectionResetError(errno.EPIPE, "the process has ended")

    def _failure(self, request: Request, why: object) -> OSError:
        """The conversation is over."""
        self.shut()
        text = (why.strerror or str(why)) if isinstance(why, OSError) else str(why)
        return OSError(errno.EPIPE, f"{self.name}: vhost-user {request.name}: {text}")

    def shut(self) -> None:
        """End the conversation. Any thread; never waits."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # shut down already


def _close_all(descriptors: Sequence[int]) -> None:
    for each in descriptors:
        os.close(each)
