"""PVE's wire rules, through a real HTTP client: replies, errors, authentication, CSRF, audit, limits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from aiohttp import ClientError, FormData, web
from aiohttp.test_utils import TestClient, TestServer

from appliance.errors import Conflict, HostError, NotFound, TooManyRequests
from appliance.services.login import REMOTE_BURST
from appliance.web import registry
from appliance.web.application import RESOURCES, build_application
from appliance.web.dispatch import describe_parameters
from appliance.web.registry import ANYONE, LOGGED_IN, Allow, Call, GuestParams, PveBool, Resource
from appliance.web.table import ApiTable
from tests.fakes.services import NODE, TOKEN, World, fake_services

api = Resource()
ADMIN = {"Authorization": f"PVEAPIToken={TOKEN}"}


class MakeParams(GuestParams, kw_only=True):
    force: PveBool = False
    cores: Annotated[int, msgspec.Meta(ge=1)] = 1
    password: str | None = None


class VolumeParams(msgspec.Struct, kw_only=True):
    volume: str


class UploadParams(msgspec.Struct, kw_only=True):
    content: str
    checksum: str | None = None


@dataclass(frozen=True)
class Answer:
    yes: bool
    nothing: str | None
    many: tuple[bool, ...]


@api.post("/test/{node}/guests/{vmid}", summary="Make", allow=Allow("/vms/{vmid}", "VM.Allocate"))
async def make(call: Call, params: MakeParams) -> object:
    return {"vmid": params.vmid, "force": params.force, "cores": params.cores, "node": params.node}


@api.get("/test/answer", summary="Answer", allow=LOGGED_IN, returns=Answer)
async def answer(call: Call) -> Answer:
    return Answer(True, None, (True, False))


@api.get("/test/open", summary="Open", allow=ANYONE)
async def open_to_all(call: Call) -> None:
    return None


@api.delete("/test/content/{volume:path}", summary="Volume", allow=LOGGED_IN)
async def volume(call: Call, params: VolumeParams) -> str:
    return params.volume


@api.get("/test/missing", summary="Missing", allow=LOGGED_IN)
async def missing(call: Call) -> None:
    raise NotFound("storage 'x\r\nSet-Cookie: evil=1'")


@api.get("/test/busy", summary="Busy", allow=LOGGED_IN)
async def busy(call: Call) -> None:
    raise TooManyRequests("slow down", retry_after_s=7)


@api.put("/test/conflict", summary="Conflict", allow=LOGGED_IN)
async def conflict(call: Call) -> None:
    raise Conflict("vm 100: " + "é" * 300)


@api.get("/test/broken", summary="Broken", allow=LOGGED_IN)
async def broken(call: Call) -> None:
    raise RuntimeError("secret detail")


@api.get("/test/slow", summary="Slow", allow=LOGGED_IN, timeout_s=0.05)
async def slow(call: Call) -> None:
    await asyncio.Event().wait()


@api.post("/test/cut-off", summary="Cut off", allow=LOGGED_IN)
async def end_in_the_middle(call: Call) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_soon(task.cancel)
    await asyncio.Event().wait()


@api.post("/test/upload", summary="Upload", allow=LOGGED_IN, upload="filename")
async def upload(call: Call, params: UploadParams) -> object:
    size = 0
    async for chunk in call.upload.chunks:
        size += len(chunk)
    return {"size": size, "name": call.upload.filename, "content": params.content}


Client = TestClient[web.Request, web.Application]


@pytest.fixture
async def world_and_client(tmp_path: Path) -> AsyncIterator[tuple[World, Client]]:
    services, world = fake_services(tmp_path)
    async with TestClient(TestServer(build_application(services, resources=[*RESOURCES, api]))) as client:
        yield world, client


@pytest.fixture
def world(world_and_client: tuple[World, Client]) -> World:
    return world_and_client[0]


@pytest.fixture
def client(world_and_client: tuple[World, Client]) -> Client:
    return world_and_client[1]


def browser(world: World, user: str = "admin@pve", *, csrf: bool = True) -> dict[str, str]:
    headers = {"Cookie": f"PVEAuthCookie={world.access.ticket(user)}"}
    return headers | ({"CSRFPreventionToken": world.access.csrf(user)} if csrf else {})


async def test_a_form_a_json_body_and_a_query_mean_the_same(client: Client) -> None:
    path = f"/api2/json/test/{NODE}/guests/100"
    expected = {"data": {"vmid": 100, "force": 1, "cores": 2, "node": NODE}}
    for given in ({"data": {"force": "on", "cores": "2"}}, {"json": {"force": True, "cores": 2}},
                  {"params": {"force": "1", "cores": "2"}}):  # fmt: skip
        async with client.post(path, headers=ADMIN, **given) as reply:
            assert (reply.status, await reply.json()) == (200, expected)
    form = FormData({"force": "yes", "cores": "2"}, default_to_multipart=True)
    async with client.post(path, headers=ADMIN, data=form) as reply:
        assert await reply.json() == expected


async def test_booleans_are_numbers_and_none_is_left_out(client: Client) -> None:
    async with client.get("/api2/json/test/answer", headers=ADMIN) as reply:
        assert await reply.text() == '{"data":{"yes":1,"many":[1,0]}}'


async def test_wrong_parameters_are_all_named_and_nothing_runs(client: Client, world: World) -> None:
    async with client.post("/api2/json/test/localhost/guests/7", headers=ADMIN, data={"cores": "0", "x": "1"}) as reply:
        body = await reply.json()
        assert (reply.status, reply.reason) == (400, "Parameter verification failed.")
    assert set(body["errors"]) == {"vmid", "cores", "x"}
    assert body["data"] is None
    assert world.access.checked == []


async def test_a_path_part_may_not_be_contradicted(client: Client) -> None:
    async with client.post(f"/api2/json/test/{NODE}/guests/100", headers=ADMIN, data={"vmid": "101"}) as reply:
        assert (reply.status, list((await reply.json())["errors"])) == (400, ["vmid"])


async def test_an_unknown_node_does_not_exist(client: Client) -> None:
    async with client.post("/api2/json/test/elsewhere/guests/100", headers=ADMIN) as reply:
        assert (reply.status, reply.reason) == (404, "node 'elsewhere' does not exist")


async def test_errors_are_one_safe_line_in_the_reason_phrase(client: Client) -> None:
    async with client.get("/api2/json/test/missing", headers=ADMIN) as reply:
        assert (reply.status, reply.reason) == (404, "storage 'x Set-Cookie: evil=1' does not exist")
        assert "Set-Cookie" not in reply.headers
    async with client.put("/api2/json/test/conflict", headers=ADMIN) as reply:
        assert reply.status == 409
        assert reply.reason is not None
        assert reply.reason.isascii()
        assert len(reply.reason) <= 200
        assert (await reply.json())["message"] == "vm 100: " + "é" * 300
    async with client.get("/api2/json/test/busy", headers=ADMIN) as reply:
        assert (reply.status, reply.headers["Retry-After"]) == (429, "7")


async def test_an_unexpected_error_tells_its_request_id_and_nothing_else(client: Client) -> None:
    async with client.get("/api2/json/test/broken", headers=ADMIN) as reply:
        assert reply.status == 500
        assert reply.headers["X-Request-Id"] in (reply.reason or "")
        assert "secret" not in await reply.text()


async def test_a_handler_that_hangs_is_ended(client: Client) -> None:
    async with client.get("/api2/json/test/slow", headers=ADMIN) as reply:
        assert reply.status == 504


async def test_unknown_methods_and_paths_are_not_implemented(client: Client) -> None:
    for verb, path in (("GET", "/nowhere"), ("PATCH", "/version"), ("POST", "/version")):
        async with client.request(verb, f"/api2/json{path}", headers=ADMIN) as reply:
            assert (reply.status, reply.reason) == (501, f"Method '{verb} {path}' not implemented")


@pytest.mark.parametrize("name", ["local:iso/x.iso", "local%3Aiso%2Fx.iso"])
async def test_a_quoted_slash_belongs_to_its_part(client: Client, name: str) -> None:
    from yarl import URL

    url = URL(f"/api2/json/test/content/{name}", encoded=True)
    async with client.delete(url, headers=ADMIN) as reply:
        assert await reply.json() == {"data": "local:iso/x.iso"}


async def test_without_credentials_only_open_methods_answer(client: Client) -> None:
    async with client.get("/api2/json/test/answer") as reply:
        assert reply.status == 401
    async with client.get("/api2/json/test/open", headers={"Cookie": "PVEAuthCookie=old"}) as reply:
        assert (reply.status, await reply.json()) == (200, {"data": None})


async def test_a_quoted_ticket_cookie_is_understood(client: Client, world: World) -> None:
    ticket = world.access.ticket("admin@pve").replace(":", "%3A").replace("@", "%40")
    async with client.get("/api2/json/test/answer", headers={"Cookie": f"PVEAuthCookie={ticket}"}) as reply:
        assert reply.status == 200


async def test_a_cookie_alone_reads_but_does_not_write(client: Client, world: World) -> None:
    for verb in ("post", "put", "delete"):
        path = {"post": "/test/upload", "put": "/test/conflict", "delete": "/test/content/a"}[verb]
        async with client.request(verb, f"/api2/json{path}", headers=browser(world, csrf=False)) as reply:
            assert reply.status == 401
    async with client.get("/api2/json/test/answer", headers=browser(world, csrf=False)) as reply:
        assert reply.status == 200
    async with client.delete("/api2/json/test/content/a", headers=browser(world)) as reply:
        assert reply.status == 200


async def test_a_missing_privilege_is_named_and_recorded(client: Client, world: World) -> None:
    async with client.post("/api2/json/test/localhost/guests/100", headers=browser(world, "eve@pve")) as reply:
        assert (reply.status, reply.reason) == (403, "Permission check failed (/vms/100, VM.Allocate)")
    world.access.grant("eve@pve", "/vms/100", "VM.Allocate")
    async with client.post("/api2/json/test/localhost/guests/100", headers=browser(world, "eve@pve")) as reply:
        assert reply.status == 200
    assert [(row.who, row.outcome[:3]) for row in world.audit.rows] == [("eve@pve", "403"), ("eve@pve", "ok")]


async def test_writes_are_recorded_without_their_secrets(client: Client, world: World) -> None:
    data = {"password": "hunter2", "cores": "3"}
    async with client.post("/api2/json/test/localhost/guests/100", headers=ADMIN, data=data):
        pass
    row = world.audit.rows[-1]
    assert (row.who, row.remote, row.action) == ("admin@pve!ci", "127.0.0.1", "POST /test/{node}/guests/{vmid}")
    assert row.target == "/test/localhost/guests/100"
    assert "cores=3" in row.detail
    assert "hunter2" not in row.detail


async def test_values_of_unknown_parameters_are_not_recorded(client: Client, world: World) -> None:
    async with client.post("/api2/json/test/localhost/guests/100", headers=ADMIN, data={"pasword": "hunter2"}) as reply:
        assert reply.status == 400
    assert "pasword=…" in world.audit.rows[-1].detail
    assert "hunter2" not in str(world.audit.rows[-1])


def test_what_may_hold_a_secret_is_named_only() -> None:
    methods = {(method.verb, method.path): method for method in ApiTable(RESOURCES).methods()}
    node, vm = "/nodes/{node}", "/nodes/{node}/qemu/{vmid}"
    url = "https://me:hunter2@host/x.iso?signature=hunter2"
    for verb, path, name, value, shown in (
        ("POST", f"{vm}/agent/exec", "command", ["chpasswd", "hunter2"], "command=…"),
        ("POST", f"{vm}/agent/exec", "input-data", "hunter2", "input-data=…"),
        ("POST", f"{vm}/agent/file-write", "content", "hunter2", "content=…"),
        ("PUT", f"{vm}/config", "cipassword", "hunter2", "cipassword=…"),
        ("PUT", f"{vm}/config", "net0", "virtio,bridge=vmbr0", "net0=virtio,bridge=vmbr0"),
        ("PUT", f"{vm}/config", "memory", 512, "memory=512"),
        ("POST", f"{node}/storage/{{storage}}/download-url", "url", url, "url=https://host/x.iso?"),
        ("POST", "/access/domains", "client-key", "hunter2", "client-key=…"),
        ("POST", "/access/domains", "bind", "hunter2", "bind=…"),
    ):
        assert describe_parameters(methods[verb, path], {name: value}) == shown


async def test_strangers_cannot_fill_the_audit_log(client: Client, world: World) -> None:
    for _ in range(REMOTE_BURST + 5):
        async with client.post("/api2/json/test/localhost/guests/100") as reply:
            assert reply.status == 401
    assert len(world.audit.rows) == REMOTE_BURST
    async with client.post("/api2/json/test/localhost/guests/100", headers=browser(world, "eve@pve")) as reply:
        assert reply.status == 403
    assert world.audit.rows[-1].who == "eve@pve"


async def test_an_audit_log_that_fails_hides_no_answer(
    client: Client, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(**row: str) -> None:
        raise HostError("audit log: no space")

    monkeypatch.setattr(world.audit, "record", fails)
    async with client.post("/api2/json/test/localhost/guests/100") as reply:
        assert reply.status == 401
    assert "by - not recorded: audit log: no space" in caplog.text


async def test_a_write_that_is_cut_off_is_recorded(client: Client, world: World) -> None:
    with contextlib.suppress(ClientError):
        async with client.post("/api2/json/test/cut-off", headers=ADMIN):
            pass
    assert [(row.action, row.outcome) for row in world.audit.rows] == [("POST /test/cut-off", "503 cut off")]


async def test_reading_is_not_recorded(client: Client, world: World) -> None:
    async with client.get("/api2/json/test/answer", headers=ADMIN):
        pass
    assert world.audit.rows == []


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b"{", 400),
        ("application/json", b"[1]", 400),
        ("application/json", b'{"vmid":"\xff"}', 400),
        ("application/json", b"[" * 100_000, 400),
        ("application/x-www-form-urlencoded", b"x=%ff", 400),
        ("application/x-www-form-urlencoded", b"\xff\xfe", 400),
        ("application/x-www-form-urlencoded", b"&".join(b"a%d=1" % i for i in range(2000)), 413),
        ("application/json", b"{" + b",".join(b'"a%d":1' % i for i in range(2000)) + b"}", 413),
        ("application/json", b" " * (registry.BODY_LIMIT_BYTES + 1), 413),
        ("multipart/form-data", b"no boundary", 400),
        ("multipart/form-data; boundary=x", b"--x\r\nbroken", 400),
    ],
)
async def test_hostile_bodies_are_refused(client: Client, content_type: str, body: bytes, status: int) -> None:
    headers = ADMIN | {"Content-Type": content_type}
    async with client.post("/api2/json/test/localhost/guests/100", headers=headers, data=BytesIO(body)) as reply:
        assert reply.status == status


async def test_an_upload_streams_after_its_fields(client: Client) -> None:
    form = FormData()
    form.add_field("content", "iso")
    form.add_field("filename", BytesIO(b"x" * 3_000_000), filename="a.iso", content_type="application/octet-stream")
    async with client.post("/api2/json/test/upload", headers=ADMIN, data=form) as reply:
        assert await reply.json() == {"data": {"size": 3_000_000, "name": "a.iso", "content": "iso"}}


async def test_an_upload_needs_its_file_and_its_fields(client: Client) -> None:
    form = FormData({"content": "iso"}, default_to_multipart=True)
    async with client.post("/api2/json/test/upload", headers=ADMIN, data=form) as reply:
        assert (reply.status, list((await reply.json())["errors"])) == (400, ["filename"])
    late = FormData()
    late.add_field("filename", BytesIO(b"x"), filename="a.iso")
    late.add_field("content", "iso")
    async with client.post("/api2/json/test/upload", headers=ADMIN, data=late) as reply:
        assert (reply.status, list((await reply.json())["errors"])) == (400, ["content"])


async def test_an_upload_without_its_last_boundary_is_not_taken_for_whole(client: Client) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="content"\r\n\r\niso\r\n--b\r\n'
    body = head + b'Content-Disposition: form-data; name="filename"; filename="a"\r\n\r\n' + b"x" * 100_000
    headers = ADMIN | {"Content-Type": "multipart/form-data; boundary=b"}
    async with client.post("/api2/json/test/upload", headers=headers, data=body) as reply:
        assert (reply.status, reply.reason) == (400, "upload a: cut off before its end")


async def test_directories_answer_with_their_index(client: Client) -> None:
    async with client.get("/api2/json/cluster/ha", headers=ADMIN) as reply:
        assert [row["subdir"] for row in (await reply.json())["data"]] == ["groups", "resources", "rules", "status"]
    async with client.get("/api2/json/", headers=ADMIN) as reply:
        assert {"subdir": "version"} in (await reply.json())["data"]
    async with client.get(f"/api2/json/nodes/{NODE}", headers=ADMIN) as reply:
        assert {"subdir": "tasks"} in (await reply.json())["data"]


async def test_every_reply_carries_the_security_headers(client: Client) -> None:
    for path in ("/api2/json/version", "/nowhere", "/api-docs"):
        async with client.get(path) as reply:
            policy = reply.headers["Content-Security-Policy"]
            assert "script-src 'self';" in policy
            assert "unsafe-eval" not in policy
            assert reply.headers["X-Content-Type-Options"] == "nosniff"


def test_no_declaration_is_faulty() -> None:
    ApiTable(RESOURCES)


def test_a_faulty_declaration_is_named() -> None:
    faulty = Resource()

    @faulty.get("/x/{vmid}", summary="x", allow=Allow("/storage/{storage}", "Datastore.Audit"))
    async def handler(call: Call) -> None:
        return None

    with pytest.raises(ValueError, match=r"\{vmid\} is not a parameter.*\{storage\}"):
        ApiTable([faulty])
