"""Device nodes of the host that a container has: made for it on a file system of its own. Blocking: call it in a thread.

A user namespace may make no device nodes, and the host's own have owners the container does not know. So each start makes
nodes with the owner and mode asked for on a small tmpfs at `BUNDLE/devices`, which the container's are bound from. What
may be done with them is said by the rules of its device controller as well.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from appliance.ct import oci
from appliance.errors import HostError, InvalidParameter
from appliance.kernel import mount
from appliance.model.guest import CtDevice, CtSpec

_OPTIONS: dict[str, str | None] = {"size": "64k", "nr_inodes": "1024", "mode": "755"}


def make(spec: CtSpec, bundle: Path) -> list[dict[str, object]]:
    """Make the nodes of `spec` under the bundle, and return the device controller's rules for them.

    Raises `InvalidParameter` naming the key of what is no device on this host, `HostError`.
    """
    if not spec.devices:
        return []
    about = f"ct {spec.guest_id}: devices"
    try:
        attributes = mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NOEXEC
        fd = mount.new_mount("tmpfs", oci.DEVICES, _OPTIONS, attributes=attributes)
        try:
            rules = [_make_one(device, fd, spec.id_base) for device in spec.devices]
            target = bundle / oci.DEVICES
            target.mkdir(exist_ok=True)
            mount.move_mount(fd, target)
        finally:
            os.close(fd)
    except OSError as error:
        raise HostError.from_os_error(error, about) from error
    return rules


def check(devices: Sequence[CtDevice]) -> list[str]:
    """Why some are no devices here; empty when all are. Blocking."""
    problems = []
    for device in devices:
        try:
            _kind(device)
        except InvalidParameter as error:
            problems += [f"{slot}: {text}" for slot, text in error.errors.items()]
    return problems


def _make_one(device: CtDevice, directory: int, id_base: int) -> dict[str, object]:
    kind, status = _kind(device)
    number = status.st_rdev
    file_type = stat.S_IFCHR if kind == "c" else stat.S_IFBLK
    os.mknod(device.slot, file_type | 0o600, number, dir_fd=directory)
    os.chown(device.slot, id_base + device.uid, id_base + device.gid, dir_fd=directory, follow_symlinks=False)
    os.chmod(device.slot, device.mode, dir_fd=directory)  # after chown, and whatever our umask is
    return oci.device_rule(device, kind=kind, major=os.major(number), minor=os.minor(number))


def _kind(device: CtDevice) -> tuple[str, os.stat_result]:
    try:
        status = Path(device.path).stat()  # links too: the names udev gives lead to nodes
    except OSError as error:
        raise InvalidParameter({device.slot: f"{device.path}: {error.strerror}"}) from error
    if stat.S_ISCHR(status.st_mode):
        return "c", status
    if stat.S_ISBLK(status.st_mode):
        return "b", status
    raise InvalidParameter({device.slot: f"{device.path} is no device"})
