"""Who may change what: a table of changes and the privileges they need."""

from __future__ import annotations

import pytest

from appliance.model.guest import GuestKind
from appliance.services import guest_config
from appliance.services.guest_config import SYSTEM, Requirement

VM, CT = GuestKind.QEMU, GuestKind.LXC
GUEST = "/vms/100"
DISK = "local:100/vm-100-disk-0.qcow2"


def needs(
    kind: GuestKind, put: dict[str, object], *, old: dict[str, str] | None = None, delete: tuple[str, ...] = ()
) -> set[tuple[str, str]]:
    """Every (path, privilege); alternatives are joined by "|" in the privilege."""
    found = guest_config.required(kind, 100, old=old or {}, put=guest_config.parse(kind, put), delete=delete)
    return {
        (requirement.alternatives[0][0], "|".join(privilege for _, privilege in requirement.alternatives))
        for requirement in found
    }


@pytest.mark.parametrize(
    ("put", "privilege"),
    [
        ({"memory": 512}, "VM.Config.Memory"), ({"cores": 1}, "VM.Config.CPU"), ({"name": "a"}, "VM.Config.Options"),
        ({"machine": "q35"}, "VM.Config.HWType"), ({"ciuser": "a"}, "VM.Config.Cloudinit"),
        ({"ipconfig0": "ip=dhcp"}, "VM.Config.Cloudinit|VM.Config.Network"), ({"ide2": "none"}, "VM.Config.CDROM"),
        ({"net0": "virtio"}, "VM.Config.Network"), ({"scsi0": DISK}, "VM.Config.Disk"), ({"boot": "c"}, "VM.Config.Disk"),
        ({"engine": "native"}, "VM.Config.HWType"), ({"freeze": 0}, "VM.PowerMgmt"),
    ],
)  # fmt: skip
def test_a_key_needs_its_privilege_and_no_other(put: dict[str, object], privilege: str) -> None:
    assert needs(VM, put) == {(GUEST, privilege)}


def test_deleting_a_key_needs_what_setting_it_does() -> None:
    assert needs(VM, {}, delete=("memory",)) == {(GUEST, "VM.Config.Memory")}
    assert needs(VM, {}, old={"ide2": "none"}, delete=("cdrom",)) == {(GUEST, "VM.Config.CDROM")}
    assert needs(VM, {}, old={"scsi0": DISK}, delete=("scsi0",)) == {(GUEST, "VM.Config.Disk")}


def test_new_volumes_need_space_on_their_storage() -> None:
    space = ("/storage/fast", "Datastore.AllocateSpace")
    assert needs(VM, {"scsi0": "fast:8"}) == {(GUEST, "VM.Config.Disk"), space}
    assert needs(VM, {"ide2": "fast:cloudinit"}) == {(GUEST, "VM.Config.Cloudinit"), space}
    assert needs(CT, {"mp0": "fast:8,mp=/a"}) == {(GUEST, "VM.Config.Disk"), space}
    assert needs(VM, {"scsi0": "fast:0,import-from=other:import/x.raw"}) == {
        (GUEST, "VM.Config.Disk"), space, ("/storage/other", "Datastore.AllocateSpace|Datastore.Audit"),
    }  # fmt: skip


def test_anothers_disk_needs_rights_on_its_owner_or_storage() -> None:
    assert needs(VM, {"scsi0": "local:200/vm-200-disk-0.raw"}) == {
        (GUEST, "VM.Config.Disk"), ("/vms/200", "VM.Config.Disk|Datastore.Allocate"),
    }  # fmt: skip
    assert needs(VM, {"scsi0": "fast:0,import-from=local:200/vm-200-disk-0.raw"}) >= {
        ("/vms/200", "VM.Config.Disk|Datastore.Allocate")
    }


def test_an_iso_needs_a_look_at_its_storage_and_a_changed_option_nothing_more() -> None:
    iso = "local:iso/x.iso,media=cdrom"
    assert needs(VM, {"ide2": iso}) == {
        (GUEST, "VM.Config.CDROM"), ("/storage/local", "Datastore.AllocateSpace|Datastore.Audit"),
    }  # fmt: skip
    assert needs(VM, {"ide2": f"{iso},size=1G"}, old={"ide2": iso}) == {(GUEST, "VM.Config.CDROM")}
    assert needs(VM, {"ide2": "none"}, old={"ide2": DISK}) == {(GUEST, "VM.Config.Disk"), (GUEST, "VM.Config.CDROM")}


def test_backups_and_snippets_are_nobodys_disks() -> None:
    for name in ("backup/vzdump-qemu-200.vma", "backup/vm-100-x.raw", "snippets/vm-100-x.raw", "100/x.raw"):
        assert needs(VM, {"ide2": f"local:{name},media=cdrom"}) == {
            (GUEST, "VM.Config.CDROM"), ("/storage/local", "Datastore.Allocate"),
        }, name  # fmt: skip


def test_a_copy_needs_the_use_of_its_bridges() -> None:
    config = {"net0": "virtio=BC:24:11:00:00:01,bridge=vmbr0", "net3": "virtio=BC:24:11:00:00:02,bridge=vmbr1,tag=7"}
    found = guest_config.bridge_requirements(VM, config | {"memory": "512"})
    assert [requirement.alternatives for requirement in found] == [
        (("/sdn/zones/localnetwork/vmbr0", "SDN.Use"),), (("/sdn/zones/localnetwork/vmbr1/7", "SDN.Use"),),
    ]  # fmt: skip


def test_a_bridge_needs_its_use_and_only_when_it_changes() -> None:
    nic = "virtio=BC:24:11:00:00:01,bridge=vmbr0"
    assert needs(VM, {"net0": nic}) == {(GUEST, "VM.Config.Network"), ("/sdn/zones/localnetwork/vmbr0", "SDN.Use")}
    assert needs(VM, {"net0": f"{nic},tag=7"}) >= {("/sdn/zones/localnetwork/vmbr0/7", "SDN.Use")}
    assert needs(VM, {"net0": f"{nic},rate=5"}, old={"net0": nic}) == {(GUEST, "VM.Config.Network")}


def over(
    old: dict[str, object], new: dict[str, object], asked: tuple[str, ...] = (), kind: GuestKind = VM
) -> set[tuple[str, str]]:
    """What restoring `new` over `old` needs."""
    parsed = [guest_config.parse(kind, each) for each in (old, new)]
    found = guest_config.restored_over(kind, 100, old=parsed[0], new=parsed[1], asked=asked)
    return {each.alternatives[0] for each in found}


def test_who_may_back_a_guest_up_may_return_it_to_what_it_was() -> None:
    old: dict[str, object] = {"memory": 512, "net0": "virtio,bridge=vmbr0", "scsi1": DISK, "name": "new"}
    new: dict[str, object] = {"memory": 1024, "net0": "e1000,bridge=vmbr0", "cores": 2, "ipconfig0": "ip=dhcp"}
    assert over(old, new) == set()
    assert over({"unprivileged": 0}, {"unprivileged": 0, "hostname": "a"}, kind=CT) == set()


def test_a_restored_guest_gets_nothing_of_the_host_that_its_restorer_may_not_give() -> None:
    assert over({}, {"scsi0": "fast:1"}) == {("/storage/fast", "Datastore.AllocateSpace")}
    assert over({}, {"net0": "virtio,bridge=vmbr1"}) == {("/sdn/zones/localnetwork/vmbr1", "SDN.Use")}
    assert over({}, {"args": "-S"}) == over({"args": "-S"}, {}) == {SYSTEM}
    assert over({"args": "-S"}, {"args": "-S"}) == set()
    assert over({"unprivileged": 1}, {"unprivileged": 0}, kind=CT) == {SYSTEM}
    both: dict[str, object] = {"unprivileged": 0}
    assert over(both, {**both, "features": "nesting=1"}, kind=CT) == {(GUEST, "VM.Allocate"), SYSTEM}


def test_what_a_request_asks_for_besides_the_backup_needs_its_privilege() -> None:
    assert over({"memory": 512}, {"memory": 1024, "cores": 2}, asked=("memory",)) == {(GUEST, "VM.Config.Memory")}
    assert over({"memory": 512}, {"memory": 512}, asked=("memory",)) == set()


def test_what_reaches_the_host_needs_the_right_to_modify_it() -> None:
    system = (SYSTEM[0], SYSTEM[1])
    assert needs(VM, {"args": "-S"}) == {(GUEST, "VM.Config.HWType"), system}
    assert system in needs(VM, {"lock": "backup"})
    assert system in needs(VM, {}, delete=("lock",))
    assert system in needs(CT, {"unprivileged": 0})
    assert system not in needs(CT, {"unprivileged": 1})
    assert system in needs(CT, {"features": "nesting=1,fuse=1"})
    assert system not in needs(CT, {"features": "nesting=1"})
    assert system not in needs(CT, {"features": "nesting=1,fuse=1"}, old={"features": "fuse=1"})
    assert system in needs(CT, {"features": "nesting=1"}, old={"unprivileged": "0"})
    assert system not in needs(CT, {"hostname": "a"}, old={"unprivileged": "0", "features": "nesting=1"})
    assert needs(VM, {"rng0": "source=/dev/urandom"}) == {(GUEST, "VM.Config.HWType")}
    assert ("/mapping/hwrng", "Mapping.Use|Sys.Modify") in needs(VM, {"rng0": "source=/dev/hwrng"})


def test_a_pool_does_as_well_while_a_guest_is_created() -> None:
    (requirement,) = guest_config.required(VM, 100, old={}, put={"memory": "512"}, pool="dev")
    assert requirement == Requirement(((GUEST, "VM.Config.Memory"), ("/pool/dev", "VM.Config.Memory")))


def test_every_key_but_the_refused_ones_needs_something() -> None:
    for kind in GuestKind:
        for key in guest_config.key_table(kind):
            if key.supported and not key.read_only:
                name = next(key.names())
                assert guest_config.required(kind, 100, old={}, put={name: ""}, delete=()) or key.reprint, name
