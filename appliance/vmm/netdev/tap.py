"""A tap that the network layer has made, as a network device's cable.

The tap is made with IFF_VNET_HDR, IFF_NO_PI and, for more than one queue, IFF_MULTI_QUEUE, and is persistent
(`network.ports`): attaching asks for the same flags. Header size and offloads belong to the tap and stay on it after we
have gone, so they are set at attaching whatever they were. Up and down is the network layer's.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from appliance.errors import HostError
from appliance.kernel import tuntap
from appliance.kernel.tuntap import TapOffload
from appliance.vmm.in_use import InUse
from appliance.vmm.netdev.header import HEADER_BYTES

# In this order; a kernel that refuses one is asked for the others (each needs CSUM, USO both families: kernel.tuntap)
_PROBES = (
    TapOffload.TSO4 | TapOffload.TSO6,
    TapOffload.TSO4 | TapOffload.TSO6 | TapOffload.TSO_ECN,
    TapOffload.UFO,
    TapOffload.USO4 | TapOffload.USO6,
)


class Tap:
    """`pairs` descriptors of one tap. Made in the network namespace that has it; used from anywhere."""

    def __init__(self, name: str, *, pairs: int = 1, multi_queue: bool | None = None) -> None:
        """Attach. `multi_queue` is how the tap was made; by default, when there is more than one pair.

        Raises `HostError`, naming the tap: it is not there, is attached already, was made otherwise.
        """
        self.name = name
        self._fds: list[int] = []
        self._in_use = InUse(self._close)  # settings are made in the pool while the loop may close it
        self._used = pairs
        many = pairs > 1 if multi_queue is None else multi_queue
        try:
            for _ in range(pairs):
                self._fds.append(tuntap.attach_tap(name, multi_queue=many))
            tuntap.set_vnet_header_size(self._fds[0], name, HEADER_BYTES)
            self._offloads = self._probe()
            self.use_pairs(1)
        except OSError as error:
            self.close()
            raise HostError.from_os_error(error, f"tap {name}") from error
        except HostError:
            self.close()
            raise

    def _probe(self) -> TapOffload:
        found = TapOffload(0)
        for wanted in (TapOffload.CSUM, *(probe | TapOffload.CSUM for probe in _PROBES)):
            try:
                tuntap.set_offload(self._fds[0], self.name, wanted)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            else:
                found |= wanted
        tuntap.set_offload(self._fds[0], self.name, TapOffload(0))
        return found

    @property
    def pairs(self) -> int:
        return len(self._fds)

    @property
    def offloads(self) -> TapOffload:
        return self._offloads

    def fileno(self, pair: int) -> int:
        return self._fds[pair]

    def receive(self, pair: int, buffer: memoryview) -> int:
        try:
            return os.readv(self._fds[pair], [buffer])
        except BlockingIOError:
            return 0

    def send(self, pair: int, parts: Sequence[bytes | memoryview]) -> None:
        os.writev(self._fds[pair], parts)

    def set_offload(self, offload: TapOffload) -> None:
        try:
            with self._in_use:
                tuntap.set_offload(self._fds[0], self.name, offload)
        except OSError as error:
            raise HostError.from_os_error(error, f"tap {self.name}") from error

    def use_pairs(self, count: int) -> None:
        try:
            with self._in_use:
                for pair in range(self._used, count):
                    tuntap.set_queue(self._fds[pair], self.name, attached=True)
                    self._used = pair + 1
                for pair in range(self._used - 1, count - 1, -1):
                    tuntap.set_queue(self._fds[pair], self.name, attached=False)
                    self._used = pair
        except OSError as error:
            raise HostError.from_os_error(error, f"tap {self.name}") from error

    def close(self) -> None:
        self._in_use.end()

    def _close(self) -> None:
        fds, self._fds = self._fds, []
        for fd in fds:
            os.close(fd)
