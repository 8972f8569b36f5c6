"""Removing a container from the host: the same steps after an orderly end, a failed start and a killed appliance.

Each step looks at what there is instead of remembering what was made, so all of it may be repeated, and a step that
fails names the object that stays. Blocking: call it in a thread.
"""

from __future__ import annotations

from pathlib import Path

from appliance.ct import records, rootfs
from appliance.errors import HostError
from appliance.kernel.cgroups import Cgroup


def is_alive(bundle: Path) -> bool:
    """Whether the container of this bundle runs: its record names a living process of this boot."""
    record = records.load(bundle)
    return record is not None and record.alive


def clear(bundle: Path, cgroup: Cgroup) -> None:
    """Remove processes, cgroups, owner shifts, mounts, loop devices and files, in this order. Raises `HostError`,
    `TimedOut`."""
    record = records.load(bundle)
    cgroup.kill()
    cgroup.remove()
    if record is not None:
        rootfs.undo_shifts(record.volumes, bundle, id_base=record.id_base, id_count=record.id_count)
    rootfs.detach_all(bundle)  # loop devices clear themselves with their last mount
    _remove_bundle(bundle)


def _remove_bundle(bundle: Path) -> None:
    """Remove a directory of plain files and empty mount points.

    Never descends: a mount point that is not empty holds somebody's data, and stays with an error.
    """
    try:
        for entry in list(bundle.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                for below in entry.iterdir() if entry.name.startswith(".") else ():  # where layers were mounted
                    below.rmdir()
                entry.rmdir()
            else:
                entry.unlink()
        bundle.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError.from_os_error(error, f"remove {bundle}") from error
