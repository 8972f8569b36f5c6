"""The memory balloon (virtio 1.2 §5.5): memory that the guest can do without goes back to the host.

    queue 0  inflate          page numbers the guest gives up: discarded
    queue 1  deflate          page numbers it takes back: nothing to do, what was discarded reads as zeros
    queue 2  statistics       one buffer of figures, given back when newer ones are wanted
    queue 3  free page hints  never asked for; offered so that queue 4 has its number, whichever way a driver counts
    queue 4  free pages       reported as they are free: discarded

Discarding takes the host's time, so that it is done in the machine's pool, one chain at a time; the device is not reset,
as its driver sees it, before it has stopped. A guest that reports or gives up what is no memory is not heard. The
figures are the guest's word: whoever shows them checks them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Final

from appliance.errors import GuestFault, HostError, Unsupported
from appliance.vmm.device import DeviceContext, State
from appliance.vmm.layout import MIB, PAGE
from appliance.vmm.loopbridge import Timer
from appliance.vmm.virtio.consts import STATUS_DRIVER_OK, DeviceId, bits
from appliance.vmm.virtio.device import VirtioDevice
from appliance.vmm.virtio.queue import Chain, Segment

F_STATS_VQ: Final = 1
F_DEFLATE_ON_OOM: Final = 2
F_FREE_PAGE_HINT: Final = 3
F_PAGE_POISON: Final = 4
F_REPORTING: Final = 5

INFLATE, DEFLATE, STATS, HINTS, REPORTING = 0, 1, 2, 3, 4
QUEUE_SIZE: Final = 128
MAX_PAGES_AT_ONCE: Final = 16384  # of one inflate request; Linux sends 256, others up to 1024
MAX_STATS: Final = 64  # entries read of one buffer; ten are defined

_CONFIG_BYTES: Final = 16
_ACTUAL, _POISON = 4, 12
_STAT = struct.Struct("<HQ")
_PAGES_PER_MIB = MIB // PAGE


@dataclass(frozen=True, slots=True)
class BalloonStats:
    """What the guest said last; in the order of the tags of §5.5.6.4, None for what it did not say."""

    swapped_in_bytes: int | None = None
    swapped_out_bytes: int | None = None
    major_faults: int | None = None
    minor_faults: int | None = None
    free_bytes: int | None = None
    total_bytes: int | None = None
    available_bytes: int | None = None
    caches_bytes: int | None = None
    huge_page_allocations: int | None = None
    huge_page_failures: int | None = None
    told_at_s: float = 0.0  # `clock.monotonic`


_TAGS: Final = tuple(field.name for field in fields(BalloonStats))[:10]


class BalloonState(State):
    """Version 1. In pages of 4 KiB."""

    version: int
    wanted_pages: int
    actual_pages: int
    poison: int


class VirtioBalloon(VirtioDevice):
    """`stats_every_s` 0 asks for no figures."""

    device_id = DeviceId.BALLOON
    device_state_type = BalloonState

    def __init__(
        self, name: str, context: DeviceContext, *, deflate_on_oom: bool = True, stats_every_s: float = 2.0
    ) -> None:
        features = bits(F_STATS_VQ, F_FREE_PAGE_HINT, F_PAGE_POISON, F_REPORTING)
        features |= bits(F_DEFLATE_ON_OOM) if deflate_on_oom else 0
        super().__init__(name, context, queue_sizes=[QUEUE_SIZE] * 5, features=features)
        self.stats: BalloonStats | None = None
        self._every_s = stats_every_s
        self._wanted_pages = 0  # in the balloon
        self._actual_pages = 0
        self._poison = 0
        self._stats_chain: Chain | None = None
        self._timer: Timer | None = None
        self._discarding = False

    # The host

    @property
    def memory_mib(self) -> int:
        """What the guest has with an empty balloon."""
        return self.context.memory.size // MIB

    @property
    def target_mib(self) -> int:
        """What the guest shall have; set it, and the driver follows as it can."""
        return self.memory_mib - self._wanted_pages // _PAGES_PER_MIB

    @target_mib.setter
    def target_mib(self, mib: int) -> None:
        kept = min(max(mib, 0), self.memory_mib)
        with self.lock:
            self._wanted_pages = (self.memory_mib - kept) * _PAGES_PER_MIB
            self.config_changed()

    @property
    def actual_bytes(self) -> int:
        """What the guest has now, as its driver says."""
        return max(0, self.context.memory.size - self._actual_pages * PAGE)

    # Configuration, §5.5.4: num_pages, actual, free_page_hint_cmd_id (0: stop), poison_val

    def read_config(self, offset: int, size: int) -> int:
        return int.from_bytes(self._config()[offset : offset + size], "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        config = bytearray(self._config())
        if offset + size > _CONFIG_BYTES:
            return
        config[offset : offset + size] = value.to_bytes(size, "little")
        self._actual_pages = int.from_bytes(config[_ACTUAL : _ACTUAL + 4], "little")
        if not self.status & STATUS_DRIVER_OK:  # §5.5.6.6.1
            self._poison = int.from_bytes(config[_POISON:], "little")

    def _config(self) -> bytes:
        return struct.pack("<IIII", self._wanted_pages, self._actual_pages, 0, self._poison)

    # The driver

    def activate(self) -> None:
        self._ask_later()

    def deactivate(self) -> None:
        self._ask_no_more()
        self._stats_chain = self.stats = None
        self._actual_pages = self._poison = 0

    def busy(self) -> bool:
        return self._discarding

    def on_kick(self, index: int) -> None:
        if index == HINTS and not self.has(F_FREE_PAGE_HINT):
            self._serve_discards(HINTS, self._report)  # Linux passes over the number of a queue that is not there
        elif index == REPORTING:
            self._serve_discards(REPORTING, self._report)
        elif index == INFLATE:
            self._serve_discards(INFLATE, self._inflate)
        elif index == STATS:
            self.serve(STATS, self._told)
        else:
            self.serve(index, lambda chain: 0)

    # Giving back

    def _serve_discards(self, index: int, parts_of: Callable[[Chain], Iterable[Segment]]) -> None:
        def discard(chain: Chain) -> None:
            parts = parts_of(chain)
            self._discarding = True
            self.context.bridge.submit(partial(self._discard, index, chain, parts))

        self.serve(index, discard, ready=lambda: not self._discarding)

    def _inflate(self, chain: Chain) -> Iterable[Segment]:
        """§5.5.6: an array of 32-bit page numbers."""
        count, odd = divmod(chain.readable_bytes, 4)
        if odd or count > MAX_PAGES_AT_ONCE:
            raise GuestFault(f"{self.label}: {chain.readable_bytes} bytes of page numbers")
        data = chain.read(4 * count)
        return runs(struct.unpack(f"<{len(data) // 4}I", data))  # nothing of a stale chain

    def _report(self, chain: Chain) -> Iterable[Segment]:
        """§5.5.6.7: the buffers themselves. With poison they have to keep that value, which nothing but zero can."""
        if not self.has(F_REPORTING) or (self.has(F_PAGE_POISON) and self._poison):
            return ()
        return [whole_pages(segment) for segment in chain.writable]

    def _discard(self, index: int, chain: Chain, parts: Iterable[Segment]) -> None:
        """In the pool. Stops at a reset, which waits for it: the pages are another driver's then."""
        memory, queue = self.context.memory, self.queues[index]
        try:
            for address, length in parts:
                if chain.stale:
                    break
                if length and memory.is_ram(address, length):
                    memory.discard(address, length)
        except HostError as error:
            self.context.note(f"{self.label}: {error.message}")
        finally:
            queue.push(chain, 0)
            queue.flush()
            self._discarding = False
            for each in (INFLATE, HINTS, REPORTING):  # whoever was not ready meanwhile
                self.kick(each)

    # Figures, §5.5.6.3

    def _told(self, chain: Chain) -> None:
        """The driver has put figures into its buffer, which is kept until newer ones are wanted."""
        data = chain.read(MAX_STATS * _STAT.size)
        told = {}
        for tag, value in _STAT.iter_unpack(data[: len(data) // _STAT.size * _STAT.size]):
            if tag < len(_TAGS):
                told[_TAGS[tag]] = value
        with self.lock:
            before, self._stats_chain = self._stats_chain, chain
            if told:
                self.stats = BalloonStats(**told, told_at_s=self.context.clock.monotonic())
        if before is not None:  # a driver with two: only one is kept
            self.queues[STATS].push(before, 0)

    def _ask_later(self) -> None:
        self._ask_no_more()
        if self._every_s > 0:
            self._timer = self.context.bridge.later(self._every_s, self._ask)

    def _ask_no_more(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _ask(self) -> None:
        self.guard(self._give_back)
        with self.lock:
            if self.live and not self._paused:
                self._ask_later()

    def _give_back(self) -> None:
        with self.lock:
            chain, self._stats_chain = self._stats_chain, None
        if chain is not None:
            self.queues[STATS].push(chain, 0)
            self.queues[STATS].flush()

    # The machine

    def pause(self) -> None:
        super().pause()
        with self.lock:
            self._ask_no_more()

    def resume(self) -> None:
        super().resume()
        with self.lock:
            if self.live:
                self._ask_later()

    def close(self) -> None:
        with self.lock:
            self._ask_no_more()
        super().close()

    def save_device(self) -> State | None:
        return BalloonState(1, self._wanted_pages, self._actual_pages, self._poison)

    def restore_device(self, state: State) -> None:
        assert isinstance(state, BalloonState)
        if state.version != 1 or not 0 <= state.wanted_pages <= self.context.memory.size // PAGE:
            raise Unsupported(f"{self.label}: saved state of a balloon of version {state.version}")
        self._wanted_pages, self._actual_pages = state.wanted_pages, state.actual_pages & 0xFFFF_FFFF
        self._poison = state.poison & 0xFFFF_FFFF


def runs(numbers: Iterable[int]) -> Iterator[Segment]:
    """The pages of these numbers as few segments: a page each would be a system call each."""
    first = following = -1
    for number in sorted(set(numbers)):
        if number != following:
            if first >= 0:
                yield Segment(first * PAGE, (following - first) * PAGE)
            first = number
        following = number + 1
    if first >= 0:
        yield Segment(first * PAGE, (following - first) * PAGE)


def whole_pages(segment: Segment) -> Segment:
    """The pages that lie in it wholly; of length 0 when none does."""
    start, end = -(-segment.address // PAGE) * PAGE, (segment.address + segment.length) // PAGE * PAGE
    return Segment(start, max(0, end - start))
