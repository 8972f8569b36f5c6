"""Queues of a virtio device in the hands of one vhost descriptor.

    start     SET_OWNER, features, memory table, then for each ring: size, index, addresses, kick, call, err
    (running) a kick is an ioeventfd the kernel waits on, a call the irqfd of the queue's vector: no exit, none of us
    stop      the index the kernel has come to goes back into the queue; the descriptor is closed

A start always takes a new descriptor: nothing of an earlier life is left in it. The caller starts and stops the rings in
between, in the way of its kind, and holds the device's lock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

from appliance.errors import HostError
from appliance.kernel.eventfd import EventFd
from appliance.kernel.vhost import MemoryRegion, RingAddresses
from appliance.kernel.vhost_abi import VHOST_F_LOG_ALL
from appliance.vmm.memory import GuestMemory
from appliance.vmm.vhost.backend import VhostBackend
from appliance.vmm.vhost.log import VhostLog
from appliance.vmm.virtio.device import VirtioDevice

logger = logging.getLogger(__name__)

B = TypeVar("B", bound=VhostBackend)
RINGS = 2  # of the descriptors we use: 0 receives, 1 transmits


def memory_regions(memory: GuestMemory) -> list[MemoryRegion]:
    """The whole of RAM, as vhost wants it told."""
    return [
        MemoryRegion(region.base, region.size, memory.host_address(region.base, region.size))
        for region in memory.regions
    ]


class VhostRings(Generic[B]):
    """Queues `first` and `first` + 1 of `device`."""

    def __init__(self, backend: B, device: VirtioDevice, first: int, log: VhostLog) -> None:
        """`backend` has just been opened and is ours to close. Raises `HostError`, having closed it."""
        self.backend = backend
        self._device = device
        self._first = first
        self._log = log
        self._features = 0
        self._relays: list[EventFd] = []
        self._error = EventFd()
        try:
            backend.set_owner()
            self.known_features = backend.get_features()
        except OSError as error:
            self.close()
            raise self._failed(error) from error

    def give(self, features: int) -> None:
        """Everything but the start: the queues are the kernel's. `features` must be among `known_features`."""
        self._features = features
        try:
            self.backend.set_features(features)
            self.backend.set_mem_table(memory_regions(self._device.context.memory))
            for ring in range(RINGS):
                self._give_ring(ring)
        except OSError as error:
            raise self._failed(error) from error
        self._log.add(self)
        for ring in range(RINGS):
            self._device.take_over(self._first + ring)
        self._device.context.bridge.watch(self._error.fileno(), self._found_broken)

    def _give_ring(self, ring: int) -> None:
        queue = self._device.queues[self._first + ring]
        self.backend.set_vring_num(ring, queue.size)
        self.backend.set_vring_base(ring, queue.indexes[0])
        self.backend.set_vring_addr(ring, self._addresses(ring))
        self.backend.set_vring_kick(ring, self._device.doorbell(self._first + ring).fileno())
        self._relays.append(EventFd())
        self.backend.set_vring_call(ring, self._call_fd(ring))
        self.backend.set_vring_err(ring, self._error.fileno())

    def take_back(self) -> None:
        """The rings have been stopped: what the kernel has come to. The queues are ours even after an error, which is
        `HostError` when the kernel does not say."""
        queues = [self._device.queues[self._first + ring] for ring in range(RINGS)]
        try:
            for ring, queue in enumerate(queues):
                queue.set_indexes(self.backend.get_vring_base(ring), queue.memory.load_u16(queue.used + 2))
        except OSError as error:
            raise self._failed(error) from error
        finally:
            self._log.remove(self)
            self.hand_back()

    def hand_back(self) -> None:
        """The doorbells are the device's again."""
        for ring in range(RINGS):
            self._device.hand_back(self._first + ring)

    def call_changed(self, index: int) -> None:
        """The device's queue `index` has another vector, or none. Raises `HostError`."""
        ring = index - self._first
        try:
            self.backend.set_vring_call(ring, self._call_fd(ring))
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Close the descriptor; harmless when done twice."""
        self._log.remove(self)
        self.backend.close()
        for event in (*self._relays, self._error):
            if event.fileno() >= 0:
                self._device.context.bridge.unwatch(event.fileno())
            event.close()

    # vhost.log.Logged

    def log_to(self, host_address: int) -> None:
        self.backend.set_log_base(host_address)
        self._set_logging(on=True)

    def log_nothing(self) -> None:
        self._set_logging(on=False)

    def _set_logging(self, *, on: bool) -> None:
        """What is written through descriptors, and the used rings themselves."""
        self.backend.set_features(self._features | (1 << VHOST_F_LOG_ALL if on else 0))
        for ring in range(RINGS):
            self.backend.set_vring_addr(ring, self._addresses(ring), log=on)

    # --- inside

    def _addresses(self, ring: int) -> RingAddresses:
        queue = self._device.queues[self._first + ring]
        find, size = queue.memory.host_address, queue.size
        return RingAddresses(
            descriptors=find(queue.desc, 16 * size),
            available=find(queue.avail, 6 + 2 * size),
            used=find(queue.used, 6 + 8 * size),
            used_guest=queue.used,
        )

    def _call_fd(self, ring: int) -> int:
        """The queue's irqfd, or without a vector an eventfd that we pass on."""
        vector = self._device.call(self._first + ring)
        bridge, relay = self._device.context.bridge, self._relays[ring]
        if vector is not None:
            bridge.unwatch(relay.fileno())
            return vector.fileno()
        bridge.watch(relay.fileno(), partial(self._relay, relay, self._first + ring))
        return relay.fileno()

    def _relay(self, relay: EventFd, index: int) -> None:
        if relay.fileno() >= 0 and relay.drain():
            self._device.interrupt(index)

    def _found_broken(self) -> None:
        if self._error.fileno() >= 0 and self._error.drain():
            self._device.broken("a ring that vhost cannot follow")

    def _failed(self, error: OSError) -> HostError:
        return HostError.from_os_error(error, self._device.label)


def open_rings(opened: Callable[[str], B], device: VirtioDevice, first: int, log: VhostLog) -> VhostRings[B]:
    """A new descriptor. Raises `HostError`."""
    try:
        backend = opened(device.label)
    except OSError as error:
        raise HostError.from_os_error(error, device.label) from error
    return VhostRings(backend, device, first, log)


def kernel_features(opened: Callable[[str], VhostBackend], label: str) -> int | None:
    """What the driver of this host can do; None when there is none, or we may not use it."""
    try:
        backend = opened(label)
    except OSError:
        return None
    try:
        backend.set_owner()
        return backend.get_features()
    except OSError as error:
        logger.warning("%s: vhost is there but does not work: %s", label, error)
        return None
    finally:
        backend.close()
