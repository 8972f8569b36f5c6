"""What a snapshot keeps of a configuration, and what a return makes of the present one. Pure.

As in PVE: notes, the lock and unused volumes belong to the guest, not to one of its states.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping

from appliance.model.guest import GuestKind
from appliance.model.volume import VolumeId
from appliance.services.guest_config.changes import free_unused_slot, with_generation_id
from appliance.services.guest_config.disks import disks, owned_volumes
from appliance.services.guest_config.volumes import Existing

_OF_THE_GUEST = frozenset({"lock", "description", "parent", "snaptime", "vmstate", "template"})


def snapshot_config(config: Mapping[str, str]) -> dict[str, str]:
    """What a snapshot keeps."""
    return {key: value for key, value in config.items() if key not in _OF_THE_GUEST and not key.startswith("unused")}


def snapshot_volumes(kind: GuestKind, guest_id: int, config: Mapping[str, str]) -> list[tuple[str, VolumeId]]:
    """(slot, volume) of what a snapshot of the guest consists of: its own disks, without generated and unused ones."""
    return [
        (disk.slot, disk.volume.volume_id)
        for disk in disks(kind, config)
        if isinstance(disk.volume, Existing)
        and disk.volume.owner == guest_id
        and not (disk.is_unused or disk.is_cdrom or disk.is_cloudinit)
    ]


def rolled_back(
    kind: GuestKind,
    guest_id: int,
    config: Mapping[str, str],
    kept: Mapping[str, str],
    *,
    name: str,
    new_uuid: Callable[[], uuid.UUID] | None = None,
) -> dict[str, str]:
    """The configuration after the return to snapshot `name`, which kept `kept`. Volumes made since become unused.

    With `new_uuid` the guest learns of it by a new generation id (not when its memory returns too).
    """
    after = dict(kept)
    for key in ("description", "lock"):
        if key in config:
            after[key] = config[key]
    after["parent"] = name
    named = {volume for _, volume in owned_volumes(kind, guest_id, kept)}
    for _, volume in owned_volumes(kind, guest_id, config):
        if volume not in named:
            after[free_unused_slot(after)] = str(volume)
            named.add(volume)
    if new_uuid is not None and "vmgenid" in after:
        after = with_generation_id({**after, "vmgenid": "1"}, new_uuid)
    return after
