"""A network device's queue pairs in vhost-net's hands, each pair in a descriptor of its own on a queue of the tap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from appliance.errors import HostError
from appliance.vmm.netdev.backend import NetBackend
from appliance.vmm.netdev.features import F_MRG_RXBUF
from appliance.vmm.vhost.backend import VhostNetBackend
from appliance.vmm.vhost.log import VhostLog
from appliance.vmm.vhost.rings import VhostRings, open_rings
from appliance.vmm.virtio.consts import F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, bits
from appliance.vmm.virtio.device import VirtioDevice

# What vhost-net itself must know of; all else is between the driver, the tap and us. Its own header feature is not used:
# the tap has headers (drivers/vhost/net.c, vhost_net_set_features).
RING_FEATURES: Final = bits(F_MRG_RXBUF, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1)
RX, TX = 0, 1


class VhostNetPlane:
    """The device's lock is held around every call."""

    def __init__(self, device: VirtioDevice, cable: NetBackend, opened: Callable[[str], VhostNetBackend]) -> None:
        self._device = device
        self._cable = cable
        self._opened = opened
        self._log = VhostLog(device.context.memory, device.label)
        self._running: list[VhostRings[VhostNetBackend]] = []

    def start(self, pairs: int) -> None:
        """Serve the first `pairs` queue pairs. Raises `HostError` with none served and every queue ours."""
        try:
            for pair in range(len(self._running), pairs):
                self._start_pair(pair)
        except HostError:
            self.stop()
            raise

    def _start_pair(self, pair: int) -> None:
        rings = open_rings(self._opened, self._device, 2 * pair, self._log)
        wanted = self._device.negotiated & RING_FEATURES
        try:
            if wanted & ~rings.known_features:
                raise HostError(f"{self._device.label}: vhost-net lacks features {wanted & ~rings.known_features:#x}")
            rings.give(wanted)
        except HostError:
            rings.close()
            rings.hand_back()
            raise
        self._running.append(rings)
        try:
            for ring in (RX, TX):
                rings.backend.set_backend(ring, self._cable.fileno(pair))
        except OSError as error:
            raise HostError.from_os_error(error, self._device.label) from error

    def stop(self, keep: int = 0) -> None:
        """All but the first `keep` pairs become ours again; when it has returned the kernel touches their memory no more.
        Raises `HostError`, all having been closed, when it will not say of some how far they have come."""
        failed: HostError | None = None
        while len(self._running) > keep:
            rings = self._running.pop()
            try:
                rings.backend.stop()
                rings.take_back()
            except OSError as error:
                rings.hand_back()
                failed = HostError.from_os_error(error, self._device.label)
            except HostError as error:
                failed = error
            finally:
                rings.close()
        if failed is not None:
            raise failed

    def call_changed(self, index: int) -> None:
        """See `VirtioDevice.call_changed`."""
        if index // 2 < len(self._running):
            self._running[index // 2].call_changed(index)
