"""The keyboard behind the 8042: a 101/102-key PS/2 keyboard's command set and its typing. The controller has the lock.

What the host types waits in `_typed`, bounded, and goes to the guest in small portions (`feed`): firmware flushes at most
16 bytes of a controller before it calls it broken (SeaBIOS ps2port.c, Linux i8042_flush), so no more than FEED_BYTES are
ever there at once. When `_typed` fills, presses are dropped first, so that no key stays down.

Source: IBM PS/2 technical reference, "Keyboard (101- and 102-Key)", commands; as Linux' atkbd, SeaBIOS and GRUB use them.
"""

from __future__ import annotations

from collections import deque

from appliance.vmm.device import State
from appliance.vmm.legacy.ps2_codes import key_number, scan_codes

ACK, RESEND, ECHO, BAT_OK = 0xFA, 0xFE, 0xEE, 0xAA
SET_LEDS, GET_ID, SET_RATE, ENABLE, DISABLE, SET_DEFAULTS, RESET = 0xED, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xFF
CODE_SET, ALL_TYPES, ONE_KEY_TYPES = 0xF0, range(0xF7, 0xFB), range(0xFB, 0xFE)
IDENTITY = (0xAB, 0x83)  # "MF2 keyboard"

FEED_BYTES = 14
TYPED_BYTES = 1024
PRESSES_UP_TO = TYPED_BYTES - 256


class KeyboardState(State):
    version: int = 1
    replies: bytes = b""
    data: bytes = b""
    typed: list[bytes] = []  # noqa: RUF012 - msgspec copies it
    parameter_for: int = 0
    code_set: int = 2
    scanning: bool = True
    leds: int = 0
    last: int = 0
    held: list[int] = []  # noqa: RUF012


class Ps2Keyboard:
    """`next_byte` is what comes over its wire, `command` what goes to it."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Power-on."""
        self._replies: deque[int] = deque()
        self._data: deque[int] = deque()
        self._typed: deque[bytes] = deque()
        self._typed_bytes = 0
        self._parameter_for = 0
        self._last = 0
        self._held: set[int] = set()
        self.leds = 0
        self._defaults(scanning=True)

    def _defaults(self, *, scanning: bool) -> None:
        self._code_set = 2
        self._scanning = scanning
        self._drop_typed()

    def _drop_typed(self) -> None:
        self._data.clear()
        self._typed.clear()
        self._typed_bytes = 0

    # --- the host's side -----------------------------------------------------------------------------------------

    def key(self, code: int, *, down: bool) -> None:
        """A key has gone down or up. What is no key is ignored, and a release of what is not down."""
        key = key_number(code)
        if key is None or (not down and key not in self._held):
            return
        (self._held.add if down else self._held.discard)(key)
        codes = scan_codes(key, down=down, code_set=self._code_set)
        room = (PRESSES_UP_TO if down else TYPED_BYTES) - self._typed_bytes
        if codes and self._scanning and len(codes) <= room:
            self._typed.append(codes)
            self._typed_bytes += len(codes)

    def release_all(self) -> None:
        """Whoever typed has gone."""
        for key in sorted(self._held):
            self.key(key, down=False)

    @property
    def hungry(self) -> bool:
        """Whether keys wait for `feed`."""
        return bool(self._typed)

    def feed(self) -> None:
        """Let the next keys go to the guest, as many as there is room for."""
        while self._typed and len(self._data) + len(self._typed[0]) <= FEED_BYTES:
            codes = self._typed.popleft()
            self._typed_bytes -= len(codes)
            self._data.extend(codes)

    # --- the wire ------------------------------------------------------------------------------------------------

    def next_byte(self) -> int | None:
        """The next byte to the controller. Replies come before keys."""
        if self._replies:
            self._last = self._replies.popleft()
        elif self._data and not self._parameter_for:  # quiet between a command and its parameter
            self._last = self._data.popleft()
        else:
            return None
        return self._last

    def command(self, byte: int) -> None:
        """A byte from the guest. Whatever was still to be answered is not any more."""
        self._replies.clear()
        waiting_for, self._parameter_for = self._parameter_for, 0
        if waiting_for and byte < 0x80:  # no parameter is that high: it is a new command
            answer = self._with_parameter(waiting_for, byte)
        else:
            answer = self._execute(byte)
        self._replies.extend(answer)

    def _with_parameter(self, command: int, value: int) -> tuple[int, ...]:
        match command:
            case 0xED:
                self.leds = value & 0x07
            case 0xF0 if value == 0:
                return ACK, self._code_set
            case 0xF0 if value in (1, 2):
                self._code_set = value
                self._drop_typed()
            case 0xF0:
                return (RESEND,)  # set 3 is not ours
        return (ACK,)

    def _execute(self, command: int) -> tuple[int, ...]:
        match command:
            case 0xED | 0xF0 | 0xF3:
                self._parameter_for = command
            case 0xEE:
                return (ECHO,)
            case 0xF2:
                return ACK, *IDENTITY
            case 0xF4:
                self._drop_typed()
                self._scanning = True
            case 0xF5:
                self._defaults(scanning=False)
            case 0xF6:
                self._defaults(scanning=True)
            case 0xFE:
                return (self._last,)
            case 0xFF:
                self.leds = 0
                self._defaults(scanning=True)
                return ACK, BAT_OK
            case _ if command in ALL_TYPES:
                pass
            case _ if command in ONE_KEY_TYPES:
                self._parameter_for = command
            case _:
                return (RESEND,)
        return (ACK,)

    # --- saving --------------------------------------------------------------------------------------------------

    def save(self) -> KeyboardState:
        return KeyboardState(
            replies=bytes(self._replies),
            data=bytes(self._data),
            typed=list(self._typed),
            parameter_for=self._parameter_for,
            code_set=self._code_set,
            scanning=self._scanning,
            leds=self.leds,
            last=self._last,
            held=sorted(self._held),
        )

    def restore(self, state: KeyboardState) -> None:
        self.reset()
        self._replies.extend(state.replies[:FEED_BYTES])
        self._data.extend(state.data[:FEED_BYTES])
        for codes in state.typed[:TYPED_BYTES]:
            self._typed.append(codes[:FEED_BYTES])
            self._typed_bytes += len(self._typed[-1])
        self._parameter_for, self._scanning, self._last = state.parameter_for, state.scanning, state.last & 0xFF
        self._code_set = state.code_set if state.code_set in (1, 2) else 2
        self.leds = state.leds & 0x07
        self._held = {each for each in state.held if key_number(each) == each}
