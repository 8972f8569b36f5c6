"""A container's limits while it runs: what its specification means for its control group. Blocking: call it in a thread."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from appliance.ct.records import VolumeRecord
from appliance.errors import HostError
from appliance.kernel.cgroup_limits import Limits
from appliance.kernel.cgroup_update import DoesNotFit, MemoryLimit, disk_of
from appliance.kernel.cgroups import Cgroup
from appliance.model.guest import CtSpec

MIB = 1 << 20
_CPU, _PIDS, _MEMORY, _IO = {"cores", "cpulimit", "cpuunits"}, {"pids"}, {"memory", "swap"}, {"iolimit"}
KEYS = frozenset(_CPU | _PIDS | _MEMORY | _IO)
"""The configuration's keys that are limits."""


def apply(
    cgroup: Cgroup, spec: CtSpec, keys: Collection[str], *, pids_limit: int, volumes: Mapping[str, VolumeRecord]
) -> dict[str, str]:
    """Bring the group to what `keys` of `spec` ask for; why it could not be done, by key."""
    failed: dict[str, str] = {}
    changed = KEYS & set(keys)
    if wanted := changed & (_CPU | _PIDS):
        ceilings = [limit for limit in (spec.cores, spec.cpu_limit) if limit]
        limits = Limits(cpus=min(ceilings, default=0.0), cpu_units=spec.cpu_units, processes=spec.pids or pids_limit)
        _try(lambda: cgroup.limit(limits), wanted, failed)
    if wanted := changed & _MEMORY:
        swap_bytes = spec.swap_mib * MIB if cgroup.limits_swap else None
        memory = MemoryLimit(memory_bytes=spec.memory_mib * MIB, swap_bytes=swap_bytes)
        _try(lambda: cgroup.limit_memory(memory), wanted, failed)
    if wanted := changed & _IO:
        disks, without = disks_of(volumes)
        _try(lambda: cgroup.limit_io(disks, spec.io_limit), wanted, failed)
        if without:
            failed["iolimit"] = f"{', '.join(without)}: on a file system without a disk of its own, not limited"
    return failed


def disks_of(volumes: Mapping[str, VolumeRecord]) -> tuple[set[str], list[str]]:
    """The disks ("8:0") the volumes are on, and the slots that are on none."""
    found: set[str] = set()
    without = []
    for slot, volume in sorted(volumes.items()):
        try:
            device = Path(volume.device).stat().st_rdev if volume.device else Path(volume.path).stat().st_dev
            disk = disk_of(device)
        except OSError:
            disk = None
        if disk is None:
            without.append(slot)
        else:
            found.add(disk)
    return found, without


def _try(change: Callable[[], None], keys: Collection[str], failed: dict[str, str]) -> None:
    try:
        change()
    except DoesNotFit:
        failed.update(dict.fromkeys(keys, "more is in use than that: the present limit stays until the next start"))
    except HostError as error:
        failed.update(dict.fromkeys(keys, str(error)))
