"""What each part of a page shows, as plain values for its template. One function a part; permissions are the viewer's.

The same functions serve whole pages and the fragments pushed when something changes.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Final

from appliance.errors import ApplianceError, HostError
from appliance.model.guest import GuestState
from appliance.model.volume import ContentType
from appliance.services import cluster_options, setup_guide
from appliance.web.api.setup import host_state
from appliance.web.pages import backups, guest_window, notices, task_kinds
from appliance.web.pages.viewer import GuestRights, Viewer, kind_word

if TYPE_CHECKING:
    from appliance.services.guest_view import GuestView

Context = dict[str, object]

CONTENT_WORDS: Final[Mapping[ContentType, str]] = {
    ContentType.IMAGES: "VM disks",
    ContentType.ROOTDIR: "Container disks",
    ContentType.ISO: "ISO images",
    ContentType.VZTMPL: "Container templates",
    ContentType.IMPORT: "Disk images",
    ContentType.BACKUP: "Backups",
    ContentType.SNIPPETS: "Snippets",
}
UPLOADABLE = (ContentType.ISO, ContentType.VZTMPL, ContentType.IMPORT, ContentType.SNIPPETS)
GUEST_TASKS = 100
LABELS: Final[Mapping[str, str]] = {
    "name": "Name", "hostname": "Host name", "cores": "Cores", "sockets": "Sockets", "memory": "Memory (MiB)",
    "swap": "Swap (MiB)", "balloon": "Balloon minimum (MiB)", "cpu": "CPU type", "cpulimit": "CPU limit",
    "cpuunits": "CPU weight", "onboot": "Start at boot", "startup": "Start order", "description": "Notes",
    "tags": "Tags", "boot": "Boot order", "bios": "Firmware", "machine": "Machine", "ostype": "Operating system",
    "scsihw": "SCSI controller", "agent": "Guest agent", "vga": "Display", "arch": "Architecture",
    "protection": "Protection", "unprivileged": "Unprivileged", "features": "Features", "rootfs": "Root disk",
    "ciuser": "Cloud-init user", "cipassword": "Cloud-init password", "sshkeys": "SSH keys",
    "ciupgrade": "Cloud-init upgrade", "nameserver": "DNS servers", "searchdomain": "DNS domain", "efidisk0": "EFI disk",
    "smbios1": "SMBIOS", "vmgenid": "Generation id", "meta": "Creation", "rng0": "Random numbers", "tablet": "Tablet",
    "console": "Console", "tty": "TTYs", "cmode": "Console mode", "acpi": "ACPI", "kvm": "Hardware virtualization",
    "hotplug": "Hot-plug", "engine": "Engine", "dataplane": "Data path", "vsock": "Host socket (vsock)",
    "watchdog": "Watchdog", "keyboard": "Keyboard layout", "localtime": "Local time", "migrate_downtime": "Migration pause (s)",
    "migrate_speed": "Migration speed (MB/s)", "args": "Extra arguments", "citype": "Cloud-init format", "vcpus": "CPUs at start",
    "shares": "Ballooning weight", "allow-ksm": "Merge equal pages", "kernel": "Kernel", "initrd": "Initial RAM disk",
    "cmdline": "Kernel command line", "entrypoint": "First process", "env": "Environment", "debug": "More messages",
    "hugepages": "Huge pages", "prealloc": "Take all memory at once", "keephugepages": "Keep huge pages",
    "timezone": "Time zone", "locale": "Locale", "security": "Confinement", "hookscript": "Hook script",
    "restart": "Restart by itself", "pids": "Process limit", "iolimit": "I/O limits",
    "app-image": "Image", "app-user": "User of the program", "app-workdir": "Working directory", "app-stopsignal": "Stop signal",
    "app-terminal": "Terminal", "app-health": "Health check", "app-publish": "Published ports", "app-labels": "Labels",
}  # fmt: skip
_NUMBERED: Final = {
    "scsi": "Disk", "virtio": "Disk", "sata": "Disk", "ide": "Disk", "net": "Network", "mp": "Mount point",
    "serial": "Serial port", "unused": "Unused disk", "ipconfig": "IP configuration", "usb": "USB", "hostpci": "PCI",
    "dev": "Device", "virtiofs": "Shared directory",
}  # fmt: skip


def guest_window_of(viewer: Viewer, wanted: guest_window.Wanted) -> guest_window.Window:
    """The window of the list that is wanted; made once for all pages of the viewer that want it."""
    return viewer.kept.recall(viewer, ("window", wanted), lambda: guest_window.choose(viewer.guests(), wanted))


def guest_counts(viewer: Viewer) -> Context:
    """How many there are, and run."""

    def count() -> Context:
        everything = viewer.guests()
        running = sum(1 for guest in everything if guest.state in (GuestState.RUNNING, GuestState.PAUSED))
        return {"running": running, "total": len(everything)}

    return viewer.kept.recall(viewer, "guest counts", count)


async def guest_list(viewer: Viewer, wanted: guest_window.Wanted) -> Context:
    """The window of the list that is wanted, and how many there are."""
    window = guest_window_of(viewer, wanted)
    return {
        "guests": window.guests,
        "matching": window.matching,
        "wanted": wanted,
        "may_create": viewer.may_create(),
        "node": viewer.node,
        **guest_counts(viewer),
    }


async def notice_list(viewer: Viewer) -> Context:
    """What is wrong now, and what has failed lately."""
    return {"present_notices": await notices.present(viewer), "recent_notices": await notices.recent(viewer)}


async def setup_offer(viewer: Viewer) -> Context:
    """The steps of the guided set-up, while it is to be offered to the viewer; none else."""
    if not viewer.may("/", "Sys.Modify"):
        return {"setup_steps": []}
    state, _ = await setup_guide.read(viewer.services.store)
    if state.dismissed or set(setup_guide.STEPS) <= set(
        state.done
    ):  # as it is nearly always: nothing need be looked at
        return {"setup_steps": []}
    host = await host_state(viewer.services)
    return {"setup_steps": setup_guide.steps(state, host) if setup_guide.is_offered(state, host) else []}


async def tag_colors(viewer: Viewer) -> str:
    """The colours chosen for tags, as `tag:RRGGBB[:RRGGBB];…`: the part "color-map" of the option "tag-style"."""
    options, _ = await cluster_options.read(viewer.services.store)
    for part in str(options.get("tag-style", "")).split(","):
        name, _, value = part.partition("=")
        if name == "color-map":
            return value
    return ""


def guest_row(viewer: Viewer, guest: GuestView, right: GuestRights) -> Context:
    """One row of the list."""
    return {"guest": guest, "right": right, "node": viewer.node}


def guest_row_key(guest: GuestView, right: GuestRights) -> Hashable:
    """Everything a row shows: equal keys make equal rows, whoever looks."""
    stats = guest.stats
    return (
        guest.guest_id, guest.kind, guest.name, guest.state, guest.template, guest.tags, guest.lock, guest.problem,
        guest.uptime_s, guest.maxmem, guest.addresses, round(guest.cpu_ratio, 4), stats and stats.memory_bytes, right,
    )  # fmt: skip


def guest_head(viewer: Viewer, guest_id: int) -> Context:
    """Name, state and actions of a guest."""
    guest = viewer.guest(guest_id)
    return {"guest": guest, "right": viewer.rights(guest_id), "node": viewer.node, "kind_word": kind_word(guest.kind)}


async def guest_tasks(viewer: Viewer, guest_id: int, kind: str) -> Context:
    """The guest's newest tasks, of one kind or of all (""); and the kinds there are."""
    viewer.guest(guest_id)
    found = await viewer.tasks(guest_id=guest_id, limit=GUEST_TASKS)
    types = task_kinds.types_of(kind)
    return {
        "guest_id": guest_id,
        "guest_tasks": [task for task in found if not kind or task.type in types],
        "task_kind": kind,
        "task_kinds": task_kinds.words_of(found),
    }


async def tasks(viewer: Viewer) -> Context:
    """The newest tasks, for the drawer."""
    found = await viewer.tasks()
    return {"tasks": found, "running_tasks": [task for task in found if task.endtime is None]}


async def host(viewer: Viewer) -> Context:
    """The node's figures; None without the privilege."""
    return {"status": await viewer.services.node.status() if viewer.sees_node else None}


async def node(viewer: Viewer) -> Context:
    """The node's figures for its own page. Raises `PermissionDenied`."""
    viewer.require_node()
    return {"status": await viewer.services.node.status()}


async def storage_content(viewer: Viewer, storage_id: str, content: str) -> Context:
    """The volumes of one content type ("" for all) on a storage. Raises `PermissionDenied`, `NotFound`."""
    config = viewer.storage(storage_id)
    wanted = ContentType(content) if content in tuple(ContentType) else None
    problem, volumes = config.problem, []
    if config.enabled and not problem:
        try:
            found = await viewer.services.storage.content(storage_id, wanted)
            volumes = [info for info in found if viewer.sees_volume(info)]
        except ApplianceError as error:
            problem = error.message
    volumes.sort(key=lambda info: (info.content, str(info.volume_id)))
    path = f"/storage/{storage_id}"
    may_write = viewer.may(path, "Datastore.AllocateTemplate") or viewer.may(path, "Datastore.Allocate")
    return {
        "storage": config,
        "volumes": volumes,
        "problem": problem,
        "content": wanted,
        "content_words": CONTENT_WORDS,
        "may_write": may_write,
        "may_delete": viewer.may(path, "Datastore.Allocate"),
        "backups": {row.volume: row for row in backups.rows(viewer, volumes)},
        "node": viewer.node,
        "usage": await _usage(viewer, storage_id) if not problem and config.enabled else None,
    }


async def _usage(viewer: Viewer, storage_id: str) -> object | None:
    try:
        return await viewer.services.storage.usage(storage_id)
    except HostError:  # the page goes on without the meter
        return None


def label_of(key: str) -> str:
    """A configuration key for people: "scsi0" is "Disk (scsi0)"."""
    if key in LABELS:
        return LABELS[key]
    stem = key.rstrip("0123456789")
    return f"{_NUMBERED[stem]} ({key})" if stem in _NUMBERED else key
