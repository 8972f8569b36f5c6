"""Tap devices through /dev/net/tun (Documentation/networking/tuntap.rst).

A tap lives as long as a descriptor of it is open, or for ever once it is persistent. So a tap is made first, marked by
its owner while the descriptor is open, and made persistent last: a process killed in between leaves nothing.

Who serves a tap attaches a descriptor for each of its queues (`attach_tap`). The size of the virtio header and the
offloads belong to the tap, not to the descriptor: whoever attaches sets them, whatever was there before. Functions here
raise `OSError` naming the ioctl and the tap. Any thread may enter; those that set something wait for the kernel's lock on
network devices.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntFlag

from appliance.kernel.libc import failure

DEVICE = "/dev/net/tun"
TUNSETIFF = 0x4004_54CA
TUNSETPERSIST = 0x4004_54CB
TUNGETFEATURES = 0x8004_54CF
TUNSETOFFLOAD = 0x4004_54D0
TUNGETVNETHDRSZ = 0x8004_54D7
TUNSETVNETHDRSZ = 0x4004_54D8
TUNSETQUEUE = 0x4004_54D9
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE, IFF_TUN_EXCL = 0x0002, 0x1000, 0x4000, 0x0100, 0x8000
IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE = 0x0200, 0x0400
IFREQ_BYTES = 40  # struct ifreq: 16 bytes of name, 24 of union
_IFREQ, _INT, _UNSIGNED = struct.Struct("16sH22x"), struct.Struct("i"), struct.Struct("I")
assert _IFREQ.size == IFREQ_BYTES


class TapOffload(IntFlag):
    """TUN_F_*: packets the reader of a tap can take as they are (TUNSETOFFLOAD)."""

    CSUM = 0x01  # without checksum; the others need it
    TSO4 = 0x02
    TSO6 = 0x04
    TSO_ECN = 0x08
    UFO = 0x10
    USO4 = 0x20  # Linux 6.2; USO4 and USO6 are taken together only (drivers/net/tun.c, set_offload)
    USO6 = 0x40


class TapDevice:
    """An open tap; `name` is its interface."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self.name = name

    def persist(self) -> None:
        """Let the interface outlive this descriptor."""
        fcntl.ioctl(self._fd, TUNSETPERSIST, 1)


@contextmanager
def new_tap(name: str, *, multi_queue: bool) -> Iterator[TapDevice]:
    """A new tap with virtio headers (`IFF_VNET_HDR`), gone at the end of the block unless made persistent.

    OSError: EBUSY or EINVAL when the name is taken, ENOENT or ENODEV when the kernel has no tun driver.
    """
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL | (IFF_MULTI_QUEUE if multi_queue else 0)
    fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        request = _IFREQ.pack(name.encode(), flags)
        try:
            fcntl.ioctl(fd, TUNSETIFF, request)
        except OSError as error:
            raise OSError(error.errno, f"TUNSETIFF: {os.strerror(error.errno or 0)}", name) from error
        yield TapDevice(fd, name)
    finally:
        os.close(fd)


def features() -> int:
    """TUNGETFEATURES: the IFF_ flags this kernel's driver knows. OSError when there is no driver."""
    fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        return int(_UNSIGNED.unpack(_pass(fd, TUNGETFEATURES, bytes(4), "TUNGETFEATURES", DEVICE))[0])
    finally:
        os.close(fd)


def attach_tap(name: str, *, multi_queue: bool) -> int:
    """A new descriptor for (a queue of) an existing tap, non-blocking, with virtio headers; the caller closes it.

    EINVAL when the tap was made with another `multi_queue`, EBUSY when a tap of one queue is attached already, E2BIG when
    the kernel has no more queues, ENODEV when there is no such interface (TUNSETIFF alone would make one).
    """
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if multi_queue else 0)
    try:
        socket.if_nametoindex(name)
    except OSError as error:
        raise failure("TUNSETIFF", name, errno.ENODEV) from error
    fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _pass(fd, TUNSETIFF, _IFREQ.pack(name.encode(), flags), "TUNSETIFF", name)
    except OSError:
        os.close(fd)
        raise
    return fd


def set_queue(fd: int, name: str, *, attached: bool) -> None:
    """TUNSETQUEUE: whether this descriptor of a multi-queue tap takes part: detached, it gets no packets."""
    flags = IFF_ATTACH_QUEUE if attached else IFF_DETACH_QUEUE
    _pass(fd, TUNSETQUEUE, _IFREQ.pack(b"", flags), "TUNSETQUEUE", name)


def set_offload(fd: int, name: str, offload: TapOffload) -> None:
    """TUNSETOFFLOAD: what the kernel may leave to us. EINVAL for what it does not know."""
    try:
        fcntl.ioctl(fd, TUNSETOFFLOAD, int(offload))
    except OSError as error:
        raise failure("TUNSETOFFLOAD", name, error.errno) from error


def set_vnet_header_size(fd: int, name: str, size_bytes: int) -> None:
    """TUNSETVNETHDRSZ: 10 (struct virtio_net_hdr) or 12 (with num_buffers)."""
    _pass(fd, TUNSETVNETHDRSZ, _INT.pack(size_bytes), "TUNSETVNETHDRSZ", name)


def vnet_header_size(fd: int, name: str) -> int:
    """TUNGETVNETHDRSZ."""
    return int(_INT.unpack(_pass(fd, TUNGETVNETHDRSZ, bytes(4), "TUNGETVNETHDRSZ", name))[0])


def _pass(fd: int, request: int, argument: bytes, call: str, name: str) -> bytes:
    try:
        return fcntl.ioctl(fd, request, argument)
    except OSError as error:
        raise failure(call, name, error.errno) from error
