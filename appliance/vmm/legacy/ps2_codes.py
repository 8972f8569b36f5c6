"""Scan codes of PS/2 keyboards: what a key is called here, what a keyboard sends for it, and the 8042's translation. Pure.

A key is named by its set 1 code, as QEMU and VNC's extended key event do: 0x01-0x7f, and with 0x80 added (or 0xe0 as the
high byte) those with an E0 prefix. Pause is 0xc6, Print Screen 0xb7. Sources: IBM PS/2 technical reference, "Keyboard
(101- and 102-Key)"; the 8042's table is the one that Linux reverses (drivers/input/keyboard/atkbd.c).
"""

from __future__ import annotations

from typing import Final

EXTENDED: Final = 0xE0
PAUSE_PREFIX: Final = 0xE1
BREAK: Final = 0xF0  # set 2: what follows is released
KEY_PAUSE, KEY_PRINT = 0xC6, 0xB7

# The set 2 code of each set 1 code 0x00-0x7f: a permutation
_SET_2 = bytes.fromhex(
    "0076161e26252e363d3e46454e55660d"
    "151d242d2c353c43444d545b5a141c1b"
    "232b34333b424b4c520e125d1a22212a"
    "32313a41494a597c1129580506040c03"
    "0b020a0109777e6c757d7b6b73747969"
    "727a70717f606178070f171f272f373f"
    "474f565e08101820283038404850576f"
    "13193951535c5f6263646567686a6d6e"
)
_ABOVE_7F = {0x41: 0x83, 0x54: 0x84}  # F7 and Alt+SysRq: what keyboards send instead of 0x02 and 0x7f
_SET_1 = {code: number for number, code in enumerate(_SET_2)} | {code: number for number, code in _ABOVE_7F.items()}

_PAUSE_SET_1 = bytes.fromhex("e11d45e19dc5")
_PAUSE_SET_2 = bytes.fromhex("e11477e1f014f077")


def translate(code: int) -> int:
    """A byte of set 2 as the 8042 passes it on; those that are no scan codes (replies, prefixes) as they are."""
    return _SET_1.get(code, code)


def key_number(code: int) -> int | None:
    """The key's name with the prefix as bit 7; None for what is no key."""
    if code >> 8 == EXTENDED:
        code = code & 0x7F | 0x80
    return code if 0 < code < 0x100 and code & 0x7F else None


def scan_codes(key: int, *, down: bool, code_set: int) -> bytes:
    """What the keyboard sends as `key` goes down or up, in set 1 or 2."""
    if key == KEY_PAUSE:  # has no release of its own
        return (_PAUSE_SET_1 if code_set == 1 else _PAUSE_SET_2) if down else b""
    prefix = bytes([EXTENDED]) if key & 0x80 else b""
    number = key & 0x7F
    if code_set == 1:
        return prefix + bytes([number if down else number | 0x80])
    code = _SET_2[number] if prefix else _ABOVE_7F.get(number, _SET_2[number])
    return prefix + (b"" if down else bytes([BREAK])) + bytes([code])
