"""The dialogs that make guests: a quick form, and everything else that can be set folded below it, from the key tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from aiohttp import web

from appliance.model.guest import GuestKind
from appliance.model.volume import ContentType
from appliance.services import guest_config
from appliance.web.pages import contexts, dialogs, forms, guest_dialogs
from appliance.web.pages.contexts import Context
from appliance.web.pages.forms import Input
from appliance.web.pages.viewer import Viewer
from appliance.web.pages.visit import Visit, visited

SECTIONS: Final[Mapping[GuestKind, Sequence[tuple[str, Sequence[str]]]]] = {
    GuestKind.QEMU: (
        ("System", ("ostype", "machine", "vga", "scsihw", "engine", "agent", "tablet", "localtime", "acpi", "kvm")),
        ("Processor and memory", ("sockets", "cpu", "cpulimit", "cpuunits", "balloon", "shares")),
        ("Cloud-init", ("nameserver", "searchdomain", "ciupgrade")),
        ("Options", ("tags", "onboot", "startup", "protection", "hotplug", "keyboard", "description")),
    ),
    GuestKind.LXC: (
        ("Resources", ("swap", "cpulimit", "cpuunits")),
        ("DNS", ("nameserver", "searchdomain")),
        ("System", ("ostype", "unprivileged", "features", "timezone", "locale", "entrypoint", "env", "tty")),
        ("Options", ("tags", "onboot", "startup", "protection", "description")),
    ),
}
CREATED_WITH: Final[Mapping[str, str]] = {"ostype": "l26", "machine.type": "q35", "scsihw": "virtio-scsi-pci"}
"""What the dialog for a VM sends where nothing was chosen (`static/js/compose.js`), other than the API's defaults."""


@visited
async def create_vm(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/create-vm"""
    viewer = visit.viewer
    context = await offers(viewer, GuestKind.QEMU, ContentType.IMAGES)
    context["images"] = await dialogs.volumes_of(viewer, ContentType.IMPORT)
    context["isos"] = await dialogs.volumes_of(viewer, ContentType.ISO)
    return await visit.part("dialogs/create_vm.html", context)


@visited
async def create_ct(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/create-ct"""
    viewer = visit.viewer
    context = await offers(viewer, GuestKind.LXC, ContentType.ROOTDIR)
    context["templates"] = await dialogs.volumes_of(viewer, ContentType.VZTMPL)
    return await visit.part("dialogs/create_ct.html", context)


async def offers(viewer: Viewer, kind: GuestKind, content: ContentType) -> Context:
    """What every dialog that makes guests offers."""
    choices = await guest_dialogs.choices_of(viewer, kind)
    return {
        "vmid": await viewer.services.guests.next_id(),
        "storages": [config.storage_id for config in dialogs.storages_for(viewer, content)],
        "bridges": [name for name, _ in choices["bridge"]],
        "node": viewer.node,
        "storage_page": viewer.storages(),
        "guest_templates": [guest for guest in viewer.guests() if guest.template and guest.kind is kind],
        "pools": [name for name, _ in viewer.services.access.pools.visible(viewer.identity)],
        "sections": [(word, _inputs(kind, keys, choices)) for word, keys in SECTIONS[kind]],
    }


def _inputs(kind: GuestKind, keys: Sequence[str], choices: forms.Choices) -> Sequence[Input]:
    found: list[Input] = []
    for key in keys:
        known = guest_config.key_table(kind).find(key)
        if known is not None and known.supported:
            found += forms.inputs_of(kind, key, "", choices=choices, label_of=contexts.label_of)
    return [_as_created(each) for each in found] if kind is GuestKind.QEMU else found


def _as_created(each: Input) -> Input:
    """The input with the default it has in this dialog."""
    if each.name not in CREATED_WITH:
        return each
    words = dict(each.choices)
    return replace(each, choices=[("", f"Default ({words[CREATED_WITH[each.name]]})"), *each.choices[1:]])
