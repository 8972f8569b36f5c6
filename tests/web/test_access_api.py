"""/access and /pools over HTTP with the real access control: PVE's fields, tokens, tickets, and ways around them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyotp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from proxmoxer import ProxmoxAPI, ResourceException

from appliance.model.guest import GuestKind
from appliance.services.pki import ensure_server_identity
from appliance.web.application import build_application
from appliance.web.server import Server
from tests.fakes.access import ADMIN_PASSWORD, Realm, open_realm
from tests.fakes.services import NODE, World, fake_services

SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
GOOD = "a good password"


@dataclass
class Api:
    """A client of the API, and what is behind it."""

    client: TestClient[web.Request, web.Application]
    realm: Realm
    world: World

    async def call(
        self, verb: str, path: str, /, *, headers: Mapping[str, str] | None = None, **data: Any
    ) -> tuple[int, Any]:
        """(status, the reply's data, or its message when it is an error)."""
        sent = {key.replace("_", "-"): str(value) for key, value in data.items()}
        where = {"params": sent} if verb in ("GET", "DELETE") else {"data": sent}
        async with self.client.request(verb, f"/api2/json{path}", headers=headers, **where) as reply:  # type: ignore[arg-type]  # a mapping of strings either way
            body = await reply.json()
            return reply.status, body["data"] if reply.ok else body["message"]

    async def login(self, user: str = "admin@pve", password: str = ADMIN_PASSWORD) -> dict[str, str]:
        """The headers of a logged-in browser."""
        status, data = await self.call("POST", "/access/ticket", username=user, password=password)
        assert status == 200, data
        return {"Cookie": f"PVEAuthCookie={data['ticket']}", "CSRFPreventionToken": data["CSRFPreventionToken"]}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with open_realm(tmp_path) as realm:
        fakes, world = fake_services(tmp_path)
        services = dataclasses.replace(fakes, access=realm.access, audit=realm.audit)
        async with TestClient(TestServer(build_application(services))) as client:
            yield Api(client, realm, world)


async def test_a_login_replies_what_clients_read(api: Api) -> None:
    status, data = await api.call("POST", "/access/ticket", username="admin", realm="pve", password=ADMIN_PASSWORD)
    assert status == 200
    assert data.keys() == {"username", "ticket", "CSRFPreventionToken", "cap"}
    assert data["username"] == "admin@pve"
    assert data["cap"]["vms"]["VM.Allocate"] == 1
    assert await api.call("GET", "/access/ticket") == (200, None)


async def test_an_attempt_to_log_in_is_one_row_of_the_audit_log(api: Api) -> None:
    before = len(await api.realm.audit.tail(100))
    ticket = (await api.login())["Cookie"].partition("=")[2]
    await api.call("POST", "/access/ticket", username="admin@pve", password="wrong")
    await api.call("POST", "/access/ticket", username="admin@pve", password=ticket)  # a renewal is no event
    rows = [(row.who, row.action, row.outcome) for row in await api.realm.audit.tail(100)]
    assert len(rows) == before + 2
    assert rows[:2] == [("admin@pve", "login", "failed"), ("admin@pve", "login", "ok")]


async def test_a_wrong_login_is_401_and_many_are_429(api: Api) -> None:
    for _ in range(20):
        assert await api.call("POST", "/access/ticket", username="a@pve", password="b") == (
            401,
            "authentication failure",
        )
    status, message = await api.call("POST", "/access/ticket", username="a@pve", password="b")
    assert status == 429
    assert "too many" in message


@pytest.mark.parametrize(
    "data", [{}, {"username": "admin@pve"}, {"username": "x" * 65, "password": "x"},
             {"username": "admin@pve", "password": "x" * 5000}, {"username": "a", "password": "b", "evil": "1"}],
)  # fmt: skip
async def test_malformed_logins_are_refused_by_parameter(api: Api, data: dict[str, Any]) -> None:
    assert (await api.call("POST", "/access/ticket", **data))[0] == 400


async def test_a_second_factor_by_way_of_a_challenge(api: Api) -> None:
    admin = await api.login()
    code = pyotp.TOTP(SECRET).at(int(api.realm.clock.now()))
    uri = f"otpauth://totp/x?secret={SECRET}"
    status, data = await api.call(
        "POST", "/access/tfa/admin@pve", headers=admin, type="totp", totp=uri, value=code, password=ADMIN_PASSWORD
    )
    assert status == 200, data
    assert (await api.call("GET", "/access/tfa", headers=admin))[1][0]["entries"][0]["type"] == "totp"
    await api.realm.clock.advance(60)
    _, half = await api.call("POST", "/access/ticket", username="admin@pve", password=ADMIN_PASSWORD)
    assert half["NeedTFA"] == 1
    assert "cap" not in half
    headers = {"Cookie": f"PVEAuthCookie={half['ticket']}", "CSRFPreventionToken": half["CSRFPreventionToken"]}
    assert (await api.call("GET", "/access/users", headers=headers))[0] == 401
    code = pyotp.TOTP(SECRET).at(int(api.realm.clock.now()))
    answer: dict[str, Any] = {"username": "admin@pve", "password": f"totp:{code}", "tfa_challenge": half["ticket"]}
    status, whole = await api.call("POST", "/access/ticket", **answer)
    assert status == 200
    assert "NeedTFA" not in whole
    assert (await api.call("POST", "/access/ticket", **answer))[0] == 401


async def test_credentials_can_be_checked_against_a_path(api: Api) -> None:
    good: dict[str, Any] = {
        "username": "admin@pve",
        "password": ADMIN_PASSWORD,
        "path": "/vms/100",
        "privs": "VM.Console",
    }
    status, data = await api.call("POST", "/access/ticket", **good)
    assert status == 200
    assert "ticket" not in data
    await api.realm.add_user("joe@pve")
    assert (await api.call("POST", "/access/ticket", **(good | {"username": "joe@pve", "password": GOOD})))[0] == 401


async def test_a_console_ticket_is_checked_with_its_owner_path_and_privileges(api: Api) -> None:
    owner = await api.realm.access.verify_token(await _token(api))
    ticket = api.realm.access.console_ticket(owner, "/vms/100")
    good: dict[str, Any] = {"authid": "admin@pve!ci", "vncticket": ticket, "path": "/vms/100", "privs": "VM.Console"}
    assert await api.call("POST", "/access/vncticket", **good) == (200, None)
    for change in ({"path": "/vms/101"}, {"authid": "admin@pve"}, {"vncticket": "x"}, {"privs": ""}, {"privs": "No"}):
        assert (await api.call("POST", "/access/vncticket", **(good | change)))[0] == 401


async def _token(api: Api, *, privsep: int = 0) -> str:
    admin = await api.login()
    _, data = await api.call("POST", "/access/users/admin@pve/token/ci", headers=admin, privsep=privsep)
    assert data["full-tokenid"] == "admin@pve!ci"
    assert data["info"] == {"privsep": privsep, "expire": 0}
    return f"PVEAPIToken=admin@pve!ci={data['value']}"


async def test_writes_need_the_csrf_token_of_their_ticket(api: Api) -> None:
    admin = await api.login()
    await api.realm.clock.advance(1)
    other = await api.login()
    for token in ("", other["CSRFPreventionToken"], "6553F100:AAAA"):
        headers = {"Cookie": admin["Cookie"], "CSRFPreventionToken": token}
        assert (await api.call("POST", "/access/groups", headers=headers, groupid="g"))[0] == 401
        assert (await api.call("GET", "/access/groups", headers=headers))[1] == []


async def test_logging_out_voids_the_ticket(api: Api) -> None:
    admin = await api.login()
    assert await api.call("DELETE", "/access/ticket", headers=admin) == (200, None)
    assert (await api.call("GET", "/access/users", headers=admin))[0] == 401


async def test_users_groups_and_tokens_have_pves_fields(api: Api) -> None:
    admin = {"Authorization": await _token(api)}
    for verb, path, data in (
        ("POST", "/access/groups", {"groupid": "dev", "comment": "developers"}),
        ("POST", "/access/users", {"userid": "joe@pve", "password": GOOD, "groups": "dev", "email": "joe@example.org"}),
        ("PUT", "/access/users/joe@pve", {"comment": "hello", "enable": "0"}),
        ("POST", "/access/users/joe@pve/token/mon", {"comment": "t", "expire": "2000000000"}),
        ("PUT", "/access/users/joe@pve/token/mon", {"privsep": "0"}),
        ("PUT", "/access/groups/dev", {"comment": "d"}),
    ):
        status, reply = await api.call(verb, path, headers=admin, **data)
        assert status == 200, (path, reply)
    assert (await api.call("GET", "/access/users/joe@pve", headers=admin))[1] == {
        "enable": 0, "expire": 0, "email": "joe@example.org", "comment": "hello", "groups": ["dev"],
        "tokens": {"mon": {"privsep": 0, "expire": 2000000000, "comment": "t"}},
    }  # fmt: skip
    rows = (await api.call("GET", "/access/users", headers=admin, full=1, enabled=0))[1]
    assert [(row["userid"], row["groups"], row["tokens"][0]["tokenid"], row["realm-type"]) for row in rows] == [
        ("joe@pve", "dev", "mon", "pve")
    ]
    assert (await api.call("GET", "/access/groups", headers=admin))[1] == [
        {"groupid": "dev", "comment": "d", "users": "joe@pve"}
    ]
    assert (await api.call("GET", "/access/groups/dev", headers=admin))[1] == {"comment": "d", "members": ["joe@pve"]}
    assert (await api.call("GET", "/access/users/joe@pve/token", headers=admin))[1][0]["tokenid"] == "mon"
    assert (await api.call("GET", "/access/users/joe@pve/tfa", headers=admin, multiple=1))[1] == {"types": []}
    assert (await api.call("PUT", "/access/users/joe@pve/unlock-tfa", headers=admin))[1] == 0
    for path in ("/access/users/joe@pve/token/mon", "/access/users/joe@pve", "/access/groups/dev"):
        assert (await api.call("DELETE", path, headers=admin))[0] == 200
    status, message = await api.call("GET", "/access/users/joe@pve", headers=admin)
    assert (status, message) == (404, "user 'joe@pve' does not exist")


async def test_roles_acl_and_permissions_have_pves_fields(api: Api) -> None:
    admin = {"Authorization": await _token(api)}
    await api.realm.add_user("joe@pve")
    assert (await api.call("POST", "/access/roles", headers=admin, roleid="Ops", privs="VM.Audit VM.PowerMgmt"))[
        0
    ] == 200
    assert (await api.call("PUT", "/access/roles/Ops", headers=admin, privs="VM.Console", append=1))[0] == 200
    assert (await api.call("GET", "/access/roles/Ops", headers=admin))[1] == {
        "VM.Audit": 1, "VM.Console": 1, "VM.PowerMgmt": 1
    }  # fmt: skip
    acl = {"path": "/vms/100", "roles": "Ops", "users": "joe@pve", "propagate": 0}
    assert await api.call("PUT", "/access/acl", headers=admin, **acl) == (200, None)
    rows = (await api.call("GET", "/access/acl", headers=admin))[1]
    assert {"path": "/vms/100", "type": "user", "ugid": "joe@pve", "roleid": "Ops", "propagate": 0} in rows
    joe = await api.login("joe@pve", GOOD)
    assert (await api.call("GET", "/access/permissions", headers=joe))[1] == {
        "/vms/100": {"VM.Audit": 0, "VM.Console": 0, "VM.PowerMgmt": 0}
    }
    assert (await api.call("GET", "/access/permissions", headers=joe, userid="admin@pve"))[0] == 403
    assert (await api.call("GET", "/access/acl", headers=joe))[1] == []
    assert [row["userid"] for row in (await api.call("GET", "/access/users", headers=joe))[1]] == ["joe@pve"]
    for verb, path, data in (
        ("POST", "/access/roles", {"roleid": "Mine", "privs": "Permissions.Modify"}),
        ("PUT", "/access/acl", {"path": "/", "roles": "Administrator", "users": "joe@pve"}),
        ("PUT", "/access/acl", {"path": "//", "roles": "Administrator", "users": "joe@pve"}),
        ("POST", "/access/users", {"userid": "eve@pve"}),
        ("DELETE", "/access/users/admin@pve", {}),
        ("PUT", "/access/password", {"userid": "admin@pve", "password": GOOD, "confirmation_password": GOOD}),
        ("POST", "/access/users/admin@pve/token/evil", {}),
        ("POST", "/access/users/admin%40pve/token/evil", {"privsep": 0}),
        ("POST", "/access/tfa/admin@pve", {"type": "recovery", "password": GOOD}),
        ("POST", "/pools", {"poolid": "mine"}),
        ("POST", "/access/domains", {"realm": "evil", "type": "ldap", "server1": "x"}),
    ):
        assert (await api.call(verb, path, headers=joe, **data))[0] == 403, path
    acl_delete = acl | {"delete": 1}
    assert (await api.call("PUT", "/access/acl", headers=admin, **acl_delete))[0] == 200
    assert (await api.call("DELETE", "/access/roles/Ops", headers=admin))[0] == 200


async def test_a_separated_token_is_refused_what_was_not_granted_to_it(api: Api) -> None:
    token = {"Authorization": await _token(api, privsep=1)}
    assert (await api.call("GET", "/access/users", headers=token))[1] == []
    assert (await api.call("POST", "/access/groups", headers=token, groupid="g"))[0] == 403
    assert (await api.call("PUT", "/access/password", headers=token, userid="admin@pve", password=GOOD))[0] == 403
    wrong = {"Authorization": token["Authorization"][:-1] + "x"}
    assert (await api.call("GET", "/access/users", headers=wrong))[0] == 401


async def test_a_separated_token_sees_and_ends_only_its_own_tasks(api: Api) -> None:
    token = {"Authorization": await _token(api, privsep=1)}
    of_user = api.world.tasks.begin("qmstart", user="admin@pve")
    of_token = api.world.tasks.begin("qmstart", user=token["Authorization"].partition("=")[2].partition("=")[0])
    for path in (f"/nodes/{NODE}/tasks?source=active", "/cluster/tasks"):
        assert [row["upid"] for row in (await api.call("GET", path, headers=token))[1]] == [of_token]
    for verb, path in (("GET", "/status"), ("GET", "/log"), ("DELETE", "")):
        assert (await api.call(verb, f"/nodes/{NODE}/tasks/{of_user}{path}", headers=token))[0] == 403
        assert (await api.call(verb, f"/nodes/{NODE}/tasks/{of_token}{path}", headers=token))[0] == 200
    lines = (await api.call("GET", "/cluster/log", headers=token))[1]
    assert lines
    assert {row["user"] for row in lines} == {"admin@pve!ci"}


async def test_a_password_is_changed_and_the_old_session_ends(api: Api) -> None:
    await api.realm.add_user("joe@pve")
    joe = await api.login("joe@pve", GOOD)
    change = {"userid": "joe@pve", "password": "something new", "confirmation_password": GOOD}
    assert await api.call("PUT", "/access/password", headers=joe, **change) == (200, None)
    assert (await api.call("GET", "/access/users", headers=joe))[0] == 401
    await api.login("joe@pve", "something new")
    assert "something new" not in (api.realm.data_dir / "audit.log").read_text()


async def test_realms_are_listed_to_anybody_and_no_others_can_be_made(api: Api) -> None:
    status, rows = await api.call("GET", "/access/domains")
    assert status == 200
    assert [(row["realm"], row["type"], row.get("default")) for row in rows] == [
        ("pam", "pam", None),
        ("pve", "pve", 1),
    ]
    admin = await api.login()
    assert (await api.call("GET", "/access/domains/pve", headers=admin))[1]["type"] == "pve"
    for verb, path, data, expected in (
        ("POST", "/access/domains", {"realm": "x", "type": "ldap", "server1": "y", "base_dn": "z"}, 501),
        ("PUT", "/access/domains/pve", {"comment": "x"}, 501),
        ("POST", "/access/domains/pve/sync", {}, 501),
        ("DELETE", "/access/domains/pve", {}, 409),
        ("GET", "/access/domains/none", {}, 404),
    ):
        assert (await api.call(verb, path, headers=admin, **data))[0] == expected


async def test_pools_list_their_members(api: Api) -> None:
    admin = {"Authorization": await _token(api)}
    api.world.guests.add(100)
    api.world.guests.add(101, GuestKind.LXC)
    for verb, path, data in (
        ("POST", "/pools", {"poolid": "web", "comment": "c"}),
        ("POST", "/pools", {"poolid": "web/inner"}),
        ("PUT", "/pools/web", {"vms": "100,101,999"}),
        ("PUT", "/pools", {"poolid": "web/inner", "vms": "101", "allow_move": 1}),
    ):
        status, reply = await api.call(verb, path, headers=admin, **data)
        assert status == 200, reply
    rows = (await api.call("GET", "/pools", headers=admin))[1]
    assert [row["poolid"] for row in rows] == ["web", "web/inner"]
    assert "members" not in rows[0]
    one = (await api.call("GET", "/pools", headers=admin, poolid="web"))[1]
    assert [(row["poolid"], [member["id"] for member in row["members"]]) for row in one] == [("web", ["qemu/100"])]
    assert (await api.call("GET", "/pools", headers=admin, poolid="web/inner", type="qemu"))[1][0]["members"] == []
    pool = (await api.call("GET", "/pools/web", headers=admin))[1]
    assert (pool["comment"], pool["members"][0]["vmid"], pool["members"][0]["node"]) == ("c", 100, NODE)
    await api.realm.add_user("joe@pve")
    joe = await api.login("joe@pve", GOOD)
    assert (await api.call("GET", "/pools", headers=joe))[1] == []
    assert (await api.call("GET", "/pools", headers=joe, poolid="web"))[0] == 403
    assert (await api.call("DELETE", "/pools/web", headers=admin))[0] == 409
    for vms in ("x", "1", "100;;../1"):
        assert (await api.call("PUT", "/pools/web", headers=admin, vms=vms))[0] == 400


async def test_every_write_and_login_is_audited(api: Api) -> None:
    admin = await api.login()
    await api.call("POST", "/access/groups", headers=admin, groupid="g")
    await api.call("POST", "/access/ticket", username="eve@pve", password="guess")
    result = await api.realm.audit.verify()
    assert result.ok
    said = {(row.who, row.action, row.outcome.split()[0]) for row in await api.realm.audit.tail(10)}
    assert {
        ("admin@pve", "login", "ok"),
        ("admin@pve", "POST /access/groups", "ok"),
        ("eve@pve", "login", "failed"),
    } <= said


async def test_no_secret_reaches_the_audit_log_or_the_process_log(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    admin = await api.login()
    secrets = [ADMIN_PASSWORD, GOOD, SECRET, "a wrong password", admin["Cookie"].partition("=")[2]]
    secrets += [admin["CSRFPreventionToken"], (await _token(api)).rpartition("=")[2]]
    user = {"userid": "joe@pve", "password": GOOD}
    assert (await api.call("POST", "/access/users", headers=admin, **user))[0] == 200
    assert (await api.call("PUT", "/access/password", headers=admin, **user))[0] == 200
    assert (await api.call("POST", "/access/ticket", username="joe@pve", password="a wrong password"))[0] == 401
    uri, code = f"otpauth://totp/x?secret={SECRET}", pyotp.TOTP(SECRET).at(int(api.realm.clock.now()))
    for value in ("000000", code):
        await api.call("POST", "/access/tfa/joe@pve", headers=admin, type="totp", totp=uri, value=value)
    status, keys = await api.call("POST", "/access/tfa/joe@pve", headers=admin, type="recovery")
    assert status == 200
    secrets += [code, *keys["recovery"]]
    status, ticket = await api.call("POST", f"/nodes/{NODE}/termproxy", headers=admin)
    assert status == 200
    await api.call(
        "POST", "/access/vncticket", authid="admin@pve", vncticket=ticket["ticket"], path="/", privs="Sys.Console"
    )
    await api.call("GET", f"/nodes/{NODE}/vncwebsocket?port=5911&vncticket={ticket['ticket']}", headers=admin)
    # the test server's access log is not the appliance's, which has none
    logged = [record.getMessage() for record in caplog.records if record.name != "aiohttp.access"]
    written = (api.realm.data_dir / "audit.log").read_text() + "\n".join(logged) + str(api.world.tasks.logs)
    assert "joe@pve" in written
    assert [secret for secret in [*secrets, ticket["ticket"]] if secret in written] == []


async def test_proxmoxer_logs_in_with_password_code_and_token_over_tls(tmp_path: Path) -> None:
    async with open_realm(tmp_path) as realm:
        fakes, _ = fake_services(tmp_path)
        services = dataclasses.replace(fakes, access=realm.access, audit=realm.audit)
        identity = await asyncio.to_thread(
            ensure_server_identity, tmp_path / "pki", ("node1",), datetime.datetime.now(datetime.UTC)
        )
        server = Server(build_application(services))
        context = await asyncio.to_thread(identity.context)
        await server.start(host="127.0.0.1", port=0, tls=context, socket_path=tmp_path / "api.sock")
        try:
            codes = [pyotp.TOTP(SECRET).at(int(realm.clock.now()) + later_s) for later_s in (0, 30)]
            await asyncio.to_thread(_use_proxmoxer, server.port, str(identity.ca_file), codes)
        finally:
            await server.close()


def _use_proxmoxer(port: int, ca_file: str, codes: list[str]) -> None:
    with contextlib.ExitStack() as sessions:

        def connect(**how: object) -> Any:
            connection: Any = ProxmoxAPI("127.0.0.1", port=port, verify_ssl=ca_file, timeout=20, **how)
            sessions.callback(connection._store["session"].close)
            return connection

        api = connect(user="admin@pve", password=ADMIN_PASSWORD)
        api.access.users.post(userid="joe@pve", password=GOOD)
        api.access.acl.put(path="/", roles="PVEAuditor", users="joe@pve")
        secret = api.access.users("joe@pve").token("mon").post(privsep=0)["value"]
        by_token = connect(user="joe@pve", token_name="mon", token_value=secret)
        assert by_token.access.permissions.get(path="/vms")["/vms"]["VM.Audit"] == 1
        joe = connect(user="joe@pve", password=GOOD)
        uri = f"otpauth://totp/x?secret={SECRET}"
        joe.access.tfa("joe@pve").post(type="totp", totp=uri, value=codes[0], password=GOOD)
        with_code = connect(user="joe@pve", password=GOOD, otp=codes[1])
        assert [row["type"] for row in with_code.access.tfa("joe@pve").get()] == ["totp"]
        api._store["session"].auth._get_new_tokens()  # what proxmoxer does after an hour: the old ticket as password
        assert api.access.users("joe@pve").get()["keys"] == "x"
        api.access.users("joe@pve").delete()
        with pytest.raises(ResourceException, match="401"):
            by_token.access.permissions.get()
