"""The tablet (virtio 1.2 §5.8): an absolute pointer with three buttons and a wheel, so that the guest's pointer is where
the viewer's is. Linux, Windows' drivers and the BSDs have it from `virtio-input`; firmware does not, and needs none.

An update of the device is a group of events that ends with SYN_REPORT, one event in each buffer. A group goes whole or
not at all (§5.8.6.1): it waits until the driver has given as many buffers. Movements that wait are merged; what would be
too much is dropped, movements before clicks.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from typing import Final

from appliance.errors import Unsupported
from appliance.vmm.device import DeviceContext, State
from appliance.vmm.virtio.consts import DeviceId
from appliance.vmm.virtio.device import VirtioDevice
from appliance.vmm.virtio.queue import Chain

EVENTS, STATUS = 0, 1  # queues, §5.8.2
QUEUE_SIZE: Final = 64
EVENT_BYTES: Final = 8
MOST_WAITING: Final = 32

# Configuration, §5.8.4: select, subsel, size, five reserved bytes, 128 bytes
SELECT, SUBSELECT, SIZE, DATA, CONFIG_BYTES = 0, 1, 2, 8, 136
CFG_UNSET, CFG_NAME, CFG_SERIAL, CFG_IDS, CFG_PROPERTIES, CFG_EVENTS, CFG_AXIS = (
    0x00,
    0x01,
    0x02,
    0x03,
    0x10,
    0x11,
    0x12,
)

# Linux, include/uapi/linux/input-event-codes.h
EV_SYN, EV_KEY, EV_REL, EV_ABS = 0, 1, 2, 3
SYN_REPORT, REL_WHEEL, ABS_X, ABS_Y = 0, 8, 0, 1
BTN_LEFT, BTN_RIGHT, BTN_MIDDLE = 0x110, 0x111, 0x112
BUTTONS: Final = (BTN_LEFT, BTN_RIGHT, BTN_MIDDLE)  # by PS/2's bit numbers
AXIS_MAX: Final = 0x7FFF

BUS_VIRTUAL: Final = 6
_EVENT = struct.Struct("<HHi")


@dataclass(frozen=True, slots=True)
class Update:
    """One state of the pointer."""

    x: int
    y: int
    buttons: int
    wheel: int = 0


class VirtioTabletState(State):
    version: int = 1
    x: int = 0
    y: int = 0
    buttons: int = 0
    select: int = 0
    subselect: int = 0


class VirtioTablet(VirtioDevice):
    """`pointer` and `release` on the loop."""

    device_id = DeviceId.INPUT
    device_state_type = VirtioTabletState

    def __init__(self, name: str, context: DeviceContext) -> None:
        super().__init__(name, context, queue_sizes=[QUEUE_SIZE, QUEUE_SIZE])
        self._select = self._subselect = 0
        self._told = Update(0, 0, 0)  # what the driver knows
        self._waiting: deque[Update] = deque()
        self._config = _configuration("Appliance tablet")

    # The viewer's side

    def pointer(self, x: float, y: float, buttons: int, wheel: int = 0) -> None:
        """Where it is, 0 to 1 of the screen's width and height; the buttons that are down, as PS/2 numbers them; wheel
        towards the user positive."""
        with self.lock:
            if not self.live:
                return
            self._wait(Update(round(x * AXIS_MAX), round(y * AXIS_MAX), buttons & 7, -wheel))
        self.guard(self._tell)

    def release(self, buttons: int) -> None:
        """These buttons are down now, and the pointer stays."""
        with self.lock:
            if not self.live:
                return
            last = self._waiting[-1] if self._waiting else self._told
            self._wait(Update(last.x, last.y, buttons & 7))
        self.guard(self._tell)

    def _wait(self, update: Update) -> None:
        last = self._waiting[-1] if self._waiting else None
        if last is not None and (last.buttons == update.buttons or len(self._waiting) >= MOST_WAITING):
            self._waiting.pop()
            wheel = max(-127, min(127, last.wheel + update.wheel))
            update = Update(update.x, update.y, update.buttons, wheel)
        self._waiting.append(update)

    # The driver's side

    def on_kick(self, index: int) -> None:
        if index == STATUS:
            self.serve(STATUS, lambda chain: 0)  # LEDs, of which a tablet has none
        else:
            self._tell()

    def _tell(self) -> None:
        """As many updates as there are buffers for."""
        queue = self.queues[EVENTS]
        try:
            while True:
                with self.lock:
                    update = self._waiting[0] if self._waiting else None
                if update is None:
                    return
                events = _events(self._told, update)
                chains = self._chains(len(events))
                if chains is None:
                    return
                for chain, event in zip(chains, events, strict=True):
                    chain.write(event)
                queue.push_all([(chain, EVENT_BYTES) for chain in chains])
                with self.lock:
                    self._told = update
                    if self._waiting and self._waiting[0] is update:
                        self._waiting.popleft()
        finally:
            queue.flush()

    def _chains(self, count: int) -> list[Chain] | None:
        """Exactly so many, or none, and then the driver kicks when there are more."""
        queue, taken = self.queues[EVENTS], list[Chain]()
        while len(taken) < count:
            chain = queue.pop()
            if chain is not None:
                taken.append(chain)
            elif not queue.enable_kicks():
                for each in reversed(taken):
                    queue.unpop(each)
                return None
        return taken

    def deactivate(self) -> None:
        self._waiting.clear()
        self._told = Update(0, 0, 0)
        self._select = self._subselect = 0

    def save_device(self) -> State | None:
        told = self._told
        return VirtioTabletState(
            x=told.x, y=told.y, buttons=told.buttons, select=self._select, subselect=self._subselect
        )

    def restore_device(self, state: State) -> None:
        """Whoever held a button is not here: the driver hears of it when the machine goes on."""
        if not isinstance(state, VirtioTabletState) or state.version != 1:
            raise Unsupported(f"{self.label}: saved state of another version")
        self._told = Update(state.x & AXIS_MAX, state.y & AXIS_MAX, state.buttons & 7)
        self._select, self._subselect = state.select & 0xFF, state.subselect & 0xFF
        self._waiting = deque([Update(self._told.x, self._told.y, 0)] if self._told.buttons else [])

    # Configuration

    def read_config(self, offset: int, size: int) -> int:
        data = self._config.get((self._select, self._subselect), b"")
        shown = bytes([self._select, self._subselect, len(data), 0, 0, 0, 0, 0]) + data
        return int.from_bytes(shown[offset : offset + size], "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Only what is asked for is the driver's to write (§5.8.5.1)."""
        for place, byte in enumerate(value.to_bytes(size, "little"), offset):
            if place == SELECT:
                self._select = byte
            elif place == SUBSELECT:
                self._subselect = byte


def _events(before: Update, after: Update) -> list[bytes]:
    """What has to be said, SYN_REPORT at the end."""
    told: list[tuple[int, int, int]] = []
    if after.x != before.x:
        told.append((EV_ABS, ABS_X, after.x))
    if after.y != before.y:
        told.append((EV_ABS, ABS_Y, after.y))
    changed = after.buttons ^ before.buttons
    told += [(EV_KEY, code, after.buttons >> bit & 1) for bit, code in enumerate(BUTTONS) if changed >> bit & 1]
    if after.wheel:
        told.append((EV_REL, REL_WHEEL, after.wheel))
    told.append((EV_SYN, SYN_REPORT, 0))
    return [_EVENT.pack(*event) for event in told]


def _configuration(name: str) -> dict[tuple[int, int], bytes]:
    """What is told, by (select, subselect). What is not there has size 0."""
    axis = struct.pack("<IIIII", 0, AXIS_MAX, 0, 0, 0)  # from, to, fuzz, flat, resolution
    return {
        (CFG_NAME, 0): name.encode(),
        (CFG_IDS, 0): struct.pack("<HHHH", BUS_VIRTUAL, 0x0627, 0x0003, 2),  # as QEMU's virtio tablet
        (CFG_EVENTS, EV_KEY): _bitmap(*BUTTONS),
        (CFG_EVENTS, EV_REL): _bitmap(REL_WHEEL),
        (CFG_EVENTS, EV_ABS): _bitmap(ABS_X, ABS_Y),
        (CFG_AXIS, ABS_X): axis,
        (CFG_AXIS, ABS_Y): axis,
    }


def _bitmap(*codes: int) -> bytes:
    made = 0
    for code in codes:
        made |= 1 << code
    return made.to_bytes(max(codes) // 8 + 1, "little")
