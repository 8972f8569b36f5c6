"""Settings of the whole cluster: one document, `cluster/options`, of PVE's names and property strings.

Written by PUT /cluster/options; services read from it what concerns them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from appliance.errors import Conflict, HostError
from appliance.model.guest import GUEST_ID_MAX, GUEST_ID_MIN
from appliance.services import digests
from appliance.services.guest_config.property_string import PropertySchema
from appliance.services.guest_config.values import integer
from appliance.state.store import Store

OPTIONS_KEY = "cluster/options"
NEXT_ID_UPPER = 1_000_000

_GUEST_ID = integer(minimum=GUEST_ID_MIN, maximum=GUEST_ID_MAX)
_NEXT_ID = PropertySchema(fields={"lower": _GUEST_ID, "upper": _GUEST_ID})


@dataclass(frozen=True, slots=True)
class NextIdRange:
    """Where free VMIDs are looked for: from `lower` on, below `upper` (`next-id`, whose upper bound is exclusive)."""

    lower: int = GUEST_ID_MIN
    upper: int = NEXT_ID_UPPER

    @staticmethod
    def parse(text: str) -> NextIdRange:
        """`lower=200,upper=300`. Raises `ValueError` saying what is wrong."""
        values = {key: int(value) for key, value in _NEXT_ID.parse(text).items()}
        found = NextIdRange(**values)
        if found.lower >= found.upper:
            raise ValueError(f"lower ({found.lower}) must be below upper ({found.upper})")
        return found


async def read(store: Store) -> tuple[dict[str, object], int]:
    """The options that were set, and the document's revision (0: there is none). Raises `StoreError`."""
    document = await store.get(OPTIONS_KEY)
    if document is None:
        return {}, 0
    return msgspec.json.decode(document.value, type=dict[str, object]), document.mod_revision


def digest(options: Mapping[str, object]) -> str:
    """What tells one state of the options from another."""
    return digests.digest(options)


def check_digest(options: Mapping[str, object], expected: str | None) -> None:
    """Raises `Conflict` when `expected` is given and the options are others by now."""
    if expected and expected != digest(options):
        raise Conflict("detected modified configuration - file changed by other user? Try again.")


async def next_id_range(store: Store) -> NextIdRange:
    """The range in force. Raises `StoreError`, `HostError` when the document is damaged."""
    text = (await read(store))[0].get("next-id", "")
    try:
        return NextIdRange.parse(str(text))
    except ValueError as error:
        raise HostError(f"document {OPTIONS_KEY}: next-id: {error}") from error
