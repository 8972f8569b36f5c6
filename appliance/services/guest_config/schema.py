"""Tables of configuration keys: what a key is called, means, may hold and requires.

`KeyTable.find("net3")` gives the family `net` with its description and checks. One table a kind: `vm_schema.VM_KEYS`
and `ct_schema.CT_KEYS`. The tables also say which privilege changes a key (`privileges.py` applies that), and whether a
change is no matter of the running guest (`live`: a description). Others are pending until it has taken them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from appliance.services.guest_config.property_string import PropertySchema
from appliance.services.guest_config.values import NOT_SUPPORTED, Value

UNKNOWN_KEY = "property is not defined in schema and the schema does not allow additional properties"
_INDEXED = re.compile(r"([a-z]+)(0|[1-9][0-9]{0,2})")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigKey:
    """One key, or a family of `count` keys `name0`, `name1` …

    `privilege` is the VM.Config.* word (without the prefix) needed to change it, or "" for the special ones of
    `privileges.py`. `reprint` stores the canonical text in place of the one given.
    """

    name: str
    description: str
    value: Value | PropertySchema
    privilege: str
    count: int = 0
    live: bool = False
    reprint: bool = False
    supported: bool = True
    read_only: bool = False
    """Written by the appliance only."""

    def names(self) -> Iterator[str]:
        """Every name of the family, or the one name."""
        if not self.count:
            yield self.name
        for index in range(self.count):
            yield f"{self.name}{index}"

    def normalise(self, text: str) -> str:
        """The text to store; "" for an empty property string. Raises `ValueError` with one line."""
        if not self.supported:
            raise ValueError(NOT_SUPPORTED)
        if isinstance(self.value, Value):
            return self.value.normalise(text)
        if not text.strip(" ,"):
            return ""
        try:
            values = self.value.parse(text)
            return self.value.print_(values) if self.reprint else text
        except ValueError as error:
            raise ValueError(f"invalid format - {error}") from error


class KeyTable:
    """The keys of one kind of guest, in the order of the documentation."""

    def __init__(self, keys: Iterable[ConfigKey]) -> None:
        self._single: dict[str, ConfigKey] = {}
        self._families: dict[str, ConfigKey] = {}
        for key in keys:
            (self._families if key.count else self._single)[key.name] = key

    def __iter__(self) -> Iterator[ConfigKey]:
        yield from self._single.values()
        yield from self._families.values()

    def find(self, name: str) -> ConfigKey | None:
        """The key or family called `name` (`net3`, `memory`); None when there is no such key or the index is too high."""
        if name in self._single:
            return self._single[name]
        match = _INDEXED.fullmatch(name)
        if match is None or match[1] not in self._families:
            return None
        family = self._families[match[1]]
        return family if int(match[2]) < family.count else None

    def schema(self, name: str) -> PropertySchema:
        """The property-string schema of a key that has one. Raises `KeyError` otherwise."""
        key = self.find(name)
        if key is None or not isinstance(key.value, PropertySchema):
            raise KeyError(name)
        return key.value

    def default(self, name: str) -> str:
        """The default of a plain key, "" where it has none."""
        key = self.find(name)
        return key.value.default if key is not None and isinstance(key.value, Value) else ""
