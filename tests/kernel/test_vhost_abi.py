"""Sizes and numbers against those a C compiler gives for <linux/vhost.h> of Linux 6.1, written down here."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.kernel import vhost as module
from appliance.kernel.vhost import MemoryRegion, RingAddresses, Vhost, VhostNet, VhostVsock
from appliance.kernel.vhost_abi import VhostIoctl, VhostMemory, VhostVringAddr, VhostVringFile, VhostVringState

NUMBERS = {
    "VHOST_GET_FEATURES": 0x8008AF00, "VHOST_SET_FEATURES": 0x4008AF00, "VHOST_SET_OWNER": 0x0000AF01,
    "VHOST_SET_MEM_TABLE": 0x4008AF03, "VHOST_SET_LOG_BASE": 0x4008AF04, "VHOST_SET_VRING_NUM": 0x4008AF10,
    "VHOST_SET_VRING_ADDR": 0x4028AF11, "VHOST_SET_VRING_BASE": 0x4008AF12, "VHOST_GET_VRING_BASE": 0xC008AF12,
    "VHOST_SET_VRING_KICK": 0x4008AF20, "VHOST_SET_VRING_CALL": 0x4008AF21, "VHOST_SET_VRING_ERR": 0x4008AF22,
    "VHOST_NET_SET_BACKEND": 0x4008AF30, "VHOST_VSOCK_SET_GUEST_CID": 0x4008AF60, "VHOST_VSOCK_SET_RUNNING": 0x4004AF61,
}  # fmt: skip

Taken = tuple[str, object]


def copied(request: int, argument: object) -> Taken:
    """What the kernel would have read."""
    name, value = VhostIoctl(request).name, None if argument is None else argument._obj  # type: ignore[attr-defined]
    match value:
        case VhostVringState():
            return name, (value.index, value.num)
        case VhostVringFile():
            return name, (value.index, value.fd)
        case VhostVringAddr():
            return name, tuple(getattr(value, field) for field, _ in VhostVringAddr._fields_)
        case VhostMemory():
            size = ctypes.sizeof(VhostMemory) + 32 * value.nregions
            return name, ctypes.string_at(ctypes.addressof(value), size)
        case None:
            return name, None
        case _:
            return name, value.value


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Taken]:
    """Every ioctl goes here instead of to the kernel."""
    made: list[Taken] = []

    def ioctl(_fd: int, request: int, argument: object) -> int:
        made.append(copied(request, argument))
        return 0

    monkeypatch.setattr(module, "ioctl", ioctl)
    monkeypatch.setattr(module, "VHOST_NET", "/dev/null")
    monkeypatch.setattr(module, "VHOST_VSOCK", "/dev/null")
    return made


def test_every_ioctl_has_the_number_the_kernels_header_gives_it() -> None:
    assert {each.name: each.value for each in VhostIoctl} == NUMBERS


def test_the_memory_table_is_a_header_and_its_regions(taken: list[Taken]) -> None:
    with VhostNet("vm 101: net0") as vhost:
        vhost.set_mem_table([MemoryRegion(0, 0xA0000, 0x7F00_0000_0000), MemoryRegion(1 << 32, 1 << 20, 0x1000)])
    words = b"".join(
        value.to_bytes(8, "little") for value in (0, 0xA0000, 0x7F00_0000_0000, 0, 1 << 32, 1 << 20, 0x1000, 0)
    )
    assert taken == [("VHOST_SET_MEM_TABLE", (2).to_bytes(8, "little") + words)]


CALLS: list[tuple[Callable[[VhostNet], object], Taken]] = [
    (lambda net: net.set_owner(), ("VHOST_SET_OWNER", None)),
    (lambda net: net.set_features(1 << 32), ("VHOST_SET_FEATURES", 1 << 32)),
    (lambda net: net.set_log_base(0x7000), ("VHOST_SET_LOG_BASE", 0x7000)),
    (lambda net: net.set_vring_num(1, 256), ("VHOST_SET_VRING_NUM", (1, 256))),
    (lambda net: net.set_vring_base(1, 7), ("VHOST_SET_VRING_BASE", (1, 7))),
    (lambda net: net.get_vring_base(1), ("VHOST_GET_VRING_BASE", (1, 0))),
    (lambda net: net.set_vring_kick(0, 5), ("VHOST_SET_VRING_KICK", (0, 5))),
    (lambda net: net.set_vring_call(0, 6), ("VHOST_SET_VRING_CALL", (0, 6))),
    (lambda net: net.set_vring_err(0, -1), ("VHOST_SET_VRING_ERR", (0, -1))),
    (lambda net: net.set_backend(1, 9), ("VHOST_NET_SET_BACKEND", (1, 9))),
    (
        lambda net: net.set_vring_addr(1, RingAddresses(0x10, 0x20, 0x30, 0x40), log=True),
        ("VHOST_SET_VRING_ADDR", (1, 1, 0x10, 0x30, 0x20, 0x40)),
    ),
]


@pytest.mark.parametrize(("call", "expected"), CALLS)
def test_a_call_is_the_ioctl_of_its_name(
    taken: list[Taken], call: Callable[[VhostNet], object], expected: Taken
) -> None:
    with VhostNet("vm 101: net0") as vhost:
        call(vhost)
    assert taken == [expected]


def test_vsock_has_a_cid_and_runs(taken: list[Taken]) -> None:
    with VhostVsock("vm 101: vsock0") as vhost:
        vhost.set_guest_cid(42)
        vhost.set_running(running=True)
    assert taken == [("VHOST_VSOCK_SET_GUEST_CID", 42), ("VHOST_VSOCK_SET_RUNNING", 1)]


def test_an_error_names_the_ioctl_and_the_object() -> None:
    with Vhost("/dev/null", "vm 101: net0") as vhost:
        with pytest.raises(OSError, match="VHOST_SET_OWNER vm 101: net0") as caught:
            vhost.set_owner()
        assert caught.value.errno == errno.ENOTTY
    vhost.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        vhost.set_owner()


@pytest.mark.host
@pytest.mark.skipif(not Path(module.VHOST_NET).exists(), reason="no vhost-net on this host")
def test_the_kernel_offers_what_a_virtio_network_device_needs() -> None:
    with VhostNet("test") as vhost:
        vhost.set_owner()
        assert vhost.get_features() & (1 << 32 | 1 << 15 | 1 << 29) == 1 << 32 | 1 << 15 | 1 << 29
