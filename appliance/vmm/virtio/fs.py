"""The shared directory (virtio 1.2 §5.11): FUSE requests on virtqueues, served by virtiofsd through vhost-user.

    queue 0        high priority: FORGET, INTERRUPT
    queue 1..n     requests

The notification queue is not offered. virtiofsd keeps the guest's session: open files, looked-up inodes. It is replaced
when the driver begins anew, and what it knows cannot be saved; so a machine with such a device cannot be saved or moved
while its guest has the directory mounted, and pausing is all it can.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from appliance.errors import HostError, Unsupported
from appliance.vmm.device import DeviceContext, State
from appliance.vmm.vhost_user.client import VhostUserClient
from appliance.vmm.vhost_user.device import Served, VhostUserDevice
from appliance.vmm.vhost_user.process import LISTENER_FD, Helper, HelperProcess
from appliance.vmm.virtio.consts import DeviceId

TAG_BYTES: Final = 36
QUEUE_SIZE: Final = 128
REQUEST_QUEUES: Final = 1  # virtiofsd's threads share them anyway
PROGRAMS: Final = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd")  # Debian 13's, in Rust; Debian 12's

_CONFIG = struct.Struct(f"<{TAG_BYTES}sI")


class VirtioFs(VhostUserDevice):
    """A directory that the guest mounts by its `tag`: `mount -t virtiofs TAG /mnt`."""

    device_id = DeviceId.FS

    def __init__(self, name: str, context: DeviceContext, *, tag: str, helper: Helper, client: VhostUserClient) -> None:
        """`helper` and `client` are closed with it. `ValueError` for a tag that is empty or too long."""
        self._tag = tag_bytes(tag)
        served = Served(queue_sizes=[QUEUE_SIZE] * (1 + REQUEST_QUEUES), features=0, reconnects=False, can_log=False)
        super().__init__(name, context, helper=helper, client=client, served=served)

    def read_config(self, offset: int, size: int) -> int:
        packed = _CONFIG.pack(self._tag, REQUEST_QUEUES)
        return int.from_bytes(packed[offset : offset + size], "little")

    def save_device(self) -> State | None:
        if self.live:
            raise Unsupported(f"{self.label}: a guest with a shared directory cannot be saved")
        return super().save_device()


def tag_bytes(tag: str) -> bytes:
    """§5.11.4: UTF-8, padded with NUL unless it has the whole length. `ValueError`."""
    packed = tag.encode()
    if not 0 < len(packed) <= TAG_BYTES or b"\0" in packed:
        raise ValueError(f"{tag!r} is no tag of 1 to {TAG_BYTES} bytes")
    return packed


def find_program() -> str | None:
    """Blocking. virtiofsd, where this host has it."""
    return next((each for each in PROGRAMS if shutil.which(each)), None)


def arguments(program: str, directory: Path) -> list[str]:
    """Pure: the command line. Both programs drop into namespaces of their own with the directory as root."""
    options: Sequence[str]
    if program.startswith("/usr/lib/qemu/"):
        options = ("-f", "-o", f"source={directory}", "-o", "xattr", "-o", "sandbox=namespace")
    else:
        options = ("--shared-dir", str(directory), "--xattr", "--sandbox", "namespace")
    return [program, f"--fd={LISTENER_FD}", *options]


def open_shared(name: str, context: DeviceContext, *, tag: str, directory: Path, socket_path: Path) -> VirtioFs:
    """Blocking: a device for `directory`. Raises `Unsupported` where virtiofsd is not installed, `HostError`; `ValueError`
    for an impossible tag."""
    label = f"{context.label}: {name}"
    tag_bytes(tag)
    program = find_program()
    if program is None:
        raise Unsupported(f"{label}: virtiofsd is not installed")
    if "," in str(directory) or not directory.is_dir():  # a comma would be another option
        raise HostError(f"{label}: {directory} cannot be shared")
    helper = Helper(socket_path, partial(_start, arguments(program, directory), label))
    try:
        client = helper.converse(label)
    except HostError:
        helper.close()
        raise
    try:
        return VirtioFs(name, context, tag=tag, helper=helper, client=client)
    except BaseException:
        client.close()
        helper.close()
        raise


def _start(argv: list[str], label: str, listener: int) -> HelperProcess:
    return HelperProcess(argv, name=f"{label}: virtiofsd", descriptors={LISTENER_FD: listener})
