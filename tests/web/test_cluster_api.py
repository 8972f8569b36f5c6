"""/cluster and /nodes/{node}/tasks: the shapes clients read, and who sees what."""

from __future__ import annotations

import pytest

from appliance.model.guest import GuestKind, GuestState, GuestStats
from tests.fakes.services import NODE
from tests.web.conftest import Site


async def get(site: Site, path: str, user: str = "admin@pve", **params: str) -> object:
    async with site.client.get(f"/api2/json{path}", headers=site.as_user(user), params=params) as reply:
        assert reply.status == 200, reply.reason
        return (await reply.json())["data"]


async def rows(site: Site, path: str, user: str = "admin@pve", **params: str) -> list[dict[str, object]]:
    found = await get(site, path, user, **params)
    assert isinstance(found, list)
    return found


async def test_version_is_what_clients_parse(site: Site) -> None:
    version = await get(site, "/version")
    assert isinstance(version, dict)
    assert all(part.isdigit() for part in version["version"].split("."))
    assert {"release", "repoid"} <= set(version)


async def test_resources_show_what_the_user_may_see(site: Site) -> None:
    stats = GuestStats(memory_bytes=1000, net_in_bytes=5)
    site.world.guests.add(100, state=GuestState.RUNNING, stats=stats, tags=("a", "b"), uptime_s=7)
    site.world.guests.add(101, GuestKind.LXC)
    site.world.access.grant("eve@pve", "/vms/101", "VM.Audit")
    everything = {row["id"]: row for row in await rows(site, "/cluster/resources")}
    assert set(everything) == {"qemu/100", "lxc/101", f"node/{NODE}"}
    vm = everything["qemu/100"]
    assert (vm["status"], vm["mem"], vm["netin"], vm["tags"], vm["template"]) == ("running", 1000, 5, "a;b", 0)
    assert "pool" not in vm
    assert everything[f"node/{NODE}"]["maxcpu"] == 2
    of_eve = await rows(site, "/cluster/resources", "eve@pve")
    assert {row["id"] for row in of_eve} == {"lxc/101", f"node/{NODE}"}
    assert "mem" not in next(row for row in of_eve if row["type"] == "node")


async def test_resources_are_filtered_by_type(site: Site) -> None:
    site.world.guests.add(100)
    assert [row["type"] for row in await rows(site, "/cluster/resources", type="vm")] == ["qemu"]
    assert [row["type"] for row in await rows(site, "/cluster/resources", type="node")] == ["node"]
    assert await rows(site, "/cluster/resources", type="sdn") == []


async def test_resources_show_a_change_at_once(site: Site) -> None:
    assert await rows(site, "/cluster/resources", type="vm") == []
    site.world.guests.add(100)
    assert (await rows(site, "/cluster/resources", type="vm"))[0]["status"] == "stopped"
    site.world.guests.set_state(100, GuestState.PAUSED)
    assert (await rows(site, "/cluster/resources", type="vm"))[0]["status"] == "paused"


async def test_status_names_this_node(site: Site) -> None:
    (node,) = await rows(site, "/cluster/status")
    assert (node["type"], node["name"], node["local"], node["online"], node["ip"]) == ("node", NODE, 1, 1, "127.0.0.1")


async def test_nextid_is_free_or_names_the_wish(site: Site) -> None:
    site.world.guests.add(100)
    assert await get(site, "/cluster/nextid") == "101"
    assert await get(site, "/cluster/nextid", vmid="500") == "500"
    async with site.client.get("/api2/json/cluster/nextid?vmid=100", headers=site.as_user()) as reply:
        assert (reply.status, (await reply.json())["errors"]) == (400, {"vmid": "VM 100 already exists"})


async def test_options_are_kept_and_set_back(site: Site) -> None:
    async def put(**options: str) -> int:
        async with site.client.put("/api2/json/cluster/options", headers=site.as_user(), data=options) as reply:
            return reply.status

    assert await put(**{"keyboard": "de", "next-id": "lower=200"}) == 200
    assert await put(description="two\nlines", delete="keyboard") == 200
    options = await get(site, "/cluster/options")
    assert isinstance(options, dict)
    assert (options["keyboard"], options["next-id"], options["description"]) == ("en-us", "lower=200", "two\nlines")
    assert await put(nonsense="1") == 400
    assert await put(delete="nonsense") == 400
    assert await put(keyboard="../x") == 400
    assert "next-id" not in dict(await get(site, "/cluster/options", "eve@pve"))  # type: ignore[call-overload]  # JSON


async def test_options_changed_on_the_ground_of_older_ones_are_refused(site: Site) -> None:
    async def put(**options: str) -> tuple[int, str]:
        async with site.client.put("/api2/json/cluster/options", headers=site.as_user(), data=options) as reply:
            return reply.status, reply.reason or ""

    async def digest() -> str:
        options = await get(site, "/cluster/options")
        assert isinstance(options, dict)
        return str(options["digest"])

    first = await digest()
    assert await digest() == first
    assert (await put(description="mine", digest=first))[0] == 200
    status, reason = await put(description="yours", digest=first)
    assert (status, "modified configuration" in reason) == (409, True)
    assert (await put(delete="description", digest=first))[0] == 409
    assert (await put(delete="description", digest=await digest()))[0] == 200
    assert await digest() == first, "the same options have the same digest"
    assert (await put(description="without"))[0] == 200
    assert "digest" not in dict(await get(site, "/cluster/options", "eve@pve"))  # type: ignore[call-overload]  # JSON


async def test_the_log_is_the_audit_trail(site: Site) -> None:
    async with site.client.put("/api2/json/cluster/options", headers=site.as_user(), data={"keyboard": "fr"}):
        pass
    (entry,) = await rows(site, "/cluster/log")
    assert (entry["user"], entry["pri"], entry["node"]) == ("admin@pve", 6, NODE)
    assert await rows(site, "/cluster/log", "eve@pve") == []


@pytest.mark.parametrize(
    ("path", "filters"),
    [
        ("/cluster/ha/resources", {"type": "vm"}),
        ("/cluster/ha/status/current", {}),
        ("/cluster/backup", {}),
        ("/cluster/sdn/zones", {"pending": "1", "running": "0", "type": "vlan"}),
        (f"/nodes/{NODE}/replication", {"guest": "100"}),
    ],
)
async def test_what_is_absent_is_an_empty_list_however_it_is_filtered(
    site: Site, path: str, filters: dict[str, str]
) -> None:
    assert await rows(site, path) == []
    assert await rows(site, path, **filters) == []


async def test_what_is_absent_needs_the_privilege_it_would_need(site: Site) -> None:
    for path, status in (("ha/resources", 403), ("acme/plugins", 403), ("sdn/zones", 200)):
        async with site.client.get(f"/api2/json/cluster/{path}", headers=site.as_user("eve@pve")) as reply:
            assert reply.status == status


async def test_guests_without_a_backup_job_are_all_of_them(site: Site) -> None:
    site.world.guests.add(100)
    assert await rows(site, "/cluster/backup-info/not-backed-up") == [{"vmid": 100, "name": "vm100", "type": "qemu"}]
    assert await get(site, "/cluster/config/qdevice") == {}


async def test_a_task_is_followed_to_its_end(site: Site) -> None:
    upid = site.world.tasks.begin("qmstart", user="admin@pve!ci")
    path = f"/nodes/{NODE}/tasks/{upid}"
    status = await get(site, f"{path}/status")
    assert isinstance(status, dict)
    assert (status["status"], status["user"], status["tokenid"]) == ("running", "admin@pve", "ci")
    assert "exitstatus" not in status
    assert await rows(site, f"{path}/log") == [{"n": 1, "t": "no content"}]
    site.world.tasks.logs[upid] += [f"line {number}" for number in range(1, 8)]
    site.world.tasks.finish(upid, "WARNINGS: 1")
    status = await get(site, f"{path}/status")
    assert isinstance(status, dict)
    assert (status["status"], status["exitstatus"]) == ("stopped", "WARNINGS: 1")
    async with site.client.get(f"/api2/json{path}/log?start=2&limit=3", headers=site.as_user()) as reply:
        body = await reply.json()
    assert body == {"data": [{"n": n, "t": f"line {n}"} for n in (3, 4, 5)], "total": 8}
    assert {row["subdir"] for row in await rows(site, path)} == {"log", "status"}


async def test_task_lists_are_filtered_and_private(site: Site) -> None:
    tasks = site.world.tasks
    done = tasks.begin("qmstart", object_id="100")
    tasks.finish(done, "command failed")
    running = tasks.begin("vzstart", object_id="101", user="eve@pve")
    path = f"/nodes/{NODE}/tasks"
    assert [row["upid"] for row in await rows(site, path)] == [done]
    assert [row["upid"] for row in await rows(site, path, source="all")] == [running, done]
    assert [row["upid"] for row in await rows(site, path, source="all", vmid="101")] == [running]
    assert [row["upid"] for row in await rows(site, path, statusfilter="error")] == [done]
    assert [row["upid"] for row in await rows(site, path, "eve@pve", source="all")] == [running]
    assert [row["upid"] for row in await rows(site, "/cluster/tasks", "eve@pve")] == [running]
    assert [row["upid"] for row in await rows(site, path, source="all", userfilter="EVE")] == [running]
    assert await rows(site, path, "eve@pve", source="all", userfilter="admin") == []
    async with site.client.get(f"/api2/json{path}/{done}/status", headers=site.as_user("eve@pve")) as reply:
        assert reply.status == 403
    async with site.client.delete(f"/api2/json{path}/{done}", headers=site.as_user("eve@pve")) as reply:
        assert reply.status == 403
    async with site.client.delete(f"/api2/json{path}/{running}", headers=site.as_user("eve@pve")) as reply:
        assert reply.status == 200


@pytest.mark.parametrize("upid", ["UPID:nonsense", "UPID:n:1:2:3:x:y:z:", "..", "UPID:a:00000001:00000001:00000001:x"])
async def test_a_malformed_upid_is_refused(site: Site, upid: str) -> None:
    async with site.client.get(f"/api2/json/nodes/{NODE}/tasks/{upid}/log", headers=site.as_user()) as reply:
        assert reply.status in (400, 404, 501)


async def test_a_task_list_is_filtered_before_it_is_cut_off(site: Site) -> None:
    tasks = site.world.tasks
    failed = tasks.begin("qmstart")
    tasks.finish(failed, "command failed")
    for _ in range(3):
        tasks.finish(tasks.begin("qmstart"))
    path = f"/nodes/{NODE}/tasks"
    assert [row["upid"] for row in await rows(site, path, statusfilter="error,warning", limit="2")] == [failed]
    params = {"statusfilter": "ok,splendid"}
    async with site.client.get(f"/api2/json{path}", headers=site.as_user(), params=params) as reply:
        assert reply.status == 400
        assert "splendid" in (await reply.json())["errors"]["statusfilter"]


@pytest.mark.parametrize("text", ["lower=99", "lower=300,upper=300", "upper=100", "first=1", "lower=x", "200"])
async def test_a_range_for_new_ids_that_cannot_be_is_refused(site: Site, text: str) -> None:
    path, headers = "/api2/json/cluster/options", site.as_user()
    async with site.client.put(path, headers=headers, data={"next-id": text}) as reply:
        assert reply.status == 400
        assert list((await reply.json())["errors"]) == ["next-id"]
    async with site.client.put(path, headers=headers, data={"next-id": "lower=200,upper=300"}) as reply:
        assert reply.status == 200
