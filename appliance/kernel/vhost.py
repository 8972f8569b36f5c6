"""Kernel vhost: virtqueues served by a kernel thread (drivers/vhost: net.c, vsock.c).

One descriptor serves the rings of one device (net: of one queue pair). Its kernel thread uses the address space of the
process that called `set_owner`: guest RAM must stay mapped where `set_mem_table` said until the descriptor is closed.
Any thread may enter; no call waits for a guest, but those that take a ring from the kernel thread wait for it to finish
its round.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from appliance.kernel.kvm_abi import with_entries
from appliance.kernel.kvm_object import ioctl
from appliance.kernel.libc import failure
from appliance.kernel.vhost_abi import (
    VHOST_FILE_UNBIND,
    VHOST_VRING_F_LOG,
    VhostIoctl,
    VhostMemory,
    VhostMemoryRegion,
    VhostVringAddr,
    VhostVringFile,
    VhostVringState,
)

VHOST_NET, VHOST_VSOCK = "/dev/vhost-net", "/dev/vhost-vsock"


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """Guest-physical `base`, `size` bytes, at `host_address` of our process."""

    base: int
    size: int
    host_address: int


@dataclass(frozen=True, slots=True)
class RingAddresses:
    """Where our process has the three parts of a ring; `used_guest` is where the guest has the used part."""

    descriptors: int
    available: int
    used: int
    used_guest: int


class Vhost:
    """An open vhost descriptor. `name` ("vm 101: net0") says in errors whose it is.

    Every method is one ioctl and raises `OSError` naming it and the object; after `close` that is EBADF.
    """

    def __init__(self, path: str, name: str) -> None:
        """OSError: ENOENT or ENODEV when the kernel has no such driver, EACCES."""
        self.name = name
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""
        return self._fd

    def close(self) -> None:
        """Stop every ring and close; once is enough, twice is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # The device

    def set_owner(self) -> None:
        """VHOST_SET_OWNER: before all else. The kernel thread runs in our address space."""
        self._call(VhostIoctl.VHOST_SET_OWNER, None)

    def get_features(self) -> int:
        """VHOST_GET_FEATURES: the bits of virtio, and vhost's own, that this kernel knows."""
        features = ctypes.c_uint64()
        self._call(VhostIoctl.VHOST_GET_FEATURES, features)
        return features.value

    def set_features(self, features: int) -> None:
        """VHOST_SET_FEATURES. EOPNOTSUPP for bits that `get_features` lacks; EFAULT for logging without a log."""
        self._call(VhostIoctl.VHOST_SET_FEATURES, ctypes.c_uint64(features))

    def set_mem_table(self, regions: Sequence[MemoryRegion]) -> None:
        """VHOST_SET_MEM_TABLE: the guest's memory; what is not in it cannot be reached through a ring."""
        table, entries = with_entries(VhostMemory, VhostMemoryRegion, len(regions))
        table.nregions = len(regions)
        for entry, region in zip(entries, regions, strict=True):
            entry.guest_phys_addr, entry.memory_size = region.base, region.size
            entry.userspace_addr = region.host_address
        # SAFETY: the kernel copies nregions entries, which follow the header in the memory both views keep alive.
        self._call(VhostIoctl.VHOST_SET_MEM_TABLE, table)

    def set_log_base(self, host_address: int) -> None:
        """VHOST_SET_LOG_BASE: one bit for each page of guest-physical addresses, from 0 to the end of the memory table.

        The kernel thread sets bits there from the next round on; when this returns no ring writes to an earlier log.
        The caller keeps the memory mapped until another one is set or the descriptor is closed.
        """
        self._call(VhostIoctl.VHOST_SET_LOG_BASE, ctypes.c_uint64(host_address))

    # Rings

    def set_vring_num(self, index: int, size: int) -> None:
        """VHOST_SET_VRING_NUM. EBUSY while the ring runs."""
        self._call(VhostIoctl.VHOST_SET_VRING_NUM, VhostVringState(index, size))

    def set_vring_base(self, index: int, available: int) -> None:
        """VHOST_SET_VRING_BASE: the available index to go on from. EBUSY while the ring runs."""
        self._call(VhostIoctl.VHOST_SET_VRING_BASE, VhostVringState(index, available))

    def get_vring_base(self, index: int) -> int:
        """VHOST_GET_VRING_BASE: the available index the kernel would go on from; exact once the ring was stopped."""
        state = VhostVringState(index, 0)
        self._call(VhostIoctl.VHOST_GET_VRING_BASE, state)
        return int(state.num) & 0xFFFF

    def set_vring_addr(self, index: int, addresses: RingAddresses, *, log: bool = False) -> None:
        """VHOST_SET_VRING_ADDR; with `log`, writes to the used ring are logged as well. EFAULT for a bad address."""
        flags = 1 << VHOST_VRING_F_LOG if log else 0
        where = (addresses.descriptors, addresses.used, addresses.available, addresses.used_guest)
        self._call(VhostIoctl.VHOST_SET_VRING_ADDR, VhostVringAddr(index, flags, *where))

    def set_vring_kick(self, index: int, fd: int) -> None:
        """VHOST_SET_VRING_KICK: the eventfd the driver rings."""
        self._call(VhostIoctl.VHOST_SET_VRING_KICK, VhostVringFile(index, fd))

    def set_vring_call(self, index: int, fd: int) -> None:
        """VHOST_SET_VRING_CALL: the eventfd that interrupts the driver, or -1. Also while the ring runs."""
        self._call(VhostIoctl.VHOST_SET_VRING_CALL, VhostVringFile(index, fd))

    def set_vring_err(self, index: int, fd: int) -> None:
        """VHOST_SET_VRING_ERR: the eventfd signalled when the ring is found broken, or -1."""
        self._call(VhostIoctl.VHOST_SET_VRING_ERR, VhostVringFile(index, fd))

    def _call(self, request: VhostIoctl, argument: ctypes.Structure | ctypes.c_uint64 | ctypes.c_int32 | None) -> None:
        # SAFETY: the argument is a ctypes object of the size the request's number encodes (vhost_abi), alive over the
        # call; the kernel keeps no pointer to it.
        if ioctl(self._fd, request, None if argument is None else ctypes.byref(argument)) < 0:
            raise failure(request.name, self.name)


class VhostNet(Vhost):
    """One queue pair: ring 0 receives, ring 1 transmits."""

    def __init__(self, name: str) -> None:
        super().__init__(VHOST_NET, name)

    def set_backend(self, index: int, tap_fd: int) -> None:
        """VHOST_NET_SET_BACKEND: start the ring on a tap's queue, or stop it with -1."""
        self._call(VhostIoctl.VHOST_NET_SET_BACKEND, VhostVringFile(index, tap_fd))

    def stop(self) -> None:
        """Both rings: when it returns the kernel touches neither."""
        for index in (0, 1):
            self.set_backend(index, VHOST_FILE_UNBIND)


class VhostVsock(Vhost):
    """Ring 0 receives, ring 1 transmits; the event ring is not the kernel's."""

    def __init__(self, name: str) -> None:
        super().__init__(VHOST_VSOCK, name)

    def set_guest_cid(self, cid: int) -> None:
        """VHOST_VSOCK_SET_GUEST_CID. EADDRINUSE when another guest of this host has it."""
        self._call(VhostIoctl.VHOST_VSOCK_SET_GUEST_CID, ctypes.c_uint64(cid))

    def set_running(self, *, running: bool) -> None:
        """VHOST_VSOCK_SET_RUNNING: start or stop both rings."""
        self._call(VhostIoctl.VHOST_VSOCK_SET_RUNNING, ctypes.c_int32(running))
