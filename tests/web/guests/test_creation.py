"""Guests that are created, cloned and removed: what PVE's clients send, what is refused."""

from __future__ import annotations

import pytest

from appliance.model.guest import GuestKind
from tests.web.guests.guest_site import KINDS, GuestSite, define


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
