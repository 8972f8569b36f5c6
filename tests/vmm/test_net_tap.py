"""The network device on a real tap, in a network namespace of the test's own: the host's kernel is the peer."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.errors import HostError
from appliance.kernel import netns, tuntap
from appliance.kernel.tuntap import TapOffload
from appliance.vmm.netdev import header as h
from appliance.vmm.netdev.tap import Tap
from appliance.vmm.vhost.backend import DataPlane
from appliance.vmm.virtio.net import NetOptions, VirtioNet
from tests.fakes.machine import FakeMachine
from tests.fakes.net_guest import NetGuest
from tests.fakes.virtio_driver import attach
from tests.network.lab import Lab

pytestmark = pytest.mark.host

MAC = bytes.fromhex("525400000002")
HOST, GUEST = "10.77.0.1", "10.77.0.2"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture
def namespace(lab: Lab) -> Iterator[int]:
    fd = os.open(Path("/run/netns") / lab.name, os.O_RDONLY | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def persistent(name: str, *, multi_queue: bool) -> None:
    """As the network layer makes them."""
    with tuntap.new_tap(name, multi_queue=multi_queue) as tap:
        tap.persist()


@pytest.fixture
def guest(lab: Lab, namespace: int, machine: FakeMachine) -> Iterator[NetGuest]:
    """A guest at `GUEST` on a tap on which the host has `HOST`."""
    netns.call_inside(namespace, lambda: persistent("tap0", multi_queue=False))
    lab.run("ip", "address", "add", f"{HOST}/24", "dev", "tap0")
    lab.run("ip", "link", "set", "tap0", "up")
    tap = netns.call_inside(namespace, lambda: Tap("tap0"))
    device = VirtioNet(
        "net0", machine.context, cable=tap, options=NetOptions(mac=MAC, mtu=1500, data_plane=DataPlane.PYTHON)
    )
    rx, tx, _ = attach(device)
    yield NetGuest(machine.bridge, rx, tx, MAC, socket.inet_aton(GUEST), socket.inet_aton(HOST))
    assert device.live
    device.close()
    lab.run("ip", "link", "delete", "tap0")


def test_a_guest_answers_arp_and_ping(guest: NetGuest, lab: Lab) -> None:
    argv = ["ip", "netns", "exec", lab.name, "ping", "-n", "-c3", "-i0.05", "-W5", "-s1400", GUEST]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as ping:
        guest.serve(lambda: ping.poll() is not None)
        output, _ = ping.communicate()
    assert "3 received" in output


def test_large_segments_cross_whole_both_ways(guest: NetGuest, lab: Lab, namespace: int) -> None:
    listener = netns.call_inside(namespace, lambda: socket.create_server((HOST, 7)))
    with listener:
        listener.settimeout(10)
        probe = netns.call_inside(namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with probe:
            probe.sendto(b"hello", (GUEST, 9))  # so that the host asks for the guest's address
        guest.serve(lambda: guest.peer_mac != b"\xff" * 6)
        guest.connect(7)
        guest.serve(lambda: guest.established)
        connection, _ = listener.accept()
    with connection:
        connection.settimeout(10)
        data = os.urandom(60000)
        guest.send(data)
        assert connection.recv(60000, socket.MSG_WAITALL) == data
        answer = os.urandom(400_000)
        connection.setblocking(False)
        left = memoryview(answer)

        def all_there() -> bool:
            nonlocal left
            if left:
                with contextlib.suppress(BlockingIOError):
                    left = left[connection.send(left) :]
            return len(guest.received) == len(answer)

        guest.serve(all_there)
        assert bytes(guest.received) == answer
    large = [each for each in guest.headers if each[1] == h.GSO_TCPV4]
    assert max(length for *_, length in large) > 10_000
    assert all(flags & h.NEEDS_CSUM and size == 1460 for flags, _, size, _ in large)


def test_a_tap_can_what_its_kernel_can(namespace: int, lab: Lab) -> None:
    netns.call_inside(namespace, lambda: persistent("tap1", multi_queue=False))
    tap = netns.call_inside(namespace, lambda: Tap("tap1"))
    try:
        assert TapOffload.CSUM | TapOffload.TSO4 | TapOffload.TSO6 in tap.offloads
        assert tuntap.vnet_header_size(tap.fileno(0), "tap1") == h.HEADER_BYTES
        assert tap.receive(0, memoryview(bytearray(2000))) == 0
        with pytest.raises(OSError, match="Input/output error"):  # it is down
            tap.send(0, [bytes(12), bytes(60)])
    finally:
        tap.close()
        tap.close()


def test_queues_take_part_as_they_are_used(namespace: int, lab: Lab) -> None:
    netns.call_inside(namespace, lambda: persistent("tap2", multi_queue=True))
    tap = netns.call_inside(namespace, lambda: Tap("tap2", pairs=3))
    try:
        for count in (3, 1, 2, 2, 1, 3):
            tap.use_pairs(count)
        tap.set_offload(TapOffload.CSUM)
        lab.run("ip", "link", "delete", "tap2")
        with pytest.raises(HostError, match="tap tap2"):
            tap.set_offload(TapOffload(0))
    finally:
        tap.close()


@pytest.mark.parametrize(("name", "pairs"), [("tap9", 1), ("tap3", 2)])
def test_a_tap_that_is_not_there_or_made_otherwise_is_named(namespace: int, name: str, pairs: int) -> None:
    if name == "tap3":
        netns.call_inside(namespace, lambda: persistent("tap3", multi_queue=False))
    caught: list[HostError] = []

    def attempt() -> None:
        with pytest.raises(HostError, match=f"tap {name}") as error:
            Tap(name, pairs=pairs)
        caught.append(error.value)

    netns.call_inside(namespace, attempt)
    assert caught
