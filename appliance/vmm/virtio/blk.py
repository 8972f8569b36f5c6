"""The disk (virtio 1.2 §5.2), served in Python: the machine's pool reads and writes guest memory itself.

    kick (loop) ──> worker (pool): pop a few ─> preadv/pwritev ─> push ─> interrupt once
                       ▲ kick, while it lingers

A worker that was called soon after the last one had gone lingers for the next kick itself (`_linger`): the loop is not woken
for each request of a guest that asks for one after the other.

One worker serves what the page cache answers: more would only take the interpreter from one another. Before it waits for
the medium (a flush, a read that is not cached, anything past the cache) it lets another one in, up to `WORKERS`. Each takes
a batch, small enough that its first request does not wait long for the last one. So many requests are in flight and no
more; the others wait in the ring. Pausing waits for the batches under way, after which nothing that was taken is
unanswered, but what waits for space.

A full disk: the writes it cannot take are kept and tried again (`FullDisk.WAIT`), since few guests survive an error there;
or they fail.
"""

from __future__ import annotations

import errno
import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from appliance.errors import HostError, Unsupported
from appliance.vmm.block import layout as b
from appliance.vmm.block.backend import BlockBackend, BlockStatistics
from appliance.vmm.block.layout import BlkConfig, BlkState, RequestType, Status
from appliance.vmm.block.request import (
    HEADER_BYTES,
    RANGES_BYTES,
    Refused,
    Request,
    check_transfer,
    parse,
    ranges_of,
    runs,
)
from appliance.vmm.block.transfer import transfer
from appliance.vmm.device import DeviceContext, State
from appliance.vmm.loopbridge import Timer
from appliance.vmm.virtio.consts import DeviceId, bits
from appliance.vmm.virtio.device import VirtioDevice
from appliance.vmm.virtio.queue import Chain

logger = logging.getLogger(__name__)

QUEUE_SIZE: Final = 256
WORKERS: Final = 4  # as many as the pool has
BATCH_REQUESTS, BATCH_BYTES = 16, 256 << 10
WAITING_BATCH: Final = 4  # requests, where each has to wait for the medium
RUN_BYTES: Final = 1 << 20
ROUNDS: Final = 64  # batches before other disks get their turn
RETRY_S: Final = 2.0
LINGER_S: Final = 0.01

_Answer = tuple[Chain, int]  # and the bytes written
_FULL = (errno.ENOSPC, errno.EDQUOT)
_STATUS = {status: bytes([status]) for status in Status}


class FullDisk(StrEnum):
    """What becomes of writes the host has no space for."""

    WAIT = "wait"  # they are tried again until there is space
    REPORT = "report"  # the guest sees an error


@dataclass(frozen=True, slots=True, kw_only=True)
class BlkOptions:
    """`serial`: at most 20 bytes are shown. `writeback`: the disk has a write cache that the guest must flush."""

    serial: str = ""
    queues: int = 1
    writeback: bool = True
    when_full: FullDisk = FullDisk.WAIT


class VirtioBlk(VirtioDevice):
    """A disk on `backend`, which is closed with it."""

    device_id = DeviceId.BLOCK
    device_state_type = BlkState
    data_plane: Final = "python"

    def __init__(
        self, name: str, context: DeviceContext, *, backend: BlockBackend, options: BlkOptions | None = None
    ) -> None:
        options = options or BlkOptions()
        if not 1 <= options.queues <= b.MAX_QUEUES:
            raise ValueError(f"{name}: {options.queues} queues")
        super().__init__(
            name, context, queue_sizes=[QUEUE_SIZE] * options.queues, features=_offered(backend, options.queues)
        )
        self.statistics = BlockStatistics()
        self._backend = backend
        self._options = options
        self._serial = options.serial.encode("ascii", "replace")[: b.ID_BYTES]
        self._writeback = options.writeback  # what the driver has chosen: see `_durable`
        self._durable = False  # each write is on the medium when it is answered
        self._ready: set[int] = set()  # queues that may have requests
        self._workers = 0
        self._waiting = 0  # of them, for the medium
        self._left_at = float("-inf")  # when the last worker went
        self._lingering: list[int] = []  # queues whose kicks the one worker hears
        self._held: list[Request] = []  # waiting for space
        self._again: list[Request] = []  # to be tried again now
        self._retry: Timer | None = None
        self._told: set[int] = set()  # errors that are in the log

    # Configuration, §5.2.4

    @property
    def size_bytes(self) -> int:
        """Of the disk."""
        return self._backend.size_bytes

    def read_config(self, offset: int, size: int) -> int:
        packed = BlkConfig(
            capacity_bytes=self._backend.size_bytes,
            queues=len(self.queues),
            seg_max=QUEUE_SIZE - 2,
            writeback=self._writeback,
            can_discard=self._backend.can_discard,
        ).pack()
        return int.from_bytes(packed[offset : offset + size], "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        if offset == b.WRITEBACK_AT and size == 1 and self.has(b.F_CONFIG_WCE):
            self._writeback = bool(value & 1)
            self._settle_cache()

    def resize(self, size_bytes: int) -> None:
        """Blocking. Make the disk larger and tell the guest. Raises `HostError`, `Unsupported` to shrink it."""
        try:
            self._backend.resize(size_bytes)
        except ValueError as error:
            raise Unsupported(f"{self.label}: {error}") from error
        except OSError as error:
            raise HostError.from_os_error(error, f"{self.label}: growing to {size_bytes} bytes") from error
        self.config_changed()

    # Life

    def activate(self) -> None:
        # §5.2.5.2: without a flush the driver trusts every write it has been told of
        if not self.has(b.F_FLUSH):
            self._writeback = False
        self._settle_cache()

    def deactivate(self) -> None:
        self._ready.clear()
        self._held, self._again = [], []
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._writeback = self._options.writeback

    def busy(self) -> bool:
        return self._workers > 0

    def close(self) -> None:
        super().close()
        self._backend.close()

    def save_device(self) -> State:
        return BlkState(version=b.STATE_VERSION, writeback=self._writeback)

    def restore_device(self, state: State) -> None:
        if not isinstance(state, BlkState) or state.version > b.STATE_VERSION:
            raise Unsupported(f"{self.label}: saved state of another version")
        self._writeback = state.writeback
        self._settle_cache()

    def _settle_cache(self) -> None:
        self._durable = not self._writeback or not self._options.writeback

    # On the loop

    def on_kick(self, index: int) -> None:
        self._want(index)

    def _want(self, index: int) -> None:
        """Have queue `index` served. Any thread."""
        with self.lock:
            self._ready.add(index)
        self._let_in()

    def _let_in(self) -> None:
        """One more worker, if there is something for it and it would not just be in the way."""
        with self.lock:
            if not self._ready or self._workers >= self._workers_wanted:
                return  # the next to be free sees what is ready
            self._workers += 1
        self.context.bridge.submit(self._work)

    @property
    def _workers_wanted(self) -> int:
        return min(WORKERS, 1 + self._waiting)

    def _space_again(self) -> None:
        """What waits for space is tried once more."""
        with self.lock:
            self._retry = None
            self._again, self._held = self._again + self._held, []
        self.kick(0)

    # In the pool

    def _work(self) -> None:
        try:
            self.guard(self._serve_rounds)
        finally:
            with self.lock:
                self._linger_no_more()
                self._left_at = self.context.clock.monotonic()
                again = self._has_work() and self._workers <= self._workers_wanted
                self._workers -= not again
            if again:
                self.context.bridge.submit(self._work)

    def _has_work(self) -> bool:
        return bool(self._ready) and self.live and not self._paused

    def _serve_rounds(self) -> None:
        brisk = self.context.clock.monotonic() - self._left_at < LINGER_S
        for number in itertools.count(1):
            if brisk:
                self._linger()
            with self.lock:
                if not self._has_work() or self._workers > self._workers_wanted:
                    return
                index = self._ready.pop()
                again, self._again = self._again, []
            self._serve(again)
            self._serve(self._take(index))
            if number >= ROUNDS and (not brisk or self.context.bridge.crowded):
                return

    def _linger(self) -> None:
        """When there is nothing to do, and nobody else who would: wait here for kicks, for a while."""
        with self.lock:
            if self._ready or self._workers > 1 or self._backend.waits or not self.live or self._paused:
                return
            if not self._lingering:
                self._lingering = [index for index, queue in enumerate(self.queues) if queue.enabled]
                for index in self._lingering:
                    self.take_over(index)
            bells = {index: self.doorbell(index) for index in self._lingering}
        fds = [bell.fileno() for bell in bells.values()]
        if min(fds, default=-1) < 0 or not self.context.bridge.linger(fds, LINGER_S):
            return
        with self.lock:
            if self.live:
                self._ready.update(index for index, bell in bells.items() if bell.drain())

    def _linger_no_more(self) -> None:
        """The loop hears kicks again: one that came meanwhile keeps its doorbell readable. The lock is held."""
        lingering, self._lingering = self._lingering, []
        for index in lingering:
            self.hand_back(index, missed=False)

    @contextmanager
    def _waits(self) -> Iterator[None]:
        """Around what waits for the medium."""
        with self.lock:
            self._linger_no_more()  # another worker may be wanted meanwhile
            self._waiting += 1
        try:
            self._let_in()
            yield
        finally:
            with self.lock:
                self._waiting -= 1

    def _take(self, index: int) -> list[Request]:
        """The next batch of a queue. When there is more it stays ready."""
        queue, memory = self.queues[index], self.context.memory
        queue.disable_kicks()
        taken: list[Request] = []
        length = 0
        limit = WAITING_BATCH if self._backend.waits or self._waiting else BATCH_REQUESTS
        while len(taken) < limit and length < BATCH_BYTES:
            chain = queue.pop()
            if chain is None:
                if not queue.enable_kicks():
                    return taken
                continue
            request = parse(index, chain, memory)
            taken.append(request)
            length += request.length
        self._want(index)
        return taken

    def _serve(self, requests: Sequence[Request]) -> None:
        if not requests:
            return
        done: dict[int, list[_Answer]] = {}
        ready: list[Request] = []
        for request in requests:
            try:
                self._check(request)
            except Refused as refusal:
                done.setdefault(request.queue, []).append(self._answer(request, refusal.status))
            else:
                ready.append(request)
        for run in runs(ready, RUN_BYTES):
            done.setdefault(run[0].queue, []).extend(self._perform(run))
        for index, answers in done.items():
            self.queues[index].push_all(answers)
            self.queues[index].flush()

    def _check(self, request: Request) -> None:
        kind = request.kind
        if kind > RequestType.OUT:
            return
        check_transfer(request, self._backend.size_bytes)
        if kind == RequestType.OUT and self._backend.read_only:
            raise Refused(Status.IOERR)  # §5.2.6.2

    def _perform(self, run: list[Request]) -> list[_Answer]:
        """Do it and answer; several that fail together are tried one by one."""
        try:
            self._do(run)
        except Refused as refusal:
            return [self._answer(run[0], refusal.status)]
        except OSError as error:
            if len(run) > 1:
                return [answer for each in run for answer in self._perform([each])]
            return self._failed(run[0], error)
        return [self._answer(each, Status.OK) for each in run]

    def _do(self, run: list[Request]) -> None:
        """Raises `OSError`, `Refused`."""
        request, statistics = run[0], self.statistics
        match request.kind:
            case RequestType.IN:
                self._read(run)
                statistics.reads += len(run)
                statistics.read_bytes += sum(each.length for each in run)
            case RequestType.OUT:
                self._write(run)
                statistics.writes += len(run)
                statistics.written_bytes += sum(each.length for each in run)
            case RequestType.FLUSH:
                with self._waits():
                    self._backend.flush()
                statistics.flushes += 1
            case RequestType.GET_ID:
                request.chain.write(self._serial.ljust(b.ID_BYTES, b"\0")[: request.length])
            case RequestType.DISCARD | RequestType.WRITE_ZEROES:
                self._discard_or_zero(request)
                statistics.discards += 1
            case _:
                raise Refused(Status.UNSUPP)

    def _read(self, run: list[Request]) -> None:
        backend, memory = self._backend, self.context.memory
        if not backend.waits:
            try:
                transfer(backend, memory, run, wait=False)
            except BlockingIOError:
                pass
            else:
                return
        with self._waits():
            transfer(backend, memory, run)

    def _write(self, run: list[Request]) -> None:
        backend, memory, durable = self._backend, self.context.memory, self._durable
        if not backend.waits and not durable:
            transfer(backend, memory, run)
        else:
            with self._waits():
                transfer(backend, memory, run, durable=durable)

    def _discard_or_zero(self, request: Request) -> None:
        discard, backend = request.kind == RequestType.DISCARD, self._backend
        if not self.has(b.F_DISCARD if discard else b.F_WRITE_ZEROES):
            raise Refused(Status.UNSUPP)
        data = request.chain.read(min(request.length, RANGES_BYTES), HEADER_BYTES)
        ranges = ranges_of(request, data, backend.size_bytes)
        with self._waits():
            for each in ranges:
                if discard:
                    backend.discard(each.offset, each.length)
                else:
                    backend.write_zeroes(each.offset, each.length, unmap=each.unmap)
            if not discard and self._durable:
                backend.flush()

    def _answer(self, request: Request, status: Status) -> _Answer:
        self.context.memory.write(request.status_at, _STATUS[status])
        # the status lies behind the data, so all of it counts, also where nothing was read (as every device has it)
        written = request.length + 1 if request.kind in (RequestType.IN, RequestType.GET_ID) else 1
        return request.chain, written

    def _failed(self, request: Request, error: OSError) -> list[_Answer]:
        self.statistics.errors += 1
        waits = error.errno in _FULL and self._options.when_full is FullDisk.WAIT
        self._tell(request, error, waits=waits)
        if not waits:
            return [self._answer(request, Status.IOERR)]
        with self.lock:
            if not request.chain.stale:
                self._held.append(request)
                if self._retry is None:
                    self._retry = self.context.bridge.later(RETRY_S, self._space_again)
        return []

    def _tell(self, request: Request, error: OSError, *, waits: bool) -> None:
        """Each kind of error once: a broken disk fails a thousand times a second."""
        with self.lock:
            if (number := error.errno or 0) in self._told:
                return
            self._told.add(number)
        outcome = "the guest waits until there is space" if waits else "the guest is told"
        where = f"request {request.kind}, {request.length} bytes at {request.offset}"
        logger.warning("%s: %s: %s; %s", self.label, where, error.strerror or error, outcome)
        self.context.note(f"{self.name}: {where}: {error.strerror or error}; {outcome}")


def _offered(backend: BlockBackend, queues: int) -> int:
    features = [b.F_SEG_MAX, b.F_BLK_SIZE, b.F_FLUSH, b.F_TOPOLOGY, b.F_CONFIG_WCE]
    if queues > 1:
        features.append(b.F_MQ)
    if backend.read_only:
        return bits(*features, b.F_RO)
    if backend.can_discard:
        features.append(b.F_DISCARD)
    return bits(*features, b.F_WRITE_ZEROES)
