"""The mouse behind the 8042: a PS/2 mouse with Microsoft's wheel and five-button extensions. The controller has the lock.

Movement is summed up until the guest has taken the packet before, buttons in the order they were pressed (bounded: past
MOTIONS the newest are merged). Sources: IBM PS/2 technical reference, "Mouse"; Microsoft's "knock", three sample rates in
a row, as Linux' psmouse (intellimouse_detect, im_explorer_detect) does it.
"""

from __future__ import annotations

from collections import deque

from appliance.vmm.device import State

ACK, ERROR, BAT_OK = 0xFA, 0xFE, 0xAA
BUTTON_LEFT, BUTTON_RIGHT, BUTTON_MIDDLE, BUTTON_SIDE, BUTTON_EXTRA = 1, 2, 4, 8, 16
TYPE_PLAIN, TYPE_WHEEL, TYPE_EXPLORER = 0, 3, 4
KNOCKS = {(200, 100, 80): TYPE_WHEEL, (200, 200, 80): TYPE_EXPLORER}

MOTIONS = 64
FURTHEST = 1 << 15
_SCALED = (0, 1, 1, 3, 6, 9)


class MouseState(State):
    version: int = 1
    replies: bytes = b""
    data: bytes = b""
    motions: list[tuple[int, int, int, int]] = []  # noqa: RUF012 - msgspec copies it
    parameter_for: int = 0
    rates: list[int] = []  # noqa: RUF012
    type: int = TYPE_PLAIN
    rate: int = 100
    resolution: int = 2
    doubled: bool = False
    remote: bool = False
    wrap: bool = False
    reporting: bool = False
    buttons: int = 0
    last: int = 0


def _bounded(value: int, most: int) -> int:
    return max(-most, min(most, value))


class Ps2Mouse:
    """`next_byte` is what comes over its wire, `command` what goes to it."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Power-on."""
        self._replies: deque[int] = deque()
        self._data: deque[int] = deque()
        self._motions: deque[tuple[int, int, int, int]] = deque()  # dx, dy (down), wheel, buttons
        self._parameter_for = 0
        self._rates: deque[int] = deque(maxlen=3)
        self._type = TYPE_PLAIN
        self._buttons = 0
        self._last = 0
        self._wrap = False
        self._defaults()

    def _defaults(self) -> None:
        self._rate, self._resolution = 100, 2
        self._doubled = self._remote = self._reporting = False
        self._drop_motions()

    def _drop_motions(self) -> None:
        self._data.clear()
        self._motions.clear()

    # --- the host's side -----------------------------------------------------------------------------------------

    def pointer(self, dx: int, dy: int, buttons: int, wheel: int) -> None:
        """Moved by (right, down), wheel towards the user positive; `buttons` are those down now."""
        buttons &= 0x1F
        changed, self._buttons = buttons != self._buttons, buttons
        if not (self._reporting or self._remote) or not (dx or dy or wheel or changed):
            return
        if self._motions and (not changed or len(self._motions) >= MOTIONS):
            last = self._motions.pop()
            dx, dy, wheel = dx + last[0], dy + last[1], wheel + last[2]
        self._motions.append((_bounded(dx, FURTHEST), _bounded(dy, FURTHEST), _bounded(wheel, FURTHEST), buttons))

    def _packet(self) -> bytes:
        """The next three or four bytes, of the oldest motion; what does not fit stays for the next packet."""
        dx, dy, wheel, buttons = self._motions.popleft() if self._motions else (0, 0, 0, self._buttons)
        x, y = _bounded(dx, 255), _bounded(dy, 255)
        z = _bounded(wheel, 7 if self._type == TYPE_EXPLORER else 127) if self._type else wheel
        if dx != x or dy != y or wheel != z:
            self._motions.appendleft((dx - x, dy - y, wheel - z, buttons))
        if self._doubled:
            x, y = self._scaled(x), self._scaled(y)
        first = 0x08 | buttons & 0x07 | (0x10 if x < 0 else 0) | (0x20 if y > 0 else 0)
        packet = bytes([first, x & 0xFF, -y & 0xFF])
        match self._type:
            case 3:
                return packet + bytes([z & 0xFF])
            case 4:
                return packet + bytes([z & 0x0F | (buttons & 0x18) << 1])
            case _:
                return packet

    @staticmethod
    def _scaled(value: int) -> int:
        """Scaling 2:1 of streamed movement."""
        size = abs(value)
        size = _SCALED[size] if size < len(_SCALED) else min(2 * size, 255)
        return size if value >= 0 else -size

    # --- the wire ------------------------------------------------------------------------------------------------

    def next_byte(self) -> int | None:
        """The next byte to the controller. Replies come before movements."""
        if self._replies:
            self._last = self._replies.popleft()
            return self._last
        if not self._data and self._motions and self._reporting and not self._remote and not self._wrap:
            self._data.extend(self._packet())
        if self._data and not self._parameter_for:
            self._last = self._data.popleft()
            return self._last
        return None

    def command(self, byte: int) -> None:
        """A byte from the guest. What was still to be answered is not any more, nor the rest of a packet."""
        resent = self._last
        self._replies.clear()
        self._data.clear()
        waiting_for, self._parameter_for = self._parameter_for, 0
        if self._wrap and byte not in (0xEC, 0xFF):
            answer: tuple[int, ...] = (byte,)
        elif waiting_for:
            answer = self._with_parameter(waiting_for, byte)
        else:
            answer = (resent,) if byte == 0xFE else self._execute(byte)
        self._replies.extend(answer)

    def _with_parameter(self, command: int, value: int) -> tuple[int, ...]:
        if command == 0xE8:
            if value > 3:
                return (ERROR,)
            self._resolution = value
            return (ACK,)
        self._rate = value
        self._rates.append(value)
        knocked = KNOCKS.get(tuple(self._rates), TYPE_PLAIN)  # type: ignore[arg-type]
        self._type = max(self._type, knocked)
        return (ACK,)

    def _execute(self, command: int) -> tuple[int, ...]:
        match command:
            case 0xE6 | 0xE7:
                self._doubled = command == 0xE7
            case 0xE8 | 0xF3:
                self._parameter_for = command
            case 0xE9:
                return ACK, self._status(), self._resolution, self._rate
            case 0xEA | 0xF0:
                self._remote = command == 0xF0
                self._drop_motions()
            case 0xEB:
                return ACK, *self._packet()
            case 0xEC | 0xEE:
                self._wrap = command == 0xEE
            case 0xF2:
                return ACK, self._type
            case 0xF4 | 0xF5:
                self._reporting = command == 0xF4
                self._drop_motions()
            case 0xF6:
                self._defaults()
            case 0xFF:
                buttons = self._buttons
                self.reset()
                self._buttons = buttons
                return ACK, BAT_OK, TYPE_PLAIN
            case _:
                return (ERROR,)
        return (ACK,)

    def _status(self) -> int:
        """The first byte of E9's answer: mode, reporting, scaling, then left, middle, right."""
        down = self._buttons
        held = (down & BUTTON_LEFT) << 2 | (down & BUTTON_MIDDLE) >> 1 | (down & BUTTON_RIGHT) >> 1
        return self._remote << 6 | self._reporting << 5 | self._doubled << 4 | held

    # --- saving --------------------------------------------------------------------------------------------------

    def save(self) -> MouseState:
        return MouseState(
            replies=bytes(self._replies),
            data=bytes(self._data),
            motions=list(self._motions),
            parameter_for=self._parameter_for,
            rates=list(self._rates),
            type=self._type,
            rate=self._rate,
            resolution=self._resolution,
            doubled=self._doubled,
            remote=self._remote,
            wrap=self._wrap,
            reporting=self._reporting,
            buttons=self._buttons,
            last=self._last,
        )

    def restore(self, state: MouseState) -> None:
        self.reset()
        self._replies.extend(state.replies[:16])
        self._data.extend(state.data[:4])
        for dx, dy, wheel, buttons in state.motions[:MOTIONS]:
            moved = (_bounded(dx, FURTHEST), _bounded(dy, FURTHEST), _bounded(wheel, FURTHEST))
            self._motions.append((*moved, buttons & 0x1F))
        self._parameter_for, self._last = state.parameter_for, state.last & 0xFF
        self._rates.extend(state.rates[-3:])
        self._type = state.type if state.type in (TYPE_PLAIN, TYPE_WHEEL, TYPE_EXPLORER) else TYPE_PLAIN
        self._rate, self._resolution = state.rate & 0xFF, state.resolution & 0x03
        self._doubled, self._remote, self._wrap = state.doubled, state.remote, state.wrap
        self._reporting, self._buttons = state.reporting, state.buttons & 0x1F
