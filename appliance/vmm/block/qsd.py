"""QEMU's storage daemon as the back end of a disk: one process for each image, which it exports by vhost-user.

It gets its listening socket and its monitor as descriptors, opens the image, and reads and writes guest memory itself.
Images are locked by it (`image_lock` takes the same locks). See qemu-storage-daemon(1).

It counts nothing of what an export moves (QEMU 7.2 to 10: `query-blockstats` answers zeros), and shows every guest the same
serial number (block/export/vhost-user-blk-server.c). So figures are the kernel's of its process, which has no other work
(proc(5), /proc/PID/io); and a disk that is to have a serial number is served in Python, or not natively (`disk`).
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from appliance.errors import HostError, Unsupported
from appliance.kernel import io_uring
from appliance.vmm.block.backend import BlockStatistics, CachePolicy
from appliance.vmm.block.daemon_io import DaemonIo
from appliance.vmm.block.qmp import QmpClient
from appliance.vmm.device import DeviceContext
from appliance.vmm.vhost_user.blk import UserBlkOptions, VhostUserBlk
from appliance.vmm.vhost_user.client import VhostUserClient
from appliance.vmm.vhost_user.process import LISTENER_FD, Helper, HelperProcess

PROGRAM: Final = "qemu-storage-daemon"
MONITOR_FD: Final = LISTENER_FD + 1
NODE, FILE_NODE = "disk", "file"
FORMATS: Final = ("raw", "qcow2")
ASK_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class QsdImage:
    """What is exported, and how. `format` is one of `FORMATS`; qcow2 has been looked through by the storage layer. `aio` is
    what `VmDisk.host_io` says."""

    path: Path
    format: str
    cache: CachePolicy
    aio: str = "threads"
    read_only: bool = False
    discard: bool = False
    queues: int = 1


def is_installed() -> bool:
    """Blocking. Whether this host has the daemon."""
    return shutil.which(PROGRAM) is not None


@cache
def has_io_uring() -> bool:
    """Blocking, once. Whether this host's kernel allows it and the daemon was built for it: it looks at its options before it
    looks for the file."""
    if not io_uring.is_available():
        return False
    argv = [PROGRAM, "--blockdev", "driver=file,node-name=asked,filename=/dev/null/absent,aio=io_uring"]
    try:
        said = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=ASK_TIMEOUT_S, check=False
        ).stderr
    except (OSError, subprocess.TimeoutExpired):
        return False
    return b"does not accept value" not in said


def nodes(image: QsdImage) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pure: the block nodes of the file and of the image in it (qapi/block-core.json, BlockdevOptions)."""
    common: dict[str, Any] = {
        "read-only": image.read_only,
        "cache": {"direct": image.cache.direct, "no-flush": image.cache.ignore_flush},
        "discard": "unmap" if image.discard else "ignore",
    }
    file = {
        "driver": "host_device" if str(image.path).startswith("/dev/") else "file",
        "node-name": FILE_NODE,
        "filename": str(image.path),
        "aio": image.aio,
        "locking": "on",
        **common,
    }
    node = {"driver": image.format, "node-name": NODE, "file": FILE_NODE, **common}
    if not image.read_only:
        node["detect-zeroes"] = "unmap" if image.discard else "on"
    return file, node


def arguments(image: QsdImage) -> list[str]:
    """Pure: the daemon's command line."""
    export = {
        "type": "vhost-user-blk",
        "id": "export",
        "node-name": NODE,
        "addr": {"type": "fd", "str": str(LISTENER_FD)},
        "writable": not image.read_only,
        "writethrough": not image.cache.volatile,
        "num-queues": image.queues,
        "logical-block-size": 512,
        "iothread": "io",  # which looks for more work a while before it sleeps, as the daemon's main loop does not
    }
    return [
        PROGRAM,
        *("--chardev", f"socket,id=monitor,fd={MONITOR_FD}"),
        *("--monitor", "chardev=monitor"),
        *("--object", "iothread,id=io"),
        *(each for node in nodes(image) for each in ("--blockdev", json.dumps(node))),
        *("--export", json.dumps(export)),
    ]


class Qsd:
    """The daemon of one image, started anew when it has died; a `process.Helper` with a monitor. Blocking."""

    def __init__(self, image: QsdImage, socket_path: Path, *, name: str) -> None:
        """Raises `HostError`."""
        self.image = image
        self.name = name
        self._monitor: QmpClient | None = None
        self._io = DaemonIo()
        self.helper = Helper(socket_path, self._start)

    def _start(self, listener: int) -> HelperProcess:
        """Raises `HostError`."""
        if self._monitor is not None:
            self._monitor.close()
        ours, theirs = socket.socketpair()
        self._monitor = QmpClient(ours, name=self.name)
        with theirs:
            given = {LISTENER_FD: listener, MONITOR_FD: theirs.fileno()}
            return HelperProcess(arguments(self.image), name=f"{self.name}: {PROGRAM}", descriptors=given)

    def ask(self, command: str, **arguments: object) -> Any:
        """A question to its monitor. Raises `HostError`."""
        if self._monitor is None:
            raise HostError(f"{self.name}: {PROGRAM} does not run")
        return self._monitor.ask(command, **arguments)

    def grow(self, size_bytes: int) -> None:
        """Raises `HostError`."""
        self.ask("block_resize", **{"node-name": NODE, "size": size_bytes})

    def flush(self) -> None:
        """What it keeps of the image (qcow2's tables) is on the disk when this returns: before it is reopened with the
        options it has, an image is flushed (QEMU block.c, bdrv_reopen_prepare). Raises `HostError`."""
        if self.helper.running and not self.image.read_only:
            self.ask("blockdev-reopen", options=[nodes(self.image)[1]])

    def snapshot(self, name: str) -> None:
        """Inside a qcow2 image. Raises `HostError`."""
        self.ask("blockdev-snapshot-internal-sync", device=NODE, name=name)

    def drop_snapshot(self, name: str) -> None:
        """Not an error where there is none. Raises `HostError`."""
        kept = (
            each.get("name")
            for node in self.ask("query-named-block-nodes", flat=True)
            if node.get("node-name") == NODE
            for each in node.get("image", {}).get("snapshots", [])
        )
        if name in kept:
            self.ask("blockdev-snapshot-delete-internal-sync", device=NODE, name=name)

    def statistics(self) -> BlockStatistics:
        """Blocking (procfs). What it has read and written since the first start: of the image, and a little besides."""
        process = self.helper.process
        return self._io.statistics(process.pid if process is not None else None)

    def begun(self) -> None:
        """Blocking (procfs). It is ready: from now on what it does is the disk's."""
        if self.helper.process is not None:
            self._io.begun(self.helper.process.pid)

    def close(self) -> None:
        """Harmless when done twice."""
        self.helper.close()
        if self._monitor is not None:
            self._monitor.close()


class QsdBlk(VhostUserBlk):
    """A disk behind the daemon, which is closed with it."""

    def __init__(
        self, name: str, context: DeviceContext, *, daemon: Qsd, client: VhostUserClient, options: UserBlkOptions
    ) -> None:
        super().__init__(name, context, helper=daemon.helper, client=client, grow=daemon.grow, options=options)
        self.daemon = daemon

    @property
    def statistics(self) -> BlockStatistics:
        """Blocking (procfs): see `Qsd.statistics`."""
        return self.daemon.statistics()

    def put_down(self) -> None:
        self.daemon.flush()

    def give_back(self) -> None:
        super().give_back()
        self.daemon.close()


def open_offloaded(name: str, context: DeviceContext, image: QsdImage, *, socket_path: Path) -> QsdBlk:
    """Blocking: a disk whose requests the daemon serves. Raises `Unsupported` where it is not installed, `HostError`."""
    if not is_installed():
        raise Unsupported(f"{context.label}: {name}: {PROGRAM} is not installed, which {image.format} needs")
    daemon = Qsd(image, socket_path, name=f"{context.label}: {name}")
    try:
        client = daemon.helper.converse(daemon.name)
        daemon.begun()
    except HostError:
        daemon.close()
        raise
    options = UserBlkOptions(
        queues=image.queues, writeback=image.cache.volatile, discard=image.discard, read_only=image.read_only
    )
    try:
        return QsdBlk(name, context, daemon=daemon, client=client, options=options)
    except BaseException:
        client.close()
        daemon.close()
        raise
