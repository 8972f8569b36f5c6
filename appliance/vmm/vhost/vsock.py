"""A socket device's receive and transmit queues in vhost-vsock's hands: the guest is a CID of the host's AF_VSOCK."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from appliance.errors import HostError
from appliance.vmm.vhost.backend import VhostVsockBackend
from appliance.vmm.vhost.log import VhostLog
from appliance.vmm.vhost.rings import VhostRings, open_rings
from appliance.vmm.virtio.consts import F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, bits
from appliance.vmm.virtio.device import VirtioDevice

F_SEQPACKET: Final = 1  # VIRTIO_VSOCK_F_SEQPACKET, the one feature of its own that vhost-vsock knows
RING_FEATURES: Final = bits(F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1)


class VhostVsockPlane:
    """The device's lock is held around every call."""

    def __init__(self, device: VirtioDevice, guest_cid: int, opened: Callable[[str], VhostVsockBackend]) -> None:
        self._device = device
        self._guest_cid = guest_cid
        self._opened = opened
        self._log = VhostLog(device.context.memory, device.label)
        self._running: VhostRings[VhostVsockBackend] | None = None

    def start(self) -> None:
        """Raises `HostError`, the queues being ours: also when the CID is in use."""
        rings = open_rings(self._opened, self._device, 0, self._log)
        try:
            rings.backend.set_guest_cid(self._guest_cid)
            rings.give(self._device.negotiated & (RING_FEATURES | bits(F_SEQPACKET)))
            rings.backend.set_running(running=True)
        except OSError as error:
            rings.close()
            rings.hand_back()
            raise HostError.from_os_error(error, self._device.label) from error
        except HostError:
            rings.close()
            rings.hand_back()
            raise
        self._running = rings

    def stop(self) -> None:
        """The queues are ours again, and the host's connections are over. Raises `HostError` when the kernel will not say
        how far it has come. Harmless when done twice."""
        rings, self._running = self._running, None
        if rings is None:
            return
        try:
            rings.backend.set_running(running=False)
            rings.take_back()
        except OSError as error:
            rings.hand_back()
            raise HostError.from_os_error(error, self._device.label) from error
        finally:
            rings.close()

    def call_changed(self, index: int) -> None:
        """See `VirtioDevice.call_changed`."""
        if self._running is not None and index < 2:
            self._running.call_changed(index)
