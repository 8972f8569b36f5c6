"""The keys of a US keyboard, by the X names (keysyms) that RFB's key events carry (RFC 6143 §7.5.4). Pure.

Keys are numbered as in `legacy.ps2_codes`: set 1, with 0x80 for those with an E0 prefix. A viewer that tells scan codes
(noVNC does) needs none of this, and may have any keyboard layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SHIFT_LEFT, SHIFT_RIGHT, CAPS_LOCK = 0x2A, 0x36, 0x3A
SHIFTS: Final = frozenset({SHIFT_LEFT, SHIFT_RIGHT})


@dataclass(frozen=True, slots=True)
class Key:
    """`shift`: whether the keysym comes out with shift (True), without (False), or shift does not matter (None).
    `letter`: caps lock turns it round."""

    code: int
    shift: bool | None = None
    letter: bool = False


# Rows of keys from the code of the first: plain, then shifted
_ROWS: Final = (
    (0x02, "1234567890-=", "!@#$%^&*()_+"),
    (0x10, "qwertyuiop[]", "QWERTYUIOP{}"),
    (0x1E, "asdfghjkl;'`", 'ASDFGHJKL:"~'),
    (0x2B, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
)

_OTHERS: Final = {
    0x20: 0x39,  # space
    0xFF08: 0x0E,  # BackSpace
    0xFF09: 0x0F,  # Tab
    0xFE20: 0x0F,  # ISO_Left_Tab: shift is held
    0xFF0D: 0x1C,  # Return
    0xFF13: 0xC6,  # Pause
    0xFF14: 0x46,  # Scroll_Lock
    0xFF15: 0xB7,  # Sys_Req
    0xFF1B: 0x01,  # Escape
    0xFF50: 0xC7,  # Home
    0xFF51: 0xCB,  # Left
    0xFF52: 0xC8,  # Up
    0xFF53: 0xCD,  # Right
    0xFF54: 0xD0,  # Down
    0xFF55: 0xC9,  # Page_Up
    0xFF56: 0xD1,  # Page_Down
    0xFF57: 0xCF,  # End
    0xFF61: 0xB7,  # Print
    0xFF63: 0xD2,  # Insert
    0xFF67: 0xDD,  # Menu
    0xFF6B: 0xC6,  # Break
    0xFF7E: 0xB8,  # Mode_switch
    0xFF7F: 0x45,  # Num_Lock
    0xFF8D: 0x9C,  # KP_Enter
    0xFF95: 0x47,  # KP_Home
    0xFF96: 0x4B,  # KP_Left
    0xFF97: 0x48,  # KP_Up
    0xFF98: 0x4D,  # KP_Right
    0xFF99: 0x50,  # KP_Down
    0xFF9A: 0x49,  # KP_Page_Up
    0xFF9B: 0x51,  # KP_Page_Down
    0xFF9C: 0x4F,  # KP_End
    0xFF9D: 0x4C,  # KP_Begin
    0xFF9E: 0x52,  # KP_Insert
    0xFF9F: 0x53,  # KP_Delete
    0xFFAA: 0x37,  # KP_Multiply
    0xFFAB: 0x4E,  # KP_Add
    0xFFAC: 0x53,  # KP_Separator
    0xFFAD: 0x4A,  # KP_Subtract
    0xFFAE: 0x53,  # KP_Decimal
    0xFFAF: 0xB5,  # KP_Divide
    0xFFB0: 0x52,  # KP_0
    0xFFB1: 0x4F,
    0xFFB2: 0x50,
    0xFFB3: 0x51,
    0xFFB4: 0x4B,
    0xFFB5: 0x4C,
    0xFFB6: 0x4D,
    0xFFB7: 0x47,
    0xFFB8: 0x48,
    0xFFB9: 0x49,  # KP_9
    0xFFBD: 0x0D,  # KP_Equal
    0xFFE1: SHIFT_LEFT,
    0xFFE2: SHIFT_RIGHT,
    0xFFE3: 0x1D,  # Control_L
    0xFFE4: 0x9D,  # Control_R
    0xFFE5: CAPS_LOCK,
    0xFFE7: 0xDB,  # Meta_L
    0xFFE8: 0xDC,  # Meta_R
    0xFFE9: 0x38,  # Alt_L
    0xFFEA: 0xB8,  # Alt_R
    0xFFEB: 0xDB,  # Super_L
    0xFFEC: 0xDC,  # Super_R
    0xFE03: 0xB8,  # ISO_Level3_Shift
    0xFFFF: 0xD3,  # Delete
    **{0xFFBE + number: 0x3B + number for number in range(10)},  # F1 to F10
    0xFFC8: 0x57,  # F11
    0xFFC9: 0x58,  # F12
}


def _all_keys() -> dict[int, Key]:
    keys = {keysym: Key(code) for keysym, code in _OTHERS.items()}
    for first, plain, shifted in _ROWS:
        for number, (low, high) in enumerate(zip(plain, shifted, strict=True)):
            letter = low.isalpha()
            keys[ord(low)] = Key(first + number, False, letter)
            keys[ord(high)] = Key(first + number, True, letter)
    return keys


_KEYS: Final = _all_keys()


def key_of(keysym: int) -> Key | None:
    """The key that has `keysym` on it; None when a US keyboard has none."""
    return _KEYS.get(keysym)
