"""Groups of users: what `/access/groups` does. Every method checks its caller; replies have Proxmox VE's field names."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from appliance.errors import Conflict, InvalidParameter
from appliance.services.directory import Directory, Group, SubjectKind
from appliance.services.directory_store import DirectoryStore
from appliance.services.guard import GROUPS_PATH, Guard
from appliance.services.identity import Identity, check_group_name

COMMENT_LIMIT = 2048

Reply = dict[str, object]


class GroupService:
    """Groups."""

    def __init__(self, store: DirectoryStore, guard: Guard) -> None:
        self._store = store
        self._guard = guard

    def list(self, caller: Identity) -> list[Reply]:
        """The groups the caller may see."""
        groups = self._store.directory.groups
        visible = self._guard.groups_with(caller, "User.Modify", "Sys.Audit", "Group.Allocate")
        return [
            {"groupid": name, "comment": groups[name].comment or None, "users": ",".join(sorted(groups[name].members))}
            for name in sorted(visible)
        ]

    def get(self, caller: Identity, name: str) -> Reply:
        """One group. Raises `NotFound`."""
        self._guard.check(caller, GROUPS_PATH, "Sys.Audit", "Group.Allocate", require_all=False)
        group = self._store.directory.group(name)
        return {"comment": group.comment or None, "members": sorted(group.members)}

    async def create(self, caller: Identity, name: str, *, comment: str = "") -> None:
        """Raises `Conflict` when there is such a group."""
        check_group_name(name)
        check_comment(comment)

        def edit(directory: Directory) -> Directory:
            self._guard.check(caller, GROUPS_PATH, "Group.Allocate")
            if name in directory.groups:
                raise Conflict(f"group '{name}' already exists")
            return directory.with_group(name, Group(comment=comment))

        await self._store.edit(edit)

    async def update(self, caller: Identity, name: str, *, comment: str | None) -> None:
        """Set the comment."""
        check_comment(comment or "")

        def edit(directory: Directory) -> Directory:
            self._guard.check(caller, GROUPS_PATH, "Group.Allocate")
            group = directory.group(name)
            return directory.with_group(
                name, msgspec.structs.replace(group, comment=group.comment if comment is None else comment)
            )

        await self._store.edit(edit)

    async def delete(self, caller: Identity, name: str) -> None:
        """Delete the group and its ACL entries; its members stay."""

        def edit(directory: Directory) -> Directory:
            self._guard.check(caller, GROUPS_PATH, "Group.Allocate")
            directory.group(name)
            self._guard.check_group_not_stronger(caller, [name])
            directory = directory.without_subject(SubjectKind.GROUP, name)
            return replace(directory, groups={key: group for key, group in directory.groups.items() if key != name})

        await self._store.edit(edit)


def check_comment(comment: str) -> None:
    """Raises `InvalidParameter` when it is too long."""
    if len(comment) > COMMENT_LIMIT:
        raise InvalidParameter({"comment": f"longer than {COMMENT_LIMIT} characters"})
