"""The keyboard controller: Intel 8042 as in the PC/AT and PS/2, ports 0x60 and 0x64, interrupts 1 and 12.

    guest --0x64 command, 0x60 its parameter--> controller
    guest --0x60-----------> keyboard, --0xd4, 0x60--> mouse
    guest <--0x60-- output buffer, one byte <-- controller's replies, else keyboard (translated), else mouse

Every command is done when its write returns, so "input buffer full" is never seen; the output buffer is filled anew the
moment it is read, and the line of its source goes down and up again, an edge for each byte. A port that the command byte
disables holds its bytes back.

Sources: IBM PS/2 technical reference, "Keyboard and Auxiliary Device Controller"; what Linux' drivers/input/serio/i8042.c
and SeaBIOS' src/hw/ps2port.c try. vCPU threads enter through the ports; the display's owner by `key` and `pointer`.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum

from appliance.errors import Unsupported
from appliance.vmm import layout
from appliance.vmm.device import DeviceContext, MachineRequest, State
from appliance.vmm.legacy.port92 import A20Gate
from appliance.vmm.legacy.port_device import PortDevice
from appliance.vmm.legacy.ps2_codes import BREAK, translate
from appliance.vmm.legacy.ps2_keyboard import KeyboardState, Ps2Keyboard
from appliance.vmm.legacy.ps2_mouse import MouseState, Ps2Mouse
from appliance.vmm.loopbridge import Timer

STATUS_OUTPUT_FULL, STATUS_SELF_TEST, STATUS_COMMAND, STATUS_UNLOCKED, STATUS_FROM_MOUSE = 0x01, 0x04, 0x08, 0x10, 0x20
MODE_KEYBOARD_IRQ, MODE_MOUSE_IRQ, MODE_SYSTEM = 0x01, 0x02, 0x04
MODE_KEYBOARD_OFF, MODE_MOUSE_OFF, MODE_TRANSLATE = 0x10, 0x20, 0x40
# As firmware leaves it: a kernel booted without one finds a keyboard it can use
MODE_POWER_ON = MODE_KEYBOARD_IRQ | MODE_MOUSE_IRQ | MODE_SYSTEM | MODE_TRANSLATE

READ_RAM, WRITE_RAM = range(0x20, 0x40), range(0x60, 0x80)
PASSWORD_TEST, MOUSE_OFF, MOUSE_ON, MOUSE_TEST, SELF_TEST, KEYBOARD_TEST = 0xA4, 0xA7, 0xA8, 0xA9, 0xAA, 0xAB
KEYBOARD_OFF, KEYBOARD_ON, READ_INPUTS, READ_OUTPUTS, WRITE_OUTPUTS = 0xAD, 0xAE, 0xC0, 0xD0, 0xD1
AS_IF_KEYBOARD, AS_IF_MOUSE, TO_MOUSE, A20_OFF, A20_ON, PULSE = 0xD2, 0xD3, 0xD4, 0xDD, 0xDF, 0xF0

OUTPUT_NOT_RESET, OUTPUT_A20, OUTPUT_OTHERS = 0x01, 0x02, 0xCC
REPLIES = 16
FEED_PAUSE_S = 0.002  # about what a keyboard's wire needs; lets a flush of the controller come to an end


class Source(IntEnum):
    """Where the byte in the output buffer comes from."""

    CONTROLLER = 1
    KEYBOARD = 2
    MOUSE = 3


class I8042State(State):
    version: int = 1
    ram: bytes = bytes(32)
    self_tested: bool = False
    command_last: bool = True
    parameter_for: int = 0
    outputs: int = OUTPUT_NOT_RESET | OUTPUT_OTHERS
    a20: bool = True
    full: bool = False
    byte: int = 0
    source: int = Source.CONTROLLER
    replies: list[tuple[int, int]] = []  # noqa: RUF012 - msgspec copies it; byte, source
    keyboard: KeyboardState | None = None
    mouse: MouseState | None = None


class I8042(PortDevice):
    """The controller with a keyboard and a mouse plugged in. `a20` is shared with port 0x92."""

    def __init__(self, name: str, context: DeviceContext, *, a20: A20Gate | None = None) -> None:
        super().__init__(name, context)
        self._a20 = a20 or A20Gate()
        self._keyboard, self._mouse = Ps2Keyboard(), Ps2Mouse()
        self._keyboard_line = context.interrupts.line(layout.GSI_KEYBOARD)
        self._mouse_line = context.interrupts.line(layout.GSI_MOUSE)
        self._paused = False
        self._feeding: Timer | None = None
        self._power_on()
        self.claim_bytes(layout.PORT_I8042_DATA, 1, self.read_data, self.write_data)
        self.claim_bytes(layout.PORT_I8042_COMMAND, 1, self.read_status, self.write_command)

    def _power_on(self) -> None:
        self._ram = bytearray(32)  # byte 0 is the command byte
        self._ram[0] = MODE_POWER_ON
        self._self_tested, self._command_last = False, True
        self._parameter_for = 0
        self._outputs = OUTPUT_NOT_RESET | OUTPUT_OTHERS
        self._full, self._byte, self._source = False, 0, Source.CONTROLLER
        self._replies: deque[tuple[int, Source]] = deque()

    # --- the display's side: any thread --------------------------------------------------------------------------

    def key(self, code: int, *, down: bool) -> None:
        """A key by its number (`ps2_codes`). Bounded: what a guest does not take in time is dropped, presses first."""
        with self.lock:
            self._keyboard.key(code, down=down)
            self._feed()

    def pointer(self, dx: int, dy: int, buttons: int, wheel: int = 0) -> None:
        """Movement to the right and down, buttons now down (`ps2_mouse.BUTTON_*`), wheel towards the user positive."""
        with self.lock:
            self._mouse.pointer(dx, dy, buttons, wheel)
            self._fill()

    def release_all(self) -> None:
        """No key and no button is down any more: the viewer has gone."""
        with self.lock:
            self._keyboard.release_all()
            self._mouse.pointer(0, 0, 0, 0)
            self._feed()

    @property
    def leds(self) -> int:
        """Scroll lock 1, num lock 2, caps lock 4, as the guest set them."""
        return self._keyboard.leds

    # --- ports: vCPU threads -------------------------------------------------------------------------------------

    def read_status(self, _offset: int) -> int:
        with self.lock:
            status = STATUS_UNLOCKED
            status |= STATUS_SELF_TEST if self._self_tested or self._ram[0] & MODE_SYSTEM else 0
            status |= STATUS_COMMAND if self._command_last else 0
            if self._full:
                status |= STATUS_OUTPUT_FULL | (STATUS_FROM_MOUSE if self._source is Source.MOUSE else 0)
            return status

    def read_data(self, _offset: int) -> int:
        """The byte in the output buffer; once more the last one when it is empty."""
        with self.lock:
            byte = self._byte
            if self._full:
                self._full = False
                self._update_lines()
                self._fill()
                self._feed_later()
            return byte

    def write_command(self, _offset: int, value: int) -> None:
        with self.lock:
            self._command_last, self._parameter_for = True, 0
            asks_reset = self._execute(value)
            self._fill()
        if asks_reset:
            self.context.request(MachineRequest.RESET, "the guest reset itself by the keyboard controller")

    def write_data(self, _offset: int, value: int) -> None:
        with self.lock:
            self._command_last = False
            command, self._parameter_for = self._parameter_for, 0
            asks_reset = self._take_parameter(command, value)
            self._fill()
        if asks_reset:
            self.context.request(MachineRequest.RESET, "the guest reset itself by the keyboard controller")

    def _execute(self, command: int) -> bool:
        """A command; whether it is the reset."""
        match command:
            case _ if command in READ_RAM:
                self._reply(self._ram[command & 0x1F])
            case 0xD1 | 0xD2 | 0xD3 | 0xD4:
                self._parameter_for = command
            case _ if command in WRITE_RAM:
                self._parameter_for = command
            case 0xA4:
                self._reply(0xF1)  # no password
            case 0xA7:
                self._ram[0] |= MODE_MOUSE_OFF
            case 0xA8:
                self._ram[0] &= ~MODE_MOUSE_OFF
            case 0xA9 | 0xAB:
                self._reply(0x00)  # no error
            case 0xAA:
                self._self_tested = True
                self._reply(0x55)
            case 0xAD:
                self._ram[0] |= MODE_KEYBOARD_OFF
            case 0xAE:
                self._ram[0] &= ~MODE_KEYBOARD_OFF
            case 0xC0:
                self._reply(0x80)  # not locked
            case 0xD0:
                self._reply(self._output_port())
            case 0xDD | 0xDF:
                self._a20.enabled = command == A20_ON
            case _ if command >= PULSE:
                return not command & OUTPUT_NOT_RESET
            case _:
                pass  # an 8042 ignores what it does not know
        return False

    def _take_parameter(self, command: int, value: int) -> bool:
        match command:
            case 0xD1:
                self._outputs = value & ~OUTPUT_A20
                self._a20.enabled = bool(value & OUTPUT_A20)
                return not value & OUTPUT_NOT_RESET
            case 0xD2:
                self._reply(value)
            case 0xD3:
                self._reply(value, Source.MOUSE)
            case 0xD4:
                self._ram[0] &= ~MODE_MOUSE_OFF  # as on the real one, talking to it turns it on
                self._mouse.command(value)
            case 0:
                self._ram[0] &= ~MODE_KEYBOARD_OFF
                self._keyboard.command(value)
            case _:
                self._ram[command & 0x1F] = value
        return False

    def _output_port(self) -> int:
        full = (0x20 if self._source is Source.MOUSE else 0x10) if self._full else 0
        return self._outputs & ~0x32 | full | (OUTPUT_A20 if self._a20.enabled else 0)

    # --- the output buffer ---------------------------------------------------------------------------------------

    def _reply(self, byte: int, source: Source = Source.CONTROLLER) -> None:
        if len(self._replies) < REPLIES:
            self._replies.append((byte, source))

    def _fill(self) -> None:
        """Put the next byte into the output buffer, if it is empty."""
        if not self._full and (found := self._next()) is not None:
            self._byte, self._source = found
            self._full = True
        self._update_lines()

    def _next(self) -> tuple[int, Source] | None:
        if self._replies:
            return self._replies.popleft()
        mode = self._ram[0]
        if (
            not mode & MODE_KEYBOARD_OFF
            and (byte := self._keyboard_byte(translated=bool(mode & MODE_TRANSLATE))) is not None
        ):
            return byte, Source.KEYBOARD
        if not mode & MODE_MOUSE_OFF and (byte := self._mouse.next_byte()) is not None:
            return byte, Source.MOUSE
        return None

    def _keyboard_byte(self, *, translated: bool) -> int | None:
        """Set 2 becomes set 1: the break prefix goes and comes back as bit 7 of what follows it."""
        byte = self._keyboard.next_byte()
        if byte is None or not translated:
            return byte
        if byte != BREAK:
            return translate(byte)
        byte = self._keyboard.next_byte()
        return None if byte is None else translate(byte) | 0x80

    def _update_lines(self) -> None:
        if self._paused:
            return
        mode, from_mouse = self._ram[0], self._source is Source.MOUSE
        self._keyboard_line.set(asserted=self._full and not from_mouse and bool(mode & MODE_KEYBOARD_IRQ))
        self._mouse_line.set(asserted=self._full and from_mouse and bool(mode & MODE_MOUSE_IRQ))

    # --- typing --------------------------------------------------------------------------------------------------

    def _feed(self) -> None:
        """New keys go at once, unless the guest is just taking earlier ones."""
        if self._feeding is None and not self._paused:
            self._keyboard.feed()
            self._fill()

    def _feed_later(self) -> None:
        if self._feeding is None and not self._paused and self._keyboard.hungry:
            self._feeding = self.context.bridge.later(FEED_PAUSE_S, self._feed_now)

    def _feed_now(self) -> None:
        with self.lock:
            self._feeding = None
            self._feed()

    # --- life ----------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        with self.lock:
            self._stop_feeding()
            self._power_on()
            self._keyboard.reset()
            self._mouse.reset()
            self._a20.enabled = True
            self._keyboard_line.set(asserted=False)
            self._mouse_line.set(asserted=False)

    def pause(self) -> None:
        with self.lock:
            self._paused = True
            self._stop_feeding()

    def resume(self) -> None:
        with self.lock:
            self._paused = False
            self._feed()

    def _stop_feeding(self) -> None:
        if self._feeding is not None:
            self._feeding.cancel()
            self._feeding = None

    def save(self) -> I8042State:
        with self.lock:
            return I8042State(
                ram=bytes(self._ram),
                self_tested=self._self_tested,
                command_last=self._command_last,
                parameter_for=self._parameter_for,
                outputs=self._outputs,
                a20=self._a20.enabled,
                full=self._full,
                byte=self._byte,
                source=self._source,
                replies=[(byte, int(source)) for byte, source in self._replies],
                keyboard=self._keyboard.save(),
                mouse=self._mouse.save(),
            )

    def restore(self, state: State) -> None:
        mine = self.own_state(state, I8042State, version=1)
        if {mine.source, *(source for _, source in mine.replies)} - set(Source):
            raise Unsupported(f"{self.label}: saved bytes of unknown origin")
        with self.lock:
            self._ram[:] = mine.ram[:32].ljust(32, b"\0")
            self._self_tested, self._command_last = mine.self_tested, mine.command_last
            self._parameter_for, self._outputs, self._a20.enabled = mine.parameter_for, mine.outputs, mine.a20
            self._full, self._byte, self._source = mine.full, mine.byte & 0xFF, Source(mine.source)
            self._replies = deque((byte & 0xFF, Source(source)) for byte, source in mine.replies[:REPLIES])
            if mine.keyboard is not None:
                self._keyboard.restore(mine.keyboard)
            if mine.mouse is not None:
                self._mouse.restore(mine.mouse)

    @property
    def state_type(self) -> type[State]:
        return I8042State

    def close(self) -> None:
        super().close()
        with self.lock:
            self._paused = True
            self._stop_feeding()
