"""Logging in and what a login's tickets are worth, attempts to get around it included."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pyotp
import pytest

from appliance.errors import HostError, InvalidParameter, NotAuthenticated, TooManyRequests
from appliance.events import EventBus
from appliance.services.access import AccessService, Identity
from appliance.services.audit import AuditLog
from appliance.services.users import UserChange
from tests.fakes.access import ADMIN, ADMIN_PASSWORD, CHEAP, Realm, open_realm
from tests.fakes.clock import FakeClock
from tests.fakes.store import FakeStore

SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
CODES = pyotp.TOTP(SECRET)
URI = f"otpauth://totp/x?secret={SECRET}"


@pytest.fixture
async def realm(tmp_path: Path) -> AsyncIterator[Realm]:
    async with open_realm(tmp_path) as opened:
        yield opened


def code_of(realm: Realm) -> str:
    return CODES.at(int(realm.clock.now()))


async def refused(realm: Realm, user: str, password: str, **more: str) -> None:
    with pytest.raises(NotAuthenticated, match="authentication failure"):
        await realm.access.login(user, password, remote="192.0.2.1", **more)


async def with_totp(realm: Realm) -> Identity:
    joe = await realm.add_user("joe@pve")
    await realm.access.tfa.add(joe, "joe@pve", "totp", uri=URI, value=code_of(realm), password="a good password")
    await realm.clock.advance(60)
    return joe


# first start


async def test_the_given_password_is_the_administrators(realm: Realm) -> None:
    login = await realm.access.login("admin@pve", ADMIN_PASSWORD, remote="192.0.2.1")
    assert realm.access.verify_ticket(login.ticket) == ADMIN
    assert "VM.Allocate" in login.capabilities["vms"]
    assert not (realm.data_dir / "admin-password").exists()


async def start_with(tmp_path: Path, store: FakeStore, password_file: Path | None) -> AccessService:
    audit = AuditLog(tmp_path / "audit.log", FakeClock())
    access = AccessService(
        store,
        EventBus(),
        FakeClock(),
        data_dir=tmp_path,
        audit=audit,
        admin_password_file=password_file,
        password_cost=CHEAP,
    )
    try:
        await audit.start()
        await access.start()
        password = (tmp_path / "admin-password").read_text().strip()
        ticket = (await access.login("admin@pve", password, remote="local")).ticket
        await access.change_password(ADMIN, "admin@pve", "another password", confirmation=password)
        with pytest.raises(NotAuthenticated):
            access.verify_ticket(ticket)
    finally:
        await access.close()
        await audit.close()
        await store.close()
    return access


async def test_without_a_file_a_password_is_generated_and_its_file_goes_when_it_is_changed(tmp_path: Path) -> None:
    await start_with(tmp_path, FakeStore(), None)
    assert not (tmp_path / "admin-password").exists()


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff\xfe\xff\xfe\xff\xfe\xff\xfe", b"x" * 65, b"tab\there now"])
async def test_a_password_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "the-file"
    path.write_bytes(content)
    with pytest.raises(InvalidParameter, match="the-file"):
        await start_with(tmp_path, FakeStore(), path)


async def test_a_missing_password_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no-such-file"):
        await start_with(tmp_path, FakeStore(), tmp_path / "no-such-file")


async def test_users_and_tickets_survive_a_restart(tmp_path: Path) -> None:
    store = FakeStore()
    async with open_realm(tmp_path, store) as first:
        await first.add_user("joe@pve")
        ticket = await first.log_in("joe@pve", "a good password")
    async with open_realm(tmp_path, store) as second:
        assert second.access.verify_ticket(ticket) == Identity("joe@pve")
    await store.close()


# passwords


@pytest.mark.parametrize(
    ("user", "password"),
    [("admin@pve", "wrong"), ("admin@pve", ""), ("nobody@pve", ADMIN_PASSWORD), ("admin", ADMIN_PASSWORD),
     ("admin@pve\0", ADMIN_PASSWORD), ("ADMIN@pve", ADMIN_PASSWORD), ("admin@pve ", ADMIN_PASSWORD),
     ("admin@ldap", ADMIN_PASSWORD), ("", ""), ("admin@pve", "x" * 100_000), ("x" * 100_000, "x"),
     ("admin@pve!token", "x"), ("!tfa!", "x"), ("admin@pve", "\ud800")],
)  # fmt: skip
async def test_wrong_credentials_of_every_kind_get_the_same_answer(realm: Realm, user: str, password: str) -> None:
    await refused(realm, user, password)


async def test_disabled_and_expired_users_cannot_log_in_and_their_tickets_are_void(realm: Realm) -> None:
    await realm.add_user("joe@pve")
    ticket = await realm.log_in("joe@pve", "a good password")
    await realm.access.users.update(ADMIN, "joe@pve", UserChange(expire=int(realm.clock.now()) + 60))
    realm.access.verify_ticket(ticket)
    await realm.clock.advance(61)
    with pytest.raises(NotAuthenticated):
        realm.access.verify_ticket(ticket)
    await refused(realm, "joe@pve", "a good password")
    await realm.access.users.update(ADMIN, "joe@pve", UserChange(expire=0, enable=False))
    await refused(realm, "joe@pve", "a good password")
    await realm.access.users.update(ADMIN, "joe@pve", UserChange(enable=True))
    with pytest.raises(NotAuthenticated):
        realm.access.verify_ticket(ticket)


async def test_a_user_without_password_cannot_log_in(realm: Realm) -> None:
    await realm.add_user("joe@pve", password=None)
    for password in ("", "None", "a good password"):
        await refused(realm, "joe@pve", password)


async def test_every_attempt_is_in_the_audit_log(realm: Realm) -> None:
    await refused(realm, "eve@pve", "guess")
    await realm.log_in()
    rows = await realm.audit.tail(2)
    assert [(row.who, row.remote, row.outcome) for row in rows] == [
        ("admin@pve", "192.0.2.1", "ok"), ("eve@pve", "192.0.2.1", "failed")
    ]  # fmt: skip
    assert "guess" not in (realm.data_dir / "audit.log").read_text()


# tickets


async def test_a_ticket_as_password_renews_without_the_password(realm: Realm) -> None:
    ticket = await realm.log_in()
    await realm.clock.advance(7000)
    renewed = await realm.log_in(password=ticket)
    await realm.clock.advance(1000)
    with pytest.raises(NotAuthenticated):
        realm.access.verify_ticket(ticket)
    assert realm.access.verify_ticket(renewed) == ADMIN
    await refused(realm, "admin@pve", ticket)


async def test_nobodys_ticket_makes_a_ticket_for_somebody_else(realm: Realm) -> None:
    await realm.add_user("joe@pve")
    for ticket in (await realm.log_in("joe@pve", "a good password"), await realm.log_in()):
        for user in {"admin@pve", "joe@pve", "root@pam"} - {ticket.split(":")[1]}:
            await refused(realm, user, ticket)


async def test_a_new_password_ends_every_session(realm: Realm) -> None:
    joe = await realm.add_user("joe@pve")
    tickets = [await realm.log_in("joe@pve", "a good password") for _ in range(2)]
    await realm.access.change_password(joe, "joe@pve", "a better password", confirmation="a good password")
    for ticket in tickets:
        with pytest.raises(NotAuthenticated):
            realm.access.verify_ticket(ticket)
    await refused(realm, "joe@pve", "a good password")
    await realm.log_in("joe@pve", "a better password")


async def test_logout_ends_this_ticket_only(realm: Realm) -> None:
    one = await realm.log_in()
    await realm.clock.advance(1)
    two = await realm.log_in()
    await realm.access.logout(one)
    await realm.access.logout(one)
    await realm.access.logout("nonsense")
    with pytest.raises(NotAuthenticated):
        realm.access.verify_ticket(one)
    assert realm.access.verify_ticket(two) == ADMIN


async def test_an_open_connection_holds_until_its_session_is_ended_not_until_its_ticket_is_old(realm: Realm) -> None:
    joe = await realm.add_user("joe@pve")
    first = await realm.log_in("joe@pve", "a good password")
    await realm.clock.advance(1)
    second = await realm.log_in("joe@pve", "a good password")
    await realm.access.logout(first)
    assert not realm.access.still_holds(joe, first)
    await realm.clock.advance(3 * 3600)
    assert realm.access.still_holds(joe, second)
    assert not realm.access.still_holds(ADMIN, second)
    await realm.access.tokens.create(joe, "joe@pve", "ci")
    token = Identity("joe@pve", "ci")
    assert realm.access.still_holds(token, "")
    await realm.access.tokens.delete(joe, "joe@pve", "ci")
    assert not realm.access.still_holds(token, "")
    await realm.access.users.update(ADMIN, "joe@pve", UserChange(enable=False))
    assert not realm.access.still_holds(joe, second)


async def test_too_many_logouts_end_all_sessions_instead_of_growing(realm: Realm) -> None:
    kept = await realm.log_in()
    for _ in range(65):
        await realm.clock.advance(1)
        await realm.access.logout(await realm.log_in(password=kept))
    with pytest.raises(NotAuthenticated):
        realm.access.verify_ticket(kept)


async def test_a_user_made_again_does_not_get_the_old_ones_tickets_or_rights(realm: Realm) -> None:
    from appliance.services.acl import AclChange

    await realm.add_user("joe@pve")
    token = await realm.access.tokens.create(ADMIN, "joe@pve", "ci")
    grant = AclChange(path="/", roles=["Administrator"], users=["joe@pve"], tokens=["joe@pve!ci"])
    await realm.access.acl.change(ADMIN, grant)
    ticket = await realm.log_in("joe@pve", "a good password")
    await realm.access.users.delete(ADMIN, "joe@pve")
    joe = await realm.add_user("joe@pve")
    assert realm.access.privileges(joe, "/") == frozenset()
    with pytest.raises(NotAuthenticated):
        realm.access.verify_ticket(ticket)
    await realm.access.tokens.create(ADMIN, "joe@pve", "ci", privsep=True)
    assert realm.access.privileges(Identity("joe@pve", "ci"), "/") == frozenset()
    with pytest.raises(NotAuthenticated):
        await realm.access.verify_token(f"PVEAPIToken=joe@pve!ci={token['value']}")


async def test_csrf_tokens_are_bound_to_the_ticket(realm: Realm) -> None:
    login = await realm.access.login("admin@pve", ADMIN_PASSWORD, remote="::1")
    realm.access.verify_csrf(login.ticket, login.csrf)
    await realm.clock.advance(1)
    other = await realm.access.login("admin@pve", ADMIN_PASSWORD, remote="::1")
    for wrong in (other.csrf, "", login.csrf[:-2]):
        with pytest.raises(NotAuthenticated):
            realm.access.verify_csrf(login.ticket, wrong)


# consoles


async def test_a_console_ticket_opens_one_path_for_40_seconds(realm: Realm) -> None:
    joe = await realm.add_user("joe@pve")
    await realm.access.tokens.create(ADMIN, "joe@pve", "ci")
    token = Identity("joe@pve", "ci")
    for identity in (joe, token):
        ticket = realm.access.console_ticket(identity, "/vms/100")
        assert realm.access.verify_console_ticket(ticket, "/vms/100") == identity
        assert realm.access.verify_console_ticket(ticket, "/vms/100/") == identity
        for path in ("/vms/101", "/vms/1", "/", "/vms/100/..", ""):
            with pytest.raises(NotAuthenticated):
                realm.access.verify_console_ticket(ticket, path)
        with pytest.raises(NotAuthenticated):
            realm.access.verify_ticket(ticket)
    await realm.clock.advance(41)
    with pytest.raises(NotAuthenticated):
        realm.access.verify_console_ticket(ticket, "/vms/100")


async def test_what_is_no_acl_path_is_a_place_of_its_own(realm: Realm) -> None:
    ticket = realm.access.console_ticket(ADMIN, "/vms/100:serial0")
    assert realm.access.verify_console_ticket(ticket, "/vms/100:serial0") == ADMIN
    for path in ("/vms/100:serial1", "/vms/100", "/vms/101:serial0", "None", ""):
        with pytest.raises(NotAuthenticated):
            realm.access.verify_console_ticket(ticket, path)


async def test_a_console_ticket_dies_with_its_token_or_user(realm: Realm) -> None:
    await realm.add_user("joe@pve")
    await realm.access.tokens.create(ADMIN, "joe@pve", "ci")
    ticket = realm.access.console_ticket(Identity("joe@pve", "ci"), "/vms/100")
    await realm.access.tokens.delete(ADMIN, "joe@pve", "ci")
    with pytest.raises(NotAuthenticated):
        realm.access.verify_console_ticket(ticket, "/vms/100")
    login = await realm.log_in()
    for wrong in (login, "", "PVEVNC:admin@pve:6553F100::AAAA", "PVEVNC:x:6553F100::AAAA"):
        with pytest.raises(NotAuthenticated):
            realm.access.verify_console_ticket(wrong, "/vms/100")


# the second factor


async def test_a_second_factor_makes_the_password_half_a_login(realm: Realm) -> None:
    await with_totp(realm)
    half = await realm.access.login("joe@pve", "a good password", remote="::1")
    assert half.need_tfa
    assert half.ticket.startswith("PVE:!tfa!%7B%22totp%22%3Atrue")
    assert half.capabilities == {}
    with pytest.raises(NotAuthenticated):
        realm.access.verify_ticket(half.ticket)
    await refused(realm, "joe@pve", half.ticket)
    await refused(realm, "joe@pve", "a good password", challenge=half.ticket)
    await refused(realm, "admin@pve", f"totp:{code_of(realm)}", challenge=half.ticket)
    whole = await realm.access.login("joe@pve", f"totp:{code_of(realm)}", challenge=half.ticket, remote="::1")
    assert realm.access.verify_ticket(whole.ticket) == Identity("joe@pve")


async def test_a_code_sent_along_logs_in_at_once_and_only_once(realm: Realm) -> None:
    await with_totp(realm)
    code = code_of(realm)
    assert not (await realm.access.login("joe@pve", "a good password", otp=code, remote="::1")).need_tfa
    await refused(realm, "joe@pve", "a good password", otp=code)
    await refused(realm, "joe@pve", "wrong", otp=code_of(realm))


async def test_of_many_logins_with_one_code_at_the_same_time_one_gets_in(realm: Realm) -> None:
    await with_totp(realm)
    half = await realm.access.login("joe@pve", "a good password", remote="::1")
    answer = f"totp:{code_of(realm)}"
    results = await asyncio.gather(
        *(realm.access.login("joe@pve", answer, challenge=half.ticket, remote="::1") for _ in range(5)),
        return_exceptions=True,
    )
    assert sum(not isinstance(result, NotAuthenticated) for result in results) == 1


async def test_a_login_ticket_or_an_old_challenge_does_not_answer_for_the_first_half(realm: Realm) -> None:
    await with_totp(realm)
    half = await realm.access.login("joe@pve", "a good password", remote="::1")
    await refused(realm, "joe@pve", f"totp:{code_of(realm)}", challenge=await realm.log_in())
    await realm.clock.advance(301)
    await refused(realm, "joe@pve", f"totp:{code_of(realm)}", challenge=half.ticket)


async def test_renewal_needs_no_second_factor(realm: Realm) -> None:
    await with_totp(realm)
    login = await realm.access.login("joe@pve", "a good password", otp=code_of(realm), remote="::1")
    assert not (await realm.access.login("joe@pve", login.ticket, remote="::1")).need_tfa


# limits


async def test_guessing_is_slowed_down_by_address(realm: Realm) -> None:
    for number in range(20):
        await refused(realm, f"user{number}@pve", "guess")
    with pytest.raises(TooManyRequests) as caught:
        await realm.access.login("admin@pve", ADMIN_PASSWORD, remote="192.0.2.1")
    assert 0 < caught.value.retry_after_s <= 6
    await realm.access.login("admin@pve", ADMIN_PASSWORD, remote="192.0.2.2")
    await realm.clock.advance(7)
    await realm.log_in()


async def test_guessing_at_one_user_from_everywhere_is_slowed_down_but_not_for_their_usual_place(realm: Realm) -> None:
    await realm.log_in()
    for number in range(20):
        with pytest.raises(NotAuthenticated):
            await realm.access.login("admin@pve", "guess", remote=f"198.51.100.{number}")
    with pytest.raises(TooManyRequests):
        await realm.access.login("admin@pve", ADMIN_PASSWORD, remote="203.0.113.1")
    await realm.log_in()


async def test_parallel_guesses_do_not_slip_under_the_limit(realm: Realm) -> None:
    results = await asyncio.gather(
        *(realm.access.login("admin@pve", f"guess {n}", remote="192.0.2.9") for n in range(60)), return_exceptions=True
    )
    assert sum(isinstance(result, NotAuthenticated) for result in results) == 20
    assert sum(isinstance(result, TooManyRequests) for result in results) == 40


# tokens


async def test_an_api_token_is_known_by_its_secret(realm: Realm) -> None:
    await realm.add_user("joe@pve")
    reply = await realm.access.tokens.create(ADMIN, "joe@pve", "ci")
    secret = str(reply["value"])
    for header in (f"PVEAPIToken=joe@pve!ci={secret}", f"PVEAPIToken joe@pve!ci={secret}"):
        assert await realm.access.verify_token(header) == Identity("joe@pve", "ci")
    for wrong in (
        f"PVEAPIToken=joe@pve!ci={secret}x", f"PVEAPIToken=joe@pve!cd={secret}", f"PVEAPIToken=admin@pve!ci={secret}",
        "PVEAPIToken=joe@pve!ci=", "PVEAPIToken=joe@pve=", f"PVEAPIToken=joe@pve={secret}", "PVEAPIToken=", "Bearer x",
        f"Basic joe@pve!ci={secret}", "", "PVEAPIToken=!=", f"PVEAPIToken=joe@pve!ci={secret}" + " " * 600,
        f"PVEAPIToken=joe@pve!={secret}", "PVEAPIToken=joe@pve!ci=\ud800",
    ):  # fmt: skip
        with pytest.raises(NotAuthenticated):
            await realm.access.verify_token(wrong)
    document = realm.store.documents["access/users/joe@pve"].value
    assert secret.encode() not in document


async def test_a_token_ends_with_its_time_its_user_or_a_new_secret(realm: Realm) -> None:
    await realm.add_user("joe@pve")
    now = int(realm.clock.now())
    reply = await realm.access.tokens.create(ADMIN, "joe@pve", "ci", expire=now + 10)
    header = f"PVEAPIToken=joe@pve!ci={reply['value']}"
    await realm.access.verify_token(header)
    await realm.clock.advance(11)
    with pytest.raises(NotAuthenticated):
        await realm.access.verify_token(header)
    await realm.access.tokens.update(ADMIN, "joe@pve", "ci", expire=0)
    await realm.access.verify_token(header)
    await realm.access.users.update(ADMIN, "joe@pve", UserChange(enable=False))
    with pytest.raises(NotAuthenticated):
        await realm.access.verify_token(header)
    await realm.access.users.update(ADMIN, "joe@pve", UserChange(enable=True))
    await realm.access.tokens.update(ADMIN, "joe@pve", "ci", regenerate=True)
    with pytest.raises(NotAuthenticated):
        await realm.access.verify_token(header)
