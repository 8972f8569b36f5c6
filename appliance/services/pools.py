"""Resource pools: guests and storages grouped for permissions. What `/pools` does; members' figures are added above.

A guest is in at most one pool, a storage in any number. Pools nest by name, three levels at most (`a/b/c`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from appliance.errors import Conflict, InvalidParameter
from appliance.model.guest import GuestId
from appliance.services.directory import Directory, Pool
from appliance.services.directory_store import DirectoryStore
from appliance.services.groups import check_comment
from appliance.services.guard import Guard
from appliance.services.identity import Identity

_POOL = re.compile(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+){0,2}")
POOL_NAME_LIMIT = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolChange:
    """One `PUT /pools`: members to add, or with `delete` to remove."""

    comment: str | None = None
    guests: Sequence[int] = ()
    storages: Sequence[str] = ()
    delete: bool = False
    allow_move: bool = False


class PoolService:
    """Pools and their members."""

    def __init__(self, store: DirectoryStore, guard: Guard) -> None:
        self._store = store
        self._guard = guard

    def visible(self, caller: Identity) -> list[tuple[str, Pool]]:
        """The pools on which the caller has Pool.Audit."""
        pools = sorted(self._store.directory.pools.items())
        return [(name, pool) for name, pool in pools if self._guard.has(caller, f"/pool/{name}", "Pool.Audit")]

    def get(self, caller: Identity, name: str) -> Pool:
        """Raises `PermissionDenied`, `NotFound`."""
        self._guard.check(caller, pool_path(name), "Pool.Audit")
        return self._store.directory.pool(name)

    def pool_of(self, guest_id: GuestId) -> str | None:
        """The pool the guest is in."""
        return next(iter(self._guard.permissions.pools_of(f"/vms/{guest_id}")), None)

    async def create(self, caller: Identity, name: str, *, comment: str = "") -> None:
        """Raises `Conflict` when there is such a pool, `NotFound` when the pool it nests in is missing."""
        path = pool_path(name)
        check_comment(comment)

        def edit(directory: Directory) -> Directory:
            self._guard.check(caller, path, "Pool.Allocate")
            if name in directory.pools:
                raise Conflict(f"pool '{name}' already exists")
            parent = name.rpartition("/")[0]
            if parent:
                directory.pool(parent)
            return directory.with_pool(name, Pool(comment=comment))

        await self._store.edit(edit)

    async def update(self, caller: Identity, name: str, change: PoolChange) -> None:
        """Set the comment, add or remove members.

        Needs the right to modify permissions on each member. Raises `Conflict` for a guest that is in another pool
        (unless `allow_move` and Pool.Allocate there), is in this one already, or is not in it.
        """
        path = pool_path(name)
        check_comment(change.comment or "")

        def edit(directory: Directory) -> Directory:
            self._guard.check(caller, path, "Pool.Allocate")
            for member in (*(f"/vms/{guest}" for guest in change.guests), *(f"/storage/{s}" for s in change.storages)):
                self._guard.check_modifies_acl(caller, member)
            if change.comment is not None:
                commented = msgspec.structs.replace(directory.pool(name), comment=change.comment)
                directory = directory.with_pool(name, commented)
            for guest_id in change.guests:
                directory = self._change_guest(directory, caller, name, guest_id, change)
            for storage in change.storages:
                directory = _change_storage(directory, name, storage, delete=change.delete)
            return directory

        await self._store.edit(edit)

    def _change_guest(
        self, directory: Directory, caller: Identity, name: str, guest_id: int, change: PoolChange
    ) -> Directory:
        pool = directory.pool(name)
        if change.delete:
            if guest_id not in pool.guests:
                raise Conflict(f"VM {guest_id} is not a pool member")
            return without_guest(directory, guest_id)
        if guest_id in pool.guests:
            raise Conflict(f"VM {guest_id} is already a pool member")
        present = next((key for key, other in directory.pools.items() if guest_id in other.guests), None)
        if present is not None:
            if not change.allow_move:
                raise Conflict(f"VM {guest_id} belongs already to pool '{present}' and 'allow-move' is not set")
            self._guard.check(caller, f"/pool/{present}", "Pool.Allocate")
        return with_guest(directory, name, guest_id)

    async def delete(self, caller: Identity, name: str) -> None:
        """Delete an empty pool and its ACL entries. Raises `Conflict` when it has members or pools below it."""
        path = pool_path(name)

        def edit(directory: Directory) -> Directory:
            self._guard.check(caller, path, "Pool.Allocate")
            pool = directory.pool(name)
            if pool.guests or pool.storages:
                raise Conflict(f"pool '{name}' is not empty")
            if below := [other for other in directory.pools if other.startswith(f"{name}/")]:
                raise Conflict(f"pool '{name}' contains pool '{below[0]}'")
            pools = {key: other for key, other in directory.pools.items() if key != name}
            return replace(directory, pools=pools).without_path(path)

        await self._store.edit(edit)

    async def set_pool(self, guest_id: GuestId, name: str | None) -> None:
        """Put a guest into a pool, out of any other; None takes it out. Whoever calls has checked. Raises `NotFound`."""

        def edit(directory: Directory) -> Directory:
            return without_guest(directory, guest_id) if name is None else with_guest(directory, name, guest_id)

        await self._store.edit(edit)


def pool_path(name: str) -> str:
    """The ACL path of a pool. Raises `InvalidParameter` for what cannot name one."""
    if len(name) > POOL_NAME_LIMIT or _POOL.fullmatch(name) is None or {".", ".."} & set(name.split("/")):
        raise InvalidParameter(
            {"poolid": f"{name[:64]!r} is not a pool's name (letters, digits, '.-_', at most 3 levels)"}
        )
    return f"/pool/{name}"


def with_guest(directory: Directory, name: str, guest_id: int) -> Directory:
    """The snapshot with the guest in this pool only. Raises `NotFound`."""
    directory.pool(name)
    directory = without_guest(directory, guest_id)
    pool = directory.pool(name)
    return directory.with_pool(name, msgspec.structs.replace(pool, guests=tuple(sorted((*pool.guests, guest_id)))))


def without_guest(directory: Directory, guest_id: int) -> Directory:
    """The snapshot with the guest in no pool."""
    for name, pool in directory.pools.items():
        if guest_id in pool.guests:
            guests = tuple(member for member in pool.guests if member != guest_id)
            directory = directory.with_pool(name, msgspec.structs.replace(pool, guests=guests))
    return directory


def _change_storage(directory: Directory, name: str, storage: str, *, delete: bool) -> Directory:
    pool = directory.pool(name)
    if delete == (storage not in pool.storages):
        raise Conflict(f"storage '{storage[:64]}' is {'not' if delete else 'already'} a pool member")
    left = {*pool.storages} - {storage} if delete else {*pool.storages, storage}
    return directory.with_pool(name, msgspec.structs.replace(pool, storages=tuple(sorted(left))))
