"""PVE's property strings: `virtio=BC:24:11:00:00:01,bridge=vmbr0,tag=5`.

Parts are separated by commas; a part is `key=value`, or a bare value for the schema's default key. A *key alias*
stands for two keys at once: `virtio=MAC` is `model=virtio` and `macaddr=MAC`. Values cannot contain commas: formats that
need more encode them (percent encoding for serial numbers, base64 in smbios1).

`parse` and `print_` are inverse: for every accepted text, parsing the printed form gives the same values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from appliance.services.guest_config.values import NOT_SUPPORTED, Value, shorten

PARTS_LIMIT = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class PropertySchema:
    """The keys of one property string. Printed order: default key, required keys, the rest by name, as PVE does."""

    fields: Mapping[str, Value]
    default_key: str = ""
    required: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Another name for a key: `volume` for `file`."""
    key_aliases: tuple[str, ...] = ()
    """Words that may stand for `name_key`, carrying `value_key`: `virtio` in `virtio=MAC`."""
    name_key: str = ""
    value_key: str = ""

    def parse(self, text: str) -> dict[str, str]:
        """Checked and normalised values by key. Raises `ValueError` naming the key that is wrong."""
        found = self._split(text)
        for key in self.required:
            if key not in found:
                raise ValueError(f"{key}: property is missing and it is not optional")
        return {key: self._normal(key, value) for key, value in found.items()}

    def print_(self, values: Mapping[str, str]) -> str:
        """The canonical text. `values` are normalised ones; raises `ValueError` for what cannot be written."""
        rest = dict(values)
        parts = []
        if self.name_key and self.name_key in rest and self.value_key in rest:
            parts.append(f"{rest.pop(self.name_key)}={rest.pop(self.value_key)}")
        elif self.default_key in rest:
            parts.append(rest.pop(self.default_key))
        parts += [f"{key}={rest.pop(key)}" for key in self.required if key in rest]
        parts += [f"{key}={rest[key]}" for key in sorted(rest)]
        if any("," in part or part.endswith("=") or not part for part in parts):
            raise ValueError("a value is empty or contains a comma")
        return ",".join(parts)

    def _split(self, text: str) -> dict[str, str]:
        parts = text.split(",")
        if len(parts) > PARTS_LIMIT:
            raise ValueError(f"more than {PARTS_LIMIT} parts")
        found: dict[str, str] = {}
        for part in parts:
            if not part.strip():
                continue
            key, equals, value = part.partition("=")
            if not equals:
                if not self.default_key:
                    raise ValueError(f"value without key, but schema does not define a default key: '{shorten(part)}'")
                self._put(found, self.default_key, part)
            elif not key or not value:
                raise ValueError(f"missing key or value in comma-separated list property: '{shorten(part)}'")
            elif key in self.key_aliases:
                self._put(found, self.name_key, key)
                self._put(found, self.value_key, value)
            else:
                self._put(found, self.aliases.get(key, key), value)
        return found

    def _put(self, found: dict[str, str], key: str, value: str) -> None:
        if key not in self.fields:
            raise ValueError(f"invalid key in comma-separated list property: {shorten(key)}")
        if key in found:
            raise ValueError(f"duplicate key in comma-separated list property: {key}")
        found[key] = value

    def _normal(self, key: str, value: str) -> str:
        schema = self.fields[key]
        if not schema.supported:
            raise ValueError(f"{key}: {NOT_SUPPORTED}")
        try:
            return schema.normalise(value)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
