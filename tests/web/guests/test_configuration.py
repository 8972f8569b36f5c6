"""The configuration of guests: read, changed, its disks detached and grown, its keys documented."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.model.guest import GuestKind
from appliance.web import openapi
from appliance.web.application import build_application
from appliance.web.table import ApiTable
from tests.services.guest_config.strategies import HOSTILE_TEXT
from tests.web.guests.guest_site import DISK, KINDS, RESOURCES, GuestSite, define, guest_services


async def test_a_configuration_is_read_with_pves_types_and_no_secret(site: GuestSite) -> None:
    path = define(site, GuestKind.QEMU, cores=2, onboot=1, cpulimit="1.5", memory=1024, cipassword="secret", balloon=0)
    config = await site.get(f"{path}/config", current=1)
    assert (config["cores"], config["onboot"], config["balloon"]) == (2, 1, 0)
    assert (config["memory"], config["cpulimit"]) == ("1024", "1.5")
    assert config["cipassword"] == "**********"
    assert len(config["digest"]) == 40
    assert "$6$" not in str(await site.get(f"{path}/pending"))
    assert {"key": "cores", "value": "2"} in await site.get(f"{path}/pending")
    assert (await site.get(f"{define(site, GuestKind.LXC)}/config"))["lxc"] == []


@KINDS
async def test_put_writes_and_deletes_keys_and_returns_null(site: GuestSite, kind: GuestKind) -> None:
    path = define(site, kind, description="old", onboot=1)
    digest = (await site.get(f"{path}/config"))["digest"]
    assert await site.do("PUT", f"{path}/config", memory=1024, delete="description,onboot", digest=digest) is None
    config = await site.get(f"{path}/config")
    assert int(config["memory"]) == 1024
    assert "description" not in config
    assert "onboot" not in config
    stale = await site.call("PUT", f"{path}/config", {"memory": 512, "digest": digest})
    assert stale.status == 409
    assert "detected modified configuration" in stale.reason


async def test_variables_are_separated_by_nul_which_no_other_key_takes(site: GuestSite) -> None:
    site.guests.add(101, GuestKind.LXC, hostname="ct", rootfs="local:4")
    await site.do("PUT", "lxc/101/config", env="A=1\0B=2")
    assert site.guests.guests[101].config["env"] == "A=1\0B=2"
    for key in ("hostname", "description", "tags", "net0", "mp0", "app-user", "app-labels", "entrypoint", "cores"):
        answer = await site.call("PUT", "lxc/101/config", {key: "a\0b"})
        assert (answer.status, set(answer.errors)) == (400, {key}), key


async def test_post_config_is_a_task_and_waits_for_its_end_when_asked(site: GuestSite) -> None:
    path = define(site, GuestKind.QEMU)
    assert (await site.do("POST", f"{path}/config", memory=1024)).startswith("UPID:")
    assert await site.do("POST", f"{path}/config", memory=2048, background_delay=1) is None
    assert site.guests.guests[100].config["memory"] == "2048"
    refused = await site.call("POST", f"{path}/config", {"memory": "much"})
    assert (refused.status, list(refused.errors)) == (400, ["memory"])


@pytest.mark.parametrize(
    ("data", "named"),
    [({"delete": "bogus"}, "delete"), ({"delete": "name", "name": "x"}, "delete"), ({"bogus": 1}, "bogus"),
     ({"scsi1": DISK}, "scsi1"), ({"net0": "virtio\nbridge=x"}, "net0"), ({"vmid": 101}, "vmid")],
)  # fmt: skip
async def test_a_bad_change_is_refused_by_name_and_changes_nothing(
    site: GuestSite, data: dict[str, object], named: str
) -> None:
    path = define(site, GuestKind.QEMU)
    before = dict(site.guests.guests[100].config)
    answer = await site.call("PUT", f"{path}/config", data)
    assert (answer.status, list(answer.errors)) == (400, [named])
    assert site.guests.guests[100].config == before


async def test_unlink_detaches_and_with_force_destroys(site: GuestSite) -> None:
    path = define(site, GuestKind.QEMU)
    assert await site.do("PUT", f"{path}/unlink", idlist="scsi0") is None
    assert site.guests.guests[100].config == {"unused0": DISK}
    await site.do("PUT", f"{path}/config", scsi0=DISK)
    await site.do("PUT", f"{path}/unlink", idlist="scsi0", force=1)
    assert site.guests.guests[100].config == {}
    assert [str(volume) for volume in site.guests.removed] == [DISK]
    assert list((await site.call("PUT", f"{path}/unlink", {"idlist": "memory"})).errors) == ["idlist"]


async def test_a_volume_that_a_running_guest_has_is_not_destroyed(site: GuestSite) -> None:
    path = define(site, GuestKind.QEMU)
    await site.do("POST", f"{path}/status/start")
    answer = await site.call("PUT", f"{path}/unlink", {"idlist": "scsi0", "force": 1})
    assert answer.status == 409
    assert site.guests.guests[100].config == {"unused0": DISK}
    assert site.guests.removed == []


@KINDS
async def test_resize_passes_the_size_on(site: GuestSite, kind: GuestKind) -> None:
    path, slot = define(site, kind), "scsi0" if kind is GuestKind.QEMU else "rootfs"
    assert (await site.do("PUT", f"{path}/resize", disk=slot, size="+5G")).startswith("UPID:")
    assert site.guests.calls[-1][2] == {"slot": slot, "size": "+5G"}
    for data, named in (({"disk": slot, "size": "-5G"}, "size"), ({"disk": "x/../y", "size": "1G"}, "disk"),
                        ({"disk": "scsi9", "size": "1G"}, "disk"), ({"disk": slot}, "size")):  # fmt: skip
        answer = await site.call("PUT", f"{path}/resize", data)
        assert (answer.status, list(answer.errors)) == (400, [named])
    stale = await site.call("PUT", f"{path}/resize", {"disk": slot, "size": "9G", "digest": "0" * 40})
    assert stale.status == 409


async def test_cloud_init_is_shown_without_the_password(site: GuestSite) -> None:
    path = define(site, GuestKind.QEMU, ide2="local:100/vm-100-cloudinit.raw,media=cdrom", ciuser="debian",
                  cipassword="secret", ipconfig0="ip=dhcp", net0="virtio=BC:24:11:00:00:01,bridge=vmbr0", name="web")  # fmt: skip
    rows = {row["key"]: row["value"] for row in await site.get(f"{path}/cloudinit")}
    assert rows == {"ciuser": "debian", "cipassword": "**********", "ipconfig0": "ip=dhcp", "name": "web"}
    assert await site.do("PUT", f"{path}/cloudinit") is None
    for kind, word in (("user", "debian"), ("network", "dhcp"), ("meta", "instance-id")):
        text = await site.get(f"{path}/cloudinit/dump", type=kind)
        assert word in text
        assert "$6$" not in text
    site.guests.add(103)
    assert (await site.call("PUT", "qemu/103/cloudinit")).status == 409


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.dictionaries(st.one_of(st.sampled_from(["net0", "scsi0", "delete", "digest", "tags", "args", "boot", "cpu"]),
                                      st.text("abcdefgh0123_-", min_size=1, max_size=8)), HOSTILE_TEXT, max_size=4))  # fmt: skip
def test_hostile_changes_end_in_a_clear_refusal_or_success(tmp_path: Path, data: dict[str, str]) -> None:
    sendable = {key: value.encode("utf-8", "replace").decode() for key, value in data.items()}
    assert _change(tmp_path, sendable) in (200, 400, 409)


def _change(directory: Path, data: dict[str, str]) -> int:
    """The status of one PUT to a fresh application, in a loop of its own."""

    async def call() -> int:
        services, world, guests = guest_services(directory)
        async with TestClient(TestServer(build_application(services, resources=RESOURCES))) as client:
            site = GuestSite(client, world, guests)
            define(site, GuestKind.QEMU)
            return (await site.call("PUT", "qemu/100/config", data)).status

    return asyncio.run(call())


def test_the_documents_describe_every_configuration_key() -> None:
    document = openapi.build_document(ApiTable(RESOURCES).methods())
    content = document["paths"]["/api2/json/nodes/{node}/qemu"]["post"]["requestBody"]["content"]
    schema = content["application/x-www-form-urlencoded"]["schema"]
    assert {"vmid", "memory", "engine", "pool"} <= set(schema["properties"])
    assert {"^net[0-9]+$", "^scsi[0-9]+$"} <= set(schema["patternProperties"])
    assert "Not supported yet" in schema["patternProperties"]["^hostpci[0-9]+$"]["description"]
    assert schema["properties"]["cpuunits"] == {
        "type": "integer", "description": "Weight of CPU time.", "minimum": 1, "maximum": 262144, "default": 100,
    }  # fmt: skip
