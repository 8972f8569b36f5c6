"""The queues of a device in the hands of a vhost-user back end: giving them, taking them back. Blocking; for the pool.

give       features, memory, what is unanswered; each ring's size, index, place, call, err; kick: it is served
drained    everything the driver has made available has been used (the vCPUs stand)
take_back  each ring is stopped; the index it has come to
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from appliance.kernel.vhost_abi import VHOST_F_LOG_ALL
from appliance.vmm.memory import GuestMemory
from appliance.vmm.vhost_user.client import VhostUserClient
from appliance.vmm.vhost_user.messages import Inflight, ProtocolFeature, Region, RingPlace

Pause = Callable[[float], None]
FIRST_LOOK_S, LONGEST_LOOK_S = 0.0002, 0.02


@dataclass(frozen=True, slots=True)
class Ring:
    """A queue as it was when it was given. Addresses are guest-physical; descriptors are the device's."""

    index: int
    size: int
    desc: int
    avail: int
    used: int
    base: int
    kick_fd: int
    call_fd: int
    err_fd: int

    def place(self, memory: GuestMemory) -> RingPlace:
        find, size = memory.host_address, self.size
        return RingPlace(
            descriptors=find(self.desc, 16 * size),
            used=find(self.used, 6 + 8 * size),
            available=find(self.avail, 6 + 2 * size),
            used_guest=self.used,
        )

    def used_index(self, memory: GuestMemory) -> int:
        return memory.load_u16(self.used + 2)

    def is_drained(self, memory: GuestMemory) -> bool:
        return self.used_index(memory) == memory.load_u16(self.avail + 2)


class Unanswered:
    """The shared memory in which a back end notes what it has taken and not answered, so that its successor can do it.
    Kept from one back end to the next; `clear` when the driver begins anew."""

    def __init__(self) -> None:
        self._area: Inflight | None = None
        self._fd = -1

    @property
    def kept(self) -> bool:
        """Whether there is such a memory."""
        return self._area is not None

    def share(self, client: VhostUserClient, *, queues: int, queue_size: int) -> None:
        """Tell the back end, which makes the memory the first time. Raises `OSError`."""
        if not client.can(ProtocolFeature.INFLIGHT_SHMFD):
            return
        if self._area is None:
            self._area, self._fd = client.new_inflight(queues, queue_size)
        client.set_inflight(self._area, self._fd)

    def clear(self) -> None:
        """Nothing is unanswered."""
        if self._area is not None:
            os.pwrite(self._fd, bytes(min(self._area.size, _MOST)), self._area.offset)

    def close(self) -> None:
        """Harmless when done twice."""
        if self._fd >= 0:
            os.close(self._fd)
        self._area, self._fd = None, -1


_MOST: Final = 64 << 20


class GivenRings:
    """Rings that are served now; a `log.Logging`."""

    def __init__(self, client: VhostUserClient, memory: GuestMemory, rings: list[Ring], features: int) -> None:
        self.client = client
        self.rings = rings
        self._memory = memory
        self._features = features
        self._logged = self._started = False

    def prepare(self) -> None:
        """Features and memory; nothing runs yet. Raises `OSError`."""
        self.client.set_features(self._features)
        memory = self._memory
        regions = [
            Region(each.base, each.size, memory.host_address(each.base, each.size), each.offset)
            for each in memory.regions
        ]
        self.client.set_memory(regions, memory.fd)

    def start(self) -> None:
        """Every ring is served. Raises `OSError`."""
        for ring in self.rings:
            place = ring.place(self._memory)
            self.client.set_ring(ring.index, size=ring.size, base=ring.base, place=place, log=self._logged)
            self.client.set_call(ring.index, ring.call_fd)
            self.client.set_err(ring.index, ring.err_fd)
        self._started = True
        for ring in self.rings:
            self.client.start_ring(ring.index, ring.kick_fd)

    def wait_until_drained(self, timeout_s: float, pause: Pause) -> bool:
        """Whether all that is available was used within the time; nobody must add more meanwhile. There is nothing to
        wait on: the call descriptor is KVM's, and is not signalled when the driver wants no interrupt."""
        look_s, waited_s = FIRST_LOOK_S, 0.0
        while not self.all_drained():
            if waited_s >= timeout_s:
                return False
            pause(look_s)
            waited_s += look_s
            look_s = min(2 * look_s, LONGEST_LOOK_S)
        return True

    def all_drained(self) -> bool:
        """Whether all that is available has been used."""
        return all(ring.is_drained(self._memory) for ring in self.rings)

    def stop(self) -> dict[int, tuple[int, int]]:
        """(next available, next used) of each queue. Raises `OSError`."""
        bases = {ring.index: self.client.stop_ring(ring.index) for ring in self.rings}
        return {ring.index: (bases[ring.index], ring.used_index(self._memory)) for ring in self.rings}

    def used_indexes(self) -> dict[int, int]:
        """How much of each queue has been answered."""
        return {ring.index: ring.used_index(self._memory) for ring in self.rings}

    # log.Logging

    def log_to(self, fd: int, size: int) -> None:
        self.client.set_log(fd, size)
        self._set_logging(on=True)

    def log_nothing(self) -> None:
        self._set_logging(on=False)

    def _set_logging(self, *, on: bool) -> None:
        """What is written through descriptors, and the used rings themselves."""
        if on == self._logged:
            return
        self._logged = on
        self.client.set_features(self._features | (1 << VHOST_F_LOG_ALL if on else 0))
        for ring in self.rings if self._started else ():
            self.client.set_ring_place(ring.index, ring.place(self._memory), log=on)
