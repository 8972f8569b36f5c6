"""Who may do what with guests."""

from __future__ import annotations

from appliance.model.guest import GuestKind
from appliance.web.table import ApiTable
from tests.web.guests.guest_site import KINDS, RESOURCES, GuestSite, define


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
