"""What every back end refuses before it does anything: bad keys, prefixes, values and transactions (`InvalidParameter`).

Keys are made of printable ASCII without blanks (0x21–0x7e) in non-empty parts joined by "/", so that byte order, string
order and every back end's collation agree, and `prefix + END_OF_PREFIX` bounds a prefix from above.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from appliance.errors import InvalidParameter
from appliance.state.store import (
    KEY_LIMIT_BYTES,
    TRANSACTION_LIMIT_OPERATIONS,
    VALUE_LIMIT_BYTES,
    Condition,
    Delete,
    DeletePrefix,
    Operation,
    Put,
)

END_OF_PREFIX = "\x7f"
LEASE_TTL_LIMIT_S = 86_400.0

_KEY = re.compile(r"[!-.0-~]+(?:/[!-.0-~]+)*")
_PREFIX = re.compile(r"(?:[!-.0-~]+/)*[!-.0-~]*")


def check_key(key: str) -> None:
    """Raises `InvalidParameter` naming the key."""
    if len(key) > KEY_LIMIT_BYTES or not _KEY.fullmatch(key):
        raise InvalidParameter({"key": f"{key[:80]!r} is not a store key of at most {KEY_LIMIT_BYTES} bytes"})


def check_prefix(prefix: str) -> None:
    """Raises `InvalidParameter` naming the prefix. The empty prefix means every document."""
    if len(prefix) > KEY_LIMIT_BYTES or not _PREFIX.fullmatch(prefix):
        raise InvalidParameter({"prefix": f"{prefix[:80]!r} is not a store prefix of at most {KEY_LIMIT_BYTES} bytes"})


def check_ttl(ttl_s: float) -> None:
    """Raises `InvalidParameter` unless 0 < ttl_s <= a day."""
    if not (math.isfinite(ttl_s) and 0 < ttl_s <= LEASE_TTL_LIMIT_S):
        raise InvalidParameter({"ttl_s": f"{ttl_s!r} is not between 0 and {LEASE_TTL_LIMIT_S:g} seconds"})


def check_transaction(when: Sequence[Condition], then: Sequence[Operation]) -> None:
    """Raises `InvalidParameter` for bad keys, values too large, too many operations, or a key that appears twice."""
    if len(when) > TRANSACTION_LIMIT_OPERATIONS or len(then) > TRANSACTION_LIMIT_OPERATIONS:
        raise InvalidParameter({"then": f"more than {TRANSACTION_LIMIT_OPERATIONS} operations in one transaction"})
    for condition in when:
        check_key(condition.key)
    keys: set[str] = set()
    prefixes: list[str] = []
    for operation in then:
        match operation:
            case Put(key=key, value=value):
                check_key(key)
                _check_value(key, value)
                _add_once(keys, key)
            case Delete(key=key):
                check_key(key)
                _add_once(keys, key)
            case DeletePrefix(prefix=prefix):
                check_prefix(prefix)
                prefixes.append(prefix)
    _check_overlap(keys, prefixes)


def _check_value(key: str, value: bytes) -> None:
    if len(value) > VALUE_LIMIT_BYTES:
        raise InvalidParameter({"value": f"{key}: {len(value)} bytes are more than {VALUE_LIMIT_BYTES}"})


def _add_once(keys: set[str], key: str) -> None:
    if key in keys:
        raise InvalidParameter({"then": f"{key} appears twice in one transaction"})
    keys.add(key)


def _check_overlap(keys: set[str], prefixes: Sequence[str]) -> None:
    for index, prefix in enumerate(prefixes):
        for other in (*keys, *prefixes[:index], *prefixes[index + 1 :]):
            if other.startswith(prefix):
                raise InvalidParameter({"then": f"{other} appears twice in one transaction (under {prefix!r})"})
