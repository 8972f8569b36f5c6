"""A vhost driver that keeps a diary of its ioctls. What it does to the rings is the test's to play."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence

from appliance.kernel.vhost import MemoryRegion, RingAddresses
from appliance.kernel.vhost_abi import VHOST_F_LOG_ALL
from appliance.vmm.netdev.features import F_MRG_RXBUF
from appliance.vmm.virtio.consts import F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, bits

FEATURES = bits(F_MRG_RXBUF, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, VHOST_F_LOG_ALL)


class FakeVhost:
    """Both kinds. `refuse` names the ioctl that fails from now on."""

    def __init__(self, name: str, driver: FakeDriver) -> None:
        self.name, self.driver = name, driver
        self.diary: list[tuple[object, ...]] = []
        self.features = 0
        self.regions: list[MemoryRegion] = []
        self.rings: dict[int, RingAddresses] = {}
        self.bases: dict[int, int] = {}
        self.files: dict[tuple[str, int], int] = {}
        self.log_base = 0
        self.closed = False

    def names(self) -> list[str]:
        """The ioctls in order."""
        return [str(entry[0]) for entry in self.diary]

    @property
    def running(self) -> bool:
        return self.files.get(("backend", 0), -1) >= 0

    def log(self, guest_address: int) -> None:
        """Mark a page as the kernel does after it has written there."""
        assert self.log_base, "there is no log"
        assert self.features >> VHOST_F_LOG_ALL & 1, "logging is off"
        page = guest_address // 4096
        byte = ctypes.c_uint8.from_address(self.log_base + page // 8)
        byte.value |= 1 << (page % 8)

    def consumed(self, ring: int, base: int) -> None:
        """The kernel has come to this available index."""
        self.bases[ring] = base

    def _note(self, *entry: object) -> None:
        assert not self.closed, f"{entry} after close"
        self.diary.append(entry)
        if entry[0] in self.driver.refuse:
            raise OSError(errno.EIO, f"{entry[0]} {self.name}: {os.strerror(errno.EIO)}")

    def set_owner(self) -> None:
        self._note("set_owner")

    def get_features(self) -> int:
        self._note("get_features")
        return self.driver.features

    def set_features(self, features: int) -> None:
        self._note("set_features", features)
        assert not features & ~self.driver.features, "features it does not have"
        assert not features >> VHOST_F_LOG_ALL & 1 or self.log_base, "logging without a log"
        self.features = features

    def set_mem_table(self, regions: Sequence[MemoryRegion]) -> None:
        self._note("set_mem_table")
        self.regions = list(regions)

    def set_log_base(self, host_address: int) -> None:
        self._note("set_log_base")
        self.log_base = host_address

    def set_vring_num(self, index: int, size: int) -> None:
        self._note("set_vring_num", index, size)

    def set_vring_base(self, index: int, available: int) -> None:
        self._note("set_vring_base", index, available)
        self.bases[index] = available

    def get_vring_base(self, index: int) -> int:
        self._note("get_vring_base", index)
        assert not self.running, "the ring runs"
        return self.bases[index]

    def set_vring_addr(self, index: int, addresses: RingAddresses, *, log: bool = False) -> None:
        self._note("set_vring_addr", index, log)
        self.rings[index] = addresses

    def set_vring_kick(self, index: int, fd: int) -> None:
        self._file("kick", index, fd)

    def set_vring_call(self, index: int, fd: int) -> None:
        self._file("call", index, fd)

    def set_vring_err(self, index: int, fd: int) -> None:
        self._file("err", index, fd)

    def set_backend(self, index: int, tap_fd: int) -> None:
        self._note("set_backend", index, tap_fd)
        self.files["backend", index] = tap_fd

    def stop(self) -> None:
        for index in (0, 1):
            self.set_backend(index, -1)

    def set_guest_cid(self, cid: int) -> None:
        self._note("set_guest_cid", cid)

    def set_running(self, *, running: bool) -> None:
        self._note("set_running", running)
        self.files["backend", 0] = 0 if running else -1

    def close(self) -> None:
        self.closed = True

    def _file(self, kind: str, index: int, fd: int) -> None:
        self._note(f"set_vring_{kind}", index)
        self.files[kind, index] = fd


class FakeDriver:
    """/dev/vhost-net, or -vsock: `open` is what devices are given, `opened` what they have opened."""

    def __init__(self, *, features: int = FEATURES) -> None:
        self.features = features
        self.refuse: set[str] = set()
        self.missing = False
        self.opened: list[FakeVhost] = []

    def open(self, name: str) -> FakeVhost:
        if self.missing:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/dev/vhost-net")
        made = FakeVhost(name, self)
        self.opened.append(made)
        return made

    @property
    def alive(self) -> list[FakeVhost]:
        return [each for each in self.opened if not each.closed]
