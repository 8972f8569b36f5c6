"""The binary interface of <linux/vhost.h> and <linux/vhost_types.h>: structures, ioctl numbers, constants.

Field names, order and constants are the header's (Linux 6.1). Every structure states its size and offsets as a C compiler
gives them: a mistake fails the import. Pure; no call is made here. See `vhost` for the calls.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_uint32, c_uint64
from enum import IntEnum, unique

from appliance.kernel.kvm_abi import layout

VHOST_VIRTIO = 0xAF
VHOST_PAGE_SIZE = 4096  # memory regions are whole pages, and the log has one bit for each
VHOST_VRING_F_LOG = 0  # bit number in `VhostVringAddr.flags`
VHOST_F_LOG_ALL, VHOST_NET_F_VIRTIO_NET_HDR = 26, 27  # bit numbers among the features
VHOST_FILE_UNBIND = -1
VHOST_MAX_REGIONS = 64  # drivers/vhost/vhost.c: max_mem_regions' default


@layout(8, num=4)
class VhostVringState(ctypes.Structure):
    """struct vhost_vring_state: `num` is a size or an index of the ring `index`."""

    _fields_ = (("index", c_uint32), ("num", c_uint32))


@layout(8, fd=4)
class VhostVringFile(ctypes.Structure):
    """struct vhost_vring_file: `fd` is VHOST_FILE_UNBIND for none."""

    _fields_ = (("index", c_uint32), ("fd", c_int32))


@layout(40, flags=4, desc_user_addr=8, used_user_addr=16, avail_user_addr=24, log_guest_addr=32)
class VhostVringAddr(ctypes.Structure):
    """struct vhost_vring_addr: our addresses of the rings, and the guest's of the used ring for the log."""

    _fields_ = (
        ("index", c_uint32),
        ("flags", c_uint32),
        ("desc_user_addr", c_uint64),
        ("used_user_addr", c_uint64),
        ("avail_user_addr", c_uint64),
        ("log_guest_addr", c_uint64),
    )


@layout(32, memory_size=8, userspace_addr=16, flags_padding=24)
class VhostMemoryRegion(ctypes.Structure):
    """struct vhost_memory_region."""

    _fields_ = (
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
        ("flags_padding", c_uint64),
    )


@layout(8, padding=4)
class VhostMemory(ctypes.Structure):
    """struct vhost_memory, followed by its regions (`kvm_abi.with_entries`)."""

    _fields_ = (("nregions", c_uint32), ("padding", c_uint32))


_Argument = type[ctypes.Structure] | type[c_uint64] | type[c_int32]
_WRITE, _READ = 1, 2  # asm-generic/ioctl.h, as in kvm_ioctls


def _number(direction: int, number: int, argument: _Argument | None = None) -> int:
    size_bytes = 0 if argument is None else ctypes.sizeof(argument)
    return direction << 30 | size_bytes << 16 | VHOST_VIRTIO << 8 | number


@unique
class VhostIoctl(IntEnum):
    """Every ioctl used, named as in the header."""

    VHOST_GET_FEATURES = _number(_READ, 0x00, c_uint64)
    VHOST_SET_FEATURES = _number(_WRITE, 0x00, c_uint64)
    VHOST_SET_OWNER = _number(0, 0x01)
    VHOST_SET_MEM_TABLE = _number(_WRITE, 0x03, VhostMemory)
    VHOST_SET_LOG_BASE = _number(_WRITE, 0x04, c_uint64)
    VHOST_SET_VRING_NUM = _number(_WRITE, 0x10, VhostVringState)
    VHOST_SET_VRING_ADDR = _number(_WRITE, 0x11, VhostVringAddr)
    VHOST_SET_VRING_BASE = _number(_WRITE, 0x12, VhostVringState)
    VHOST_GET_VRING_BASE = _number(_WRITE | _READ, 0x12, VhostVringState)
    VHOST_SET_VRING_KICK = _number(_WRITE, 0x20, VhostVringFile)
    VHOST_SET_VRING_CALL = _number(_WRITE, 0x21, VhostVringFile)
    VHOST_SET_VRING_ERR = _number(_WRITE, 0x22, VhostVringFile)
    VHOST_NET_SET_BACKEND = _number(_WRITE, 0x30, VhostVringFile)
    VHOST_VSOCK_SET_GUEST_CID = _number(_WRITE, 0x60, c_uint64)
    VHOST_VSOCK_SET_RUNNING = _number(_WRITE, 0x61, c_int32)
