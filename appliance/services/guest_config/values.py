"""Single values of a guest's configuration: type, limits and normal form, described by data.

A `Value` describes one scalar; `normalise` checks a text against it and returns the form that is stored. Messages use
PVE's words, because people search for them. Formats with a grammar of their own are functions in `formats.py`.
Everything raises `ValueError` with one line; the caller adds the key's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

NOT_SUPPORTED = "not supported by this appliance yet"
TEXT_LIMIT = 8192

_TRUE, _FALSE = {"1", "on", "yes", "true"}, {"0", "off", "no", "false"}
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x80-\x9f\u2028\u2029\ud800-\udfff]")
_CONTROL_BUT_LINES = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\ud800-\udfff]")


class ValueType(StrEnum):
    """PVE's words for the types of its schema."""

    STRING = "string"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One scalar. `works` lists the values this appliance can honour: others are valid PVE, and refused as unsupported.

    An empty `works` means that every value is honoured. `check` returns the normal form or raises `ValueError`.
    """

    type: ValueType = ValueType.STRING
    description: str = ""
    default: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    pattern: str = ""
    max_length: int = TEXT_LIMIT
    check: Callable[[str], str] | None = None
    works: tuple[str, ...] = ()
    supported: bool = True
    lines: bool = False
    """Whether line feeds and tabs may appear (descriptions)."""

    def normalise(self, text: str) -> str:
        """Check `text` and return its stored form. Raises `ValueError`."""
        if not self.supported:
            raise ValueError(NOT_SUPPORTED)
        match self.type:
            case ValueType.BOOLEAN:
                normal = _boolean(text)
            case ValueType.INTEGER | ValueType.NUMBER:
                normal = self._number(text)
            case ValueType.STRING:
                normal = self._string(text)
        if self.works and normal not in self.works:
            raise ValueError(f"'{shorten(normal)}' is {NOT_SUPPORTED} (only: {', '.join(self.works)})")
        return normal

    def _number(self, text: str) -> str:
        integer = self.type is ValueType.INTEGER
        if not (_INTEGER if integer else _NUMBER).fullmatch(text):
            raise ValueError(f"type check ('{self.type}') failed - got '{shorten(text)}'")
        number = int(text) if integer else float(text)
        if self.minimum is not None and number < self.minimum:
            raise ValueError(f"value must have a minimum value of {self.minimum:g}")
        if self.maximum is not None and number > self.maximum:
            raise ValueError(f"value must have a maximum value of {self.maximum:g}")
        return str(number) if integer else _decimal(text)

    def _string(self, text: str) -> str:
        if len(text) > self.max_length:
            raise ValueError(f"value may only be {self.max_length} characters long")
        if self.choices and text not in self.choices:
            raise ValueError(
                f"value '{shorten(text)}' does not have a value in the enumeration '{', '.join(self.choices)}'"
            )
        if self.pattern:
            if not re.fullmatch(self.pattern, text, re.ASCII):
                raise ValueError("value does not match the regex pattern")
        elif (_CONTROL_BUT_LINES if self.lines else _CONTROL).search(text):
            raise ValueError("value contains control characters")
        return self.check(text) if self.check is not None else text


def boolean(description: str = "", *, default: str = "", works: tuple[str, ...] = (), supported: bool = True) -> Value:
    """A PVE boolean: stored as `1` or `0`."""
    return Value(type=ValueType.BOOLEAN, description=description, default=default, works=works, supported=supported)


def integer(
    description: str = "", *, minimum: int | None = None, maximum: int | None = None, default: str = ""
) -> Value:
    """A whole number within inclusive limits."""
    return Value(type=ValueType.INTEGER, description=description, minimum=minimum, maximum=maximum, default=default)


def number(
    description: str = "", *, minimum: float | None = None, maximum: float | None = None, default: str = ""
) -> Value:
    """A decimal number within inclusive limits."""
    return Value(type=ValueType.NUMBER, description=description, minimum=minimum, maximum=maximum, default=default)


def choice(*choices: str, description: str = "", default: str = "", works: tuple[str, ...] = ()) -> Value:
    """One of `choices`."""
    return Value(choices=choices, description=description, default=default, works=works)


def unsupported(description: str = "") -> Value:
    """A value PVE knows and this appliance refuses by name."""
    return Value(description=description, supported=False)


def shorten(text: str) -> str:
    """At most 60 characters of `text`, printable, for messages."""
    printable = "".join(char if char.isprintable() else "?" for char in text[:60])
    return printable + ("..." if len(text) > 60 else "")


def is_true(text: str) -> bool:
    """Whether a normalised boolean is set; the empty string is not."""
    return text == "1"


def _boolean(text: str) -> str:
    word = text.lower()
    if word in _TRUE:
        return "1"
    if word in _FALSE:
        return "0"
    raise ValueError(f"type check ('boolean') failed - got '{shorten(text)}'")


def _decimal(text: str) -> str:
    sign = "-" if text.startswith("-") else ""
    whole, _, fraction = text.lstrip("+-").partition(".")
    fraction = fraction.rstrip("0")
    normal = (whole.lstrip("0") or "0") + (f".{fraction}" if fraction else "")
    return normal if normal == "0" else sign + normal
