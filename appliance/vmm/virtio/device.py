"""What a virtio device is, whatever bus shows it (virtio 1.2 §2, §3). A device here knows nothing of PCI.

Status (§2.1, §3.1.1), as the driver writes it:

    0 ──ACKNOWLEDGE, DRIVER──> features are negotiated ──FEATURES_OK──> queues are set up ──DRIVER_OK──> live
    any ──0──> reset: `deactivate`, every queue and feature as at power-on
    any ──a broken ring──> NEEDS_RESET: nothing is served until the driver has reset the device (§2.1.2)

Doorbells. Each queue has an eventfd which the transport has KVM signal at the driver's kick; the loop watches it, and
calls `on_kick`. `take_over` gives a queue to somebody else (vhost), who then waits on the doorbell himself and raises
`call`.

Threads. vCPU threads come through the transport, which holds `lock`: `read_config`, `write_config`, `activate`,
`deactivate` are called so. `on_kick` is called on the loop, the lock not held. While it runs a reset is not complete: the
driver goes on reading the old status until nobody is busy with its memory any more (§4.1.4.3.1), and an `on_kick` that
goes on meanwhile finds its chains stale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import msgspec

from appliance.errors import GuestFault, Unsupported
from appliance.kernel.eventfd import EventFd
from appliance.vmm.device import Device, DeviceContext, State
from appliance.vmm.irq import MessageVector
from appliance.vmm.virtio.consts import (
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    F_VERSION_1,
    STATUS_DRIVER_OK,
    STATUS_FEATURES_OK,
    STATUS_NEEDS_RESET,
    DeviceId,
    bits,
)
from appliance.vmm.virtio.queue import Chain, QueueState, VirtQueue
from appliance.vmm.virtio.transport import NoTransport, Transport

BATCH: Final = 64  # chains served for one kick before others on the loop get their turn
BATCH_PIECES: Final = 1024  # nor more descriptors than that: walking one takes a microsecond or more

_MASK_64 = (1 << 64) - 1


class VirtioState(State):
    """Version 1. `device` is what `save_device` returned, as msgpack; empty for None."""

    version: int
    status: int
    driver_features: int
    config_generation: int
    queues: list[QueueState]
    device: bytes = b""


STATE_VERSION: Final = 1


class VirtioDevice(Device):
    """Base of all virtio devices. Subclasses say `device_id` and override what they need."""

    device_id: DeviceId
    device_state_type: type[State] | None = None  # what `save_device` returns
    queue_type: type[VirtQueue] = VirtQueue

    def __init__(self, name: str, context: DeviceContext, *, queue_sizes: Sequence[int], features: int = 0) -> None:
        """`features` is a set of feature bits (`consts.bits`) of the device's own; VERSION_1, EVENT_IDX and INDIRECT_DESC
        are added to it."""
        super().__init__(name, context)
        self.features = features | bits(F_VERSION_1, F_EVENT_IDX, F_INDIRECT_DESC)
        self.transport: Transport = NoTransport()
        self.status = 0
        self.driver_features = 0
        self.config_generation = 0
        self._config_is_new = False
        self.queues = [
            self.queue_type(
                context.memory, size, label=f"{self.label}: queue {index}", interrupt=partial(self.interrupt, index)
            )
            for index, size in enumerate(queue_sizes)
        ]
        self._doorbells = [EventFd() for _ in self.queues]
        self._taken: set[int] = set()
        self._watched: set[int] = set()
        self._serving = 0
        self._paused = False
        self._status_until_quiet = 0

    # For subclasses to override

    def read_config(self, offset: int, size: int) -> int:
        """The device's configuration, little-endian; `size` is 1, 2, 4 or 8. Zero where there is none."""
        return 0

    def write_config(self, offset: int, size: int, value: int) -> None:
        """The driver writes to it."""

    def accepts(self, features: int) -> bool:
        """Whether this subset of what was offered can be had together (§2.2.2)."""
        return True

    def activate(self) -> None:
        """DRIVER_OK: `negotiated` and the queues stand. The lock is held; on a vCPU's thread."""

    def on_kick(self, index: int) -> None:
        """Queue `index` may have buffers. On the loop; the lock is not held. `serve` does the usual thing."""

    def deactivate(self) -> None:
        """The driver or the machine resets the device: drop everything in flight. The lock is held. Called when it was
        live only. Chains still out are stale once this has returned."""

    def busy(self) -> bool:
        """Whether somebody (a thread of the pool) may still touch the driver's memory after `deactivate`."""
        return False

    def call_changed(self, index: int) -> None:
        """`call(index)` is another one now. For those who have given it to the kernel."""

    def save_device(self) -> State | None:
        """What the subclass keeps, as a `device_state_type`."""
        return None

    def restore_device(self, state: State) -> None:
        """Before `resume`; status, features and queues are restored already. Raises `Unsupported`."""

    # For subclasses to use

    @property
    def negotiated(self) -> int:
        """The features in force; 0 before FEATURES_OK."""
        return self.driver_features if self.status & STATUS_FEATURES_OK else 0

    def has(self, bit: int) -> bool:
        """Whether feature `bit` is in force."""
        return bool(self.negotiated >> bit & 1)

    @property
    def live(self) -> bool:
        """Whether the driver is there and the rings are sound."""
        return self.status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET) == STATUS_DRIVER_OK

    def interrupt(self, index: int) -> None:
        """Tell the driver that buffers of queue `index` were used; `VirtQueue.flush` decides and calls this."""
        self.transport.queue_interrupt(index)

    def config_changed(self) -> None:
        """The configuration has changed: a new generation, and an interrupt once the driver is there (§2.5)."""
        with self.lock:
            self._config_is_new = True
            if self.status & STATUS_DRIVER_OK:
                self.transport.config_interrupt()

    def broken(self, reason: str) -> None:
        """The driver has gone astray, as `reason` says, which names the object: serve nothing until it resets us (§2.1.2).
        Any thread; once is enough."""
        with self.lock:
            if self.status & STATUS_NEEDS_RESET:
                return
            self.context.note(f"{reason}; {self.name} stands until its driver resets it")
            driver_ok = self.status & STATUS_DRIVER_OK
            self.status |= STATUS_NEEDS_RESET
            self._watch_nothing()
            if driver_ok:
                self.transport.config_interrupt()

    def guard(self, work: Callable[[], None]) -> None:
        """Do `work` with the driver's rings unless the device is not live; a `GuestFault` makes it `broken`. For timers
        and whatever else comes from outside (`on_kick` is called so). On the loop; the lock is not held meanwhile."""
        with self.lock:
            if not self.live or self._paused:
                return
            self._serving += 1
        try:
            work()
        except GuestFault as fault:
            self.broken(fault.message)
        finally:
            with self.lock:
                self._serving -= 1

    def serve(
        self, index: int, handle: Callable[[Chain], int | None], *, ready: Callable[[], bool] = lambda: True
    ) -> None:
        """Take at most `BATCH` chains of a queue, of `BATCH_PIECES` in all. `handle` returns the bytes it wrote, or None
        to keep the chain and push it later. What is left is taken when the loop comes round again: a storm of kicks costs
        one batch each. Nothing is taken while not `ready`: who becomes ready again says so with `kick`."""
        queue, pieces = self.queues[index], 0
        queue.disable_kicks()
        try:
            for _ in range(BATCH):
                if not ready():
                    return
                if pieces >= BATCH_PIECES:
                    break
                chain = queue.pop()
                if chain is None:
                    if not queue.enable_kicks():
                        return
                    continue
                pieces += chain.pieces
                written = handle(chain)
                if written is not None:
                    queue.push(chain, written)
            self.kick(index)
        finally:
            queue.flush()

    def kick(self, index: int) -> None:
        """Have `on_kick` called soon, as the driver would. Any thread."""
        with suppress(ValueError):  # closed meanwhile
            self._doorbells[index].signal()

    # Doorbells

    def doorbell(self, index: int) -> EventFd:
        """The eventfd that the driver's kick signals. Ours: it is there until `close`."""
        return self._doorbells[index]

    def call(self, index: int) -> MessageVector | None:
        """Who is signalled raises the queue's interrupt; None when only `interrupt` can."""
        return self.transport.vector(index)

    def take_over(self, index: int) -> None:
        """From now until `hand_back` or the reset somebody else waits on the doorbell."""
        with self.lock:
            self._taken.add(index)
            self._watch_wanted()

    def hand_back(self, index: int, *, missed: bool = True) -> None:
        """The doorbell is ours again. Where kicks may have been `missed` it is rung once."""
        with self.lock:
            self._taken.discard(index)
            if missed:
                self.kick(index)
            self._watch_wanted()

    def _watch_wanted(self) -> None:
        """Watch the doorbells of live queues, and no others. The lock is held."""
        wanted: set[int] = set()
        if self.live and not self._paused:
            wanted = {index for index, queue in enumerate(self.queues) if queue.enabled} - self._taken
        for index in self._watched - wanted:
            self.context.bridge.unwatch(self._doorbells[index].fileno())
        for index in wanted - self._watched:
            self.context.bridge.watch(self._doorbells[index].fileno(), partial(self._rung, index))
        self._watched = wanted

    def _watch_nothing(self) -> None:
        for index in self._watched:
            self.context.bridge.unwatch(self._doorbells[index].fileno())
        self._watched = set()

    def _rung(self, index: int) -> None:
        with self.lock:
            if index not in self._watched:  # a vCPU's `watch` may have come to the loop after our `unwatch`
                self.context.bridge.unwatch(self._doorbells[index].fileno())
                return
            self._doorbells[index].drain()
        self.guard(partial(self.on_kick, index))

    # The driver, through its transport, which holds the lock

    def read_status(self) -> int:
        """Not 0 after a reset before the device is out of the driver's memory (§4.1.4.3.1)."""
        if self._status_until_quiet and (self._serving or self.busy()):
            return self._status_until_quiet
        self._status_until_quiet = 0
        return self.status

    def config_as_read(self, offset: int, size: int) -> int:
        """`read_config`, with a new generation when it has changed since the last time: as often as is seen, so that the
        eight bits cannot come round unseen (§4.1.4.3.1)."""
        if self._config_is_new:
            self._config_is_new = False
            self.config_generation = (self.config_generation + 1) & 0xFF
        return self.read_config(offset, size)

    def write_status(self, value: int) -> None:
        """§2.1: bits are set one after the other and never cleared, but by 0, which resets."""
        if not value:
            self.reset_by_driver()
            return
        added = value & ~self.status & 0xFF & ~STATUS_NEEDS_RESET
        if added & STATUS_FEATURES_OK and not self._agree():
            added &= ~STATUS_FEATURES_OK
        if added & STATUS_DRIVER_OK and not (self.status | added) & STATUS_FEATURES_OK:
            added &= ~STATUS_DRIVER_OK  # a driver that goes on without our consent does not get a device (§3.1.1)
        self.status |= added
        if added & STATUS_DRIVER_OK and not self.status & STATUS_NEEDS_RESET:
            self._start()

    def write_driver_features(self, features: int) -> None:
        """What the driver would have; too late once it has been agreed on."""
        if not self.status & STATUS_FEATURES_OK:
            self.driver_features = features & _MASK_64

    def enable_queue(self, index: int) -> None:
        """§4.1.4.3: once, before DRIVER_OK. A queue that cannot be breaks the device."""
        queue = self.queues[index]
        if queue.enabled or self.status & STATUS_DRIVER_OK:
            return
        try:
            queue.enable()
        except GuestFault as fault:
            self.broken(fault.message)

    def reset_by_driver(self) -> None:
        """To power-on state (§2.4)."""
        before = self.read_status()
        with self.lock:
            if self.status & STATUS_DRIVER_OK:
                self.deactivate()
            self._watch_nothing()
            self._taken.clear()
            self.status = self.driver_features = 0
            for queue, doorbell in zip(self.queues, self._doorbells, strict=True):
                queue.reset()
                doorbell.drain()
            self._status_until_quiet = before

    def _agree(self) -> bool:
        features = self.driver_features
        if features & ~self.features or not features >> F_VERSION_1 & 1 or not self.accepts(features):
            return False
        self._set_queue_features()
        return True

    def _set_queue_features(self) -> None:
        event_idx, indirect = (bool(self.driver_features >> bit & 1) for bit in (F_EVENT_IDX, F_INDIRECT_DESC))
        for queue in self.queues:
            queue.set_features(event_idx=event_idx, indirect=indirect)

    def _start(self) -> None:
        """DRIVER_OK. The driver may have filled rings before, whose kicks nobody has heard."""
        try:
            self.activate()
        except GuestFault as fault:
            self.broken(fault.message)
        else:
            self._go_on()

    def _go_on(self) -> None:
        for index, queue in enumerate(self.queues):
            if queue.enabled:
                self.kick(index)
        self._watch_wanted()

    # The machine

    def reset(self) -> None:
        with self.lock:
            self.reset_by_driver()
            self._status_until_quiet = 0

    def pause(self) -> None:
        with self.lock:
            self._paused = True
            self._watch_wanted()

    def resume(self) -> None:
        with self.lock:
            self._paused = False
            if self.live:
                self._go_on()

    @property
    def state_type(self) -> type[State] | None:
        return VirtioState

    def save(self) -> State | None:
        own = self.save_device()
        return VirtioState(
            version=STATE_VERSION,
            status=self.status,
            driver_features=self.driver_features,
            config_generation=self.config_generation,
            queues=[queue.save() for queue in self.queues],
            device=b"" if own is None else msgspec.msgpack.encode(own),
        )

    def restore(self, state: State) -> None:
        if not isinstance(state, VirtioState) or state.version != STATE_VERSION:
            raise Unsupported(f"{self.label}: saved state of another version")
        agreed = state.driver_features if state.status & STATUS_FEATURES_OK else 0  # before that it is anything
        if len(state.queues) != len(self.queues) or agreed & ~self.features & _MASK_64:
            raise Unsupported(f"{self.label}: saved state of a device with other queues or features")
        with self.lock:
            self._paused = True
            self.status, self.driver_features = state.status, state.driver_features
            self.config_generation, self._config_is_new = state.config_generation, True
            self._set_queue_features()
            for queue, saved in zip(self.queues, state.queues, strict=True):
                queue.restore(saved)
            if self.device_state_type is not None and state.device:
                self.restore_device(self._decode(state.device, self.device_state_type))

    def _decode(self, saved: bytes, kind: type[State]) -> State:
        try:
            return msgspec.msgpack.decode(saved, type=kind)
        except msgspec.MsgspecError as error:
            raise Unsupported(f"{self.label}: saved state: {error}") from error

    def close(self) -> None:
        with self.lock:
            if self.status & STATUS_DRIVER_OK:
                self.deactivate()
            self.status = 0
            self._watch_nothing()
            for queue, doorbell in zip(self.queues, self._doorbells, strict=True):
                queue.reset()
                doorbell.close()
