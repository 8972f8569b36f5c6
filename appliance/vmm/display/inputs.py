"""Every viewer's keys and pointer, as one keyboard and one mouse or tablet of the guest. On the loop.

Keys. A viewer that tells scan codes is obeyed. One that tells keysyms only may have another layout or no shift at all
(`Key.shift`): what it lacks is pressed for it, what is too much is let go for the moment. What a viewer holds down is let
go when it leaves, unless another viewer holds it too.

The pointer goes to the tablet while the guest has a driver for it, for only then guest and viewer agree on where it is;
else by its movements to the PS/2 mouse.
"""

from __future__ import annotations

from typing import Final, Protocol

from appliance.vmm.display.keysyms import SHIFT_LEFT, SHIFTS, Key, key_of
from appliance.vmm.display.rfb_messages import KeyEvent, PointerEvent
from appliance.vmm.legacy.ps2_codes import key_number

LED_CAPS: Final = 4
MOST_HELD: Final = 64  # keys of one viewer

# RFB's buttons, as bits (RFC 6143 §7.5.5)
LEFT, MIDDLE, RIGHT, WHEEL_UP, WHEEL_DOWN = 1, 2, 4, 8, 16


class Keyboard(Protocol):
    """`legacy.i8042.I8042`, as far as it is used here."""

    def key(self, code: int, *, down: bool) -> None: ...
    def pointer(self, dx: int, dy: int, buttons: int, wheel: int = 0) -> None: ...
    def release_all(self) -> None: ...
    @property
    def leds(self) -> int: ...


class Tablet(Protocol):
    """`virtio_input.VirtioTablet`, as far as it is used here."""

    @property
    def live(self) -> bool: ...
    def pointer(self, x: float, y: float, buttons: int, wheel: int = 0) -> None: ...
    def release(self, buttons: int) -> None: ...


class Inputs:
    """Of one guest. Viewers are told apart by the object they give as themselves."""

    def __init__(self, keyboard: Keyboard, tablet: Tablet | None) -> None:
        self._keyboard, self._tablet = keyboard, tablet
        self._held: dict[object, dict[int, int]] = {}  # by viewer: what it named the key by, and the key
        self._pointers: dict[object, PointerEvent] = {}

    def key(self, viewer: object, event: KeyEvent) -> None:
        """A key of a viewer has gone down or up."""
        held = self._held.setdefault(viewer, {})
        code = key_number(event.code)
        name, key = (-code, Key(code)) if code is not None else (event.keysym, key_of(event.keysym))
        if key is None:
            return
        if not event.down:
            if name in held:
                self._release(held.pop(name))
        elif len(held) < MOST_HELD or name in held:
            held[name] = key.code
            self._press(key)

    def pointer(self, viewer: object, event: PointerEvent, size: tuple[int, int]) -> None:
        """A viewer's pointer, on a screen of `size`."""
        before = self._pointers.get(viewer, PointerEvent(0, event.x, event.y))
        self._pointers[viewer] = event
        pressed = event.buttons & ~before.buttons
        wheel = bool(pressed & WHEEL_DOWN) - bool(pressed & WHEEL_UP)
        buttons = self._buttons()
        if self._tablet is not None and self._tablet.live:
            x, y = (
                min(max(at / max(most - 1, 1), 0.0), 1.0) for at, most in zip((event.x, event.y), size, strict=True)
            )
            self._tablet.pointer(x, y, buttons, wheel)
        else:
            self._keyboard.pointer(event.x - before.x, event.y - before.y, buttons, wheel)

    def gone(self, viewer: object) -> None:
        """It holds nothing any more; when nobody is left, nothing at all is held, not even from before a restore."""
        for code in self._held.pop(viewer, {}).values():
            self._release(code)
        last = self._pointers.pop(viewer, None)
        if last is not None and last.buttons:
            self._keyboard.pointer(0, 0, self._buttons())
            if self._tablet is not None:
                self._tablet.release(self._buttons())
        if not self._held and not self._pointers:
            self._keyboard.release_all()

    def _buttons(self) -> int:
        """Those that any viewer holds, numbered as PS/2 has them."""
        held = 0
        for each in self._pointers.values():
            held |= each.buttons
        return held & LEFT | (held & RIGHT) >> 1 | (held & MIDDLE) << 1

    def _press(self, key: Key) -> None:
        shifts = [code for code in self._down() if code in SHIFTS]
        wanted = key.shift
        if key.letter and self._keyboard.leds & LED_CAPS:
            wanted = not wanted
        if wanted is None or wanted == bool(shifts):
            self._keyboard.key(key.code, down=True)
            return
        lent = sorted(set(shifts)) or [SHIFT_LEFT]
        for code in lent:
            self._keyboard.key(code, down=wanted)
        self._keyboard.key(key.code, down=True)
        for code in lent:
            self._keyboard.key(code, down=not wanted)

    def _release(self, code: int) -> None:
        if code not in self._down():
            self._keyboard.key(code, down=False)

    def _down(self) -> list[int]:
        return [code for held in self._held.values() for code in held.values()]
