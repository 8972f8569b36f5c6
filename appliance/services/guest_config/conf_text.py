"""A configuration as the text inside a backup: PVE's file format, one `key: value` a line, notes as comments before. Pure.

Snapshots' sections (`[name]`) of files PVE wrote are not read: a backup is of one state.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote, unquote

from appliance.errors import InvalidParameter

LIMIT_BYTES = 1 << 20
_KEYS_LIMIT = 1024
_ESCAPED = frozenset("\n\r\0")


def to_text(config: Mapping[str, str]) -> str:
    """The text. A value that would break its line (NUL, line feeds) is percent-encoded where it would."""
    lines = [f"#{quote(line, safe=_SAFE)}" for line in config.get("description", "").splitlines()]
    for key in sorted(config):
        if key != "description":
            lines.append(f"{key}: {''.join(f'%{ord(c):02X}' if c in _ESCAPED else c for c in config[key])}")
    return "\n".join(lines) + "\n"


def from_text(text: str) -> dict[str, str]:
    """The keys and values, unchecked. Raises `InvalidParameter` for what is no such text."""
    if len(text) > LIMIT_BYTES:
        raise InvalidParameter({"archive": "its configuration is too large"})
    notes: list[str] = []
    config: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("["):
            break
        if line.startswith("#"):
            if not line.startswith("#qmdump#"):
                notes.append(unquote(line[1:]))
        elif line.strip():
            key, colon, value = line.partition(":")
            if not colon or len(config) >= _KEYS_LIMIT:
                raise InvalidParameter({"archive": f"its configuration is damaged: {line[:60]!r}"})
            config[key.strip()] = _unescape(key, value.strip())
    if notes:
        config["description"] = "\n".join(notes)
    return config


def _unescape(key: str, value: str) -> str:
    # only the environment's separator and SSH keys' line ends are ever written so
    if key in ("env", "sshkeys", "cipassword"):
        for character in _ESCAPED:
            value = value.replace(f"%{ord(character):02X}", character)
    return value


_SAFE = " !\"$&'()*+,-./:;<=>?@[\\]^_`{|}~#" + "".join(chr(code) for code in range(0xA1, 0x180))
