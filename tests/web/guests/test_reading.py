"""What is read of guests: lists, status, indexes, features."""

from __future__ import annotations

from appliance.model.guest import DeviceStats, GuestKind, GuestState, GuestStats
from tests.web.guests.guest_site import KINDS, GuestSite, define


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


@KINDS
async def test_the_current_status_is_what_ansible_waits_for(site: GuestSite, kind: GuestKind) -> None:
    path = define(site, kind, **({"agent": "1"} if kind is GuestKind.QEMU else {}))
    status = await site.get(f"{path}/status/current")
    assert (status["status"], status["ha"], status["uptime"]) == ("stopped", {"managed": 0}, 0)
    assert status.get("agent") == (1 if kind is GuestKind.QEMU else None)
    await site.do("POST", f"{path}/status/start")
    assert (await site.get(f"{path}/status/current"))["status"] == "running"


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


async def test_a_stopped_container_has_no_interfaces(site: GuestSite) -> None:
    assert await site.get(f"{define(site, GuestKind.LXC)}/interfaces") == []
