"""Dialogs of a guest's tabs: devices and settings, notes, snapshots, clones, permissions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from aiohttp import web

from appliance.errors import ApplianceError, NotFound
from appliance.model.guest import GuestKind, GuestState
from appliance.model.volume import ContentType
from appliance.services import guest_config
from appliance.services.guest_config import Existing, boot
from appliance.services.guest_config.vm_devices import DISK_BUSES
from appliance.web.api.qemu import FILES, cloud_init_files
from appliance.web.pages import contexts, dialogs, forms, hardware
from appliance.web.pages.contexts import Context
from appliance.web.pages.forms import Choices, Input
from appliance.web.pages.viewer import Viewer
from appliance.web.pages.visit import Visit, visited

CPU_TYPES = ("host", "x86-64-v2-AES", "x86-64-v3", "x86-64-v4", "kvm64", "qemu64", "max")
BUS_WORDS = {"scsi": "SCSI", "virtio": "VirtIO block", "sata": "SATA", "ide": "IDE"}
NEW_DEVICES = {"rng": "/dev/urandom", "serial": "socket", "watchdog": "i6300esb,action=reset"}
SNAPSHOT_ACTIONS = {"rollback": "Roll back", "delete": "Delete", "edit": "Edit"}


@visited
async def edit(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/guest/{vmid}/edit/{form}"""
    viewer, guest_id = visit.viewer, visit.number("vmid")
    guest = viewer.guest(guest_id)
    form = visit.request.match_info["form"]
    config, digest = viewer.services.guests.config(guest.guest_id)
    try:
        keys = hardware.form_keys(guest.kind, form)
        choices = await choices_of(viewer, guest.kind)
        if "boot" in keys:
            choices = {**choices, "boot": boot_devices(config)}
        inputs: list[Input] = []
        for key in keys:
            inputs += _tray(guest.kind, key, config.get(key, ""), choices)
            shown = guest_config.masked(config).get(key, "")
            inputs += forms.inputs_of(guest.kind, key, shown, choices=choices, label_of=contexts.label_of)
    except KeyError as error:
        raise NotFound(f"setting '{form[:40]}' of guest {guest_id}") from error
    carried = [
        (key, part, value)
        for key in keys
        for part, value in forms.carried_parts(guest.kind, key, config.get(key, "")).items()
        if not (part == "file" and _is_tray(guest.kind, key, config.get(key, "")))
    ]
    context = _head(viewer, guest_id) | {
        "title": hardware.FORMS[form][0] if form in hardware.FORMS else contexts.label_of(form),
        "inputs": inputs, "carried": carried, "digest": digest, "slots": (), "source": "", "storages": (), "images": (),
        "running": guest.state is not GuestState.STOPPED, "word": "Save",
    }  # fmt: skip
    return await visit.part("dialogs/device.html", context)


@visited
async def add(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/guest/{vmid}/add/{device}?volume=VOLID"""
    viewer, guest_id = visit.viewer, visit.number("vmid")
    guest = viewer.guest(guest_id)
    config, digest = viewer.services.guests.config(guest.guest_id)
    name = visit.request.match_info["device"]
    device = next((each for each in hardware.addable(guest.kind, config) if each.name == name), None)
    if device is None:
        raise NotFound(f"no '{name[:40]}' can be added to guest {guest_id}")
    choices = await choices_of(viewer, guest.kind)
    volume = visit.request.query.get("volume", "")
    buses = {
        "disk": ("scsi", "virtio", "sata", "ide"),
        "cdrom": ("ide", "sata", "scsi"),
        "cloudinit": ("ide", "sata", "scsi"),
    }
    slots = _slots(guest.kind, config, buses.get(name, ()))
    content = ContentType.IMAGES if guest.kind is GuestKind.QEMU else ContentType.ROOTDIR
    context = _head(viewer, guest_id) | {
        "title": device.word, "inputs": _inputs_to_add(guest.kind, name, device.slot, choices), "carried": (),
        "digest": digest, "slots": slots, "slot": device.slot, "volume": volume,
        "source": "volume" if volume else name if name in ("disk", "cdrom", "cloudinit", "efidisk", "mp") else "",
        "storages": [each.storage_id for each in dialogs.storages_for(viewer, content)],
        "images": await dialogs.volumes_of(viewer, ContentType.IMPORT) if name == "disk" and not volume else (),
        "isos": choices.get("iso", ()), "running": guest.state is not GuestState.STOPPED, "word": "Add",
    }  # fmt: skip
    return await visit.part("dialogs/device.html", context)


@visited
async def remove(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/guest/{vmid}/remove/{key}"""
    viewer, guest_id = visit.viewer, visit.number("vmid")
    guest = viewer.guest(guest_id)
    config, digest = viewer.services.guests.config(guest.guest_id)
    key = visit.request.match_info["key"]
    if key not in config:
        raise NotFound(f"setting '{key[:40]}' of guest {guest_id}")
    volume, is_unused, is_generated = "", key.startswith("unused"), False
    if guest_config.is_disk_slot(guest.kind, key):
        disk = guest_config.parse_disk(guest.kind, key, config[key])
        is_generated = disk.is_cloudinit
        if isinstance(disk.volume, Existing) and (disk.volume.owner is not None):
            volume = str(disk.volume.volume_id)
    context = _head(viewer, guest_id) | {
        "key": key, "label": contexts.label_of(key), "digest": digest, "volume": volume, "is_unused": is_unused,
        "is_generated": is_generated,
    }  # fmt: skip
    return await visit.part("dialogs/remove_device.html", context)


@visited
async def preview_cloud_init(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/guest/{vmid}/cloudinit"""
    viewer, guest_id = visit.viewer, visit.number("vmid")
    config, _ = viewer.services.guests.config(viewer.guest(guest_id).guest_id, GuestKind.QEMU)
    texts = await asyncio.to_thread(cloud_init_files, guest_id, config)
    context = _head(viewer, guest_id) | {"files": [(kind, name, texts[kind]) for kind, name in FILES.items()]}
    return await visit.part("dialogs/cloudinit.html", context)


@visited
async def edit_notes(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/guest/{vmid}/notes"""
    viewer, guest_id = visit.viewer, visit.number("vmid")
    config, digest = viewer.services.guests.config(viewer.guest(guest_id).guest_id)
    context = _head(viewer, guest_id) | {"digest": digest, "text": config.get("description", "")}
    return await visit.part("dialogs/notes.html", context)


@visited
async def snapshot(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/guest/{vmid}/snapshot"""
    guest_id = visit.number("vmid")
    guest = visit.viewer.guest(guest_id)
    may_save_memory = guest.kind is GuestKind.QEMU and guest.state in (GuestState.RUNNING, GuestState.PAUSED)
    context = _head(visit.viewer, guest_id) | {"may_save_memory": may_save_memory}
    return await visit.part("dialogs/snapshot.html", context)


@visited
async def on_snapshot(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/guest/{vmid}/snapshot/{name}/{action}"""
    viewer, guest_id = visit.viewer, visit.number("vmid")
    guest = viewer.guest(guest_id)
    name, action = visit.request.match_info["name"], visit.request.match_info["action"]
    rows = viewer.services.guests.snapshots.list(guest.kind, guest.guest_id)
    row = next((row for row in rows if row["name"] == name and name != "current"), None)
    if row is None or action not in SNAPSHOT_ACTIONS:
        raise NotFound(f"snapshot '{name[:40]}' of guest {guest_id}")
    context = _head(viewer, guest_id) | {"snapshot": row, "action": action, "word": SNAPSHOT_ACTIONS[action]}
    return await visit.part("dialogs/on_snapshot.html", context)


@visited
async def clone(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/guest/{vmid}/clone"""
    viewer, guest_id = visit.viewer, visit.number("vmid")
    guest = viewer.guest(guest_id)
    content = ContentType.IMAGES if guest.kind is GuestKind.QEMU else ContentType.ROOTDIR
    context = _head(viewer, guest_id) | {
        "newid": await viewer.services.guests.next_id(),
        "storages": [each.storage_id for each in dialogs.storages_for(viewer, content)],
        "pools": [name for name, _ in viewer.services.access.pools.visible(viewer.identity)],
    }
    return await visit.part("dialogs/clone.html", context)


@visited
async def make_template(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/guest/{vmid}/template"""
    guest_id = visit.number("vmid")
    return await visit.part("dialogs/make_template.html", _head(visit.viewer, guest_id))


def boot_devices(config: Mapping[str, str]) -> Sequence[tuple[str, str]]:
    """What a VM can boot from, with words: its disks, drives and network cards, in the order it does so now."""
    disks = [
        disk for disk in guest_config.disks(GuestKind.QEMU, config)
        if not disk.is_unused and not disk.is_cloudinit and boot.DEVICE.fullmatch(disk.slot)
    ]  # fmt: skip
    nics = sorted(
        (key for key in config if boot.DEVICE.fullmatch(key) and key.startswith("net")), key=lambda key: int(key[3:])
    )
    cdroms = [disk.slot for disk in disks if disk.is_cdrom]
    plain = [disk.slot for disk in disks if not disk.is_cdrom]
    order = boot.boot_order(
        config.get("boot", ""), bootdisk=config.get("bootdisk", ""), disks=plain, cdroms=cdroms, nics=nics
    )  # fmt: skip
    there = [*plain, *cdroms, *nics]
    first = [slot for slot in order if slot in there]
    return [
        ("order", ";".join(first)),
        *((slot, config[slot]) for slot in [*first, *(each for each in there if each not in first)]),
    ]


def _head(viewer: Viewer, guest_id: int) -> Context:
    guest = viewer.guest(guest_id)
    return {**contexts.guest_head(viewer, guest_id), "base": f"/nodes/{viewer.node}/{guest.kind}/{guest_id}"}


def _inputs_to_add(kind: GuestKind, name: str, slot: str, choices: Choices) -> Sequence[Input]:
    """The inputs of a new device; those of a disk are for whichever slot is chosen."""
    if name in ("cdrom", "cloudinit"):
        return ()
    if name != "disk":
        net = "model=virtio" if kind is GuestKind.QEMU else f"name=eth{slot[3:]},ip=dhcp"
        texts = {"net": f"{net},bridge={_first(choices)}", **NEW_DEVICES}
        text = texts.get(name, "")
        shown = forms.inputs_of(kind, slot, text, choices=choices, label_of=contexts.label_of)
        return [replace(each, choices=each.choices[1:]) if _needs_value(each) else each for each in shown]
    found: dict[str, Input] = {}
    for bus in DISK_BUSES:
        for each in forms.inputs_of(kind, f"{bus}0", "", choices=choices, label_of=contexts.label_of):
            known = found.get(each.part)
            found[each.part] = replace(each, key="slot", slots=(*(known.slots if known else ()), bus))
    every = len(DISK_BUSES)
    return [replace(each, slots=() if len(each.slots) == every else each.slots) for each in found.values()]


def _needs_value(each: Input) -> bool:
    return each.required and each.kind == "select" and bool(each.choices) and each.choices[0][0] == ""


def _first(choices: Choices) -> str:
    return next((value for value, _ in choices.get("bridge", ())), "vmbr0")


def _slots(kind: GuestKind, config: dict[str, str], buses: Sequence[str]) -> Sequence[tuple[str, str]]:
    found = [(hardware.free_slot(kind, config, bus), bus) for bus in buses]
    return [(slot, f"{BUS_WORDS[bus]} ({slot})") for slot, bus in found if slot]


def _is_tray(kind: GuestKind, key: str, text: str) -> bool:
    if not text or not guest_config.is_disk_slot(kind, key):
        return False
    try:
        disk = guest_config.parse_disk(kind, key, text)
    except ApplianceError:
        return False
    return disk.is_cdrom and not disk.is_cloudinit


def _tray(kind: GuestKind, key: str, text: str, choices: Choices) -> Sequence[Input]:
    """What lies in a CD-ROM drive can be changed."""
    if not _is_tray(kind, key, text):
        return ()
    now = guest_config.parse_one(kind, key, text)["file"]
    offered = [("none", "No medium"), *choices.get("iso", ())]
    if now not in dict(offered):
        offered.insert(0, (now, now))
    return [Input(key=key, part="file", label="Medium", kind="select", value=now, choices=offered)]


async def choices_of(viewer: Viewer, kind: GuestKind) -> Choices:
    """What inputs offer: bridges, ISO images, mapped directories, CPU types."""
    bridges = await dialogs.bridges_of(viewer)
    found: dict[str, Sequence[tuple[str, str]]] = {"bridge": [(name, name) for name in bridges]}
    if kind is GuestKind.QEMU:
        isos = await dialogs.volumes_of(viewer, ContentType.ISO)
        found["iso"] = [(str(info.volume_id), str(info.volume_id)) for info in isos]
        mapped = await viewer.services.directory_mappings.all()
        usable = [each.id for each in mapped if viewer.may(f"/mapping/dir/{each.id}", "Mapping.Use")]
        found["dirid"] = [(name, name) for name in usable]
        found["cputype"] = [("", "Default (kvm64)"), *((name, name) for name in CPU_TYPES)]
    return found
