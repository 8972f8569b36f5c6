"""Privileges and roles: the vocabulary of Proxmox VE 9 (pveum(1), "Roles" and "Privileges").

A privilege is the right to do one kind of thing; a role is a named set of privileges. The built-in roles are made from
four strengths in each area: `audit` sees, `user` works with, `admin` manages, `system` reaches beyond the area and is
only in Administrator. Pure values, no state: custom roles are in `directory.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from appliance.errors import InvalidParameter

ADMINISTRATOR = "Administrator"
NO_ACCESS = "NoAccess"
PERMISSIONS_MODIFY = "Permissions.Modify"

_ROLE_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")

_AREAS: Mapping[str, Mapping[str, str]] = {
    "VM": {
        "audit": "VM.Audit VM.GuestAgent.Audit",
        "user": "VM.Backup VM.Config.CDROM VM.Config.Cloudinit VM.Console VM.PowerMgmt "
        "VM.GuestAgent.FileRead VM.GuestAgent.FileSystemMgmt VM.GuestAgent.FileWrite",
        "admin": "VM.Allocate VM.Clone VM.Config.CPU VM.Config.Disk VM.Config.HWType VM.Config.Memory "
        "VM.Config.Network VM.Config.Options VM.GuestAgent.Unrestricted VM.Migrate VM.Replicate VM.Snapshot "
        "VM.Snapshot.Rollback",
    },
    "Sys": {
        "audit": "Sys.Audit",
        "admin": "Sys.Console Sys.Syslog",
        "system": "Sys.AccessNetwork Sys.Incoming Sys.Modify Sys.PowerMgmt",
    },
    "Datastore": {
        "audit": "Datastore.Audit",
        "user": "Datastore.AllocateSpace",
        "admin": "Datastore.Allocate Datastore.AllocateTemplate",
    },
    "SDN": {"audit": "SDN.Audit", "user": "SDN.Use", "admin": "SDN.Allocate"},
    "User": {"admin": "Group.Allocate Realm.AllocateUser User.Modify", "system": "Realm.Allocate"},
    "Pool": {"audit": "Pool.Audit", "user": "Pool.Audit", "admin": "Pool.Allocate"},
    "Mapping": {"audit": "Mapping.Audit", "user": "Mapping.Use", "admin": "Mapping.Modify"},
}


def _of(area: str, *strengths: str) -> frozenset[str]:
    return frozenset(name for strength in strengths for name in _AREAS[area].get(strength, "").split())


def _everywhere(*strengths: str) -> frozenset[str]:
    return frozenset[str]().union(*(_of(area, *strengths) for area in _AREAS))


PRIVILEGES: frozenset[str] = _everywhere("audit", "user", "admin", "system") | {PERMISSIONS_MODIFY}
"""Every privilege there is."""


def _builtin_roles() -> dict[str, frozenset[str]]:
    roles = {ADMINISTRATOR: PRIVILEGES, NO_ACCESS: frozenset[str]()}
    for area, strengths in _AREAS.items():
        roles[f"PVE{area}Admin"] = _of(area, "audit", "user", "admin")
        if "user" in strengths:
            roles[f"PVE{area}User"] = _of(area, "audit", "user")
    # Mapping.Modify hands host devices to guests: only Administrator and PVEMappingAdmin have it.
    roles["PVEAdmin"] = _everywhere("audit", "user", "admin") - {"Mapping.Modify"}
    roles["PVEAuditor"] = _everywhere("audit")
    roles["PVETemplateUser"] = frozenset({"VM.Audit", "VM.Clone"})
    return roles


BUILTIN_ROLES: Mapping[str, frozenset[str]] = _builtin_roles()
"""Roles that always exist and cannot be changed."""


def is_reserved(role: str) -> bool:
    """Whether a custom role may not have this name: a built-in's, or one in the `PVE` name space (any case)."""
    return role in BUILTIN_ROLES or role.lower().startswith("pve")


def check_role_name(role: str) -> str:
    """Return `role` if it is of the form of a role's name. Raises `InvalidParameter`."""
    if _ROLE_NAME.fullmatch(role) is None:
        raise InvalidParameter({"roleid": f"{role[:64]!r} is not a role's name (letters, digits, '.', '-', '_')"})
    return role


def check_privileges(names: Iterable[str]) -> tuple[str, ...]:
    """The privileges sorted and once each. Raises `InvalidParameter` naming the unknown ones."""
    wanted = set(names)
    if unknown := sorted(wanted - PRIVILEGES):
        raise InvalidParameter({"privs": f"no such privilege: {', '.join(name[:64] for name in unknown[:8])}"})
    return tuple(sorted(wanted))
