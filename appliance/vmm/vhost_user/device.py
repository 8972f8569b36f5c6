"""A virtio device whose queues a helper process serves by vhost-user; no request of the driver passes through us.

What should be and what is: the driver, the machine and the helper's own end change what should be (`_served_wanted`), at
once and on any thread; one job in the machine's pool (`_settle`) follows, step by step, since every step waits for the
helper:

    CONNECTED ──give──> SERVING ──drain, stop──> CONNECTED           pause, and resume
    SERVING ──stop, connect anew──> CONNECTED                        the driver has reset the device
    SERVING ──helper gone──> ABSENT ──start, connect, give──> SERVING   if nothing was unanswered, or it is known what
    any ──helper gone too often, or it refuses──> BROKEN             NEEDS_RESET; the driver's reset tries again

A new connection is answered when the back end has left the memory of the one before (QEMU util/vhost-user-server.c waits
for what is in flight): until then the driver reads the old status. A back end without reconnection is replaced instead.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from appliance.errors import HostError
from appliance.kernel.eventfd import EventFd
from appliance.vmm.device import DeviceContext, State
from appliance.vmm.vhost_user.client import VhostUserClient
from appliance.vmm.vhost_user.log import UserLog
from appliance.vmm.vhost_user.process import Helper
from appliance.vmm.vhost_user.rings import GivenRings, Ring, Unanswered
from appliance.vmm.virtio.device import VirtioDevice

logger = logging.getLogger(__name__)

DRAIN_TIMEOUT_S: Final = 20.0
RESTARTS, RESTARTS_WITHIN_S = 3, 60.0
HOPELESS: Final = 3 * RESTARTS  # a driver may reset the device as often as it likes


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """How the back end is used. `reconnects`: it takes another connection, and forgets the one before. `can_log`: it can
    say what it writes to memory."""

    queue_sizes: Sequence[int]
    features: int
    reconnects: bool
    can_log: bool


class VhostUserDevice(VirtioDevice):
    """Base of such devices. `helper` and `client`, which has negotiated, are closed with it."""

    data_plane: Final = "vhost-user"

    def __init__(
        self, name: str, context: DeviceContext, *, helper: Helper, client: VhostUserClient, served: Served
    ) -> None:
        super().__init__(name, context, queue_sizes=served.queue_sizes, features=served.features)
        self.features &= client.features
        self._helper = helper
        self._client: VhostUserClient | None = client
        self._reconnects = served.reconnects
        self._log = UserLog(context.memory, self.label, can_log=served.can_log)
        self._unanswered = Unanswered()
        self._err = EventFd()
        self._relays = [EventFd() for _ in self.queues]
        # under the lock
        self._epoch = 0  # of the driver: one more with each of its resets
        self._driver_there = False
        self._settling = self._settle_again = self._gone = self._closed = False
        self._calls_changed: set[int] = set()
        self._settings_changed = False
        self._restarts: list[float] = []
        # the settling job's own, and `close`'s when that has it
        self._job = threading.Lock()
        self._given: GivenRings | None = None
        self._given_epoch = self._client_epoch = 0
        self._lost = 0  # chains taken and not answered when the rings were taken back
        self._watched_fds: list[int] = []
        self._watch_helper()
        context.memory.add_dirty_source(self._log)

    # For subclasses

    def configure(self, client: VhostUserClient) -> None:
        """Tell the back end its settings: before the rings are given, and after `settings_changed`. In the pool, the lock
        not held. Raises `OSError`."""

    def put_down(self) -> None:
        """The rings have been taken back: what the helper keeps in memory must outlive it. In the pool, the lock not held.
        Raises `HostError`."""

    # For subclasses to use

    def settings_changed(self) -> None:
        """Have `configure` called soon. Any thread."""
        with self.lock:
            self._settings_changed = True
            self._follow()

    def converse(self) -> VhostUserClient:
        """The conversation there is, for a question of the subclass. Raises `HostError` while there is none."""
        client = self._client
        if client is None:
            raise HostError(f"{self.label}: its helper is not there")
        return client

    # Life: what should be. Any thread, the lock held.

    def activate(self) -> None:
        self._driver_there = True
        for index in range(len(self.queues)):
            self.take_over(index)
        self._follow()

    def deactivate(self) -> None:
        self._driver_there = False  # `live` says so later
        self._epoch += 1
        self._follow()

    def broken(self, reason: str) -> None:
        with self.lock:
            super().broken(reason)
            self._follow()

    def pause(self) -> None:
        with self.lock:
            super().pause()
            self._follow()

    def resume(self) -> None:
        with self.lock:
            if self.live:  # also one that was restored
                self._driver_there = True
                for index in range(len(self.queues)):
                    self.take_over(index)
            super().resume()
            self._follow()

    def busy(self) -> bool:
        return self._given is not None and self._given_epoch != self._epoch

    def call_changed(self, index: int) -> None:
        with self.lock:
            self._calls_changed.add(index)
            self._follow()

    def save_device(self) -> State | None:
        if self._lost or self._given is not None:
            raise HostError(f"{self.label}: requests are unanswered")
        return None

    def close(self) -> None:
        """Nothing is watched any more, also what a job in the pool has just asked to have watched (`post`); then `give_back`."""
        with self.lock:
            self._closed = True
        super().close()
        client = self._client
        if client is not None:
            client.shut()  # whoever waits for an answer does so no longer
        self._unwatch_all()
        self.context.bridge.post(self._unwatch_all)

    def _unwatch_all(self) -> None:
        self._unwatch()
        for event in (self._err, *self._relays):
            if event.fileno() >= 0:
                self.context.bridge.unwatch(event.fileno())

    def give_back(self) -> None:
        """End the helper. Blocking."""
        with self._job:
            self._disconnect()
            self._given = None
            self._helper.close()
            self.context.memory.remove_dirty_source(self._log)
            self._log.close()
            self._unanswered.close()
            for event in (self._err, *self._relays):
                event.close()

    def _follow(self) -> None:
        """Something has changed. The lock is held."""
        if self._closed:
            return
        if self._settling:
            self._settle_again = True
            return
        self._settling = True
        self.context.bridge.submit(self._settle)

    # What is: one job in the pool

    def _settle(self) -> None:
        with self._job:
            while not self._settled():
                pass

    def _settled(self) -> bool:
        """Take one step towards what should be. True when that was reached, and the next change begins a new job."""
        with self.lock:
            wanted = self._wanted()
            epoch, given = self._epoch, self._given
            gone, self._gone, self._settle_again = self._gone, False, False
        try:
            if self._closed:
                return True
            if gone:
                raise HostError(f"{self.label}: its helper has gone")
            if given is not None and (not wanted or self._given_epoch != epoch):
                self._take_back(given, cut=self._given_epoch != epoch or not self.live)
            elif given is None and wanted:
                self._give(epoch)
            elif given is not None:
                self._tell_changes(given)
        except (OSError, HostError) as error:
            self._failed(error)
            return False
        except BaseException:
            self._settling = False
            raise
        with self.lock:
            reached = not self._settle_again and (self._given is not None) == self._wanted()
            self._settling = not reached
            return reached

    def _wanted(self) -> bool:
        return self._driver_there and self.live and not self._paused

    def _tell_changes(self, given: GivenRings) -> None:
        with self.lock:
            calls, self._calls_changed = self._calls_changed, set()
            configure, self._settings_changed = self._settings_changed, False
        for ring in given.rings:
            if ring.index in calls:
                given.client.set_call(ring.index, self._call_fd(ring.index))
        if configure:
            self.configure(given.client)

    def _give(self, epoch: int) -> None:
        if not self._reconnects and self._client_epoch != epoch:
            self._disconnect()
            self._helper.end()
        client = self._conversation()
        self._client_epoch = epoch
        with self.lock:
            if self._epoch != epoch or not self._wanted():
                return
            if epoch != self._given_epoch:
                self._lost = 0
            rings = [self._ring(index) for index, queue in enumerate(self.queues) if queue.enabled]
            given = GivenRings(client, self.context.memory, rings, self.negotiated)
            self._given, self._given_epoch = given, epoch  # from here on it may touch the driver's memory: `busy`
            self._calls_changed, self._settings_changed = set(), False
        if not self._lost:
            self._unanswered.clear()
        given.prepare()
        self.configure(client)
        self._unanswered.share(client, queues=len(self.queues), queue_size=max(each.size for each in self.queues))
        self._log.attach(given)
        given.start()
        if self._lost:
            self._lost = 0
            for ring in rings:
                self.interrupt(ring.index)  # what was answered last may not have been told
        self.context.bridge.watch(self._err.fileno(), self._ring_broken)

    def _ring(self, index: int) -> Ring:
        queue = self.queues[index]
        return Ring(
            index=index,
            size=queue.size,
            desc=queue.desc,
            avail=queue.avail,
            used=queue.used,
            base=queue.indexes[0],
            kick_fd=self.doorbell(index).fileno(),
            call_fd=self._call_fd(index),
            err_fd=self._err.fileno(),
        )

    def _call_fd(self, index: int) -> int:
        """The queue's irqfd, or without a vector an eventfd that we pass on."""
        vector, relay, bridge = self.call(index), self._relays[index], self.context.bridge
        if vector is not None:
            bridge.unwatch(relay.fileno())
            return vector.fileno()
        bridge.watch(relay.fileno(), partial(self._relay, index))
        return relay.fileno()

    def _take_back(self, given: GivenRings, *, cut: bool) -> None:
        """`cut`: the memory is the driver's again, whatever was under way."""
        drained = not cut and given.wait_until_drained(DRAIN_TIMEOUT_S, self._sleep)
        reached = given.stop()
        self._log.detach()
        self._lost = sum((available - used) & 0xFFFF for available, used in reached.values())
        if not drained:
            self._disconnect()
            if not self._reconnects:
                self._helper.end()
            elif self._helper.running:
                self._conversation()  # when it answers it has left the memory
        self._given = None
        self.put_down()
        if not cut:
            self._set_indexes(reached)
            if self._lost:
                self.context.note(f"{self.name}: {self._lost} requests are not answered after {DRAIN_TIMEOUT_S:g} s")

    def _sleep(self, seconds: float) -> None:
        if self._gone or self._closed:
            raise HostError(f"{self.label}: its helper has gone")
        time.sleep(seconds)

    def _set_indexes(self, reached: dict[int, tuple[int, int]]) -> None:
        with self.lock:
            for index, (available, used) in reached.items():
                self.queues[index].set_indexes(used if self._unanswered.kept else available, used)

    # The helper

    def _conversation(self) -> VhostUserClient:
        """A connection that has negotiated. Raises `HostError`, `OSError`."""
        if not self._helper.running and len(self._recent_restarts()) > HOPELESS:
            raise HostError(f"{self.label}: its helper failed too often")
        if self._client is None:
            client = self._client = self._helper.converse(self.label)
            if self.features & ~client.features:
                raise HostError(f"{self.label}: the back end lacks features {self.features & ~client.features:#x}")
            self._watch_helper()
        return self._client

    def _disconnect(self) -> None:
        self._unwatch()
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _failed(self, error: Exception) -> None:
        """The conversation or the helper is over: begin anew with what was unanswered, if it is worth it."""
        why = self._helper.last_words or str(error)
        self._log.detach()
        self._disconnect()
        self._helper.end()  # now nothing of it touches the memory
        with self.lock:
            given, self._given = self._given, None
            if self._closed:
                return
            if given is not None and self._given_epoch == self._epoch:
                self._set_indexes({each: (used, used) for each, used in given.used_indexes().items()})
                self._lost = 0 if given.all_drained() else 1
            self._restarts = [*self._recent_restarts(), self.context.clock.monotonic()]
            worth = len(self._restarts) <= RESTARTS and (not self._lost or self._unanswered.kept)
            live = self.live
        logger.warning("%s: its helper failed: %s", self.label, why)
        if live and not worth:
            self.broken(f"{self.name}: its helper failed: {why}")
        elif live:
            self.context.note(f"{self.name}: its helper failed, and is started again: {why}")

    def _recent_restarts(self) -> list[float]:
        since = self.context.clock.monotonic() - RESTARTS_WITHIN_S
        return [each for each in self._restarts if each > since]

    # On the loop: what the helper says

    def _watch_helper(self) -> None:
        process, client = self._helper.process, self._client
        if process is None or client is None or self._closed:
            return
        bridge = self.context.bridge
        bridge.watch(process.fileno(), self._helper_gone)
        bridge.watch(client.fileno(), partial(self._hear_connection, client))
        bridge.watch(process.output_fileno(), self._hear_output)
        self._watched_fds = [process.fileno(), client.fileno(), process.output_fileno()]

    def _unwatch(self) -> None:
        watched, self._watched_fds = self._watched_fds, []
        for fd in watched:
            self.context.bridge.unwatch(fd)

    def _hear_output(self) -> None:
        process = self._helper.process
        if process is not None and not process.listen():
            self.context.bridge.unwatch(process.output_fileno())

    def _hear_connection(self, client: VhostUserClient) -> None:
        if client is self._client and client.closed_by_peer:
            self._helper_gone()

    def _helper_gone(self) -> None:
        with self.lock:
            self._unwatch()
            self._gone = True
            self._follow()

    def _relay(self, index: int) -> None:
        relay = self._relays[index]
        if relay.fileno() >= 0 and relay.drain():
            self.interrupt(index)

    def _ring_broken(self) -> None:
        if self._err.fileno() >= 0 and self._err.drain():
            self.broken(f"{self.name}: a ring that its back end cannot follow")
