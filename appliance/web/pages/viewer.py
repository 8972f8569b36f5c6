"""Who looks at a page: an identity and what it may see. Every page and every pushed fragment asks here."""

from __future__ import annotations

import functools
import typing
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from aiohttp import web

from appliance.errors import NotFound, PermissionDenied
from appliance.model.guest import GuestId, GuestKind

if TYPE_CHECKING:
    from appliance.model.volume import VolumeInfo
    from appliance.services.guest_view import GuestView
    from appliance.services.identity import Identity
    from appliance.services.storage_config import StorageConfig
    from appliance.services.task_records import TaskInfo
    from appliance.web.services import Services

STORAGE_PRIVILEGES = ("Datastore.Audit", "Datastore.AllocateSpace", "Datastore.Allocate")
CONFIGURING: Final = frozenset({"VM.Config.Options", "VM.Config.CPU", "VM.Config.Memory", "VM.Config.Disk"})
RECENT_TASKS = 30
T = TypeVar("T")
KEEP_S: Final = 1.0
KEEP_LIMIT: Final = 512


@dataclass(frozen=True, slots=True)
class GuestRights:
    """What the viewer may do with one guest, for showing or hiding buttons; the API decides again."""

    power: bool
    console: bool
    configure: bool
    delete: bool
    snapshot: bool
    clone: bool
    backup: bool


@dataclass(slots=True)
class Kept:
    """What was made for somebody, while it holds: fifty open pages of one user need one list and one fragment of it.

    It holds until something happens, for at most `KEEP_S` (running guests' uptime).
    """

    _made: dict[Hashable, tuple[int, float, object]] = field(default_factory=dict)

    def recall(self, viewer: Viewer, what: Hashable, make: Callable[[], T]) -> T:
        """`make()`, or what it gave the same viewer before."""
        found = self._find(viewer, what)
        return typing.cast(T, found[0]) if found else self._keep(viewer, what, make())

    async def recall_later(self, viewer: Viewer, what: Hashable, make: Callable[[], Awaitable[T]]) -> T:
        """The same for what must be waited for."""
        found = self._find(viewer, what)
        if found:
            return typing.cast(T, found[0])
        published = viewer.services.events.published
        made = await make()
        return self._keep(viewer, what, made, published=published)

    def _find(self, viewer: Viewer, what: Hashable) -> tuple[object] | None:
        known = self._made.get((viewer.identity.auth_id, what))
        services = viewer.services
        if known is None or known[0] != services.events.published or services.clock.monotonic() >= known[1]:
            return None
        return (known[2],)

    def _keep(self, viewer: Viewer, what: Hashable, made: T, *, published: int | None = None) -> T:
        """`published`: how many events there had been before it was made, if that took time."""
        if len(self._made) >= KEEP_LIMIT:
            self._made.clear()
        services = viewer.services
        count = services.events.published if published is None else published
        self._made[viewer.identity.auth_id, what] = (count, services.clock.monotonic() + KEEP_S, made)
        return made


KEPT: web.AppKey[Kept] = web.AppKey("kept_for_pages")


@dataclass(frozen=True, slots=True)
class Viewer:
    """One identity looking at the services."""

    services: Services
    identity: Identity
    kept: Kept = field(default_factory=Kept)

    @property
    def node(self) -> str:
        """The node's name."""
        return self.services.config.node_name

    def may(self, path: str, privilege: str) -> bool:
        """Whether the privilege is held on the ACL path."""
        return self.services.access.has(self.identity, path, privilege)

    def guests(self) -> Sequence[GuestView]:
        """The guests the viewer may see, by id."""
        return self.kept.recall(self, "guests", self.read_guests)

    def read_guests(self) -> Sequence[GuestView]:
        """The same, made anew."""
        return [guest for guest in self.services.guests.list() if self.may(f"/vms/{guest.guest_id}", "VM.Audit")]

    def guest(self, guest_id: int) -> GuestView:
        """One guest. Raises `PermissionDenied` before `NotFound`: who may not see it does not learn whether it exists."""
        self._require(f"/vms/{guest_id}", "VM.Audit")
        try:
            return self.services.guests.get(GuestId(guest_id))
        except NotFound as error:
            raise NotFound(f"guest {guest_id}") from error  # an address does not say whether it was a VM

    def rights(self, guest_id: int) -> GuestRights:
        """What buttons to show for a guest."""
        return _rights(self.services.access.privileges(self.identity, f"/vms/{guest_id}"))

    def may_create(self) -> bool:
        """Whether there is any use in showing the create buttons."""
        return self.may("/vms", "VM.Allocate")

    @property
    def sees_node(self) -> bool:
        """Whether the node's figures may be shown."""
        return self.may(f"/nodes/{self.node}", "Sys.Audit")

    def require_node(self) -> None:
        """Raises `PermissionDenied`."""
        self._require(f"/nodes/{self.node}", "Sys.Audit")

    def pools(self) -> Sequence[str]:
        """The names of the pools the viewer may see."""
        return [name for name, _ in self.services.access.pools.visible(self.identity)]

    def storages(self) -> Sequence[StorageConfig]:
        """The storages the viewer may see."""
        return [config for config in self.services.storage.storages() if self._sees_storage(config.storage_id)]

    def storage(self, storage_id: str) -> StorageConfig:
        """One storage. Raises `PermissionDenied`, `NotFound`."""
        if not self._sees_storage(storage_id):
            self._require(f"/storage/{storage_id}", "Datastore.Audit")
        return self.services.storage.storage(storage_id)

    def sees_volume(self, info: VolumeInfo) -> bool:
        """Guests' disks are seen by who may see the guest; everything else by who may see the storage."""
        if info.guest_id is None or self.may(f"/storage/{info.volume_id.storage}", "Datastore.Allocate"):
            return True
        return any(self.may(f"/vms/{info.guest_id}", name) for name in ("VM.Audit", "VM.Config.Disk"))

    def require_series(self, series: str) -> None:
        """Figures over time are seen by who may see their object. Raises `PermissionDenied`, `NotFound`."""
        kind, _, name = series.partition("/")
        if kind == "node":
            self._require(f"/nodes/{name}", "Sys.Audit")
        elif kind in tuple(GuestKind) and name.isdecimal() and len(name) < 10:
            self.guest(int(name))
        elif kind == "storage":
            self.storage(name)
        else:
            raise NotFound(f"series '{series[:60]}'")

    async def tasks(self, *, guest_id: int | None = None, limit: int = RECENT_TASKS) -> Sequence[TaskInfo]:
        """The newest tasks: everybody's with Sys.Audit on the node, else one's own."""
        user = None if self.sees_node else self.identity.auth_id
        return await self.services.tasks.list(guest_id=guest_id, limit=limit, user=user)

    async def task(self, upid: str) -> TaskInfo:
        """One task. Raises `NotFound` also for what the viewer may not see."""
        info = await self.services.tasks.get(upid)
        if not self.sees_node and not self.identity.owns(info.user):
            raise NotFound(f"task {upid}")
        return info

    def _sees_storage(self, storage_id: str) -> bool:
        return any(self.may(f"/storage/{storage_id}", name) for name in STORAGE_PRIVILEGES)

    def _require(self, path: str, privilege: str) -> None:
        if not self.may(path, privilege):
            raise PermissionDenied(f"You need {privilege} on {path} for this.")


@functools.lru_cache(maxsize=256)
def _rights(held: frozenset[str]) -> GuestRights:
    """Few sets of privileges are held on many guests."""
    return GuestRights(
        power="VM.PowerMgmt" in held,
        console="VM.Console" in held,
        configure=not held.isdisjoint(CONFIGURING),
        delete="VM.Allocate" in held,
        snapshot="VM.Snapshot" in held,
        clone="VM.Clone" in held,
        backup="VM.Backup" in held,
    )


def kind_word(kind: GuestKind) -> str:
    """ "VM" or "Container"."""
    return "VM" if kind is GuestKind.QEMU else "Container"
