"""vhost-user's messages, and our end of the conversation against a back end that says what the test wants."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from appliance.kernel.eventfd import EventFd
from appliance.vmm.vhost_user import messages as m
from appliance.vmm.vhost_user.client import VhostUserClient
from appliance.vmm.vhost_user.messages import Inflight, Malformed, ProtocolFeature, Region, Request, RingPlace

PROTOCOL = 1 << m.F_PROTOCOL_FEATURES


class FakeBackend:
    """Answers in a thread until its socket is closed. `replies` by request; SET requests are acknowledged."""

    def __init__(self, ours: socket.socket, *, protocol: int) -> None:
        self.heard: list[tuple[int, int, bytes, int]] = []  # request, flags, payload, count of descriptors
        self.replies: dict[int, bytes] = {
            Request.GET_FEATURES: m.u64(1 << 32 | PROTOCOL),
            Request.GET_PROTOCOL_FEATURES: m.u64(protocol),
        }
        self.raw: dict[int, bytes] = {}  # sent as it is instead of an answer
        self.given: dict[int, int] = {}  # a descriptor to send with an answer
        self._socket = ours
        self.thread = threading.Thread(target=self._run, name="fake-backend")
        self.thread.start()

    def _run(self) -> None:
        with self._socket, suppress(ConnectionError):
            while head := self._socket.recv(12, socket.MSG_PEEK):
                request, flags, size = struct.unpack("<III", head)
                data, fds, _, _ = socket.recv_fds(self._socket, 12 + size, 8)
                for fd in fds:
                    os.close(fd)
                self.heard.append((request, flags, data[12:], len(fds)))
                self._answer(request, flags)

    def _answer(self, request: int, flags: int) -> None:
        if request in self.raw:
            self._socket.sendall(self.raw[request])
            if not self.raw[request]:
                self._socket.shutdown(socket.SHUT_RDWR)
            return
        payload = self.replies.get(request, m.u64(0) if flags & m.FLAG_NEED_REPLY else None)
        if payload is not None:
            data = struct.pack("<III", request, m.VERSION | m.FLAG_REPLY, len(payload)) + payload
            fds = [self.given[request]] if request in self.given else []
            socket.send_fds(self._socket, [data], fds)

    def requests(self) -> list[int]:
        return [each[0] for each in self.heard]


Connect = Callable[..., tuple[VhostUserClient, FakeBackend]]
ALL = sum(1 << each for each in ProtocolFeature)


@pytest.fixture
def connect() -> Iterator[Connect]:
    with ExitStack() as stack:

        def make(protocol: int = ALL, *, ended_fd: int = -1) -> tuple[VhostUserClient, FakeBackend]:
            ours, theirs = socket.socketpair()
            backend = FakeBackend(theirs, protocol=protocol)
            client = VhostUserClient(ours, name="vm 101: virtio0", ended_fd=ended_fd, timeout_s=5)
            stack.callback(backend.thread.join)
            stack.callback(client.close)
            return client, backend

        yield make


def test_messages_are_laid_out_as_the_specification_has_them() -> None:
    assert m.message(Request.SET_OWNER) == struct.pack("<III", 3, 1, 0)
    assert m.message(Request.SET_FEATURES, m.u64(5), need_reply=True) == struct.pack("<IIIQ", 2, 9, 8, 5)
    assert m.ring_state(1, 256) == struct.pack("<II", 1, 256)
    place = RingPlace(descriptors=0x10, used=0x20, available=0x30, used_guest=0x40)
    assert m.ring_addresses(2, place, log=True) == struct.pack("<IIQQQQ", 2, 1, 0x10, 0x20, 0x30, 0x40)
    assert m.ring_descriptor(3, given=True) == m.u64(3)
    assert m.ring_descriptor(3, given=False) == m.u64(0x103)
    assert m.memory_table([Region(1, 2, 3, 4)]) == struct.pack("<IIQQQQ", 1, 0, 1, 2, 3, 4)
    assert m.log_base(4096) == struct.pack("<QQ", 4096, 0)
    assert m.config(32, b"\1") == struct.pack("<III", 32, 1, 0) + b"\1"
    assert m.inflight(Inflight(1, 2, 3, 4)) == struct.pack("<QQHH", 1, 2, 3, 4)


def test_a_memory_table_has_one_to_eight_regions() -> None:
    for count in (0, 9):
        with pytest.raises(ValueError, match="regions"):
            m.memory_table([Region(0, 0, 0, 0)] * count)


@pytest.mark.parametrize(
    "answer",
    [
        struct.pack("<III", Request.GET_CONFIG, 5, 0),  # to another question
        struct.pack("<III", Request.GET_FEATURES, 1, 8) + m.u64(0),  # no reply
        struct.pack("<III", Request.GET_FEATURES, 6, 8) + m.u64(0),  # another version
        struct.pack("<III", Request.GET_FEATURES, 5, m.MAX_PAYLOAD + 1),
        b"",  # and the end
    ],
)
def test_what_is_no_answer_ends_the_conversation(connect: Connect, answer: bytes) -> None:
    client, backend = connect()
    backend.raw[Request.GET_FEATURES] = answer
    for _ in range(2):
        with pytest.raises(OSError, match="vm 101: virtio0: vhost-user GET_FEATURES") as caught:
            client.negotiate()
        assert caught.value.errno == errno.EPIPE


def test_answers_that_are_too_short_are_malformed() -> None:
    for parse in (m.parse_u64, m.parse_inflight, lambda data: m.parse_ring_state(data, 0)):
        with pytest.raises(Malformed):
            parse(bytes(7))
    with pytest.raises(Malformed):
        m.parse_ring_state(m.ring_state(1, 0), 0)
    with pytest.raises(Malformed):
        m.parse_config(m.config(0, b""), 60)


def test_the_conversation_begins_with_what_both_can(connect: Connect) -> None:
    client, backend = connect(ALL | 1 << 8 | 1 << 5)
    client.negotiate()
    assert backend.requests() == [1, 15, 16, 3]
    assert backend.heard[2][2] == m.u64(ALL)
    assert client.can(ProtocolFeature.INFLIGHT_SHMFD)


def test_a_back_end_without_protocol_features_is_asked_for_none(connect: Connect) -> None:
    client, backend = connect()
    backend.replies[Request.GET_FEATURES] = m.u64(1 << 32)
    client.negotiate()
    client.set_features(1 << 32)
    assert client.queue_count() == 1
    backend.replies[Request.GET_VRING_BASE] = m.ring_state(0, 0)
    client.stop_ring(0)
    assert backend.requests() == [1, 3, 2, 11]


def test_what_has_no_answer_is_acknowledged_where_that_can_be_had(connect: Connect) -> None:
    client, backend = connect()
    client.negotiate()
    client.set_features(1 << 32)
    assert backend.heard[-1] == (2, m.VERSION | m.FLAG_NEED_REPLY, m.u64(1 << 32 | PROTOCOL), 0)
    backend.replies[Request.SET_FEATURES] = m.u64(1)
    with pytest.raises(OSError, match="SET_FEATURES: refused"):
        client.set_features(0)


def test_a_ring_is_given_and_taken_back(connect: Connect) -> None:
    client, backend = connect()
    client.negotiate()
    before = len(backend.heard)
    place = RingPlace(1, 2, 3, 4)
    backend.replies[Request.GET_VRING_BASE] = m.ring_state(1, 77)
    with EventFd() as event:
        client.set_memory([Region(0, 4096, 1, 0), Region(8192, 4096, 2, 4096)], event.fileno())
        client.set_ring(1, size=128, base=5, place=place, log=False)
        client.set_call(1, event.fileno())
        client.set_err(1, event.fileno())
        client.start_ring(1, event.fileno())
        assert client.stop_ring(1) == 77
    assert [(each[0], each[3]) for each in backend.heard[before:]] == [
        (5, 2), (8, 0), (10, 0), (9, 0), (13, 1), (14, 1), (12, 1), (18, 0), (11, 0)
    ]  # fmt: skip


def test_memory_for_what_is_unanswered_comes_with_a_descriptor(connect: Connect) -> None:
    client, backend = connect()
    client.negotiate()
    area = Inflight(size=4096, offset=0, queues=2, queue_size=128)
    backend.replies[Request.GET_INFLIGHT_FD] = m.inflight(area)
    with pytest.raises(OSError, match="0 descriptors"):
        client.new_inflight(2, 128)
    client, backend = connect()
    client.negotiate()
    backend.replies[Request.GET_INFLIGHT_FD] = m.inflight(area)
    fd = os.memfd_create("inflight")
    backend.given[Request.GET_INFLIGHT_FD] = fd
    try:
        found, received = client.new_inflight(2, 128)
        assert found == area
        assert os.fstat(received).st_ino == os.fstat(fd).st_ino
        assert not os.get_inheritable(received)
        client.set_inflight(found, received)
        assert backend.heard[-1][3] == 1
        os.close(received)
    finally:
        os.close(fd)


def test_nobody_waits_for_a_process_that_has_ended(connect: Connect) -> None:
    with EventFd() as ended:
        client, backend = connect(ended_fd=ended.fileno())
        del backend.replies[Request.GET_FEATURES]
        ended.signal()
        with pytest.raises(OSError, match="GET_FEATURES: the process has ended"):
            client.negotiate()


def test_the_end_of_the_other_side_is_seen_without_waiting(connect: Connect) -> None:
    client, backend = connect()
    client.negotiate()
    seen = [client.closed_by_peer]
    backend._socket.shutdown(socket.SHUT_RDWR)
    seen.append(client.closed_by_peer)
    client.close()
    seen.append(client.closed_by_peer)
    assert seen == [False, True, False]
