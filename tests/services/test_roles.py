from __future__ import annotations

import pytest

from appliance.errors import InvalidParameter
from appliance.services.roles import BUILTIN_ROLES, PRIVILEGES, check_privileges, check_role_name, is_reserved

PVE_9_ROLES = {
    "Administrator", "NoAccess", "PVEAdmin", "PVEAuditor", "PVEDatastoreAdmin", "PVEDatastoreUser", "PVEMappingAdmin",
    "PVEMappingUser", "PVEPoolAdmin", "PVEPoolUser", "PVESDNAdmin", "PVESDNUser", "PVESysAdmin", "PVETemplateUser",
    "PVEUserAdmin", "PVEVMAdmin", "PVEVMUser",
}  # fmt: skip


def test_the_documented_roles_of_pve_9_exist_and_no_others() -> None:
    assert set(BUILTIN_ROLES) == PVE_9_ROLES


def test_there_are_the_privileges_of_pve_9_and_not_the_dropped_vm_monitor() -> None:
    assert len(PRIVILEGES) == 47
    assert {"VM.GuestAgent.Unrestricted", "VM.Replicate", "Sys.Incoming", "Sys.AccessNetwork"} <= PRIVILEGES
    assert "VM.Monitor" not in PRIVILEGES


@pytest.mark.parametrize(
    ("role", "has", "lacks"),
    [
        ("Administrator", "Permissions.Modify", None),
        ("PVEAdmin", "VM.Allocate", "Permissions.Modify"),
        ("PVEAdmin", "Mapping.Use", "Mapping.Modify"),
        ("PVEAdmin", "User.Modify", "Realm.Allocate"),
        ("PVEAuditor", "VM.GuestAgent.Audit", "VM.Console"),
        ("PVEDatastoreUser", "Datastore.AllocateSpace", "Datastore.AllocateTemplate"),
        ("PVEMappingAdmin", "Mapping.Modify", "VM.Audit"),
        ("PVEPoolUser", "Pool.Audit", "Pool.Allocate"),
        ("PVESDNUser", "SDN.Use", "SDN.Allocate"),
        ("PVESysAdmin", "Sys.Console", "Sys.Modify"),
        ("PVETemplateUser", "VM.Clone", "VM.PowerMgmt"),
        ("PVEUserAdmin", "Group.Allocate", "Realm.Allocate"),
        ("PVEVMAdmin", "VM.Replicate", "Permissions.Modify"),
        ("PVEVMUser", "VM.Config.CDROM", "VM.Config.Disk"),
    ],
)
def test_a_built_in_role_holds_what_its_name_says(role: str, has: str, lacks: str | None) -> None:
    assert has in BUILTIN_ROLES[role]
    assert lacks not in BUILTIN_ROLES[role]


def test_every_role_holds_only_known_privileges() -> None:
    assert all(privileges <= PRIVILEGES for privileges in BUILTIN_ROLES.values())


@pytest.mark.parametrize("name", ["PVEMine", "pve_mine", "Administrator", "NoAccess"])
def test_reserved_names_cannot_be_custom_roles(name: str) -> None:
    assert is_reserved(name)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "../x", "x" * 65, "a\n"])
def test_bad_role_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidParameter):
        check_role_name(name)


def test_an_unknown_privilege_is_named() -> None:
    with pytest.raises(InvalidParameter, match=r"VM\.Monitor"):
        check_privileges(["VM.Audit", "VM.Monitor"])
