"""The shared directory (virtio 1.2 §5.11): FUSE requests on virtqueues, served by virtiofsd through vhost-user.

    queue 0        high priority: FORGET, INTERRUPT
    queue 1..n     requests

The notification queue is not offered. virtiofsd keeps the guest's session: open files, looked-up inodes. It is replaced
when the driver begins anew, and what it knows cannot be saved; so a machine with such a device cannot be saved or moved
while its guest has the directory mounted, and pausing is all it can.
"""

from __future__ import annotations

import struct
from functools import partial
from pathlib import Path
from typing import Final

from appliance.errors import HostError, Unsupported
from appliance.kernel import virtiofsd
from appliance.kernel.virtiofsd import ShareOptions
from appliance.vmm.device import DeviceContext, State
from appliance.vmm.vhost_user.client import VhostUserClient
from appliance.vmm.vhost_user.device import Served, VhostUserDevice
from appliance.vmm.vhost_user.process import LISTENER_FD, Helper, HelperProcess
from appliance.vmm.virtio.consts import DeviceId

TAG_BYTES: Final = 36
QUEUE_SIZE: Final = 128
REQUEST_QUEUES: Final = 1  # virtiofsd's threads share them anyway

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


def open_shared(
    name: str,
    context: DeviceContext,
    *,
    tag: str,
    directory: Path,
    socket_path: Path,
    options: ShareOptions | None = None,
) -> VirtioFs:
    """Blocking: a device for `directory`. Raises `Unsupported` where virtiofsd is not installed or cannot do it,
    `HostError`; `ValueError` for an impossible tag."""
    label, options = f"{context.label}: {name}", options or ShareOptions()
    tag_bytes(tag)
    program = virtiofsd.find_program()
    if program is None or (reason := virtiofsd.problem(program, options)):
        raise Unsupported(f"{label}: {reason if program else 'virtiofsd is not installed'}")
    if "," in str(directory) or not directory.is_dir():  # a comma would be another option
        raise HostError(f"{label}: {directory} cannot be shared")
    argv = virtiofsd.arguments(program, directory, options, listener_fd=LISTENER_FD)
    helper = Helper(socket_path, partial(_start, argv, label))
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
