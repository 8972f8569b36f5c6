"""Changing the limits of a control group that is in use. Files only; call it in a thread.

Cgroup v1 refuses a memory limit below what is in use (after trying to reclaim). Cgroup v2 would kill for it instead; so
there the group is first made to shrink by `memory.high`, which only reclaims, and the limit is set once it fits.
Disk limits go by whole disks (blkio-controller, cgroup-v2 "IO"): v1 throttles what is read, and what is written past the
page cache; v2 also what the kernel writes back for the group, where the file system tells whose it is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.kernel.cgroup_figures import read
from appliance.kernel.cgroup_limits import Limits
from appliance.model.guest import IoLimit

SHRINK_LIMIT_S = 3.0
_POLL_S = 0.05
_NO_LIMIT_V1 = 1 << 60
_SYSTEM_DISKS = Path("/sys/dev/block")


class DoesNotFit(Exception):
    """More memory is in use than the new limit allows; nothing has changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimit:
    """In bytes; 0: no limit. `swap_bytes` on top of memory, None where the host cannot limit swap."""

    memory_bytes: int
    swap_bytes: int | None


def set_files(group: Path, controller: str, limits: Limits, *, v2: bool) -> None:
    """Processor or process limits. Raises `OSError`."""
    for name, text in limits.files(controller, v2=v2).items():
        _write(group / name, text)


def set_memory(group: Path, limit: MemoryLimit, *, v2: bool) -> None:
    """Raises `DoesNotFit`, `OSError`."""
    if v2:
        _set_memory_v2(group, limit)
    else:
        _set_memory_v1(group, limit)


def _set_memory_v1(group: Path, limit: MemoryLimit) -> None:
    memory = limit.memory_bytes or -1
    total = -1 if limit.swap_bytes is None or not limit.memory_bytes else limit.memory_bytes + limit.swap_bytes
    steps = [("memory.limit_in_bytes", memory)]
    if limit.swap_bytes is not None:
        # at no moment may memory alone be allowed more than memory and swap (memcontrol.c)
        present = _number(group / "memory.memsw.limit_in_bytes")
        grows = total < 0 or (present < _NO_LIMIT_V1 and total > present)
        steps.insert(0 if grows else 1, ("memory.memsw.limit_in_bytes", total))
    before = [(name, _number(group / name)) for name, _ in steps]
    try:
        for name, value in steps:
            _write(group / name, str(value))
    except OSError as error:
        for name, value in reversed(before):
            _write_quietly(group / name, str(value if value < _NO_LIMIT_V1 else -1))
        if error.errno in (16, 22):  # EBUSY: it cannot be reclaimed
            raise DoesNotFit from error
        raise


def _set_memory_v2(group: Path, limit: MemoryLimit) -> None:
    present = read(group / "memory.max").strip()
    shrinks = limit.memory_bytes and (not present.isdigit() or int(present) > limit.memory_bytes)
    if shrinks:
        _write(group / "memory.high", str(limit.memory_bytes))
        try:
            _wait_until_below(group / "memory.current", limit.memory_bytes)
        finally:
            _write(group / "memory.high", "max")
    _write(group / "memory.max", str(limit.memory_bytes or "max"))
    if limit.swap_bytes is not None:
        _write(group / "memory.swap.max", str(limit.swap_bytes if limit.memory_bytes else "max"))


def _wait_until_below(file: Path, limit_bytes: int) -> None:
    deadline = time.monotonic() + SHRINK_LIMIT_S
    while _number(file) > limit_bytes:
        if time.monotonic() > deadline:
            raise DoesNotFit
        time.sleep(_POLL_S)


def set_io(group: Path, disks: Collection[str], limit: IoLimit, *, v2: bool) -> None:
    """Limit the group on each of `disks` ("8:0"). Raises `OSError`."""
    for disk in sorted(disks):
        for name, text in io_files(disk, limit, v2=v2).items():
            _write(group / name, text)


def io_files(disk: str, limit: IoLimit, *, v2: bool) -> Mapping[str, str]:
    """File to content. Pure. 0 on v1 takes a limit away."""
    if v2:
        words = {
            "rbps": limit.read_bytes,
            "wbps": limit.write_bytes,
            "riops": limit.read_operations,
            "wiops": limit.write_operations,
        }
        return {"io.max": " ".join([disk, *(f"{word}={value or 'max'}" for word, value in words.items())])}
    return {
        "blkio.throttle.read_bps_device": f"{disk} {limit.read_bytes}",
        "blkio.throttle.write_bps_device": f"{disk} {limit.write_bytes}",
        "blkio.throttle.read_iops_device": f"{disk} {limit.read_operations}",
        "blkio.throttle.write_iops_device": f"{disk} {limit.write_operations}",
    }


def disk_of(device: int, system: Path = _SYSTEM_DISKS) -> str | None:
    """The whole disk ("8:0") behind a device number, which may be a partition's; None for what is on none (btrfs'
    and network file systems have numbers of their own)."""
    place = system / f"{os.major(device)}:{os.minor(device)}"
    if os.major(device) == 0 or not place.exists():
        return None
    if (place / "partition").exists():
        place = place.resolve().parent
    return read(place / "dev").strip() or None


def _number(path: Path) -> int:
    text = read(path).strip()
    return int(text) if text.isdigit() else 0


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write_quietly(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError:
        return
