"""The socket device on UNIX sockets: the test is the guest's kernel on one side and the host's programs on the other."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.vmm.virtio import consts
from appliance.vmm.virtio.vsock import EVENT, RX, TX, VirtioVsock, VsockOptions
from appliance.vmm.vsock.connection import BUFFER_BYTES
from appliance.vmm.vsock.host import (
    CLOSE_TIMEOUT_S,
    DRAIN_TIMEOUT_S,
    GREETING_TIMEOUT_S,
    MAX_CONNECTIONS,
    REQUEST_TIMEOUT_S,
)
from appliance.vmm.vsock.outbox import MAX_REPLIES
from appliance.vmm.vsock.packet import HOST_CID, SHUTDOWN_BOTH, SHUTDOWN_SEND, TYPE_STREAM, Header, Op
from tests.fakes.machine import FakeMachine
from tests.fakes.virtio_driver import attach, settle, transport_of
from tests.fakes.vsock_guest import CID, PORT, WINDOW, VsockGuest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "v.sock"


@pytest.fixture
def device(machine: FakeMachine, path: Path) -> Iterator[VirtioVsock]:
    made = VirtioVsock("vsock0", machine.context, options=VsockOptions(guest_cid=CID, socket_path=path))
    yield made
    made.close()
    made.close()
    assert machine.bridge.watched == {}


@pytest.fixture
def guest(device: VirtioVsock) -> VsockGuest:
    guest = VsockGuest(device, attach(device))
    guest.buffers(32)
    return guest


@pytest.fixture
def client(path: Path) -> Iterator[Callable[[], socket.socket]]:
    made: list[socket.socket] = []

    def connect() -> socket.socket:
        each = socket.socket(socket.AF_UNIX)
        made.append(each)
        each.settimeout(5)
        each.connect(str(path))
        return each

    yield connect
    for each in made:
        each.close()


@pytest.fixture
def service(path: Path) -> Iterator[socket.socket]:
    """A program of the host that serves port 52."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{path}_52")
        listener.listen(4)
        listener.settimeout(5)
        yield listener


Connect = Callable[[], socket.socket]


def opened(guest: VsockGuest, service: socket.socket) -> socket.socket:
    """A stream that the guest has opened; the host's end."""
    guest.packet(Op.REQUEST)
    server, _ = service.accept()
    server.settimeout(5)
    assert guest.one().op == Op.RESPONSE
    return server


def greeted(guest: VsockGuest, client: socket.socket) -> Header:
    """A stream that a client has opened to port 80 of the guest; the guest's view of it."""
    client.sendall(b"CONNECT 80\n")
    request = guest.one()
    assert request.op == Op.REQUEST
    guest.packet(Op.RESPONSE, port=request.src_port, src_port=80)
    assert client.recv(100) == b"OK %d\n" % request.src_port
    return request


# Beginning


def test_a_client_connects_to_a_port_of_the_guest(guest: VsockGuest, client: Connect) -> None:
    one = client()
    one.sendall(b"CONN")
    assert guest.take() == []
    one.sendall(b"ECT 80\nearly")
    request = guest.one()
    assert (request.op, request.dst_port, request.src_port) == (Op.REQUEST, 80, 1 << 30)
    assert request.buf_alloc == BUFFER_BYTES
    guest.packet(Op.RESPONSE, port=request.src_port, src_port=80)
    assert one.recv(100) == b"OK 1073741824\n"
    ((header, data),) = guest.take()
    assert (header.op, data) == (Op.RW, b"early")
    guest.packet(Op.RW, port=request.src_port, src_port=80, data=b"hello")
    assert one.recv(100) == b"hello"


def test_the_guest_connects_to_who_listens_beside_the_socket(guest: VsockGuest, service: socket.socket) -> None:
    with opened(guest, service) as server:
        guest.packet(Op.RW, data=b"question")
        assert server.recv(100) == b"question"
        server.sendall(b"answer")
        ((header, data),) = guest.take()
        assert (header.op, header.src_port, header.dst_port, data) == (Op.RW, 52, PORT, b"answer")
    assert transport_of(guest.device).interrupts


def test_where_nobody_listens_the_guest_is_refused(guest: VsockGuest) -> None:
    guest.packet(Op.REQUEST)
    answer = guest.one()
    assert (answer.op, answer.src_port, answer.dst_port) == (Op.RST, 52, PORT)


def test_where_nobody_listens_in_the_guest_the_client_is_turned_away(guest: VsockGuest, client: Connect) -> None:
    one = client()
    one.sendall(b"CONNECT 80\n")
    request = guest.one()
    guest.packet(Op.RST, port=request.src_port, src_port=80)
    assert one.recv(100) == b""
    assert guest.take() == []
    assert guest.device.connections == 0


@pytest.mark.parametrize(
    "line",
    [b"HELLO\n", b"CONNECT \n", b"CONNECT -1\n", b"CONNECT 4294967296\n", b"CONNECT 80" + b" " * 30, b"\n", b"C" * 99],
)
def test_a_client_that_does_not_say_where_is_turned_away(guest: VsockGuest, client: Connect, line: bytes) -> None:
    one = client()
    one.sendall(line)
    assert guest.take() == []
    with contextlib.suppress(ConnectionResetError):  # what it sent beyond the line was not read
        assert one.recv(100) == b""
    assert guest.device.connections == 0


def test_a_silent_client_and_a_silent_guest_are_given_up(
    guest: VsockGuest, client: Connect, machine: FakeMachine
) -> None:
    silent, asking = client(), client()
    asking.sendall(b"CONNECT 80\n")
    assert guest.ops() == [Op.REQUEST]
    machine.bridge.advance(REQUEST_TIMEOUT_S)
    assert asking.recv(10) == b""
    assert guest.ops() == [Op.RST]
    machine.bridge.advance(GREETING_TIMEOUT_S)
    assert silent.recv(10) == b""
    assert guest.device.connections == 0


def test_without_a_driver_clients_are_turned_away(device: VirtioVsock, client: Connect, machine: FakeMachine) -> None:
    one = client()
    settle(machine.bridge)
    assert one.recv(10) == b""


def test_there_are_so_many_connections_and_no_more(guest: VsockGuest, client: Connect, service: socket.socket) -> None:
    clients = [client() for _ in range(4)]
    guest.take()
    host = guest.device._host
    assert host is not None
    filler: set[Any] = {object() for _ in range(MAX_CONNECTIONS - 4)}
    host._all |= filler
    late = client()
    guest.packet(Op.REQUEST)
    assert guest.ops() == [Op.RST]
    assert late.recv(10) == b""
    host._all -= filler
    clients[0].sendall(b"CONNECT 80\n")
    assert guest.ops() == [Op.REQUEST]


@pytest.mark.parametrize("what", ["socket", "epoll"])
def test_a_host_that_has_nothing_left_refuses_and_the_guest_goes_on(
    guest: VsockGuest, service: socket.socket, client: Connect, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Descriptors and watches are the whole appliance's: that they are used up is no fault of this guest's devices."""

    def refuse(*arguments: object, **names: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as scarce:
        if what == "socket":
            scarce.setattr(socket, "socket", refuse)
        else:
            scarce.setattr(guest.device._host.poller, "add", refuse)  # type: ignore[union-attr]
            turned_away = client()
            settle(guest.device.context.bridge)  # type: ignore[arg-type]
            assert turned_away.recv(10) == b""
        guest.packet(Op.REQUEST)
    assert guest.ops() == [Op.RST]
    assert guest.device.connections == 0
    guest.packet(Op.REQUEST)
    assert guest.ops() == [Op.RESPONSE]


def test_a_file_left_behind_is_replaced(machine: FakeMachine, path: Path, client: Connect) -> None:
    options = VsockOptions(guest_cid=CID, socket_path=path)
    VirtioVsock("vsock0", machine.context, options=options).close()
    with pytest.raises(ConnectionRefusedError):
        client()
    device = VirtioVsock("vsock0", machine.context, options=options)
    assert path.stat().st_mode & 0o777 == 0o600
    client()
    device.close()


# Credit


def test_the_guest_is_sent_what_it_has_room_for(guest: VsockGuest, service: socket.socket) -> None:
    guest.packet(Op.REQUEST, buf_alloc=10)
    server, _ = service.accept()
    assert guest.ops() == [Op.RESPONSE]
    with server:
        server.sendall(b"0123456789abcdef")
        (first, data), (second, _) = guest.take()
        assert (first.op, data, second.op) == (Op.RW, b"0123456789", Op.CREDIT_REQUEST)
        guest.packet(Op.CREDIT_UPDATE, buf_alloc=10, fwd_cnt=0)
        assert guest.take() == []  # asked already, and still no room: it is not asked for ever
        guest.packet(Op.CREDIT_UPDATE, buf_alloc=10, fwd_cnt=10)
        ((third, rest),) = guest.take()
        assert (third.op, rest) == (Op.RW, b"abcdef")


def test_a_guest_that_lies_about_its_credit_gets_nothing(guest: VsockGuest, service: socket.socket) -> None:
    with opened(guest, service) as server:
        server.sendall(b"x")
        assert guest.ops() == [Op.RW]
        guest.packet(Op.CREDIT_UPDATE, fwd_cnt=5000)
        server.sendall(b"y")
        assert guest.ops() == [Op.CREDIT_REQUEST]


def test_a_guest_is_told_of_room_as_the_host_reads(guest: VsockGuest, service: socket.socket) -> None:
    with opened(guest, service) as server:
        for _ in range(8):
            guest.packet(Op.RW, data=bytes(8192))
        updates = guest.take()
        assert [header.op for header, _ in updates] == [Op.CREDIT_UPDATE] * len(updates)
        assert updates[-1][0].fwd_cnt >= BUFFER_BYTES // 4
        guest.packet(Op.CREDIT_REQUEST)
        answer = guest.one()
        assert (answer.op, answer.fwd_cnt, answer.buf_alloc) == (Op.CREDIT_UPDATE, 65536, BUFFER_BYTES)
        assert len(server.recv(65536, socket.MSG_WAITALL)) == 65536


def test_a_host_that_does_not_read_is_waited_for_and_loses_nothing(guest: VsockGuest, service: socket.socket) -> None:
    data = os.urandom(600_000)
    with opened(guest, service) as server:
        sent, passed_on, got = 0, 0, bytearray()
        while sent < len(data):
            step = min(8192, len(data) - sent, BUFFER_BYTES - (sent - passed_on))
            if step:
                guest.packet(Op.RW, data=data[sent : sent + step])
                sent += step
            else:
                got += server.recv(100_000)
            for header, _ in guest.take():
                assert header.op == Op.CREDIT_UPDATE
                passed_on = header.fwd_cnt
        server.settimeout(5)
        while len(got) < len(data):
            guest.take()
            got += server.recv(100_000)
        assert bytes(got) == data


def test_a_guest_that_sends_more_than_it_may_is_cut_off(guest: VsockGuest, service: socket.socket) -> None:
    with opened(guest, service) as server:
        ops: list[int] = []
        for _ in range(100):
            guest.packet(Op.RW, data=bytes(16384))
            ops += guest.ops()
            if Op.RST in ops:
                break
        assert ops[-1] == Op.RST
        assert guest.device.connections == 0
        assert guest.device.live
        assert len(server.recv(1 << 20)) > 0


def test_without_receive_buffers_nothing_is_lost(guest: VsockGuest, service: socket.socket) -> None:
    guest.refills = False
    with opened(guest, service) as server:
        data = os.urandom(200_000)  # more than the buffers there are, 31 of 4 KiB
        server.setblocking(False)
        sent = server.send(data)
        whole = b"".join(part for _, part in guest.take())
        assert len(whole) == WINDOW
        while len(whole) < len(data):
            guest.packet(Op.CREDIT_UPDATE, fwd_cnt=len(whole))
            guest.buffers(3)
            if sent < len(data):
                with contextlib.suppress(BlockingIOError):
                    sent += server.send(data[sent:])
            whole += b"".join(part for _, part in guest.take())
        assert whole == data


# Ending


def test_a_host_that_closes_tells_the_guest_and_its_rst_ends_it(
    guest: VsockGuest, service: socket.socket, machine: FakeMachine
) -> None:
    opened(guest, service).close()
    shutdown = guest.one()
    assert (shutdown.op, shutdown.flags) == (Op.SHUTDOWN, SHUTDOWN_BOTH)
    guest.packet(Op.RW, data=b"crossing")
    assert guest.take() == []
    guest.packet(Op.RST)
    assert guest.device.connections == 0
    machine.bridge.advance(CLOSE_TIMEOUT_S)
    assert guest.take() == []


def test_a_guest_that_does_not_answer_a_close_is_reset(
    guest: VsockGuest, service: socket.socket, machine: FakeMachine
) -> None:
    opened(guest, service).close()
    assert guest.ops() == [Op.SHUTDOWN]
    machine.bridge.advance(CLOSE_TIMEOUT_S)
    assert guest.ops() == [Op.RST]
    assert guest.device.connections == 0


def test_half_a_close_of_the_host_leaves_the_other_half(guest: VsockGuest, service: socket.socket) -> None:
    with opened(guest, service) as server:
        server.shutdown(socket.SHUT_WR)
        shutdown = guest.one()
        assert (shutdown.op, shutdown.flags) == (Op.SHUTDOWN, SHUTDOWN_SEND)
        guest.packet(Op.RW, data=b"still")
        assert server.recv(10) == b"still"
        assert guest.take() == []
    shutdown = guest.one()
    assert (shutdown.op, shutdown.flags) == (Op.SHUTDOWN, SHUTDOWN_BOTH)


def test_half_a_close_of_the_guest_leaves_the_other_half(guest: VsockGuest, service: socket.socket) -> None:
    with opened(guest, service) as server:
        guest.packet(Op.RW, data=b"last")
        guest.packet(Op.SHUTDOWN, flags=SHUTDOWN_SEND)
        assert server.recv(10) == b"last"
        assert server.recv(10) == b""
        server.sendall(b"answer")
        assert [(header.op, data) for header, data in guest.take()] == [(Op.RW, b"answer")]
        guest.packet(Op.RW, data=b"after all")
        assert guest.ops() == [Op.RST]


def test_what_a_guest_sent_before_it_closed_reaches_a_slow_reader(
    guest: VsockGuest, service: socket.socket, machine: FakeMachine
) -> None:
    with opened(guest, service) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        total = 0
        host = guest.device._host
        assert host is not None
        while not any(each.buffer for each in host._all):
            guest.packet(Op.RW, data=bytes(16384))
            total += 16384
            guest.take()
        guest.packet(Op.SHUTDOWN, flags=SHUTDOWN_BOTH)
        assert guest.ops()[-1] == Op.RST
        guest.device.reset()  # and the guest reboots
        got = 0
        while got < total:
            settle(machine.bridge)
            got += len(server.recv(1 << 20))
        settle(machine.bridge)
        assert server.recv(1) == b""
        assert guest.device.connections == 0


def test_a_reader_that_never_reads_is_given_up(guest: VsockGuest, service: socket.socket, machine: FakeMachine) -> None:
    with opened(guest, service):
        host = guest.device._host
        assert host is not None
        while not any(each.buffer for each in host._all):
            guest.packet(Op.RW, data=bytes(16384))
            guest.take()
        guest.packet(Op.SHUTDOWN, flags=SHUTDOWN_BOTH)
        assert guest.device.connections == 1
        machine.bridge.advance(DRAIN_TIMEOUT_S)
        assert guest.device.connections == 0


def test_a_host_that_goes_while_the_guest_sends_resets_it(guest: VsockGuest, service: socket.socket) -> None:
    opened(guest, service).close()
    guest.queues[TX].device = None  # the guest has not seen the end yet
    header = Header(CID, HOST_CID, PORT, 52, 4, TYPE_STREAM, Op.RW, 0, WINDOW, 0).pack()
    guest.queues[TX].add([header, b"data"])
    guest.queues[TX].device = guest.device
    guest.device.on_kick(TX)
    assert guest.ops()[0] in (Op.RST, Op.SHUTDOWN)


# Hostile guests

WRONG: list[tuple[str, dict[str, int]]] = [
    ("another's CID", {"op": Op.REQUEST, "src_cid": 77}),
    ("not the host", {"op": Op.REQUEST, "dst_cid": 3}),
    ("wide CIDs", {"op": Op.RW, "src_cid": 2**64 - 1, "dst_cid": 2**64 - 1}),
    ("unknown type", {"op": Op.REQUEST, "type": 2}),
    ("type 0", {"op": Op.REQUEST, "type": 0}),
    ("unknown op", {"op": 99}),
    ("op 0", {"op": 0}),
    ("no such stream", {"op": Op.RW}),
    ("no such stream either", {"op": Op.SHUTDOWN, "flags": 0xFFFF_FFFF}),
    ("an answer nobody asked for", {"op": Op.RESPONSE}),
    ("longer than it is", {"op": Op.RW, "len": 0xFFFF_FFFF}),
]


@pytest.mark.parametrize(("_what", "fields"), WRONG)
def test_a_wrong_packet_is_answered_by_rst(guest: VsockGuest, _what: str, fields: dict[str, int]) -> None:
    guest.packet(**fields)  # type: ignore[arg-type]
    answer = guest.one()
    assert answer.op == Op.RST
    assert (answer.dst_cid, answer.src_cid) == (fields.get("src_cid", CID), fields.get("dst_cid", HOST_CID))
    assert guest.device.live


@pytest.mark.parametrize(
    "fields",
    [
        {"op": Op.REQUEST},
        {"op": Op.RESPONSE},
        {"op": 0},
        {"op": 9},
        {"op": Op.RW, "len": 5},
        {"op": Op.RW, "len": 1 << 31},
    ],
)
def test_a_wrong_packet_ends_its_stream(guest: VsockGuest, service: socket.socket, fields: dict[str, int]) -> None:
    with opened(guest, service) as server:
        guest.packet(**fields)  # type: ignore[arg-type]
        assert guest.ops() == [Op.RST]
        assert server.recv(10) == b""
    assert guest.device.connections == 0


def test_a_reset_is_not_answered(guest: VsockGuest) -> None:
    guest.packet(Op.RST)
    guest.packet(Op.RST, src_cid=7)
    guest.queues[TX].add([b"short"])
    guest.queues[TX].add([], [64])
    guest.queues[TX].kick()
    assert guest.take() == []


def test_data_before_the_answer_is_refused(guest: VsockGuest, client: Connect) -> None:
    one = client()
    one.sendall(b"CONNECT 80\n")
    request = guest.one()
    guest.packet(Op.RW, port=request.src_port, src_port=80, data=b"too early")
    assert guest.ops() == [Op.RST]
    assert one.recv(10) == b""


def test_a_guest_that_takes_no_answers_is_not_listened_to(device: VirtioVsock) -> None:
    guest = VsockGuest(device, attach(device))
    with contextlib.suppress(ValueError):  # its transmit queue is full
        for _ in range(MAX_REPLIES * 3):
            guest.packet(Op.RW)
    host = device._host
    assert host is not None
    assert host.full
    assert len(host._outbox._replies) <= MAX_REPLIES + 64
    assert device.queues[TX].has_available()
    guest.buffers(100)
    for _ in range(16):
        assert set(guest.ops()) <= {Op.RST}
    assert not device.queues[TX].has_available()


def test_a_receive_buffer_without_room_breaks_the_device(device: VirtioVsock, machine: FakeMachine) -> None:
    guest = VsockGuest(device, attach(device), rx_bytes=44)
    guest.buffers(1)
    guest.packet(Op.RW)
    assert device.status & consts.STATUS_NEEDS_RESET
    assert machine.faults == []


def test_a_receive_buffer_in_a_hundred_pieces_breaks_the_device(device: VirtioVsock) -> None:
    """Hundreds of them are filled at one go."""
    queues = attach(device)
    queues[RX].add([], [1] * 100)
    VsockGuest(device, queues).packet(Op.RW)
    assert device.status & consts.STATUS_NEEDS_RESET


# Life


def test_a_reset_of_the_driver_ends_every_stream(guest: VsockGuest, service: socket.socket, client: Connect) -> None:
    with opened(guest, service) as server:
        one = client()
        greeted(guest, one)
        guest.device.reset()
        assert server.recv(10) == b""
        assert one.recv(10) == b""
    assert guest.device.connections == 0


def test_a_paused_device_touches_nothing_and_goes_on(
    guest: VsockGuest, service: socket.socket, machine: FakeMachine, client: Connect
) -> None:
    with opened(guest, service) as server:
        guest.device.pause()
        assert machine.bridge.watched == {}
        server.sendall(b"waiting")
        machine.bridge.advance(100)
        guest.device.resume()
        assert [(header.op, data) for header, data in guest.take()] == [(Op.RW, b"waiting")]
        one = client()
        one.sendall(b"CONNECT 80\n")
        assert guest.ops() == [Op.REQUEST]
        guest.device.pause()
        machine.bridge.advance(REQUEST_TIMEOUT_S)
        guest.device.resume()
        assert guest.ops() == [Op.RST]


def test_a_restored_guest_hears_that_its_streams_are_lost(
    guest: VsockGuest, machine: FakeMachine, tmp_path: Path
) -> None:
    device = guest.device
    device.pause()
    saved = device.save()
    assert saved is not None
    options = VsockOptions(guest_cid=CID, socket_path=tmp_path / "other.sock")
    other = VirtioVsock("vsock0", machine.context, options=options)
    try:
        other.restore(saved)
        settle(machine.bridge)
        other.transport = device.transport
        other.resume()
        settle(machine.bridge)
        event = guest.queues[EVENT]
        event.device = other
        head = event.add([], [4])
        event.kick()
        assert event.used() == [(head, 4)]
        assert event.read_back(head) == bytes(4)
        event.add([], [4])
        event.kick()
        assert event.used() == []
    finally:
        other.close()


def test_the_configuration_is_the_cid(device: VirtioVsock) -> None:
    assert device.read_config(0, 8) == CID
    assert (device.read_config(4, 4), device.read_config(8, 4)) == (0, 0)


def test_a_driver_that_takes_no_streams_gets_none(device: VirtioVsock) -> None:
    guest = VsockGuest(device, attach(device, features=device.features & ~1))
    guest.buffers(4)
    guest.packet(Op.REQUEST)
    assert guest.ops() == [Op.RST]
