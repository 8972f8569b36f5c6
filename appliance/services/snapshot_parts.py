"""Who keeps what of a guest in a snapshot: an engine the images it has open, the storage all other volumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from appliance.errors import Unsupported
from appliance.model.guest import GuestKind
from appliance.model.volume import VolumeFormat, VolumeId
from appliance.services import guest_config
from appliance.services.guest_runtime import GuestRuntime
from appliance.services.storage import StorageService


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A guest's volumes by who keeps their content: slots whose image an engine has open, and volumes left to storage."""

    open_slots: tuple[str, ...] = ()
    volumes: tuple[VolumeId, ...] = ()


async def parts_of(
    guest: GuestRuntime, config: Mapping[str, str], storage: StorageService, *, check: bool = False
) -> Parts:
    """The volumes of `config` by who keeps them now. With `check`, raises `Unsupported` for one that cannot be kept."""
    in_use = guest.running is not None
    runs_with = guest.stored.record.started or guest.stored.record.config
    open_now = set(guest_config.snapshot_volumes(guest.kind, guest.guest_id, runs_with))
    slots: list[str] = []
    volumes: list[VolumeId] = []
    for slot, volume in guest_config.snapshot_volumes(guest.kind, guest.guest_id, config):
        is_image = volume.name.endswith(f".{VolumeFormat.QCOW2}") and guest.kind is GuestKind.QEMU
        if in_use and is_image and (slot, volume) in open_now:
            if slot == "efidisk0":
                raise Unsupported(f"{guest.label}: {slot} is a qcow2 image: shut it down first")
            slots.append(slot)
            continue
        if check:
            await storage.backend(volume.storage).check_snapshot(volume, in_use=in_use)
        volumes.append(volume)
    return Parts(open_slots=tuple(slots), volumes=tuple(volumes))
