"""/nodes/{node}/{qemu,lxc}: what PVE's clients send and read, for both kinds of guests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.model.guest import DeviceStats, GuestKind, GuestState, GuestStats
from appliance.web import openapi
from appliance.web.application import build_application
from appliance.web.table import ApiTable
from tests.fakes.backups import FakeBackups, FakeReplacements, FakeRestores
from tests.fakes.guests import AgentVm
from tests.fakes.house import HouseStorage
from tests.services.guest_config.strategies import HOSTILE_TEXT
from tests.web.guest_site import RESOURCES, GuestSite, guest_services

DISK = "local:100/vm-100-disk-0.qcow2"
ROOT = "local:101/vm-101-disk-0.raw,size=4G"
KINDS = pytest.mark.parametrize("kind", list(GuestKind))


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[GuestSite]:
    services, world, guests = guest_services(tmp_path)
    async with TestClient(TestServer(build_application(services, resources=RESOURCES))) as client:
        yield GuestSite(client, world, guests)


def define(site: GuestSite, kind: GuestKind, **config: object) -> str:
    """A guest with a disk; returns its path."""
    if kind is GuestKind.QEMU:
        site.guests.add(100, kind, **({"scsi0": f"{DISK},size=8G"} | config))
        return "qemu/100"
    site.guests.add(101, kind, **({"rootfs": ROOT} | config))
    return "lxc/101"


# --- creation -----------------------------------------------------------------------------------------------------


async def test_a_vm_is_created_from_what_terraform_sends(site: GuestSite) -> None:
    upid = await site.do(
        "POST", "qemu", vmid=100, name="web", memory=2048, cores=2, cpu="cputype=host", agent="enabled=1", acpi=1,
        scsihw="virtio-scsi-pci", scsi0="local:8,format=qcow2,iothread=1,backup=1,cache=none,aio=io_uring",
        ide2="local:cloudinit", net0="virtio,bridge=vmbr0,firewall=0", ipconfig0="ip=dhcp", tags="b;a", onboot="true",
        sshkeys="ssh-ed25519%20AAAA%20me%0A", cipassword="secret", vga="type=serial0", serial0="socket", start=1,
    )  # fmt: skip
    assert upid.startswith("UPID:testnode:")
    config = site.guests.guests[100].config
    assert config["scsi0"] == "local:8,aio=io_uring,backup=1,cache=none,format=qcow2,iothread=1"
    assert config["net0"] == "virtio=BC:24:11:00:00:00,bridge=vmbr0,firewall=0"
    assert config["cipassword"].startswith("$6$")
    assert (config["tags"], config["onboot"], config["boot"]) == ("a;b", "1", "order=scsi0;net0")
    assert site.guests.calls == [("create", 100, {"start": True, "pool": None})]


async def test_a_container_is_created_unprivileged_with_a_root_of_its_own(site: GuestSite) -> None:
    await site.do(
        "POST", "lxc", vmid=101, ostemplate="local:vztmpl/debian.tar.zst", hostname="ct", storage="fast",
        password="secret1", ssh__public__keys="ssh-ed25519 AAAA me\n", net0="name=eth0,bridge=vmbr0,ip=dhcp",
        features="nesting=1", pool="dev", mp0="fast:1,mp=/data",
    )  # fmt: skip
    config = site.guests.guests[101].config
    assert (config["rootfs"], config["unprivileged"], config["hostname"]) == ("fast:4", "1", "ct")
    assert "password" not in config
    (call,) = site.guests.calls
    assert call[2] == {
        "start": False, "pool": "dev", "template": "local:vztmpl/debian.tar.zst", "password": "secret1",
        "ssh_keys": ["ssh-ed25519 AAAA me"] if isinstance(call[2]["ssh_keys"], list) else ("ssh-ed25519 AAAA me",),
    }  # fmt: skip


async def test_every_bad_key_of_a_creation_is_named_and_nothing_is_made(site: GuestSite) -> None:
    answer = await site.call(
        "POST", "qemu", {"vmid": 100, "foo": "1", "hostpci0": "01:00", "net0": "virtio,bogus=1", "cores": "many"}
    )
    assert answer.status == 400
    assert set(answer.errors) == {"foo", "hostpci0", "net0", "cores"}
    assert site.guests.guests == {}


@pytest.mark.parametrize(
    ("path", "data", "named"),
    [
        ("qemu", {"archive": "/etc/passwd"}, "archive"),
        ("qemu", {"unique": 1}, "unique"),
        ("qemu", {"live-restore": 1}, "live-restore"),
        ("qemu", {"ha-managed": 1}, "ha-managed"),
        ("qemu", {"force": 1}, "force"),
        ("lxc", {"ostemplate": "local:vztmpl/x.tar", "force": 1}, "force"),
        ("lxc", {"ostemplate": "local:../../x", "restore": 1}, "ostemplate"),
        ("lxc", {"ostemplate": "/etc/passwd"}, "ostemplate"),
        ("lxc", {"ostemplate": "local:../../x"}, "ostemplate"),
        ("lxc", {}, "ostemplate"),
        ("lxc", {"ostemplate": "local:vztmpl/x.tar", "password": "abc"}, "password"),
        ("lxc", {"ostemplate": "local:vztmpl/x.tar", "ssh-public-keys": "hello"}, "ssh-public-keys"),
        ("qemu", {"pool": "../x"}, "pool"),
    ],
)
async def test_what_cannot_be_done_at_creation_is_refused_by_name(
    site: GuestSite, path: str, data: dict[str, object], named: str
) -> None:
    answer = await site.call("POST", path, {"vmid": 100, **data})
    assert answer.status == 400
    assert list(answer.errors) == [named]


async def test_a_taken_vmid_already_exists(site: GuestSite) -> None:
    define(site, GuestKind.QEMU)
    answer = await site.call("POST", "qemu", {"vmid": 100})
    assert answer.status == 409
    assert "already exists" in answer.reason


# --- restoring over -----------------------------------------------------------------------------------------------

BACKUP = "local:backup/vzdump-qemu-100-2026_01_01-00_00_00.tar.zst"


@pytest.fixture
def backups(site: GuestSite) -> FakeBackups:
    """Backups of which nothing but the calls is looked at."""
    made = FakeBackups(cast(HouseStorage, None), site.world.tasks)
    site.guests.restores, site.guests.replacements = FakeRestores(made), FakeReplacements(made)
    return made


async def test_a_backup_goes_over_a_guest_only_when_told_to(site: GuestSite, backups: FakeBackups) -> None:
    define(site, GuestKind.QEMU)
    await site.do("POST", "qemu", vmid=100, archive=BACKUP, force=1, start=1, memory=700, storage="fast")
    assert backups.calls == [
        ("plan", {"volume": BACKUP, "memory": "700", "storage": "fast", "unique": False}),
        ("restore over", {"vmid": 100, "start": True}),
    ]
    define(site, GuestKind.LXC)
    archive = BACKUP.replace("qemu", "lxc")
    await site.do("POST", "lxc", vmid=101, ostemplate=archive, restore=1, force=1)
    await site.do("POST", "qemu", vmid=100, archive=BACKUP)  # the id is taken: creation refuses it
    assert [asked for asked, _ in backups.calls] == ["plan", "restore over"] * 2 + ["plan", "restore"]


async def test_force_on_a_free_id_restores_as_always(site: GuestSite, backups: FakeBackups) -> None:
    define(site, GuestKind.LXC)
    await site.do("POST", "qemu", vmid=100, archive=BACKUP, force=1)
    assert backups.calls[-1] == ("restore", {"vmid": 100, "pool": None, "start": False})
    await site.do("POST", "qemu", vmid=101, archive=BACKUP, force=1)  # a container has it: creation refuses the id
    assert backups.calls[-1][0] == "restore"


async def test_who_may_back_a_guest_up_may_restore_it_and_nobody_else(site: GuestSite, backups: FakeBackups) -> None:
    define(site, GuestKind.QEMU)
    order = {"vmid": 100, "archive": BACKUP, "force": 1}
    site.grant("/storage/local", "Datastore.Allocate")
    site.grant("/vms/100", "VM.Audit", "VM.Config.Memory")
    assert (await site.call("POST", "qemu", order, user="eve@pve")).status == 403
    site.grant("/vms/100", "VM.Backup")
    assert (await site.call("POST", "qemu", order, user="eve@pve")).status == 200
    assert (await site.call("POST", "qemu", order | {"memory": 700}, user="eve@pve")).status == 403
    answer = await site.call("POST", "qemu", order | {"pool": "dev"})
    assert list(answer.errors) == ["pool"]
    assert [asked for asked, _ in backups.calls].count("restore over") == 1


# --- reading ------------------------------------------------------------------------------------------------------


async def test_the_list_shows_what_the_exporter_reads_and_only_what_one_may_see(site: GuestSite) -> None:
    define(site, GuestKind.QEMU, name="web", cores=2, tags="b;a", template=1, serial0="socket")
    define(site, GuestKind.LXC)
    site.guests.add(102)
    guest = site.guests.guests[100]
    guest.state, guest.stats = GuestState.PAUSED, GuestStats(memory_bytes=5, net_in_bytes=7, disk_write_bytes=9)
    (row, other) = await site.get("qemu", full=1)
    assert (row["vmid"], row["name"], row["status"], row["qmpstatus"]) == (100, "web", "running", "paused")
    assert (row["cpus"], row["maxmem"], row["maxdisk"], row["mem"], row["tags"]) == (2, 512 << 20, 8 << 30, 5, "a;b")
    assert (row["netin"], row["diskwrite"], row["uptime"], row["template"], row["pid"]) == (7, 9, 60, 1, 4242)
    assert other["status"] == "stopped"
    assert other["mem"] == 0
    assert "template" not in other
    (ct,) = await site.get("lxc")
    assert (ct["vmid"], ct["type"], ct["maxswap"]) == (101, "lxc", 512 << 20)
    site.grant("/vms/102", "VM.Audit")
    assert [row["vmid"] for row in (await site.call("GET", "qemu", user="eve@pve")).data] == [102]


async def test_a_native_machines_status_says_who_moves_the_data_of_each_device(site: GuestSite) -> None:
    path = define(site, GuestKind.QEMU)
    devices = {
        "virtio0": DeviceStats(data_plane="vhost-user", read_bytes=3, written_bytes=9),
        "net0": DeviceStats(data_plane="vhost"),
    }
    assert "devices" not in await site.get(f"{path}/status/current")
    guest = site.guests.guests[100]
    guest.state, guest.stats = GuestState.RUNNING, GuestStats(devices=devices)
    assert (await site.get(f"{path}/status/current"))["devices"] == {
        "virtio0": {"dataplane": "vhost-user", "diskread": 3, "diskwrite": 9},
        "net0": {"dataplane": "vhost"},
    }


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
async def test_the_current_status_is_what_ansible_waits_for(site: GuestSite, kind: GuestKind) -> None:
    path = define(site, kind, **({"agent": "1"} if kind is GuestKind.QEMU else {}))
    status = await site.get(f"{path}/status/current")
    assert (status["status"], status["ha"], status["uptime"]) == ("stopped", {"managed": 0}, 0)
    assert status.get("agent") == (1 if kind is GuestKind.QEMU else None)
    await site.do("POST", f"{path}/status/start")
    assert (await site.get(f"{path}/status/current"))["status"] == "running"


@KINDS
async def test_snapshots_are_made_returned_to_and_removed(site: GuestSite, kind: GuestKind) -> None:
    path = define(site, kind)
    assert (await site.get(f"{path}/snapshot"))[-1]["name"] == "current"
    await site.do("POST", f"{path}/snapshot", snapname="a", description="first")
    assert [row["name"] for row in await site.get(f"{path}/snapshot")] == ["a", "current"]
    assert (await site.get(f"{path}/snapshot/a/config"))["snaptime"] == "5"
    assert "snaptime" in await site.get(f"{path}/config", snapshot="a")
    await site.do("PUT", f"{path}/snapshot/a/config", description="second")
    await site.do("POST", f"{path}/snapshot/a/rollback", start=1)
    await site.do("DELETE", f"{path}/snapshot/a")
    asked = [(call[0], call[2]) for call in site.guests.calls]
    assert asked == [
        ("snapshot", {"name": "a", "description": "first", "with_state": False}),
        ("describe", {"name": "a", "description": "second"}),
        ("rollback", {"name": "a", "start": True}),
        ("delsnapshot", {"name": "a", "force": False}),
    ]
    answer = await site.call("GET", f"{path}/snapshot/a/config")
    assert "does not exist" in answer.reason
    assert "digest" in await site.get(f"{path}/snapshot/current/config")
    assert (await site.call("POST", f"{path}/snapshot", {"snapname": "1x"})).status == 400


async def test_only_vms_have_a_memory_to_keep(site: GuestSite) -> None:
    vm, ct = define(site, GuestKind.QEMU), define(site, GuestKind.LXC)
    await site.do("POST", f"{vm}/snapshot", snapname="a", vmstate=1)
    assert site.guests.calls[-1][2]["with_state"] is True
    assert (await site.call("POST", f"{ct}/snapshot", {"snapname": "a", "vmstate": 1})).status == 400


@KINDS
async def test_indexes_list_what_is_below(site: GuestSite, kind: GuestKind) -> None:
    path = define(site, kind)
    assert {"config", "status", "snapshot", "pending"} <= {row["subdir"] for row in await site.get(path)}
    assert {"current", "start", "stop"} <= {row["subdir"] for row in await site.get(f"{path}/status")}


@KINDS
async def test_features_say_what_can_be_cloned(site: GuestSite, kind: GuestKind) -> None:
    path = define(site, kind)
    assert (await site.get(f"{path}/feature", feature="copy"))["hasFeature"] == 1
    assert (await site.get(f"{path}/feature", feature="clone"))["hasFeature"] == 0
    assert (await site.get(f"{path}/feature", feature="snapshot"))["hasFeature"] == 1
    await site.do("POST", f"{path}/template")
    assert (await site.get(f"{path}/feature", feature="snapshot"))["hasFeature"] == 0
    assert (await site.get(f"{path}/feature", feature="clone"))["hasFeature"] == 1


async def test_the_wrong_guest_node_or_kind_does_not_exist(site: GuestSite) -> None:
    define(site, GuestKind.QEMU)
    define(site, GuestKind.LXC)
    for path, node, what in (
        ("qemu/999/config", "testnode", "vm 999"), ("qemu/101/config", "testnode", "vm 101"),
        ("lxc/100/status/current", "testnode", "ct 100"), ("qemu/100/config", "elsewhere", "node 'elsewhere'"),
    ):  # fmt: skip
        answer = await site.call("GET", path, node=node)
        assert (answer.status, answer.reason) == (404, f"{what} does not exist")
    assert (await site.call("GET", "qemu/1/config")).status == 400
    assert (await site.call("GET", "qemu/abc/config")).status == 400


# --- changing -----------------------------------------------------------------------------------------------------


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


# --- power, clone, removal ----------------------------------------------------------------------------------------


@KINDS
async def test_power_methods_take_pves_parameters(site: GuestSite, kind: GuestKind) -> None:
    path = define(site, kind)
    for verb, data in (
        ("start", {}), ("shutdown", {"timeout": 5, "forceStop": 1}), ("start", {"skiplock": 1}), ("reboot", {"timeout": 7}),
        ("suspend", {}), ("resume", {}), ("stop", {"overrule-shutdown": 1, "skiplock": 1}),
    ):  # fmt: skip
        answer = await site.call("POST", f"{path}/status/{verb}", data)
        assert answer.status == 200, answer.reason
        assert answer.data.startswith("UPID:")
    verbs = [(verb, options) for verb, _, options in site.guests.calls]
    assert verbs[1] == ("shutdown", {"timeout_s": 5, "force_stop": True})
    assert verbs[3] == ("reboot", {"timeout_s": 7})


async def test_a_vm_is_reset_and_what_cannot_be_done_is_refused(site: GuestSite) -> None:
    path = define(site, GuestKind.QEMU)
    await site.do("POST", f"{path}/status/reset")
    for verb, data, named in (
        ("suspend", {"todisk": 1}, "todisk"), ("start", {"migratedfrom": "x"}, "migratedfrom"),
        ("start", {"machine": "q35"}, "machine"), ("shutdown", {"timeout": -1}, "timeout"), ("stop", {"nope": 1}, "nope"),
    ):  # fmt: skip
        answer = await site.call("POST", f"{path}/status/{verb}", data)
        assert (answer.status, list(answer.errors)) == (400, [named])
    assert (await site.call("POST", f"{define(site, GuestKind.LXC)}/status/reset")).status == 501


@KINDS
async def test_a_clone_gets_its_name_and_is_linked_for_templates(site: GuestSite, kind: GuestKind) -> None:
    path, name_key = define(site, kind), "name" if kind is GuestKind.QEMU else "hostname"
    await site.do(
        "POST", f"{path}/clone", newid=200, storage="fast", description="d", target="testnode", **{name_key: "copy"}
    )
    assert site.guests.calls[-1][2] == {
        "new_id": 200, "name": "copy", "description": "d", "full": True, "storage": "fast", "pool": None,
        "snapshot": "",
    }  # fmt: skip
    await site.do("POST", f"{path}/template")
    await site.do("POST", f"{path}/clone", newid=201)
    assert site.guests.calls[-1][2]["full"] is False
    for data, named in (
        ({"target": "other"}, "target"),
        ({"full": 0, "storage": "x"}, "storage"),
    ):
        answer = await site.call("POST", f"{path}/clone", {"newid": 202, **data})
        assert (answer.status, list(answer.errors)) == (400, [named])


@KINDS
async def test_a_running_guest_is_removed_only_by_force(site: GuestSite, kind: GuestKind) -> None:
    path = define(site, kind)
    await site.do("POST", f"{path}/status/start")
    answer = await site.call("DELETE", path)
    assert answer.status == 409
    assert "is running" in answer.reason
    assert (await site.do("DELETE", path, force=1, purge=1)).startswith("UPID:")
    assert [verb for verb, _, _ in site.guests.calls] == ["start", "stop", "destroy"]
    assert "does not exist" in (await site.call("GET", f"{path}/config")).reason


# --- cloud-init and agent -----------------------------------------------------------------------------------------


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


async def test_the_agent_answers_in_pves_form(site: GuestSite) -> None:
    path = define(site, GuestKind.QEMU, agent="1")
    not_running = await site.call("POST", f"{path}/agent/ping")
    assert not_running.status == 409
    vm = AgentVm(100)
    site.guests.guests[100].running = vm
    vm.answers["network-get-interfaces"] = [[{"name": "lo"}]]
    assert await site.get(f"{path}/agent/network-get-interfaces") == {"result": [{"name": "lo"}]}
    assert await site.do("POST", f"{path}/agent/ping") == {"result": {}}
    assert await site.do("POST", f"{path}/agent", command="info") == {"result": {}}
    assert (await site.call("POST", f"{path}/agent", {"command": "exec"})).status == 400
    assert (await site.call("POST", f"{path}/agent/shutdown")).status == 501
    site.guests.add(104)
    no_agent = await site.call("POST", "qemu/104/agent/ping")
    assert "No QEMU guest agent configured" in no_agent.reason


async def test_programs_and_files_pass_through_the_agent(site: GuestSite) -> None:
    path = define(site, GuestKind.QEMU, agent="1")
    vm = AgentVm(100)
    site.guests.guests[100].running = vm
    vm.answers |= {
        "exec": [{"pid": 7}],
        "exec-status": [{"exited": True, "exitcode": 0, "out-data": "aGk="}],
        "file-open": [3],
        "file-read": [{"count": 2, "buf-b64": "aGk=", "eof": False}, {"count": 0, "buf-b64": "", "eof": True}],
    }
    assert await site.do("POST", f"{path}/agent/exec", command="ls,-l", input__data="x") == {"pid": 7}
    assert vm.asked[-1] == ("exec", {"path": "ls", "arg": ["-l"], "capture-output": True, "input-data": "eA=="})
    assert (await site.get(f"{path}/agent/exec-status", pid=7))["out-data"] == "hi"
    assert await site.get(f"{path}/agent/file-read", file="/etc/hostname") == {"content": "hi"}
    await site.do("POST", f"{path}/agent/file-write", file="/x", content="hi")
    assert ("file-write", {"handle": 3, "buf-b64": "aGk="}) in vm.asked
    assert vm.asked[-1] == ("file-close", {"handle": 3})
    await site.do("POST", f"{path}/agent/set-user-password", username="u", password="secret")
    assert vm.asked[-1][1]["password"] == "c2VjcmV0"


async def test_a_stopped_container_has_no_interfaces(site: GuestSite) -> None:
    assert await site.get(f"{define(site, GuestKind.LXC)}/interfaces") == []


# --- privileges ---------------------------------------------------------------------------------------------------


@KINDS
async def test_without_privileges_nothing_can_be_read_or_done(site: GuestSite, kind: GuestKind) -> None:
    path = define(site, kind)
    base = f"/nodes/{{node}}/{kind}/{{vmid}}"
    below = [method for method in ApiTable(RESOURCES).methods() if method.path.startswith(base)]
    assert len(below) > 20
    for method in below:
        if method.summary == "Directory index" or method.path.endswith(("/agent", "/snapshot/{snapname}")):
            continue
        rest = method.path.removeprefix(base).replace("{snapname}", "current")
        data = {"feature": "copy", "disk": "scsi0", "size": "1G", "idlist": "scsi0", "newid": 200, "type": "user", "pid": 1,
                "file": "/x", "content": "x", "command": "info", "username": "u", "password": "secret", "vncticket": "x",
                "snapname": "a", "path": "/x", "volume": "rootfs"}  # fmt: skip
        wanted = {
            name: data[name]
            for name in method.params.__struct_fields__
            if name in data and f"{{{name}}}" not in method.path
        }
        answer = await site.call(method.verb, path + rest, wanted, user="eve@pve")
        assert answer.status == 403, (method.verb, method.path, answer.status, answer.reason)


async def test_each_key_needs_its_own_privilege(site: GuestSite) -> None:
    path = define(site, GuestKind.QEMU)
    site.grant("/vms/100", "VM.Config.Memory")
    assert (await site.call("PUT", f"{path}/config", {"memory": 1024}, user="eve@pve")).status == 200
    for data in ({"cores": 2}, {"memory": 512, "name": "x"}, {"delete": "scsi0"}, {"args": "-S"}):
        assert (await site.call("PUT", f"{path}/config", data, user="eve@pve")).status == 403
    assert (await site.call("POST", f"{path}/config", {"cores": 2}, user="eve@pve")).status == 403
    site.grant("/vms/100", "VM.Config.HWType")
    answer = await site.call("PUT", f"{path}/config", {"args": "-S"}, user="eve@pve")
    assert (answer.status, "Sys.Modify" in answer.reason) == (403, True)
    site.grant("/", "Sys.Modify")
    assert (await site.call("PUT", f"{path}/config", {"args": "-S"}, user="eve@pve")).status == 200


async def test_creation_needs_allocation_keys_space_and_bridge(site: GuestSite) -> None:
    data = {"vmid": 200, "memory": 512, "scsi0": "local:8", "net0": "virtio,bridge=vmbr0"}
    grants: dict[str, list[str]] = {}
    for path, privilege in (
        ("/vms/200", "VM.Allocate"), ("/vms/200", "VM.Config.Memory"), ("/vms/200", "VM.Config.Disk"),
        ("/storage/local", "Datastore.AllocateSpace"), ("/vms/200", "VM.Config.Network"),
        ("/sdn/zones/localnetwork/vmbr0", "SDN.Use"),
    ):  # fmt: skip
        answer = await site.call("POST", "qemu", data, user="eve@pve")
        assert answer.status == 403
        assert privilege in answer.reason
        grants.setdefault(path, []).append(privilege)
        site.grant(path, *grants[path])
    assert (await site.call("POST", "qemu", data, user="eve@pve")).status == 200


async def test_a_pool_gives_the_right_to_create_in_it(site: GuestSite) -> None:
    site.grant("/pool/dev", "VM.Allocate", "VM.Config.Memory")
    data = {"vmid": 200, "memory": 512}
    assert (await site.call("POST", "qemu", data, user="eve@pve")).status == 403
    assert (await site.call("POST", "qemu", data | {"pool": "other"}, user="eve@pve")).status == 403
    assert (await site.call("POST", "qemu", data | {"pool": "dev"}, user="eve@pve")).status == 200


async def test_one_cannot_clone_without_space_or_into_a_foreign_id(site: GuestSite) -> None:
    path = define(site, GuestKind.QEMU)
    site.grant("/vms/100", "VM.Clone")
    assert (await site.call("POST", f"{path}/clone", {"newid": 200}, user="eve@pve")).status == 403
    site.grant("/vms/200", "VM.Allocate")
    answer = await site.call("POST", f"{path}/clone", {"newid": 200}, user="eve@pve")
    assert (answer.status, "/storage/local" in answer.reason) == (403, True)
    site.grant("/storage/local", "Datastore.AllocateSpace")
    assert (await site.call("POST", f"{path}/clone", {"newid": 200}, user="eve@pve")).status == 200
    path = define(site, GuestKind.QEMU, net0="virtio=BC:24:11:00:00:01,bridge=vmbr9")
    site.grant("/vms/201", "VM.Allocate")
    answer = await site.call("POST", f"{path}/clone", {"newid": 201}, user="eve@pve")
    assert (answer.status, "vmbr9, SDN.Use" in answer.reason) == (403, True)


async def test_skiplock_needs_the_right_to_modify_the_system(site: GuestSite) -> None:
    path = define(site, GuestKind.QEMU)
    site.grant("/vms/100", "VM.PowerMgmt")
    assert (await site.call("POST", f"{path}/status/start", {"skiplock": 1}, user="eve@pve")).status == 403
    assert (await site.call("POST", f"{path}/status/start", user="eve@pve")).status == 200


@KINDS
async def test_a_locked_guest_is_left_alone_unless_skiplock_says_otherwise(site: GuestSite, kind: GuestKind) -> None:
    path = define(site, kind, lock="backup", cores=1)
    slot = "scsi0" if kind is GuestKind.QEMU else "rootfs"
    for verb, where, data in (
        ("POST", f"{path}/status/start", {}), ("POST", f"{path}/status/stop", {}), ("POST", f"{path}/status/shutdown", {}),
        ("POST", f"{path}/status/suspend", {}), ("POST", f"{path}/status/resume", {}),
        ("PUT", f"{path}/config", {"cores": 2}), ("PUT", f"{path}/resize", {"disk": slot, "size": "+1G"}),
        ("DELETE", path, {}),
    ):  # fmt: skip
        answer = await site.call(verb, where, data)
        assert (answer.status, "is locked (backup)" in answer.reason) == (409, True), where
        assert (await site.call(verb, where, {**data, "skiplock": 1})).status == 200, where
        if verb == "POST":
            site.guests.guests[int(path.partition("/")[2])].state = GuestState.STOPPED
    path = define(site, kind, lock="backup")
    assert (await site.call("POST", f"{path}/clone", {"newid": 200})).status == 409
    assert (await site.call("POST", f"{path}/template")).status == 409
    assert (await site.call("PUT", f"{path}/config", {"delete": "lock"})).status == 200
    assert (await site.call("POST", f"{path}/status/start")).status == 200


# --- hostile input and documents ----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.dictionaries(st.one_of(st.sampled_from(["net0", "scsi0", "delete", "digest", "tags", "args", "boot", "cpu"]),
                                      st.text("abcdefgh0123_-", min_size=1, max_size=8)), HOSTILE_TEXT, max_size=4))  # fmt: skip
def test_hostile_changes_end_in_a_clear_refusal_or_success(tmp_path: Path, data: dict[str, str]) -> None:
    sendable = {key: value.encode("utf-8", "replace").decode() for key, value in data.items()}
    assert _change(tmp_path, sendable) in (200, 400, 409)


def _change(directory: Path, data: dict[str, str]) -> int:
    """The status of one PUT to a fresh application, in a loop of its own."""
    import asyncio

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
