"""What of a running guest's configuration waits for its next start (ADR 6), and how to take it back. Pure.

`started` is the configuration the guest was started with; whoever applies a change to a running guest (`GuestConfiguration
.applied`) writes it there too. A key of which only bookkeeping differs (a disk's `size`, what backups do) waits for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from appliance.errors import InvalidParameter
from appliance.model.guest import GuestKind
from appliance.services.guest_config.disks import is_disk_slot
from appliance.services.guest_config.parsing import key_table
from appliance.services.guest_config.property_string import PropertySchema

_BOOKKEEPING = frozenset({"size", "backup", "replicate", "shared"})
_NEVER_PENDING = frozenset({"meta", "parent", "snaptime", "vmstate", "lock", "template", "vmgenid", "hotplug"})


@dataclass(frozen=True, slots=True)
class Pending:
    """A key whose running value is not the configured one; None where there is none."""

    key: str
    running: str | None
    configured: str | None


def pending(kind: GuestKind, config: Mapping[str, str], started: Mapping[str, str]) -> list[Pending]:
    """Every key that differs, by name."""
    names = sorted(name for name in {*config, *started} if _can_wait(kind, name))
    found = [Pending(name, started.get(name), config.get(name)) for name in names]
    return [each for each in found if not _is_same(kind, each)]


def revert(
    kind: GuestKind, config: Mapping[str, str], started: Mapping[str, str], keys: Sequence[str]
) -> tuple[dict[str, str], Sequence[str]]:
    """What to write and what to delete so that these keys are again what runs. Keys that wait for nothing are left.

    Raises `InvalidParameter` for a key that does not exist.
    """
    waiting = {each.key: each for each in pending(kind, config, started)}
    put: dict[str, str] = {}
    delete: list[str] = []
    for name in keys:
        if key_table(kind).find(name) is None:
            raise InvalidParameter({"revert": f"unknown option '{name[:60]}'"})
        change = waiting.get(name)
        if change is None:
            continue
        if change.running is None:
            delete.append(name)
        else:
            put[name] = change.running
    return put, delete


def _can_wait(kind: GuestKind, name: str) -> bool:
    key = key_table(kind).find(name)
    return key is not None and not key.live and key.name != "unused" and name not in _NEVER_PENDING


def _is_same(kind: GuestKind, change: Pending) -> bool:
    if change.running == change.configured:
        return True
    if change.running is None or change.configured is None or not is_disk_slot(kind, change.key):
        return False
    key = key_table(kind).find(change.key)
    if key is None or not isinstance(key.value, PropertySchema):
        return False
    try:
        sides = [key.value.parse(text) for text in (change.running, change.configured)]
    except ValueError:
        return False
    one, other = ({name: value for name, value in side.items() if name not in _BOOKKEEPING} for side in sides)
    return one == other
