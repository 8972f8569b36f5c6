"""From raw request values to checked configuration texts, and back to what may be shown.

`parse` accepts anything a client may send and returns only normal forms; every key that is wrong is named, with PVE's
words, in one `InvalidParameter`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from appliance.errors import InvalidParameter
from appliance.model.guest import GuestKind
from appliance.services.guest_config.ct_schema import CT_KEYS
from appliance.services.guest_config.passwords import PASSWORD_MASK, as_password_hash
from appliance.services.guest_config.schema import UNKNOWN_KEY, KeyTable
from appliance.services.guest_config.values import shorten
from appliance.services.guest_config.vm_schema import VM_KEY_ALIASES, VM_KEYS

KEYS_LIMIT = 1024
_REPORTED_KEYS_LIMIT = 64
_BOOKKEEPING = frozenset({"unused", "parent", "snaptime", "template", "meta"})


def key_table(kind: GuestKind) -> KeyTable:
    """The table of configuration keys of a kind."""
    return VM_KEYS if kind is GuestKind.QEMU else CT_KEYS


def canonical_key(kind: GuestKind, name: str) -> str:
    """The key's present name: `cdrom` is `ide2`."""
    return VM_KEY_ALIASES.get(name, name) if kind is GuestKind.QEMU else name


def parse(kind: GuestKind, raw: Mapping[str, object]) -> dict[str, str]:
    """Check and normalise configuration keys of a request. Raises `InvalidParameter` naming each bad one.

    Values may be text, numbers or booleans. An empty text is kept only where a text may be empty; `plan_update` and
    `create_config` read it as "remove the key". A clear `cipassword` becomes a hash (slow: hash it before, in a
    thread, with `hash_password`). Cross-key rules are checked by `to_vm_spec` and `to_ct_spec`.
    """
    if len(raw) > KEYS_LIMIT:
        raise InvalidParameter({"config": f"more than {KEYS_LIMIT} keys"})
    found: dict[str, str] = {}
    errors: dict[str, str] = {}
    for name, value in raw.items():
        try:
            key = canonical_key(kind, name)
            if key in found:
                raise ValueError(f"duplicate key in config: {key}")
            found[key] = _normalise(kind, key, _text(value))
        except ValueError as error:
            errors[shorten(name)] = str(error)
    if errors:
        raise InvalidParameter(dict(list(errors.items())[:_REPORTED_KEYS_LIMIT]))
    return found


def parse_one(kind: GuestKind, name: str, text: str) -> dict[str, str]:
    """The values of one stored property string (`net0`, `scsi1`). Raises `InvalidParameter` naming `name`."""
    try:
        return key_table(kind).schema(name).parse(text)
    except ValueError as error:
        raise InvalidParameter({name: f"invalid format - {error}"}) from error


def print_one(kind: GuestKind, name: str, values: Mapping[str, str]) -> str:
    """The canonical text of one property string. Raises `InvalidParameter` for values that cannot be written."""
    try:
        return key_table(kind).schema(name).print_(values)
    except ValueError as error:
        raise InvalidParameter({name: f"invalid format - {error}"}) from error


def digest(config: Mapping[str, str]) -> str:
    """SHA-1 (hex) of the configuration, as PVE's digest: clients send it back to detect changes made meanwhile."""
    text = "".join(f"{key}: {config[key]}\n" for key in sorted(config))
    return hashlib.sha1(text.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()


def masked(config: Mapping[str, str]) -> dict[str, str]:
    """The configuration as it may be shown: passwords, even hashed ones, are asterisks."""
    return {key: PASSWORD_MASK if key == "cipassword" else value for key, value in config.items()}


def applied_live(kind: GuestKind, name: str) -> bool:
    """Whether a change of this key is no matter of a running guest, or one whose own operations bring it about."""
    key = key_table(kind).find(canonical_key(kind, name))
    return key is not None and (key.live or key.name in _BOOKKEEPING)


def _normalise(kind: GuestKind, name: str, text: str) -> str:
    key = key_table(kind).find(name)
    if key is None:
        raise ValueError(UNKNOWN_KEY)
    if key.read_only:
        raise ValueError("this key is written by the appliance only")
    if name == "cipassword":
        key.normalise(text)
        return as_password_hash(text) if text else ""
    return key.normalise(text)


def _text(value: object) -> str:
    match value:
        case bool():
            return "1" if value else "0"
        case str():
            return value
        case int() if abs(value) < 10**18:
            return str(value)
        case float() if abs(value) < 10**15:
            return f"{value:.9f}".rstrip("0").rstrip(".")
    raise ValueError("value must be a text, a number or a boolean")
