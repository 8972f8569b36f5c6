"""Tap devices through /dev/net/tun (Documentation/networking/tuntap.rst).

A tap lives as long as a descriptor of it is open, or for ever once it is persistent. So a tap is made first, marked by
its owner while the descriptor is open, and made persistent last: a process killed in between leaves nothing.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

DEVICE = "/dev/net/tun"
TUNSETIFF = 0x4004_54CA
TUNSETPERSIST = 0x4004_54CB
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE, IFF_TUN_EXCL = 0x0002, 0x1000, 0x4000, 0x0100, 0x8000
IFREQ_BYTES = 40  # struct ifreq: 16 bytes of name, 24 of union


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
        request = struct.pack("16sH22x", name.encode(), flags)
        assert len(request) == IFREQ_BYTES
        try:
            fcntl.ioctl(fd, TUNSETIFF, request)
        except OSError as error:
            raise OSError(error.errno, f"TUNSETIFF: {os.strerror(error.errno or 0)}", name) from error
        yield TapDevice(fd, name)
    finally:
        os.close(fd)
