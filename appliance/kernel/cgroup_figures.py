"""What the kernel counts in a control group: processor, memory, disk and processes. Files only; call it in a thread.

Everything reads as zero where the group or the controller is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from appliance.model.guest import GuestStats


def figures_v1(groups: Mapping[str, Path]) -> GuestStats:
    nowhere = Path("/nonexistent")
    memory, cpu = groups.get("memory", nowhere), groups.get("cpuacct", nowhere)
    inactive = keyed(memory / "memory.stat").get("total_inactive_file", 0)
    transferred = read(groups.get("blkio", nowhere) / "blkio.throttle.io_service_bytes_recursive")
    read_bytes, written_bytes = _io_v1(transferred)
    return GuestStats(
        cpu_seconds=_number(cpu / "cpuacct.usage") / 1e9,
        memory_bytes=max(_number(memory / "memory.usage_in_bytes") - inactive, 0),
        memory_max_bytes=_limit(memory / "memory.limit_in_bytes"),
        disk_read_bytes=read_bytes,
        disk_write_bytes=written_bytes,
        processes=_number(groups.get("pids", nowhere) / "pids.current"),
    )


def figures_v2(group: Path) -> GuestStats:
    read_bytes, written_bytes = _io_v2(read(group / "io.stat"))
    inactive = keyed(group / "memory.stat").get("inactive_file", 0)
    return GuestStats(
        cpu_seconds=keyed(group / "cpu.stat").get("usage_usec", 0) / 1e6,
        memory_bytes=max(_number(group / "memory.current") - inactive, 0),
        memory_max_bytes=_limit(group / "memory.max"),
        disk_read_bytes=read_bytes,
        disk_write_bytes=written_bytes,
        processes=_number(group / "pids.current"),
    )


def _io_v1(text: str) -> tuple[int, int]:
    """Lines "MAJOR:MINOR Read|Write|… BYTES" (blkio-controller)."""
    rows = [line.split() for line in text.splitlines()]
    totals = {word: sum(int(row[2]) for row in rows if len(row) == 3 and row[1] == word) for word in ("Read", "Write")}
    return totals["Read"], totals["Write"]


def _io_v2(text: str) -> tuple[int, int]:
    """Lines "MAJOR:MINOR rbytes=… wbytes=… …" (cgroup-v2, IO)."""
    pairs = [item.split("=") for line in text.splitlines() for item in line.split()[1:]]
    totals = {word: sum(int(pair[1]) for pair in pairs if pair[0] == word) for word in ("rbytes", "wbytes")}
    return totals["rbytes"], totals["wbytes"]


def _limit(path: Path) -> int:
    """A limit file; "no limit" ("max", or v1's huge number) is 0."""
    value = _number(path)
    return value if value < 1 << 60 else 0


def _number(path: Path) -> int:
    text = read(path).strip()
    return int(text) if text.isdigit() else 0


def keyed(path: Path) -> dict[str, int]:
    rows = (line.split() for line in read(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def read(path: Path) -> str:
    """A small file; empty when it or its group is gone."""
    try:
        return path.read_text()
    except OSError:
        return ""
