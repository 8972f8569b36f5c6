"""Who may change whom and what: users, groups, tokens, roles, ACL, second factors, pools."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pyotp
import pytest

from appliance.errors import (
    Conflict,
    HostError,
    InvalidParameter,
    NotAuthenticated,
    NotFound,
    PermissionDenied,
    Unsupported,
    UserError,
)
from appliance.model.guest import GuestId
from appliance.services.access import Identity
from appliance.services.acl import AclChange
from appliance.services.pools import PoolChange
from appliance.services.users import UserChange
from tests.fakes.access import ADMIN, ADMIN_PASSWORD, Realm, open_realm
from tests.fakes.store import FakeStore

NEW = "a better password"
SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
URI = f"otpauth://totp/x?secret={SECRET}"


@pytest.fixture
async def realm(tmp_path: Path) -> AsyncIterator[Realm]:
    async with open_realm(tmp_path) as opened:
        yield opened


async def grant(
    realm: Realm, path: str, role: str, *users: str, groups: tuple[str, ...] = (), propagate: bool = True
) -> None:
    change = AclChange(path=path, roles=[role], users=users, groups=groups, propagate=propagate)
    await realm.access.acl.change(ADMIN, change)


async def manager_of_customers(realm: Realm) -> Identity:
    """pveum(1), "Delegate User Management": may manage users of realm pve who are in group customers."""
    await realm.access.groups.create(ADMIN, "customers")
    boss = await realm.add_user("boss@pve")
    await grant(realm, "/access/realm/pve", "PVEUserAdmin", "boss@pve")
    await grant(realm, "/access/groups/customers", "PVEUserAdmin", "boss@pve")
    return boss


# users


async def test_a_delegated_manager_manages_the_users_of_their_group_and_no_others(realm: Realm) -> None:
    boss, users = await manager_of_customers(realm), realm.access.users
    await users.create(boss, "anna@pve", UserChange(firstname="Anna"), groups=["customers"], password=NEW)
    await users.update(boss, "anna@pve", UserChange(lastname="A"))
    await users.set_password(boss, "anna@pve", NEW + "2", confirmation="a good password")
    for forbidden in (
        users.create(boss, "bert@pve", UserChange()),
        users.create(boss, "bert@pam", UserChange(), groups=["customers"]),
        users.update(boss, "admin@pve", UserChange(enable=False)),
        users.set_password(boss, "admin@pve", NEW, confirmation="a good password"),
        users.delete(boss, "admin@pve"),
        users.delete(boss, "nobody@pve"),
    ):
        with pytest.raises(PermissionDenied):
            await forbidden
    assert {row["userid"] for row in users.list(boss)} == {"anna@pve", "boss@pve"}
    await users.delete(boss, "anna@pve")


async def test_a_user_manager_cannot_become_administrator(realm: Realm) -> None:
    joe, access = await realm.add_user("joe@pve"), realm.access
    await access.groups.create(ADMIN, "admins")
    await grant(realm, "/", "Administrator", groups=("admins",))
    await grant(realm, "/access", "PVEUserAdmin", "joe@pve")
    for forbidden in (
        access.users.update(joe, "joe@pve", UserChange(), groups=["admins"]),
        access.users.create(joe, "tool@pve", UserChange(), groups=["admins"]),
        access.users.set_password(joe, "admin@pve", NEW, confirmation="a good password"),
        access.tokens.create(joe, "admin@pve", "ci", privsep=False),
        access.tfa.add(joe, "admin@pve", "recovery", password="a good password"),
        access.users.update(joe, "admin@pve", UserChange(enable=False)),
        access.users.delete(joe, "root@pam"),
        access.groups.delete(joe, "admins"),
        access.acl.change(joe, AclChange(path="/", roles=["Administrator"], users=["joe@pve"])),
        access.roles.create(joe, "mine", ["Permissions.Modify"]),
    ):
        with pytest.raises(PermissionDenied):
            await forbidden
    assert not access.has(joe, "/", "Permissions.Modify")


async def test_a_role_in_use_cannot_be_loaded_with_what_its_author_may_not_hand_out(realm: Realm) -> None:
    joe = await realm.add_user("joe@pve")
    await realm.access.roles.create(ADMIN, "Editor", ["Sys.Modify"])
    await grant(realm, "/access", "Editor", "joe@pve")
    await realm.access.roles.create(joe, "Harmless", ["VM.Audit"])
    with pytest.raises(PermissionDenied):
        await realm.access.roles.update(joe, "Editor", ["Permissions.Modify"], append=True)


async def test_the_last_administrator_cannot_be_lost(realm: Realm) -> None:
    access = realm.access
    await access.users.delete(ADMIN, "root@pam")
    for lockout in (
        access.users.delete(ADMIN, "admin@pve"),
        access.users.update(ADMIN, "admin@pve", UserChange(enable=False)),
        access.users.update(ADMIN, "admin@pve", UserChange(expire=1)),
        access.acl.change(ADMIN, AclChange(path="/", roles=["Administrator"], users=["admin@pve"], delete=True)),
        access.acl.change(ADMIN, AclChange(path="/", roles=["NoAccess"], users=["admin@pve"])),
    ):
        with pytest.raises(Conflict, match="no enabled user"):
            await lockout
    assert access.has(ADMIN, "/", "Permissions.Modify")


async def test_no_user_name_is_special(realm: Realm) -> None:
    await realm.add_user("chief@pve")
    await grant(realm, "/", "Administrator", "chief@pve")
    chief = Identity("chief@pve")
    await realm.access.users.delete(chief, "root@pam")
    await realm.access.users.delete(chief, "admin@pve")
    assert realm.access.privileges(Identity("root@pam"), "/") == frozenset()
    assert realm.access.has(chief, "/vms/100", "VM.Allocate")


@pytest.mark.parametrize(
    "user_id", ["", "joe", "joe@", "@pve", "joe@pve\n", "jo e@pve", "jo:e@pve", "jo/e@pve", "joe@pve!x", "a!b@pve",
                "x" * 61 + "@pve", "joe@1", "jo\0e@pve", "joe@../x", "\ud800@pve", "joe\u200b\u202e@pve"],
)  # fmt: skip
async def test_what_is_no_user_id_is_refused(realm: Realm, user_id: str) -> None:
    with pytest.raises(InvalidParameter):
        await realm.access.users.create(ADMIN, user_id, UserChange())


async def test_names_with_unusual_letters_are_kept(realm: Realm) -> None:
    for user_id in ("jürgen@pve", "joe@example.org@pve", "a%2Fb@pve", "日本@pve"):
        await realm.add_user(user_id)
        assert realm.access.users.get(ADMIN, user_id)["enable"] is True
        await realm.log_in(user_id, "a good password")


@pytest.mark.parametrize(
    "change",
    [UserChange(email="nonsense"), UserChange(email="a@b" + "c" * 300), UserChange(comment="x" * 3000),
     UserChange(firstname="a\nb")],
)  # fmt: skip
async def test_bad_fields_are_refused_by_name(realm: Realm, change: UserChange) -> None:
    with pytest.raises(InvalidParameter):
        await realm.access.users.create(ADMIN, "joe@pve", change)


async def test_users_exist_once_in_known_realms_and_groups(realm: Realm) -> None:
    await realm.add_user("joe@pve")
    with pytest.raises(Conflict, match="already exists"):
        await realm.add_user("joe@pve")
    with pytest.raises(NotFound, match="realm 'ldap' does not exist"):
        await realm.add_user("joe@ldap")
    with pytest.raises(NotFound, match="group 'x' does not exist"):
        await realm.add_user("ann@pve", groups=("x",))
    with pytest.raises(NotFound, match="user 'ann@pve' does not exist"):
        realm.access.users.get(ADMIN, "ann@pve")
    with pytest.raises(InvalidParameter, match="password"):
        await realm.add_user("ann@pam", password=NEW)
    with pytest.raises(InvalidParameter, match="8 to 64"):
        await realm.add_user("ann@pve", password="short")


async def test_memberships_are_replaced_or_added_to(realm: Realm) -> None:
    users, groups = realm.access.users, realm.access.groups
    for name in ("a", "b", "c"):
        await groups.create(ADMIN, name, comment=f"group {name}")
    await realm.add_user("joe@pve", groups=("a",))
    await users.update(ADMIN, "joe@pve", UserChange(), groups=["b"], append=True)
    assert users.get(ADMIN, "joe@pve")["groups"] == ["a", "b"]
    await users.update(ADMIN, "joe@pve", UserChange(), groups=["c"])
    assert users.get(ADMIN, "joe@pve")["groups"] == ["c"]
    assert groups.get(ADMIN, "c") == {"comment": "group c", "members": ["joe@pve"]}
    await groups.update(ADMIN, "c", comment="changed")
    await users.delete(ADMIN, "joe@pve")
    assert groups.get(ADMIN, "c") == {"comment": "changed", "members": []}
    await groups.delete(ADMIN, "c")
    assert [row["groupid"] for row in groups.list(ADMIN)] == ["a", "b"]
    with pytest.raises(Conflict):
        await groups.create(ADMIN, "a")


async def test_nothing_secret_is_ever_listed(realm: Realm) -> None:
    await realm.add_user("joe@pve")
    await realm.access.tokens.create(ADMIN, "joe@pve", "ci", comment="pipeline")
    shown = repr(realm.access.users.list(ADMIN, full=True)) + repr(realm.access.users.get(ADMIN, "joe@pve"))
    assert "pipeline" in shown
    assert "argon2" not in shown
    assert "digest" not in shown


async def test_changing_a_password_asks_for_ones_own_unless_an_administrator_helps_somebody_else(realm: Realm) -> None:
    joe, users = await realm.add_user("joe@pve"), realm.access.users
    for confirmation in (None, "wrong"):
        with pytest.raises(UserError):
            await users.set_password(joe, "joe@pve", NEW, confirmation=confirmation)
        with pytest.raises(UserError):
            await users.set_password(ADMIN, "admin@pve", NEW, confirmation=confirmation)
    await users.set_password(ADMIN, "joe@pve", NEW)
    with pytest.raises(PermissionDenied):
        await users.set_password(joe, "admin@pve", NEW, confirmation=NEW)


async def test_a_stolen_session_cannot_guess_the_password(realm: Realm) -> None:
    joe = await realm.add_user("joe@pve")
    for _ in range(10):
        with pytest.raises(NotAuthenticated):
            await realm.access.users.set_password(joe, "joe@pve", NEW, confirmation="guess")
    with pytest.raises(UserError, match="too many"):
        await realm.access.users.set_password(joe, "joe@pve", NEW, confirmation="a good password")


# tokens


async def test_a_token_cannot_take_over_its_user(realm: Realm) -> None:
    access = realm.access
    await realm.add_user("joe@pve")
    for privsep in (False, True):
        name = f"t{int(privsep)}"
        await access.tokens.create(ADMIN, "joe@pve", name, privsep=privsep)
        token = Identity("joe@pve", name)
        for forbidden in (
            access.users.set_password(token, "joe@pve", NEW, confirmation="a good password"),
            access.tfa.add(token, "joe@pve", "recovery", password="a good password"),
            access.tokens.create(token, "joe@pve", "more", privsep=False),
            access.tokens.update(token, "joe@pve", name, privsep=False),
            access.tokens.delete(token, "joe@pve", name),
        ):
            with pytest.raises(PermissionDenied):
                await forbidden
        with pytest.raises(PermissionDenied):
            access.tokens.list(token, "joe@pve")


async def test_a_separated_token_of_an_administrator_has_nothing_until_granted(realm: Realm) -> None:
    reply = await realm.access.tokens.create(ADMIN, "admin@pve", "ci")
    token = Identity("admin@pve", "ci")
    assert reply["full-tokenid"] == "admin@pve!ci"
    assert realm.access.privileges(token, "/") == frozenset()
    with pytest.raises(PermissionDenied):
        await realm.access.users.create(token, "joe@pve", UserChange())
    await realm.access.acl.change(ADMIN, AclChange(path="/vms", roles=["PVEAuditor"], tokens=["admin@pve!ci"]))
    assert realm.access.has(token, "/vms/100", "VM.Audit")
    assert not realm.access.has(token, "/vms/100", "VM.Console")
    await realm.access.tokens.delete(ADMIN, "admin@pve", "ci")
    await realm.access.tokens.create(ADMIN, "admin@pve", "ci")
    assert realm.access.privileges(token, "/vms/100") == frozenset()


async def test_tokens_are_read_changed_and_bounded(realm: Realm) -> None:
    joe, tokens = await realm.add_user("joe@pve"), realm.access.tokens
    await tokens.create(joe, "joe@pve", "ci", comment="x")
    assert tokens.list(joe, "joe@pve") == [{"tokenid": "ci", "privsep": True, "expire": 0, "comment": "x"}]
    assert await tokens.update(joe, "joe@pve", "ci", delete=["comment"]) == {
        "privsep": True,
        "expire": 0,
        "comment": None,
    }
    with pytest.raises(InvalidParameter, match="unknown option"):
        await tokens.update(joe, "joe@pve", "ci", delete=["privsep"])
    with pytest.raises(Conflict):
        await tokens.create(joe, "joe@pve", "ci")
    with pytest.raises(NotFound):
        tokens.get(joe, "joe@pve", "cd")
    for bad in ("", "1a", "a b", "a!b", "x" * 65):
        with pytest.raises(InvalidParameter):
            await tokens.create(joe, "joe@pve", bad)
    for number in range(127):
        await tokens.create(joe, "joe@pve", f"t{number:03}")
    with pytest.raises(Conflict, match="128 tokens"):
        await tokens.create(joe, "joe@pve", "more")


# roles and ACL


async def test_an_administrator_can_take_back_what_shut_themself_out(realm: Realm) -> None:
    await grant(realm, "/vms", "NoAccess", "admin@pve")
    assert not realm.access.has(ADMIN, "/vms/100", "VM.Audit")
    await realm.access.acl.change(ADMIN, AclChange(path="/vms", roles=["NoAccess"], users=["admin@pve"], delete=True))
    assert realm.access.has(ADMIN, "/vms/100", "VM.Audit")


async def test_roles_are_made_changed_and_protected_while_in_use(realm: Realm) -> None:
    roles = realm.access.roles
    await roles.create(ADMIN, "Watch", ["VM.Audit"])
    await roles.update(ADMIN, "Watch", ["VM.Console"], append=True)
    assert roles.get("Watch") == {"VM.Audit": True, "VM.Console": True}
    await roles.update(ADMIN, "Watch", ["VM.Console"])
    assert roles.get("Watch") == {"VM.Console": True}
    await grant(realm, "/vms", "Watch", "admin@pve")
    with pytest.raises(Conflict, match="in use on /vms"):
        await roles.delete(ADMIN, "Watch")
    await realm.access.acl.change(ADMIN, AclChange(path="/vms", roles=["Watch"], users=["admin@pve"], delete=True))
    await roles.delete(ADMIN, "Watch")
    with pytest.raises(NotFound):
        roles.get("Watch")
    for builtin in ("Administrator", "PVEVMUser"):
        with pytest.raises(Conflict, match="built in"):
            await roles.delete(ADMIN, builtin)
        with pytest.raises(Conflict):
            await roles.create(ADMIN, builtin, [])
    with pytest.raises(InvalidParameter, match="reserved"):
        await roles.create(ADMIN, "pveMine", [])
    assert {row["roleid"]: row["special"] for row in roles.list()}["PVEAdmin"] is True


async def test_who_may_allocate_hands_on_only_what_they_have_there(realm: Realm) -> None:
    joe = await realm.add_user("joe@pve")
    await realm.add_user("ann@pve")
    await grant(realm, "/vms/100", "PVEVMAdmin", "joe@pve", propagate=False)

    def change(role: str, path: str = "/vms/100", *, propagate: bool = False, delete: bool = False) -> AclChange:
        return AclChange(path=path, roles=[role], users=["ann@pve"], propagate=propagate, delete=delete)

    await realm.access.acl.change(joe, change("PVEVMUser"))
    assert realm.access.has(Identity("ann@pve"), "/vms/100", "VM.Console")
    for role in ("PVEAdmin", "Administrator", "NoAccess"):
        with pytest.raises(InvalidParameter, match="cannot add"):
            await realm.access.acl.change(joe, change(role))
    with pytest.raises(InvalidParameter, match="propagat"):
        await realm.access.acl.change(joe, change("PVEVMUser", propagate=True))
    for path in ("/vms/101", "/vms", "/", "/storage/local"):
        with pytest.raises(PermissionDenied):
            await realm.access.acl.change(joe, change("PVEVMUser", path))
    await realm.access.acl.change(joe, change("PVEVMUser", delete=True))
    assert {row["path"] for row in realm.access.acl.list(joe)} == {"/vms/100"}
    assert {row["path"] for row in realm.access.acl.list(ADMIN)} == {"/", "/vms/100"}


@pytest.mark.parametrize("path", ["/vms/../access", "/vms/1", "/nowhere", "", "/vms/100\n", "/vms/" + "9" * 900])
async def test_bad_acl_paths_are_refused(realm: Realm, path: str) -> None:
    with pytest.raises(InvalidParameter, match="path"):
        await grant(realm, path, "PVEAuditor", "admin@pve")


async def test_an_acl_entry_names_something_that_exists(realm: Realm) -> None:
    acl = realm.access.acl
    for change in (
        AclChange(path="/", roles=["Nonsense"], users=["admin@pve"]),
        AclChange(path="/", roles=["PVEAuditor"], users=["no@pve"]),
        AclChange(path="/", roles=["PVEAuditor"], groups=["no"]),
        AclChange(path="/", roles=["PVEAuditor"], tokens=["admin@pve!no"]),
        AclChange(path="/", roles=["PVEAuditor"], tokens=["admin@pve"]),
    ):
        with pytest.raises(NotFound):
            await acl.change(ADMIN, change)
    with pytest.raises(InvalidParameter, match="users"):
        await acl.change(ADMIN, AclChange(path="/", roles=["PVEAuditor"]))


async def test_a_deleted_group_takes_its_entries_along(realm: Realm) -> None:
    await realm.access.groups.create(ADMIN, "dev")
    await grant(realm, "/vms", "PVEVMUser", groups=("dev",))
    await realm.access.groups.delete(ADMIN, "dev")
    await realm.access.groups.create(ADMIN, "dev")
    joe = await realm.add_user("joe@pve", groups=("dev",))
    assert realm.access.privileges(joe, "/vms") == frozenset()


async def test_everybody_sees_their_own_permissions_and_auditors_those_of_others(realm: Realm) -> None:
    joe, acl = await realm.add_user("joe@pve"), realm.access.acl
    await grant(realm, "/vms/100", "PVETemplateUser", "joe@pve")
    assert acl.permissions(joe) == {"/vms/100": {"VM.Audit": True, "VM.Clone": True}}
    assert acl.permissions(joe, path="/vms/100") == {"/vms/100": {"VM.Audit": True, "VM.Clone": True}}
    await realm.access.tokens.create(joe, "joe@pve", "ci")
    assert acl.permissions(joe, auth_id="joe@pve!ci") == {}
    assert acl.permissions(ADMIN, auth_id="joe@pve") == acl.permissions(joe)
    for other in ("admin@pve", "root@pam", "nobody@pve"):
        with pytest.raises(PermissionDenied):
            acl.permissions(joe, auth_id=other)
    with pytest.raises(PermissionDenied):
        acl.permissions(Identity("joe@pve", "ci"), auth_id="joe@pve")


# second factors


async def test_a_generator_is_added_only_with_a_present_code(realm: Realm) -> None:
    joe, tfa = await realm.add_user("joe@pve"), realm.access.tfa
    code = pyotp.TOTP(SECRET).at(int(realm.clock.now()))
    for value, password in (("000000", "a good password"), (code, "wrong"), (code, None)):
        with pytest.raises(UserError):
            await tfa.add(joe, "joe@pve", "totp", uri=URI, value=value, password=password)
    reply = await tfa.add(joe, "joe@pve", "totp", uri=URI, value=code, password="a good password", description="phone")
    entry = tfa.get(joe, "joe@pve", str(reply["id"]))
    assert (entry["type"], entry["description"], entry["enable"]) == ("totp", "phone", True)
    assert "JBSW" not in repr(tfa.list_all(ADMIN)) + repr(realm.access.users.list(ADMIN, full=True))
    assert tfa.types(joe, "joe@pve") == ["totp"]
    await tfa.update(ADMIN, "joe@pve", str(reply["id"]), enable=False)
    assert not (await realm.access.login("joe@pve", "a good password", remote="::1")).need_tfa
    await tfa.delete(joe, "joe@pve", str(reply["id"]), password="a good password")
    with pytest.raises(NotFound):
        tfa.get(joe, "joe@pve", str(reply["id"]))


async def test_recovery_keys_are_shown_once_and_other_types_are_refused(realm: Realm) -> None:
    joe, tfa = await realm.add_user("joe@pve"), realm.access.tfa
    reply = await tfa.add(joe, "joe@pve", "recovery", password="a good password")
    keys = reply["recovery"]
    assert isinstance(keys, list)
    assert len(keys) == 10
    with pytest.raises(Conflict):
        await tfa.add(joe, "joe@pve", "recovery", password="a good password")
    with pytest.raises(Unsupported):
        await tfa.add(joe, "joe@pve", "webauthn", password="a good password")
    assert [row["userid"] for row in tfa.list_all(joe)] == ["joe@pve"]
    with pytest.raises(PermissionDenied):
        tfa.of_user(joe, "admin@pve")


async def test_locked_codes_are_unlocked_by_a_manager(realm: Realm) -> None:
    joe, tfa = await realm.add_user("joe@pve"), realm.access.tfa
    code = pyotp.TOTP(SECRET).at(int(realm.clock.now()))
    await tfa.add(joe, "joe@pve", "totp", uri=URI, value=code, password="a good password")
    for _ in range(8):
        with pytest.raises(NotAuthenticated):
            await realm.access.login("joe@pve", "a good password", otp="000000", remote="::1")
    assert tfa.list_all(ADMIN)[0]["totp-locked"] is True
    with pytest.raises(PermissionDenied):
        await tfa.unlock(joe, "joe@pve")
    assert await tfa.unlock(ADMIN, "joe@pve") is True
    assert await tfa.unlock(ADMIN, "joe@pve") is False


# pools


async def test_a_guest_is_in_one_pool_and_moves_only_when_allowed(realm: Realm) -> None:
    pools = realm.access.pools
    for name in ("a", "a/b", "z"):
        await pools.create(ADMIN, name, comment=name)
    await pools.update(ADMIN, "a", PoolChange(guests=[100, 101], storages=["local"]))
    with pytest.raises(Conflict, match="belongs already to pool 'a'"):
        await pools.update(ADMIN, "z", PoolChange(guests=[100]))
    await pools.update(ADMIN, "z", PoolChange(guests=[100], storages=["local"], allow_move=True))
    assert realm.access.pool_of(GuestId(100)) == "z"
    assert pools.get(ADMIN, "a").guests == (101,)
    assert pools.get(ADMIN, "a").storages == ("local",)
    for wrong in (
        pools.update(ADMIN, "a", PoolChange(guests=[100], delete=True)),
        pools.update(ADMIN, "a", PoolChange(guests=[101])),
        pools.update(ADMIN, "a", PoolChange(storages=["local"])),
        pools.update(ADMIN, "a", PoolChange(storages=["other"], delete=True)),
        pools.delete(ADMIN, "a"),
        pools.create(ADMIN, "a"),
    ):
        with pytest.raises(Conflict):
            await wrong
    with pytest.raises(NotFound):
        await pools.create(ADMIN, "none/b")
    for bad in ("", "/a", "a//b", "a/b/c/d", "a/..", "a b", "x" * 200):
        with pytest.raises(InvalidParameter):
            await pools.create(ADMIN, bad)


async def test_adding_to_a_pool_needs_the_right_to_change_permissions_of_the_member(realm: Realm) -> None:
    joe, pools = await realm.add_user("joe@pve"), realm.access.pools
    await pools.create(ADMIN, "mine")
    await grant(realm, "/pool/mine", "PVEAdmin", "joe@pve")
    with pytest.raises(PermissionDenied):
        await pools.update(joe, "mine", PoolChange(guests=[100]))
    await grant(realm, "/vms/100", "PVEVMAdmin", "joe@pve")
    await pools.update(joe, "mine", PoolChange(guests=[100]))
    assert [name for name, _ in pools.visible(joe)] == ["mine"]


async def test_a_new_guest_inherits_nothing_from_an_old_one_of_its_id(realm: Realm) -> None:
    joe = await realm.add_user("joe@pve")
    await realm.access.pools.create(ADMIN, "p")
    await realm.access.set_pool(GuestId(100), "p")
    await grant(realm, "/vms/100", "PVEVMAdmin", "joe@pve")
    await realm.access.forget_guest(GuestId(100))
    assert realm.access.pool_of(GuestId(100)) is None
    assert realm.access.privileges(joe, "/vms/100") == frozenset()
    await realm.access.set_pool(GuestId(100), "p")
    await realm.access.set_pool(GuestId(100), None)
    await realm.access.pools.delete(ADMIN, "p")
    with pytest.raises(NotFound):
        await realm.access.set_pool(GuestId(100), "p")


# the store below


async def test_two_nodes_editing_at_once_lose_nothing_and_see_each_others_changes(tmp_path: Path) -> None:
    store = FakeStore()
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    async with open_realm(tmp_path / "1", store) as one, open_realm(tmp_path / "2", store) as two:
        await one.access.groups.create(ADMIN, "g")
        await asyncio.gather(
            *(node.add_user(f"u{n}@pve", groups=("g",)) for n in range(5) for node in ([one, two][n % 2],))
        )
        await one.access.groups.update(ADMIN, "g", comment="done")
        await two.access.groups.update(ADMIN, "g", comment="seen")
        for node in (one, two):
            assert node.access.groups.get(ADMIN, "g")["members"] == [f"u{n}@pve" for n in range(5)]
        ticket = await one.log_in()
        assert two.access.verify_ticket(ticket) == ADMIN
        await one.access.users.set_password(ADMIN, "admin@pve", NEW, confirmation=ADMIN_PASSWORD)
        await two.access.groups.update(ADMIN, "g", comment="waits for the change")
        with pytest.raises(NotAuthenticated):
            two.access.verify_ticket(ticket)
    await store.close()


async def test_a_full_disk_fails_the_edit_and_changes_nothing(realm: Realm) -> None:
    realm.store.fail_with(HostError("disk full"))
    with pytest.raises(HostError, match="disk full"):
        await realm.add_user("joe@pve")
    realm.store.fail_with(None)
    assert "joe@pve" not in {row["userid"] for row in realm.access.users.list(ADMIN)}
    await realm.add_user("joe@pve")


async def test_a_damaged_document_is_named_at_start(tmp_path: Path) -> None:
    from appliance.state.store import Put

    store = FakeStore()
    await store.txn([], [Put("access/users/joe@pve", b"{broken")])
    with pytest.raises(HostError, match="access/users/joe@pve"):
        async with open_realm(tmp_path, store):
            pass
    await store.close()
