"""The evaluation of the ACL tree, as tables after pveum(1) and as properties."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import InvalidParameter
from appliance.services.directory import AclEntry, Directory, Group, Pool, Role, SubjectKind, Token, User
from appliance.services.identity import Identity, parse_auth_id
from appliance.services.permissions import Permissions, check_acl_path, levels, normalize_path
from appliance.services.roles import BUILTIN_ROLES, PRIVILEGES

AUDIT, POWER, CONSOLE = "VM.Audit", "VM.PowerMgmt", "VM.Console"
ROLES = {
    "Viewer": Role(privileges=(AUDIT,)),
    "Operator": Role(privileges=(POWER,)),
    "Typist": Role(privileges=(CONSOLE,)),
    "Delegate": Role(privileges=(AUDIT, "Permissions.Modify")),
}


def entry(text: str) -> AclEntry:
    """ "/vms joe@pve Viewer", "@group" for groups, "name!token" for tokens, a last "-" for no propagation."""
    path, subject, role, *flags = text.split()
    kind = SubjectKind.GROUP if subject[0] == "@" else SubjectKind.TOKEN if "!" in subject else SubjectKind.USER
    return AclEntry(path=path, kind=kind, subject=subject.lstrip("@"), role=role, propagate="-" not in flags)


def directory(*acl: str, pools: dict[str, Pool] | None = None) -> Directory:
    tokens = {"full": Token(digest="", privsep=False), "sep": Token(digest=""), "other": Token(digest="")}
    return Directory(
        users={"joe@pve": User(tokens=tokens), "ann@pve": User(), "sue@pve": User()},
        groups={"dev": Group(members=("joe@pve", "ann@pve")), "ops": Group(members=("joe@pve",))},
        custom_roles=ROLES,
        pools=pools or {},
        acl=tuple(entry(text) for text in acl),
    )


def held(where: Directory, who: str, path: str) -> set[str]:
    return set(Permissions(where).names(parse_auth_id(who), path))


@pytest.mark.parametrize(
    ("acl", "who", "path", "expected"),
    [
        # nothing granted, nothing held
        ([], "joe@pve", "/vms/100", set()),
        # an entry holds on its path and, propagating, below it, not above
        (["/vms joe@pve Viewer"], "joe@pve", "/vms", {AUDIT}),
        (["/vms joe@pve Viewer"], "joe@pve", "/vms/100", {AUDIT}),
        (["/vms joe@pve Viewer"], "joe@pve", "/", set()),
        (["/vms joe@pve Viewer"], "joe@pve", "/storage/local", set()),
        (["/vms joe@pve Viewer"], "joe@pve", "/vmsx", set()),
        (["/ joe@pve Viewer"], "joe@pve", "/vms/100", {AUDIT}),
        # without propagation only on the path itself
        (["/vms joe@pve Viewer -"], "joe@pve", "/vms", {AUDIT}),
        (["/vms joe@pve Viewer -"], "joe@pve", "/vms/100", set()),
        # a non-propagating entry does not hide what comes from further up, below itself
        (["/ joe@pve Viewer", "/vms joe@pve Operator -"], "joe@pve", "/vms", {POWER}),
        (["/ joe@pve Viewer", "/vms joe@pve Operator -"], "joe@pve", "/vms/100", {AUDIT}),
        # deeper levels replace
        (["/vms joe@pve Viewer", "/vms/100 joe@pve Operator"], "joe@pve", "/vms/100", {POWER}),
        (["/vms joe@pve Viewer", "/vms/100 joe@pve Operator"], "joe@pve", "/vms/101", {AUDIT}),
        # several roles on one level add up
        (["/vms joe@pve Viewer", "/vms joe@pve Operator"], "joe@pve", "/vms/100", {AUDIT, POWER}),
        # groups apply to members and add up on one level
        (["/vms @dev Viewer"], "joe@pve", "/vms/100", {AUDIT}),
        (["/vms @dev Viewer"], "sue@pve", "/vms/100", set()),
        (["/vms @dev Viewer", "/vms @ops Typist"], "joe@pve", "/vms/100", {AUDIT, CONSOLE}),
        # the user's own entry replaces the groups' on the same level
        (["/vms @dev Viewer", "/vms joe@pve Operator"], "joe@pve", "/vms/100", {POWER}),
        # … but a group's entry further down replaces the user's
        (["/vms joe@pve Operator", "/vms/100 @dev Viewer"], "joe@pve", "/vms/100", {AUDIT}),
        # NoAccess cancels all other roles of its level, and those from above
        (["/vms joe@pve Viewer", "/vms joe@pve NoAccess"], "joe@pve", "/vms/100", set()),
        (["/ joe@pve Administrator", "/vms/100 joe@pve NoAccess"], "joe@pve", "/vms/100", set()),
        (["/vms @dev Viewer", "/vms @ops NoAccess"], "joe@pve", "/vms/100", set()),
        (["/vms @ops NoAccess", "/vms joe@pve Viewer"], "joe@pve", "/vms/100", {AUDIT}),
        # … until a deeper level grants again
        (["/vms joe@pve NoAccess", "/vms/100 joe@pve Viewer"], "joe@pve", "/vms/100", {AUDIT}),
        # a token without separation is its user; its own entries do not matter
        (["/vms joe@pve Viewer"], "joe@pve!full", "/vms/100", {AUDIT}),
        (["/vms joe@pve Viewer", "/vms joe@pve!full Operator"], "joe@pve!full", "/vms/100", {AUDIT}),
        # a separated token has what both have
        (["/vms joe@pve Viewer"], "joe@pve!sep", "/vms/100", set()),
        (["/vms joe@pve!sep Viewer"], "joe@pve!sep", "/vms/100", set()),
        (["/vms joe@pve Viewer", "/vms joe@pve!sep Administrator"], "joe@pve!sep", "/vms/100", {AUDIT}),
        (["/ joe@pve Administrator", "/vms joe@pve!sep Viewer"], "joe@pve!sep", "/vms/100", {AUDIT}),
        (["/vms @dev Viewer", "/vms joe@pve!sep Administrator"], "joe@pve!sep", "/vms/100", {AUDIT}),
        (["/vms joe@pve Viewer", "/vms joe@pve!sep Viewer"], "joe@pve!other", "/vms/100", set()),
        # a group is no way for a separated token
        (["/ joe@pve Administrator", "/vms @dev Viewer"], "joe@pve!sep", "/vms/100", set()),
        # who does not exist holds nothing
        (["/ joe@pve Administrator"], "joe@pve!gone", "/vms/100", set()),
        (["/ eve@pve Administrator"], "eve@pve", "/vms/100", set()),
    ],
)
def test_privileges_follow_the_rules_of_inheritance(acl: list[str], who: str, path: str, expected: set[str]) -> None:
    assert held(directory(*acl), who, path) == expected


POOLS = {
    "web": Pool(guests=(100,), storages=("fast",)),
    "web/inner": Pool(guests=(101,)),
    "db": Pool(guests=(200,), storages=("fast",)),
}


@pytest.mark.parametrize(
    ("acl", "who", "path", "expected"),
    [
        (["/pool/web joe@pve Viewer"], "joe@pve", "/vms/100", {AUDIT}),
        (["/pool/web joe@pve Viewer"], "joe@pve", "/storage/fast", {AUDIT}),
        (["/pool/web joe@pve Viewer"], "joe@pve", "/vms/200", set()),
        (["/pool/web joe@pve Viewer"], "joe@pve", "/vms", set()),
        (["/pool joe@pve Viewer"], "joe@pve", "/vms/200", {AUDIT}),
        # what a pool grants joins what the tree grants
        (["/pool/web joe@pve Viewer", "/vms joe@pve Typist"], "joe@pve", "/vms/100", {AUDIT, CONSOLE}),
        # a storage in two pools has the roles of both
        (["/pool/web joe@pve Viewer", "/pool/db joe@pve Typist"], "joe@pve", "/storage/fast", {AUDIT, CONSOLE}),
        # nested pools inherit like any path, upwards nothing
        (["/pool/web joe@pve Viewer"], "joe@pve", "/vms/101", {AUDIT}),
        (["/pool/web/inner joe@pve Viewer"], "joe@pve", "/vms/100", set()),
        # NoAccess wins from either side
        (["/pool/web joe@pve Viewer", "/vms joe@pve NoAccess"], "joe@pve", "/vms/100", set()),
        (["/pool/web joe@pve NoAccess", "/vms joe@pve Viewer"], "joe@pve", "/vms/100", set()),
        # tokens: through pools too, never beyond the user
        (["/pool/web joe@pve Viewer", "/pool/web joe@pve!sep PVEVMAdmin"], "joe@pve!sep", "/vms/100", {AUDIT}),
    ],
)
def test_pools_hand_their_permissions_to_their_members(acl: list[str], who: str, path: str, expected: set[str]) -> None:
    assert held(directory(*acl, pools=POOLS), who, path) == expected


def test_what_comes_by_a_pool_does_not_propagate() -> None:
    permissions = Permissions(directory("/pool/web joe@pve Viewer", "/vms joe@pve Typist", pools=POOLS))
    assert permissions.privileges(Identity("joe@pve"), "/vms/100") == {AUDIT: False, CONSOLE: True}


def test_a_token_propagates_only_what_its_user_propagates() -> None:
    permissions = Permissions(directory("/vms joe@pve Viewer -", "/vms joe@pve!sep Viewer"))
    assert permissions.privileges(Identity("joe@pve", "sep"), "/vms") == {AUDIT: False}


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/", "/"),
        ("//", "/"),
        ("/vms/", "/vms"),
        ("vms//100", "/vms/100"),
        ("", None),
        ("/vms/..", None),
        ("/vms/../access", None),
        ("/vms/./100", None),
        ("/vms/100\n", None),
        ("/vms/%2e%2e", None),
        ("/vms/a b", None),
        ("/vms/é", None),
        ("/" + "a" * 600, None),
    ],
)
def test_paths_are_normalized_or_refused(text: str, path: str | None) -> None:
    assert normalize_path(text) == path


@pytest.mark.parametrize("path", ["/vms/../", "/vms/100/../../access", "/vms/100\0", "/vms/" + "9" * 600])
def test_a_path_trick_gives_no_privilege_even_to_an_administrator(path: str) -> None:
    assert held(directory("/ joe@pve Administrator"), "joe@pve", path) == set()


@pytest.mark.parametrize(
    "path",
    ["/", "/vms/100", "/storage/local", "/pool/a/b/c", "/access/groups/x", "/access/realm/pve", "/nodes/n1",
     "/sdn/zones/z/v/12", "/mapping/pci/x", "/sdn/fabrics/f"],
)  # fmt: skip
def test_paths_of_objects_can_carry_entries(path: str) -> None:
    assert check_acl_path(path) == path


@pytest.mark.parametrize("path", ["/vms/1", "/vms/abc", "/users", "/pool/a/b/c/d", "/vms/100/x", "/access/users", ""])
def test_paths_where_nothing_lives_cannot_carry_entries(path: str) -> None:
    with pytest.raises(InvalidParameter):
        check_acl_path(path)


def test_levels_go_from_the_root_to_the_path() -> None:
    assert list(levels("/")) == ["/"]
    assert list(levels("/access/groups/x")) == ["/", "/access", "/access/groups", "/access/groups/x"]


PATHS = ["/", "/vms", "/vms/100", "/vms/101", "/pool", "/pool/web", "/storage/fast", "/access", "/access/groups"]
SUBJECTS = [
    (SubjectKind.USER, "joe@pve"),
    (SubjectKind.USER, "ann@pve"),
    (SubjectKind.GROUP, "dev"),
    (SubjectKind.GROUP, "ops"),
    (SubjectKind.TOKEN, "joe@pve!sep"),
    (SubjectKind.TOKEN, "joe@pve!full"),
]
acl_entries = st.builds(
    lambda path, subject, role, propagate: AclEntry(
        path=path, kind=subject[0], subject=subject[1], role=role, propagate=propagate
    ),
    st.sampled_from(PATHS),
    st.sampled_from(SUBJECTS),
    st.sampled_from(sorted([*BUILTIN_ROLES, *ROLES])),
    st.booleans(),
)
directories = st.lists(acl_entries, max_size=12).map(
    lambda acl: replace(directory(pools=POOLS), acl=tuple(sorted(set(acl))))
)
everybody = ["joe@pve", "ann@pve", "sue@pve", "joe@pve!sep", "joe@pve!full", "joe@pve!gone"]


@settings(max_examples=300, deadline=None)
@given(where=directories, path=st.sampled_from([*PATHS, "/vms/999", "/vms/200", "/nodes/x"]))
def test_a_token_never_exceeds_its_user(where: Directory, path: str) -> None:
    permissions = Permissions(where)
    user = permissions.privileges(Identity("joe@pve"), path)
    token = permissions.privileges(Identity("joe@pve", "sep"), path)
    assert token.keys() <= user.keys()
    assert all(user[name] for name, propagates in token.items() if propagates)
    assert permissions.privileges(Identity("joe@pve", "full"), path) == user


@settings(max_examples=200, deadline=None)
@given(where=directories, who=st.sampled_from(everybody), path=st.sampled_from(PATHS))
def test_privileges_are_known_ones_and_the_answer_does_not_depend_on_what_was_asked_before(
    where: Directory, who: str, path: str
) -> None:
    permissions, identity = Permissions(where), parse_auth_id(who)
    for other in PATHS:
        permissions.names(identity, other)
    assert permissions.names(identity, path) == Permissions(where).names(identity, path)
    assert permissions.names(identity, path) <= PRIVILEGES


@settings(max_examples=200, deadline=None)
@given(where=directories, path=st.sampled_from(PATHS))
def test_no_access_on_the_path_itself_leaves_nothing(where: Directory, path: str) -> None:
    acl = (*where.acl, AclEntry(path=path, kind=SubjectKind.USER, subject="joe@pve", role="NoAccess"))
    assert held(replace(where, acl=acl), "joe@pve", path) == set()


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=80))
def test_any_text_as_path_is_normalized_twice_to_the_same_or_refused(text: str) -> None:
    if (path := normalize_path(text)) is not None:
        assert normalize_path(path) == path
        assert ".." not in path.split("/")
