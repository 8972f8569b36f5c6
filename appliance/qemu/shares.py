"""The virtiofsd of each directory a VM shares: started before QEMU, which is its only connection and so its end.

They outlive the appliance as QEMU does: each in a session of its own, ending by itself when QEMU does. While this appliance
lives they are our children and are reaped here. One that dies before leaves its guest with a mount that does not answer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from appliance.errors import HostError, Unsupported
from appliance.kernel import virtiofsd
from appliance.kernel.spawn import inheritable, posix_spawn, watch_child
from appliance.kernel.virtiofsd import ShareOptions
from appliance.model.guest import VmResources, VmShare, VmSpec
from appliance.qemu.process import ProcessWatch
from appliance.qemu.run_dir import RunDir

LISTENER_FD: Final = 3
END_TIMEOUT_S: Final = 5.0
_ENVIRONMENT: Final[Mapping[str, str]] = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": "/"}

log = logging.getLogger(__name__)


def options_of(share: VmShare) -> ShareOptions:
    """What virtiofsd is to do."""
    return ShareOptions(cache=share.cache, direct_io=share.direct_io, acl=share.acl, xattr=share.xattr)


class ShareDaemons:
    """Those of one VM. On the loop. `end`, or `detach` to let them go on."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._running: dict[str, ProcessWatch] = {}

    async def start(self, spec: VmSpec, resources: VmResources, paths: RunDir) -> None:
        """One for each share of `spec`, listening on `paths.share`. Raises `Unsupported`, `HostError`; `end` follows then."""
        if not spec.shares:
            return
        program, unwanted = await asyncio.to_thread(lambda: (virtiofsd.find_program(), inheritable()))
        for share in spec.shares:
            about, directory = f"{self._label}: {share.slot}", resources.directories.get(share.slot)
            if program is None or (reason := virtiofsd.problem(program, options_of(share))):
                raise Unsupported(f"{about}: {reason if program else 'virtiofsd is not installed'}")
            if directory is None or "," in str(directory):  # a comma would be another option
                raise HostError(f"{about}: directory mapping {share.mapping} was not looked up")
            argv = virtiofsd.arguments(program, directory, options_of(share), listener_fd=LISTENER_FD)
            self._running[share.slot] = _spawn(argv, paths.share(share.slot), unwanted, about)

    async def end(self) -> None:
        """None of them is left. Harmless when done twice."""
        for watch in self._running.values():
            watch.send(signal.SIGKILL)
        for slot, watch in self._running.items():
            try:
                async with asyncio.timeout(END_TIMEOUT_S):
                    await watch.wait()
            except TimeoutError:
                log.error("%s: %s: virtiofsd (process %d) cannot be ended", self._label, slot, watch.pid)
        self.detach()

    def detach(self) -> None:
        """They go on for as long as QEMU does."""
        for watch in self._running.values():
            watch.close()
        self._running.clear()


def _spawn(argv: Sequence[str], path: Path, unwanted: Iterable[int], about: str) -> ProcessWatch:
    """Not in a thread: a cancellation could lose the pid of a started process."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    null, output = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), -1
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(1)
        output = os.open(path.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        given = {0: null, 1: output, 2: output, LISTENER_FD: listener.fileno()}
        pid = posix_spawn(argv, _ENVIRONMENT, given, unwanted=unwanted)
        return ProcessWatch(pid, watch_child(pid))
    except OSError as error:
        raise HostError.from_os_error(error, f"{about}: start {argv[0]}") from error
    finally:
        listener.close()
        for fd in (null, output):
            if fd >= 0:
                os.close(fd)
