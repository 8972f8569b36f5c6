"""Figures of a running VM from /proc, QMP's query-blockstats and the balloon. Pure."""

from __future__ import annotations

from appliance.model.guest import GuestStats
from appliance.qemu.process import ProcessStat

BALLOON_PATH = "/machine/peripheral/balloon0"
_FIRMWARE_NODES = ("pflash0", "pflash1")


def figures(process: ProcessStat, blocks: object, balloon: object, *, memory_mib: int) -> GuestStats:
    """`blocks` and `balloon` as QMP returned them, or None. Network bytes are the network backend's."""
    read_bytes, write_bytes = block_bytes(blocks)
    maximum = memory_mib << 20
    used = balloon_used_bytes(balloon, limit=maximum)
    return GuestStats(
        cpu_seconds=process.cpu_seconds,
        memory_bytes=min(process.resident_bytes, maximum) if used is None else used,
        memory_max_bytes=maximum,
        disk_read_bytes=read_bytes,
        disk_write_bytes=write_bytes,
        processes=1,
    )


def block_bytes(blocks: object) -> tuple[int, int]:
    """Bytes read and written, summed over the guest's own drives."""
    read_bytes = write_bytes = 0
    for row in blocks if isinstance(blocks, list) else []:
        counters = row.get("stats", {})
        if row.get("node-name") not in _FIRMWARE_NODES:
            read_bytes += int(counters.get("rd_bytes", 0))
            write_bytes += int(counters.get("wr_bytes", 0))
    return read_bytes, write_bytes


def balloon_used_bytes(balloon: object, *, limit: int) -> int | None:
    """What the guest's driver says it uses; None when it said nothing usable. The guest's word: checked, not trusted."""
    if not isinstance(balloon, dict) or not balloon.get("last-update"):
        return None
    told = balloon["stats"]
    total = int(told.get("stat-total-memory", 0))
    available = int(told.get("stat-available-memory", 0))
    free = available if 0 < available <= total else int(told.get("stat-free-memory", 0))
    return total - free if 0 < free <= total <= limit else None
