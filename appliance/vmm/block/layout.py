"""virtio-blk's features, numbers and configuration (virtio 1.2 §5.2.3, §5.2.4, §5.2.6). Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from appliance.vmm.block.backend import SECTOR
from appliance.vmm.device import State

# Features, §5.2.3
F_SIZE_MAX: Final = 1
F_SEG_MAX: Final = 2
F_RO: Final = 5
F_BLK_SIZE: Final = 6
F_FLUSH: Final = 9
F_TOPOLOGY: Final = 10
F_CONFIG_WCE: Final = 11
F_MQ: Final = 12
F_DISCARD: Final = 13
F_WRITE_ZEROES: Final = 14


class RequestType(IntEnum):
    """§5.2.6, `type`."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13


class Status(IntEnum):
    """§5.2.6, `status`."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


ID_BYTES: Final = 20
FLAG_UNMAP: Final = 1
MAX_QUEUES: Final = 64

# Limits a driver is told
DISCARD_SECTORS: Final = (1 << 31) // SECTOR - 1  # a hole is cheap
ZEROES_SECTORS: Final = (16 << 20) // SECTOR  # may have to be written
RANGES: Final = 32  # of one discard or write zeroes

WRITEBACK_AT, QUEUES_AT = 32, 34  # offsets of `writeback` and `num_queues` in the configuration

STATE_VERSION: Final = 1


class BlkState(State):
    """Version 1: what a disk keeps over a save, whoever serves it. `writeback`: the driver's choice."""

    version: int
    writeback: bool


# capacity, size_max, seg_max, geometry (cylinders, heads, sectors), blk_size, topology (physical_block_exp,
# alignment_offset, min_io_size, opt_io_size), writeback, unused, num_queues, discard (sectors, seg, alignment),
# write zeroes (sectors, seg, may_unmap), unused
_CONFIG = struct.Struct("<QII HBB I BBHI BBH III IIB3x")
CONFIG_BYTES: Final = _CONFIG.size
assert CONFIG_BYTES == 60


@dataclass(frozen=True, slots=True, kw_only=True)
class BlkConfig:
    """What the driver reads. The file system below works in 4 KiB, sectors are 512 bytes: what is called 512e."""

    capacity_bytes: int
    queues: int
    seg_max: int
    writeback: bool
    can_discard: bool

    def pack(self) -> bytes:
        """§5.2.4, little-endian."""
        return _CONFIG.pack(
            self.capacity_bytes // SECTOR,
            0,
            self.seg_max,
            0,
            0,
            0,
            SECTOR,
            3,  # 2**3 sectors are a physical block
            0,
            8,
            0,
            self.writeback,
            0,
            self.queues,
            DISCARD_SECTORS * self.can_discard,
            RANGES * self.can_discard,
            8 * self.can_discard,
            ZEROES_SECTORS,
            RANGES,
            self.can_discard,
        )
