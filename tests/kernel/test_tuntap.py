"""Attaching to taps, in a network namespace of the test's own."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from appliance.kernel import netns, tuntap
from appliance.kernel.tuntap import TapOffload
from tests.network.lab import Lab

pytestmark = pytest.mark.host

T = TypeVar("T")
Inside = Callable[[Callable[[], T]], T]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture
def inside(lab: Lab) -> Iterator[Callable[[Callable[[], int]], int]]:
    fd = os.open(Path("/run/netns") / lab.name, os.O_RDONLY | os.O_CLOEXEC)
    yield lambda function: netns.call_inside(fd, function)
    os.close(fd)


def made(name: str, *, multi_queue: bool) -> int:
    with tuntap.new_tap(name, multi_queue=multi_queue) as tap:
        tap.persist()
    return 0


def test_the_driver_knows_virtio_headers_and_queues() -> None:
    wanted = tuntap.IFF_VNET_HDR | tuntap.IFF_MULTI_QUEUE
    assert tuntap.features() & wanted == wanted


def test_a_tap_made_by_the_network_layer_can_be_attached_as_it_is(inside: Inside[int]) -> None:
    inside(lambda: made("tap1", multi_queue=False))
    fd = inside(lambda: tuntap.attach_tap("tap1", multi_queue=False))
    try:
        tuntap.set_vnet_header_size(fd, "tap1", 12)
        assert tuntap.vnet_header_size(fd, "tap1") == 12
        tuntap.set_offload(fd, "tap1", TapOffload.CSUM | TapOffload.TSO4 | TapOffload.TSO6)
        with pytest.raises(OSError, match="TUNSETIFF tap1") as caught:
            inside(lambda: tuntap.attach_tap("tap1", multi_queue=False))
        assert caught.value.errno == errno.EBUSY
    finally:
        os.close(fd)


def test_queues_of_a_tap_are_attached_and_detached(inside: Inside[int]) -> None:
    inside(lambda: made("tap2", multi_queue=True))
    fds = [inside(lambda: tuntap.attach_tap("tap2", multi_queue=True)) for _ in range(2)]
    try:
        tuntap.set_queue(fds[1], "tap2", attached=False)
        tuntap.set_queue(fds[1], "tap2", attached=True)
        with pytest.raises(OSError, match="TUNSETQUEUE tap2"):
            tuntap.set_queue(fds[1], "tap2", attached=True)
    finally:
        for fd in fds:
            os.close(fd)
    with pytest.raises(OSError, match="TUNSETIFF tap2") as caught:
        inside(lambda: tuntap.attach_tap("tap2", multi_queue=False))
    assert caught.value.errno == errno.EINVAL


def test_attaching_makes_no_tap(inside: Inside[int], lab: Lab) -> None:
    with pytest.raises(OSError, match="TUNSETIFF tap9") as caught:
        inside(lambda: tuntap.attach_tap("tap9", multi_queue=False))
    assert caught.value.errno == errno.ENODEV
    assert "tap9" not in lab.interfaces()


def test_an_offload_the_kernel_does_not_know_is_refused(inside: Inside[int]) -> None:
    inside(lambda: made("tap3", multi_queue=False))
    fd = inside(lambda: tuntap.attach_tap("tap3", multi_queue=False))
    try:
        with pytest.raises(OSError, match="TUNSETOFFLOAD tap3"):
            tuntap.set_offload(fd, "tap3", TapOffload(0x4000_0000))
    finally:
        os.close(fd)
